"""Pascal VOC XML: what is read, where files are looked for, and what every broken file says."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fastrcnn.config import ValDataConfig
from fastrcnn.data.coco import read_coco
from fastrcnn.data.loader import training_dataset
from fastrcnn.data.read import read_dataset, summary
from fastrcnn.data.voc import read_voc

SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"


def thing(name: str, box: tuple[object, ...], extra: str = "") -> str:
    sides = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


CAT, DOG = thing("cat", (1, 2, 21, 32)), thing("dog", (5.5, 6, 15, 16), "<difficult>1</difficult>")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOC's folders: image b has a cat and a difficult dog, image a has nothing."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path, "b", SIZE + CAT + DOG)
    write(tmp_path, "a", SIZE)
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "JPEGImages" / f"{name}.jpg"), np.zeros((48, 64, 3), np.uint8))
    return tmp_path


def write(root: Path, name: str, body: str) -> Path:
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(f"<annotation><filename>{name}.jpg</filename>{body}</annotation>")
    return path


def read(root: Path, *classes: str):
    return read_voc(root / "Annotations", root / "JPEGImages", classes)


def test_reads_a_folder(root: Path) -> None:
    dataset = read(root)
    assert dataset.classes == ["cat", "dog"] and dataset.category_ids == [1, 2]
    a, b = dataset.samples
    assert (a.image_id, a.path.name, a.boxes.shape, b.image_id, b.width, b.height) == (1, "a.jpg", (0, 4), 2, 64, 48)
    np.testing.assert_array_equal(b.boxes, [[1, 2, 21, 32], [5.5, 6, 15, 16]])  # as they stand, no shift
    np.testing.assert_array_equal(b.areas, [600, 95])
    assert b.labels.tolist() == [0, 1] and b.difficult.tolist() == [False, True] and not b.crowd.any()


def test_difficult_objects_are_not_trained_on(root: Path) -> None:
    """As in the paper's code and mmdetection; an image that has no others is left out, too."""
    write(root, "a", SIZE + DOG)
    result = training_dataset(read(root))
    assert [(sample.path.stem, sample.labels.tolist()) for sample in result.samples] == [("b", [0])]
    assert result.dropped == {"objects that are marked difficult": 2, "images without objects to train on": 1}
    kept = training_dataset(read(root), keep_empty=True)
    assert [sample.labels.tolist() for sample in kept.samples] == [[], [0]]


def test_sub_folders(root: Path) -> None:
    """Equal names in several; a file that is named otherwise is looked for in the sub-folder, then in the whole."""
    for place in ("x/deep", "y"):
        for folder in ("Annotations", "JPEGImages"):
            (root / folder / place).mkdir(parents=True)
        write(root, f"{place}/b", SIZE + CAT)
        cv2.imwrite(str(root / "JPEGImages" / place / "b.png"), np.zeros((48, 64, 3), np.uint8))
    (root / "Annotations" / "y" / "b.xml").rename(root / "Annotations" / "y" / "other.XML")
    (root / "JPEGImages" / "y" / "b.png").rename(root / "JPEGImages" / "y" / "b.jpg")
    (root / "Annotations" / "y" / "other.XML").write_text(f"<annotation><filename>b.jpg</filename>{CAT}</annotation>")
    dataset = read(root)
    found = [sample.path.relative_to(root / "JPEGImages").as_posix() for sample in dataset.samples]
    assert found == ["a.jpg", "b.jpg", "x/deep/b.png", "y/b.jpg"] and dataset.dropped == {}
    names = root / "ImageSets" / "Main" / "val.txt"
    names.write_text("x/deep/b\na\n")
    listed = read_voc(names, root / "JPEGImages")
    assert [sample.path.name for sample in listed.samples] == ["b.png", "a.jpg"] and listed.dropped == {}


def test_images_without_an_xml_file_are_counted(root: Path) -> None:
    cv2.imwrite(str(root / "JPEGImages" / "c.jpg"), np.zeros((48, 64, 3), np.uint8))
    assert read(root).dropped == {"images without an XML file": 1}


def test_parts_of_an_object_are_no_objects(root: Path) -> None:
    """VOC 2007 and 2012 box the heads, hands and feet of some people, inside their <object>."""
    head = "<part><name>head</name><bndbox><xmin>8</xmin><ymin>3</ymin><xmax>12</xmax><ymax>9</ymax></bndbox></part>"
    write(root, "b", SIZE + thing("person", (1, 2, 21, 32), "<difficult>0</difficult>" + head))
    dataset = read(root)
    assert dataset.classes == ["person"]
    np.testing.assert_array_equal(dataset.samples[1].boxes, [[1, 2, 21, 32]])


