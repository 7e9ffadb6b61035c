"""Pascal VOC XML, one file per image -> Dataset. Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf

Coordinates are used as they stand in the files. The VOC development kit counts pixels from 1 and includes the last one,
labelling tools that write the same XML (labelImg and its kin) count from 0: nothing in a file tells which, the
difference is one pixel at most, and detections come out in the annotations' own coordinates.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from fastrcnn.data.classes import select_classes
from fastrcnn.data.image import SUFFIXES
from fastrcnn.data.image_size import size_or_zero
from fastrcnn.data.sample import Dataset, make_sample, noting


class _Object(NamedTuple):
    name: str
    box: list[float]  # x1, y1, x2, y2
    difficult: bool


def read_voc(
    annotations: str | Path,
    images: str | Path,
    classes: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    errors: list[str] | None = None,
) -> Dataset:
    """Reads Pascal VOC annotations.

    Args:
        annotations: a folder of XML files (all of them, those of sub-folders too, sorted by path), or a text file with
            one image name per line such as ImageSets/Main/train.txt. The XML files of a text file lie in the first of
            these folders that exists: <images>/../Annotations, <the text file's folder>/../../Annotations, the text
            file's folder.
        images: the folder of the images. An image has the sub-folder and stem of its XML file; if several files or none
            have these, it is the one that the XML's <filename> names, in that sub-folder or in `images`.
        classes, rename: as in select_classes. No classes: every name in the files, sorted. (Give the training classes
            to read validation data, which may not have all of them: a name without any object is a warning, or an error
            if it looks like a misspelling.)
        errors: a list that takes what is wrong with files and objects, which are then left out; None: raised.
    Returns:
        A Dataset with one Sample per XML file; image ids count from 1, category ids are label + 1, areas are those of
        the boxes, nothing is crowd. A box with a negative width or height is left out and counted; so are, of a folder
        of XML files, images without one. Where the XML has no <size>, or a zero one (some tools do that), the image is
        asked. (read_dataset checks that the images are there.)
    Raises:
        FileNotFoundError: a folder, the text file or an XML file is missing.
        ValueError: no images, broken or non-VOC XML, an XML document type (entities are never read), a missing element,
            a coordinate that is not a finite number, an unknown name in classes. The message names the file.
    """
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"No image folder {folder} (for {annotations})")
    files = _xml_files(Path(annotations), folder, errors)
    contents: dict[Path, tuple[ElementTree.Element, list[_Object]]] = {}
    for name, file in files.items():
        with noting(errors):
            root = _parse(file)
            contents[name] = root, _objects(root, file, errors)
    names = sorted({item.name for _, items in contents.values() for item in items})
    dataset = Dataset(str(annotations), names, list(range(1, len(names) + 1)), samples=[])
    pictures: dict[Path, list[Path]] = defaultdict(list)  # by their names
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            pictures[path.relative_to(folder).with_suffix("")].append(path)
    unused = {path for paths in pictures.values() for path in paths}
    for name, (root, items) in contents.items():
        with noting(errors):
            path = _image_path(root, name, files[name], folder, pictures)
            unused.discard(path)
            for item in items:
                if min(_sides(item)) < 0:
                    dataset.drop_inverted(path, item.box)
            kept = [item for item in items if min(_sides(item)) >= 0]
            dataset.samples.append(
                make_sample(
                    image_id=len(dataset.samples) + 1,
                    path=path,
                    size=_size(root, path),
                    boxes=[item.box for item in kept],
                    labels=[names.index(item.name) for item in kept],
                    areas=[math.prod(_sides(item)) for item in kept],
                    difficult=[item.difficult for item in kept],
                )
            )
    if Path(annotations).is_dir():
        dataset.drop("images without an XML file", len(unused))
    return select_classes(dataset, classes, rename or {}, declared=False)


def _xml_files(annotations: Path, images: Path, errors: list[str] | None) -> dict[Path, Path]:
    """Names, such as 000012 or sub-folder/000012 -> the XML files to read, in the order of the dataset."""
    if annotations.is_dir():
        found = sorted(path for path in annotations.rglob("*") if path.suffix.lower() == ".xml")
        if not found:
            raise ValueError(f"The dataset is empty: no XML file in {annotations}")
        return {path.relative_to(annotations).with_suffix(""): path for path in found}
    if not annotations.is_file():
        raise FileNotFoundError(f"No annotation folder or list of image names {annotations}")
    names = [line.strip() for line in annotations.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"The dataset is empty: no image name in {annotations}")
    places = [images.parent / "Annotations", annotations.parent.parent.parent / "Annotations", annotations.parent]
    folder = next(place for place in places if place.is_dir())
    files = {Path(name): folder / f"{name}.xml" for name in names}
    with noting(errors):
        missing = [file for file in files.values() if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(files)} XML files of {annotations} are missing, the first is {missing[0]}"
            )
    with noting(errors):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{annotations} names {twice[0]} {names.count(twice[0])} times")
    return {name: file for name, file in files.items() if file not in missing}


class _Builder(ElementTree.TreeBuilder):
    """Refuses a document type declaration before its entities are looked at: they can name other files or explode."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type (<!DOCTYPE>), which VOC annotations do not need")


def _parse(file: Path) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"{file} cannot be read as XML: {error}") from error
    if root.tag != "annotation":
        raise ValueError(f"{file} is not a VOC annotation: its outer element must be <annotation>, found <{root.tag}>")
    return root


def _objects(root: ElementTree.Element, file: Path, errors: list[str] | None) -> list[_Object]:
    objects = []
    for index, element in enumerate(root.findall("object"), start=1):
        with noting(errors):
            name = (element.findtext("name") or "").strip()
            where = f"{file}: object {index} ({name or 'no name'})"
            if not name:
                raise ValueError(f"{file}: object {index} has no <name>")
            box = []
            for key in ("xmin", "ymin", "xmax", "ymax"):
                text = element.findtext(f"bndbox/{key}")
                if text is None:
                    raise ValueError(f"{where} has no <bndbox> with <{key}>")
                box.append(_number(text, f"{where}: <{key}>"))
            difficult = _number(element.findtext("difficult") or "0", f"{where}: <difficult>") != 0
            objects.append(_Object(name, box, difficult))
    return objects


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {text!r}")
    return value


def _sides(item: _Object) -> tuple[float, float]:
    x1, y1, x2, y2 = item.box
    return x2 - x1, y2 - y1


def _image_path(
    root: ElementTree.Element, name: Path, file: Path, folder: Path, pictures: dict[Path, list[Path]]
) -> Path:
    """Of an image that is missing, where it should be."""
    same_name, filename = pictures[name], (root.findtext("filename") or "").strip()
    if len(same_name) == 1:
        return same_name[0]
    for named in (folder / name.parent / filename, folder / filename):
        if named.is_file():
            return named
    if same_name:
        raise ValueError(
            f"{file}: expected one image {name}.<suffix> in {folder}, or the one that <filename> names "
            f"({filename!r}); found {', '.join(path.name for path in same_name)}"
        )
    return named if named.suffix.lower() in SUFFIXES else folder / f"{name}.jpg"


def _size(root: ElementTree.Element, path: Path) -> tuple[int, int]:
    """(width, height)"""
    try:
        width, height = (int(float(root.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    except (ValueError, OverflowError):
        width = height = 0
    if width > 0 and height > 0:
        return width, height
    return size_or_zero(path)
