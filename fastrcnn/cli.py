"""The command line. Each command imports what it needs, so that help is quick."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_CONFIG_HELP = "name of a config (`fastrcnn info` lists them) or path of a YAML file"
_OVERRIDES_HELP = "settings that replace the config's, e.g. optimizer.lr=0.005"
_CHECKPOINT_HELP = (
    "weights: a .pth of fastrcnn or mmdetection, a .safetensors, a URL, or a config's name, for its published file "
    "(default: the published file of CONFIG; downloads are kept)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; argv None: the arguments of the process.

    Returns:
        The exit status: 0; 1 if `detect` could not read some of the images; 2 after an error of the user's, which is
        told in one line; 130 if interrupted. Errors of the program itself are raised.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes positional arguments in one run: images or overrides that follow an option are left over.
    name = next((name for name in ("overrides", "images") if hasattr(arguments, name)), None)
    if rest and (name is None or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if name is not None:
        setattr(arguments, name, getattr(arguments, name) + rest)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError, TypeError, ImportError, FloatingPointError) as error:
        print(f"fastrcnn: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastrcnn: interrupted", file=sys.stderr)
        return 130


def detect(arguments: argparse.Namespace) -> int:
    from fastrcnn.detect_files import DRAWN_SCORE, detect_files, find_images
    from fastrcnn.detector import load

    images = find_images(arguments.images)
    detector = load(arguments.config, arguments.checkpoint)
    unreadable = detect_files(detector, images, arguments.out)
    read = f"{len(images) - len(unreadable)} of {len(images)}"
    print(f"Wrote to {arguments.out}: results.json, and pictures of {read} images (drawn: scores from {DRAWN_SCORE})")
    for reason in unreadable.values():
        print(f"fastrcnn: error: {reason}", file=sys.stderr)
    return 1 if unreadable else 0


def train(arguments: argparse.Namespace) -> int:
    from fastrcnn.config import load_config
    from fastrcnn.training.train import train

    train(load_config(arguments.config, arguments.overrides), arguments.resume)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    from fastrcnn.config import load_config
    from fastrcnn.distributed import process_group
    from fastrcnn.evaluate_checkpoints import evaluate_checkpoints

    # argparse gives --checkpoint everything that follows it.
    is_override = {item: re.match(r"[\w.]+=", item) and not Path(item).exists() for item in arguments.checkpoint}
    overrides = [*arguments.overrides, *(item for item in arguments.checkpoint if is_override[item])]
    checkpoints = [item for item in arguments.checkpoint if not is_override[item]]
    with process_group():  # torchrun's, if it started this one
        evaluate_checkpoints(load_config(arguments.config, overrides), checkpoints, arguments.proposals)
    return 0


def data(arguments: argparse.Namespace) -> int:
    from fastrcnn.config import load_config
    from fastrcnn.data.inspection.report import report

    print(report(load_config(arguments.config, arguments.overrides), arguments.out))
    print(f"Also in {arguments.out}: report.txt, problems.json, histograms.png and contact sheets")
    return 0


def benchmark(arguments: argparse.Namespace) -> int:
    from fastrcnn.benchmark import benchmark
    from fastrcnn.stages import detection_stages, draw_stages, stage_table

    print(benchmark(arguments.config), flush=True)
    times = detection_stages(arguments.config)
    print(stage_table("stage of fastrcnn's detection", times))
    if arguments.profile is not None:
        draw_stages(f"Detection with {arguments.config}", times, arguments.profile)
        print(f"\nThe stages as a picture: {arguments.profile}")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    from fastrcnn.config import load_config
    from fastrcnn.models.convert import convert

    config = load_config(arguments.fits) if arguments.fits else None
    print(convert(arguments.source, arguments.target, config))
    return 0


def zoo(arguments: argparse.Namespace) -> int:
    from fastrcnn.zoo import table

    print(table())
    return 0


def info(arguments: argparse.Namespace) -> int:
    from fastrcnn.info import report

    print(report())
    return 0


class _Parser(argparse.ArgumentParser):
    """One line for an error, as for those of the commands."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastrcnn: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastrcnn",
        description="Faster R-CNN: detect, train, evaluate.",
        epilog="example:\n  fastrcnn detect faster_rcnn_r50_fpn_1x_coco photo.jpg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = _command(
        commands,
        "detect",
        detect,
        "finds objects in images; writes pictures with boxes, and results in COCO JSON",
        "fastrcnn detect faster_rcnn_r50_fpn_1x_coco photo.jpg holiday/ 'scans/*.png' --out found",
    )
    command.add_argument("images", metavar="IMAGES", nargs="+", help="image files, folders of images, or patterns")
    command.add_argument("--checkpoint", metavar="F", help=_CHECKPOINT_HELP)
    command.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("detections"), help="folder to write to (default: %(default)s)"
    )

    command = _command(
        commands,
        "train",
        train,
        "trains a detector and evaluates it; writes checkpoints, log and curves to the config's output_dir",
        "fastrcnn train my_cells.yaml train.batch_size=4 optimizer.lr=0.005",
    )
    command.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES_HELP)
    command.add_argument("--resume", action="store_true", help="continue from output_dir/last.pth")

    command = _command(
        commands,
        "eval",
        evaluate,
        "measures detectors on the validation data: COCO and VOC metrics, AP of each class, curves, confusions",
        "fastrcnn eval my_cells.yaml --checkpoint runs/my_cells/best.pth data.test.scale=[640,480]",
    )
    command.add_argument(
        "--checkpoint",
        metavar="F",
        nargs="+",
        action="extend",
        default=[],
        help=f"{_CHECKPOINT_HELP}; several, or folders of *.pth, are compared in a table",
    )
    command.add_argument(
        "--proposals",
        action="store_true",
        help="measure the RPN alone: average recall of its best 100, 300 and 1000 boxes per image",
    )
    command.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES_HELP)

    command = _command(
        commands,
        "data",
        data,
        "looks through the training and validation data: counts, sizes, suspicious boxes and files, contact sheets",
        "fastrcnn data my_cells.yaml --out cells_report data.train.format=voc",
    )
    command.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES_HELP)
    command.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("data_report"), help="folder to write to (default: %(default)s)"
    )

    command = _command(
        commands,
        "benchmark",
        benchmark,
        "fps and memory of detection on this machine, next to torchvision's Faster R-CNN where that is installed, and "
        "the time of each stage",
        "fastrcnn benchmark faster_rcnn_r50_fpn_1x_coco --profile stages.png",
    )
    command.add_argument(
        "--profile", metavar="FILE", type=Path, help="draw the time of each stage (.png, .svg, ...; needs matplotlib)"
    )
    command = _command(
        commands,
        "convert",
        convert,
        "writes a checkpoint in the other layout: mmdetection's becomes fastrcnn's, fastrcnn's becomes mmdetection's",
        "fastrcnn convert runs/my_cells/best.pth my_cells_mmdet.pth my_cells.yaml",
        config=False,
    )
    command.add_argument(
        "source", metavar="IN", help="a .pth of fastrcnn or mmdetection, a .safetensors, a URL, or the name of a config"
    )
    command.add_argument("target", metavar="OUT", help="the file to write: *.pth or *.safetensors")
    command.add_argument(
        "fits",
        metavar="CONFIG",
        nargs="?",
        help="name or path of a config that IN must fit; it names the classes if IN does not",
    )

    _command(
        commands,
        "zoo",
        zoo,
        "the table of published models: config, box AP, memory, fps, and whether its checkpoint is here",
        "fastrcnn zoo",
        config=False,
    )
    _command(
        commands,
        "info",
        info,
        "versions, native build, devices and configs: for bug reports",
        "fastrcnn info > report.txt",
        config=False,
    )
    return parser


def _command(commands, name: str, run, description: str, example: str, config: bool = True) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the example stays on its line
        allow_abbrev=False,
    )
    command.set_defaults(run=run)
    if config:
        command.add_argument("config", metavar="CONFIG", help=_CONFIG_HELP)
    return command
