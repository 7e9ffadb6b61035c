"""The names of the classes that a model tells apart, and their COCO category ids."""

from collections.abc import Sequence

_COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
COCO_CLASSES = [name.strip() for name in _COCO.split(",")]

# COCO planned 90 categories and labelled 80; the ids have gaps where the others were.
COCO_CATEGORY_IDS = [id for id in range(1, 91) if id not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def class_names(num_classes: int, *sources: Sequence[str] | None) -> list[str]:
    """The first of the sources (a checkpoint's classes, a config's) that names anything, in label order.

    Without any: COCO's 80 names for 80 classes, else placeholder_names.

    Raises:
        ValueError: the source has another number of names.
    """
    for names in sources:
        if names:
            if len(names) != num_classes:
                raise ValueError(
                    f"model.box_head.num_classes is {num_classes}, but there are {len(names)} class names "
                    f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
                )
            return list(names)
    return list(COCO_CLASSES) if num_classes == len(COCO_CLASSES) else placeholder_names(num_classes)


def placeholder_names(num_classes: int) -> list[str]:
    return [f"class_{label}" for label in range(num_classes)]


def category_ids(classes: Sequence[str]) -> list[int]:
    """COCO category ids in label order: COCO's own for its 80 classes, else 1, 2, 3, ..."""
    return list(COCO_CATEGORY_IDS) if list(classes) == COCO_CLASSES else list(range(1, len(classes) + 1))
