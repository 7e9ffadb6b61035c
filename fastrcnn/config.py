"""The configuration of an experiment: every setting, its type, its default and its meaning.

The defaults are the recipe of ``faster_rcnn_r50_fpn_1x_coco`` (mmdetection's 1x schedule), so a YAML file in
``configs/`` states only what differs. Nothing is inherited between files, an unknown key is an error, and
``key=value`` overrides use the dotted path of a field: ``model.box_head.num_classes=3``.

    config = load_config("faster_rcnn_r50_fpn_1x_coco", ["optimizer.lr=0.005"])
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# An image's padded size is its own size rounded up to a multiple of this, however large the batch around it is.
PAD_MULTIPLE = 32

# --- model ------------------------------------------------------------------------------------------------------------


@dataclass
class BackboneConfig:
    """ResNet and ResNeXt, or VGG-16, which has pretrained and frozen_stages alone. Sizes follow from the depth."""

    kind: str = "resnet"  # resnet | vgg16
    depth: int = 50  # 18, 34, 50 or 101
    groups: int = 1  # ResNeXt: groups of the 3x3 convolutions, ...
    base_width: int = 64  # ... and channels of one group in the first stage: 32 and 4 are "32x4d"
    style: str = "pytorch"  # where a bottleneck strides: "pytorch" in its 3x3 convolution, "caffe" in its first 1x1
    dilated_c5: bool = False  # the last stage keeps stride 16 and dilates its 3x3 convolutions instead (DC5)
    # batch norm: "eval" running statistics, affine trained | "frozen" affine fixed too | "train" batch statistics
    norm: str = "eval"
    # no gradient in the stem and the first k stages (0: stem only); -1: everything is trained. VGG-16: in the first k
    # blocks of convolutions
    frozen_stages: int = 1
    # ImageNet weights: URL or path; null: none
    pretrained: str | None = "https://download.pytorch.org/models/resnet50-0676ba61.pth"


@dataclass
class FpnConfig:
    channels: int = 256  # of every output level
    num_levels: int = 5  # P2 .. P6; a level beyond the backbone's last is its predecessor subsampled by two


@dataclass
class AssignerConfig:
    """Which boxes are positive, negative or ignored, by their largest IoU with an object (ops.assign_max_iou)."""

    pos_iou: float = 0.7  # positive at or above
    neg_iou: float = 0.3  # negative below; between the two: ignored
    min_pos_iou: float = 0.3  # an object's best boxes are positive too if they reach this ...
    match_low_quality: bool = True  # ... and this is set


@dataclass
class BoxLossConfig:
    """How far a positive's predicted box is from its object."""

    # of the deltas, summed over the four: l1 | smooth_l1
    # of the decoded box in pixels: iou (its -log) | giou | diou | ciou | bounded_iou (ops.iou_loss)
    kind: str = "l1"
    beta: float = 1.0  # smooth_l1: quadratic below
    weight: float = 1.0


@dataclass
class SamplerConfig:
    num: int = 256  # boxes per image that enter the loss
    positive_fraction: float = 0.5  # at most this share of them positive; negatives fill the rest


@dataclass
class ProposalsConfig:
    pre_nms: int = 1000  # best anchors kept per level
    post_nms: int = 1000  # proposals kept per image, over all levels
    iou_threshold: float = 0.7
    min_size: float = 0.0  # pixels of the network input; a proposal is kept if both sides are larger


@dataclass
class RpnConfig:
    channels: int = 256  # of the 3x3 convolution
    anchor_scales: list[float] = field(default_factory=lambda: [8.0])  # anchor side = scale * stride
    anchor_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])  # height / width
    strides: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])  # one per level
    allowed_border: int = -1  # in training: pixels that an anchor may cross the image border by; -1: any
    assigner: AssignerConfig = field(default_factory=AssignerConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    box_loss: BoxLossConfig = field(default_factory=BoxLossConfig)
    train_proposals: ProposalsConfig = field(default_factory=lambda: ProposalsConfig(pre_nms=2000))
    test_proposals: ProposalsConfig = field(default_factory=ProposalsConfig)


@dataclass
class PoolConfig:
    kind: str = "roi_align"  # roi_align | roi_pool, which has output_size and one stride
    output_size: int = 7  # bins per side
    sampling_ratio: int = 0  # samples per bin and side; 0: adaptive, ceil(RoI size / bins)
    strides: list[int] = field(default_factory=lambda: [4, 8, 16, 32])  # of the levels that RoIs are pooled from
    finest_scale: int = 56  # pixels: RoIs up to twice this side come from the finest level


@dataclass
class BoxHeadConfig:
    num_classes: int = 80  # foreground classes; background is the last index
    channels: int = 1024  # of the two fully connected layers
    dropout: float = 0.0  # probability, in training, after each of them
    assigner: AssignerConfig = field(default_factory=lambda: AssignerConfig(0.5, 0.5, 0.5, match_low_quality=False))
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(num=512, positive_fraction=0.25))
    box_loss: BoxLossConfig = field(default_factory=BoxLossConfig)
    delta_stds: list[float] = field(default_factory=lambda: [0.1, 0.1, 0.2, 0.2])  # deltas are divided by these
    score_threshold: float = 0.05  # a detection's score is above this, in evaluation; Detector.detect has its own
    iou_threshold: float = 0.5  # of the class-wise NMS
    max_detections: int = 100  # per image