def test_reads_a_list_in_its_order(root: Path) -> None:
    names = root / "ImageSets" / "Main" / "val.txt"
    names.write_text("b\n\na\n")
    assert [sample.path.stem for sample in read_voc(names, root / "JPEGImages").samples] == ["b", "a"]


def test_where_the_xml_of_a_list_is_looked_for(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Beside the images' folder, else in VOC's place relative to the list, else with the list."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "photos"
    (root / "JPEGImages").rename(elsewhere)
    names = root / "ImageSets" / "Main" / "val.txt"
    names.write_text("b\n")
    assert len(read_voc(names, elsewhere).samples[0].boxes) == 2
    flat = root / "flat" / "lists"
    flat.mkdir(parents=True)
    (root / "Annotations" / "b.xml").rename(flat / "b.xml")
    (flat / "val.txt").write_text("b\n")
    (root / "Annotations").rename(root / "Unrelated")
    assert len(read_voc(flat / "val.txt", elsewhere).samples[0].boxes) == 2


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("b\nc\n", FileNotFoundError, r"1 of the 2 XML files of .*val.txt are missing, the first is .*c.xml"),
        ("b\nb\n", ValueError, "val.txt names b 2 times"),
        (" \n", ValueError, "dataset is empty: no image name in .*val.txt"),
    ],
)
def test_broken_lists(root: Path, text: str, error: type[Exception], message: str) -> None:
    names = root / "ImageSets" / "Main" / "val.txt"
    names.write_text(text)
    with pytest.raises(error, match=message):
        read_voc(names, root / "JPEGImages")


def test_classes_select_and_order(root: Path) -> None:
    assert read(root, "dog", "cat").samples[1].labels.tolist() == [1, 0]
    dogs = read(root, "dog")
    assert dogs.samples[1].labels.tolist() == [0] and len(dogs.samples) == 2
    assert dogs.dropped == {"objects of class 'cat', which is not in data.classes": 1}
    assert "left out: 1 objects of class 'cat'" in summary(dogs)


def test_unknown_classes(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no object of class 'dgo'. Did you mean 'dog'\? Known: cat, dog"):
        read(root, "cat", "dgo")
    with pytest.raises(ValueError, match=r"no class 'zebra'. Known: cat, dog"):
        read(root, "zebra")
    with pytest.warns(UserWarning, match="no object of class 'zebra'"):  # may just be rare
        assert read(root, "cat", "dog", "zebra").classes == ["cat", "dog", "zebra"]


def test_inverted_box_is_left_out_and_counted(root: Path) -> None:
    write(root, "a", SIZE + thing("cat", (20, 2, 10, 5)))
    dataset = read(root)
    assert dataset.dropped == {"objects whose box has a negative width or height": 1}
    assert dataset.inverted == [(root / "JPEGImages" / "a.jpg", [20, 2, 10, 5])]
    assert len(dataset.samples[0].boxes) == 0


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width>?</width></size>"]
)
def test_without_a_size_the_image_is_asked(root: Path, size: str) -> None:
    write(root, "b", size + CAT)
    assert (read(root).samples[1].width, read(root).samples[1].height) == (64, 48)


