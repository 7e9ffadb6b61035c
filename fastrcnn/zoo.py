"""The zoo's table: what each config reaches as published, and whether its checkpoint is here."""

from pathlib import Path

from fastrcnn.config import PublishedConfig, config_names, load_config
from fastrcnn.download import cached_path

HEADER = ("config", "box AP", "memory", "fps", "checkpoint")


def table() -> str:
    """One line per config with published figures, and where checkpoints are kept."""
    rows: list[tuple[str, ...]] = [HEADER]
    folder = Path()
    for name in config_names():
        published = load_config(name).published
        if published.checkpoint:
            folder = cached_path(published.checkpoint).parent
            rows.append((name, *_figures(published), _state(cached_path(published.checkpoint))))
        elif published.voc07_map is not None:
            rows.append((name, *_figures(published), "none published"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]).rstrip()
        for row in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            "As published by mmdetection: box AP on COCO val2017, memory in training (GB), fps of detection on a V100.",
            "VOC07: by the paper, mean AP on VOC 2007 test (11 points).",
            f"Checkpoints are kept in {folder}; `fastrcnn detect CONFIG IMAGE` downloads the missing one.",
        ]
    )


def _figures(published: PublishedConfig) -> list[str]:
    """Empty where nothing is published."""
    ap, memory, fps = (
        "-" if figure is None else f"{figure:.1f}" for figure in (published.box_ap, published.memory_gb, published.fps)
    )
    if published.voc07_map is not None:
        ap = f"VOC07 {published.voc07_map:.1f}"
    return [ap, memory, fps if published.gpu == "V100" else f"{published.gpu} {fps}"]


def _state(path: Path) -> str:
    part = path.with_name(f"{path.name}.part")
    if path.is_file():
        return f"cached, {path.stat().st_size / 2**20:.0f} MiB: {path.name}"
    if part.is_file():
        return f"begun, {part.stat().st_size / 2**20:.0f} MiB"
    return "not downloaded"