@dataclass
class ModelConfig:
    # random weights of FPN and box head: "mmdet" as the zoo was trained (Xavier; N(0, 0.01) for logits, N(0, 0.001) for
    # deltas) | "fan_in" uniform, scaled by a layer's inputs alone: more exact boxes where the backbone is random, too
    init: str = "mmdet"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FpnConfig | None = field(default_factory=FpnConfig)  # null: the backbone's last map is the only level
    rpn: RpnConfig = field(default_factory=RpnConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass
class ImageConfig:
    """(pixel - mean) / std, in the order of channel_order, then zero-padded to a multiple of PAD_MULTIPLE."""

    channel_order: str = "rgb"  # "rgb" or "bgr": the order that the network sees and that mean and std are in
    mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])
    std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])


@dataclass
class SourceConfig:
    """Further annotations to train on, and their images."""

    annotations: str
    images: str


@dataclass
class TrainDataConfig:
    format: str = "coco"  # coco | voc | yolo
    # coco: the JSON file; voc: a list of image names, or the folder of the XML files; yolo: the folder of the label
    # files, or data.yaml
    annotations: str = "data/coco/annotations/instances_train2017.json"
    images: str = "data/coco/train2017"  # the folder that file names are relative to
    scales: list[list[int]] = field(default_factory=lambda: [[1333, 800]])  # [[long, short], ...], pixels
    # fixed: the one scale | value: one of the scales | range: short side between those of the two scales
    scale_mode: str = "fixed"
    flip: float = 0.5  # probability of a horizontal flip
    repeat: int = 1  # passes over the images in one epoch
    keep_empty: bool = False  # train on images without objects of the classes, too: they are all background
    # [{annotations: ..., images: ...}, ...]: what else is trained on, in the same format (VOC 2007 and 2012, say)
    more: list[SourceConfig] = field(default_factory=list)


@dataclass
class ValDataConfig:
    format: str = "coco"
    annotations: str = "data/coco/annotations/instances_val2017.json"
    images: str = "data/coco/val2017"


@dataclass
class TestDataConfig:
    scale: list[int] = field(default_factory=lambda: [1333, 800])  # [long, short], pixels
    # where Detector.detect resizes, to the same bytes: cpu | device (the model's, to which whole pictures then travel)
    resize: str = "cpu"


@dataclass
class DataConfig:
    # {name in the annotations: name to use}, before `classes` chooses; two that get the same name become one class
    rename: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)  # names, in label order; empty: those of the annotations
    # images kept on disk, as arrays, for the next epoch and the next run: none | decoded | resized. The pixels are the
    # same with and without; a photo of 12 megapixels takes 36 MB decoded, 3 MB resized to 1333 x 800
    cache: str = "none"
    cache_folder: str = ""  # where to; files of images that were deleted or changed stay there until you delete them
    image: ImageConfig = field(default_factory=ImageConfig)
    train: TrainDataConfig = field(default_factory=TrainDataConfig)
    val: ValDataConfig = field(default_factory=ValDataConfig)
    test: TestDataConfig = field(default_factory=TestDataConfig)


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass
class OptimizerConfig:
    kind: str = "sgd"  # sgd: with momentum | adamw: Adam with decoupled weight decay, betas 0.9 and 0.999
    lr: float = 0.02  # for base_batch_size images a step
    base_batch_size: int = 16  # the zoo's 8 GPUs x 2 images
    scale_lr: bool = False  # lr is multiplied by (images a step, over all processes) / base_batch_size
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0001  # on every trained parameter, biases and batch norm included
    clip_norm: float | None = None  # largest norm of the gradient; null: no clipping


@dataclass
class ScheduleConfig:
    epochs: int = 12
    decay: str = "steps"  # steps: by gamma at the milestones | cosine: half a cosine from lr to 0 over all steps
    milestones: list[int] = field(default_factory=lambda: [8, 11])  # epochs after which lr is multiplied by gamma
    gamma: float = 0.1
    warmup_steps: int = 500  # lr grows linearly from warmup_ratio * lr
    warmup_ratio: float = 0.001