ENTITY = '<!DOCTYPE annotation [<!ENTITY secret SYSTEM "file:///etc/hostname">]><annotation>&secret;</annotation>'
LAUGHS = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><annotation><filename>&y;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "b.xml cannot be read as XML: no element found"),
        ("<annotation><object>", "b.xml cannot be read as XML: no element found: line 1"),
        ("<root/>", "b.xml is not a VOC annotation: its outer element must be <annotation>, found <root>"),
        (ENTITY, "b.xml cannot be read as XML: it declares a document type"),
        (LAUGHS, "b.xml cannot be read as XML: it declares a document type"),
        (f"<annotation>{SIZE}<object/></annotation>", "b.xml: object 1 has no <name>"),
        (f"<annotation>{SIZE}{CAT}<object><name>dog</name></object></annotation>", r"object 2 \(dog\) has no <bndbox>"),
        (
            f"<annotation>{SIZE}{thing('cat', (1, 2, 'nan', 4))}</annotation>",
            "<xmax> must be a finite number, got 'nan'",
        ),
        (f"<annotation>{SIZE}{thing('cat', (1, 'x', 3, 4))}</annotation>", "<ymin> must be a finite number, got 'x'"),
    ],
)
def test_broken_xml_is_named(root: Path, text: str, message: str) -> None:
    (root / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(root)
    assert str(root / "Annotations" / "b.xml") in str(error.value)


def test_utf16_document_type_is_refused_too(root: Path) -> None:
    text = '<?xml version="1.0" encoding="UTF-16"?>' + ENTITY
    (root / "Annotations" / "b.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="declares a document type"):
        read(root)


def test_missing_files(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No image folder .*nowhere"):
        read_voc(root / "Annotations", root / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"No annotation folder or list of image names .*none.txt"):
        read_voc(root / "none.txt", root / "JPEGImages")
    with pytest.raises(ValueError, match=r"dataset is empty: no XML file in .*Main"):
        read_voc(root / "ImageSets" / "Main", root / "JPEGImages")
    write(root, "a", SIZE)
    (root / "Annotations" / "b.xml").unlink()
    with pytest.raises(ValueError, match="no object in its 1 images, so no classes"):
        read(root)


def test_which_image_belongs_to_an_xml(root: Path) -> None:
    images = root / "JPEGImages"
    (root / "Annotations" / "b.xml").rename(root / "Annotations" / "other.xml")
    assert read(root).samples[1].path == images / "b.jpg"  # by <filename>
    cv2.imwrite(str(images / "other.png"), np.zeros((48, 64, 3), np.uint8))
    assert read(root).samples[1].path == images / "other.png"  # by stem, which wins
    cv2.imwrite(str(images / "other.tif"), np.zeros((48, 64, 3), np.uint8))
    assert read(root).samples[1].path == images / "b.jpg"  # two have the stem
    (images / "b.jpg").unlink()
    with pytest.raises(ValueError, match=r"other.xml: expected one image other.<suffix> in .*found other.png, other.t"):
        read(root)
    for suffix in ("png", "tif"):
        (images / f"other.{suffix}").unlink()
    section = ValDataConfig("voc", str(root / "Annotations"), str(images))
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images of .*Annotations are missing, .*b.jpg$"):
        read_dataset(section)


def test_a_broken_image_without_a_size_is_named(root: Path) -> None:
    write(root, "b", CAT)
    (root / "JPEGImages" / "b.jpg").write_bytes(b"no image")
    assert (read(root).samples[1].width, read(root).samples[1].height) == (0, 0)
    with pytest.raises(ValueError, match=r"b.jpg cannot be decoded"):
        read_dataset(ValDataConfig("voc", str(root / "Annotations"), str(root / "JPEGImages")))


def test_byte_order_marks_and_suffixes_in_capitals(root: Path) -> None:
    (root / "JPEGImages" / "b.jpg").rename(root / "JPEGImages" / "b.JPG")
    path = root / "Annotations" / "b.xml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    names = root / "ImageSets" / "Main" / "val.txt"
    names.write_bytes(b"\xef\xbb\xbfb\r\na\r\n")
    dataset = read_voc(names, root / "JPEGImages")
    assert [sample.path.name for sample in dataset.samples] == ["b.JPG", "a.jpg"] and len(dataset.samples[0].boxes) == 2


def test_real_voc_agrees_with_its_json(shared: Path) -> None:
    """BCCD comes in both formats; the JSON has left out one box of a single point."""
    folder = shared / "data" / "bccd"
    classes = ["RBC", "WBC", "Platelets"]
    voc = read_voc(folder / "ImageSets" / "Main" / "train.txt", folder / "JPEGImages", classes)
    coco = read_coco(folder / "train.json", folder / "JPEGImages", classes)
    assert len(voc.samples) == 205 and sum(len(sample.boxes) for sample in voc.samples) == 2805
    voc = training_dataset(voc)
    assert voc.dropped == {"objects below one pixel or without area": 1}
    of_coco = {sample.path: sample for sample in coco.samples}
    for sample in voc.samples:
        twin = of_coco[sample.path]
        np.testing.assert_array_equal(sample.boxes, twin.boxes)
        np.testing.assert_array_equal(sample.labels, twin.labels)
        assert (sample.width, sample.height) == (twin.width, twin.height)
