"""Do detections belong to a dataset?"""

from collections.abc import Mapping

from fastrcnn.data.sample import Dataset
from fastrcnn.models.detections import Detections


def check_detections(dataset: Dataset, detections: Mapping[int, Detections]) -> None:
    """Raises ValueError for an image id that the dataset lacks, and for a label beyond its classes."""
    unknown = detections.keys() - {sample.image_id for sample in dataset.samples}
    if unknown:
        raise ValueError(f"Detections of image id {min(unknown)}, which dataset {dataset.name!r} does not have")
    for image_id, detected in detections.items():
        wrong = detected.labels[(detected.labels < 0) | (detected.labels >= len(dataset.classes))]
        if len(wrong):
            raise ValueError(
                f"Image id {image_id} has a detection with label {int(wrong[0])}; dataset {dataset.name!r} has "
                f"{len(dataset.classes)} classes, labels 0 .. {len(dataset.classes) - 1}"
            )