@dataclass
class TrainConfig:
    batch_size: int = 2  # images per batch; a step takes `accumulation` batches in each process
    accumulation: int = 1  # batches that a process runs one after the other in a step; their gradients are averaged
    precision: str = "float32"  # float32 | bfloat16 | float16: autocast; the weights stay float32
    loss_scale: float | None = None  # of float16; null: dynamic
    activation_checkpointing: bool = False  # backward computes each backbone stage again: less memory, more time
    ema_decay: float | None = None  # moving average of the weights, evaluated and saved in their place; null: none
    seed: int = 0
    workers: int = 2  # processes that load images; 0: none
    log_every: int = 50  # steps
    eval_every: int = 1  # epochs; the last epoch is always evaluated
    eval_first: bool = False  # evaluate before the first step too: the start of a fine-tuning, errors in the data
    predictions: int = 4  # validation images that each evaluation draws into output_dir/predictions; 0: none
    tensorboard: bool = False  # write the log for TensorBoard, too (needs the package tensorboard)
    checkpoint_minutes: float = 30.0  # last.pth is written after each epoch, and this often within one
    keep_checkpoints: int = 3  # newest epoch_<k>.pth files to keep; -1: all


@dataclass
class PublishedConfig:
    """What the mmdetection zoo, or the paper, publishes for this config."""

    box_ap: float | None = None  # COCO val2017, in percent
    memory_gb: float | None = None  # in training, per GPU
    fps: float | None = None  # batch 1, on `gpu`
    checkpoint: str | None = None  # URL; the hash ends the file name
    log: str | None = None
    sha256: str | None = None  # first 8 digits
    voc07_map: float | None = None  # mean AP on VOC 2007 test (11 points), in percent
    gpu: str = "V100"


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)
    load_from: str | None = None  # a checkpoint whose weights training starts from
    output_dir: str = ""  # empty: runs/<config name>


# --- reading ----------------------------------------------------------------------------------------------------------


def config_folder() -> Path:
    """The folder of the configs that come with the package (fastrcnn.configs; in a checkout, configs/)."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def config_names() -> list[str]:
    """The names that load_config knows, sorted."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config by name ("faster_rcnn_r50_fpn_1x_coco") or by path ("my.yaml"), then applies the overrides.

    Args:
        name: a name from config_names(), or the path of a YAML file.
        overrides: "dotted.key=value" strings; values are YAML ("[[1333, 640], [1333, 800]]", "null").
    Returns:
        A Config. Its fields are checked for type.
    Raises:
        FileNotFoundError: no such name or file.
        ValueError: an unknown key, a value of another type, a broken YAML file.
    """
    path = _config_path(name)
    try:
        content = OmegaConf.load(path)
        dotlist = OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # the YAML library raises several unrelated types
        raise ValueError(f"{path} or the overrides {list(overrides)} are not valid YAML: {error}") from error
    if not isinstance(content, DictConfig):
        raise ValueError(f"{path} must hold a mapping of settings, got {type(content).__name__}")
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"An override is key=value, got {override!r}")
    _check_keys(content, Config, str(path))
    _check_keys(dotlist, Config, "the overrides")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), content, dotlist)
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a mapping for a list
        raise ValueError(f"{path}, overrides {list(overrides)}: {error}") from error
    assert isinstance(config, Config)
    config.output_dir = config.output_dir or f"runs/{path.stem}"
    return config


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text that load_config reads back to an equal Config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _config_path(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise FileNotFoundError(f"No config file {path}")
        return path
    path = config_folder() / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(str(name), config_names(), n=3, cutoff=0.3)
        listed = ", ".join(near) or "none"
        raise FileNotFoundError(f"No config named {name!r}. Near: {listed}. `fastrcnn info` lists all")
    return path


def _check_keys(content: DictConfig, schema: type, where: str, prefix: str = "") -> None:
    """Raises for the first key that the schema does not have, with the nearest one that it has."""
    hints = get_type_hints(schema)
    known = {f.name for f in fields(schema)}
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{where}: unknown key {prefix}{key!s}. Nearest valid key: {prefix}{near}")
        value = content._get_node(key)
        # a section, one that may be null ("FpnConfig | None"), or a list of sections
        section = next((kind for kind in get_args(hints[key]) or (hints[key],) if is_dataclass(kind)), None)
        if not isinstance(section, type) or value is None or value._is_none():
            continue
        if isinstance(value, DictConfig):
            _check_keys(value, section, where, f"{prefix}{key}.")
        elif isinstance(value, ListConfig):  # list[SourceConfig]
            for index in range(len(value)):
                entry = value._get_node(index)
                if isinstance(entry, DictConfig):
                    _check_keys(entry, section, where, f"{prefix}{key}[{index}].")
