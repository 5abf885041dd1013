"""Localisation readers on small trees: annotations exactly as written, and refusals."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.data.catalog import DATA, load_localisation
from tenfold.data.files import localisation as localisation_files
from tenfold.data.files.localisation import NAMES, LocalisationFilesConfig, load_localisation_classes
from tenfold.data.files.readers.masks import MaskImages, Segmentations
from tenfold.types import Preprocessing

SIDE = 8
NETWORK = Preprocessing(image_size=SIDE)


def write_image(path: Path, width: int = 16, height: int = 12, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (shade, shade, shade)).save(path, "PNG")  # by content, whatever the name says


def grey(path: Path, array: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).convert(mode).save(path, "PNG")


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def lists(folder: Path, labels: dict[str, int], **others: list[str]) -> None:
    text(folder / "image_ids.txt", *labels)
    # Another order: what counts is the path.
    text(folder / "class_labels.txt", *(f"{name},{label}" for name, label in reversed(labels.items())))
    for name, lines in others.items():
        text(folder / f"{name}.txt", *lines)


def load(root: Path, name: str = "cub_localisation", train_size: int | None = None, **changes):
    config = LocalisationFilesConfig(name=name, root=str(root), num_workers=2, progress=False, **changes)
    return load_localisation(config, NETWORK, train_size)


def fail_naming(path: Path, message: str, root: Path, name: str = "cub_localisation", **changes) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(root, name, **changes)
    assert str(path) in str(caught.value)


# CUB --------------------------------------------------------------------------------------------------------------

PARTS = {
    "train": {"a/1.jpg": 0, "b/1.jpg": 1, "a/2.jpg": 0},
    "val": {"b/v.jpg": 1},
    "test": {"b/3.jpg": 1, "a/3.jpg": 0},
}
SIZES = {"val": ["b/v.jpg,20,10"], "test": ["a/3.jpg,16,12", "b/3.jpg,15,16"]}
BOXES = {
    "val": ["b/v.jpg,2,3,20,10", "b/v.jpg,0,0,19,9"],
    "test": ["b/3.jpg,1,2,13,15", "a/3.jpg,3,1,7,11"],
}


@pytest.fixture
def cub(tmp_path) -> Path:
    for part, labels in PARTS.items():
        truth = {} if part == "train" else {"image_sizes": SIZES[part], "localization": BOXES[part]}
        lists(tmp_path / "metadata/CUB" / part, labels, **truth)
        for name in labels:
            width, height = (15, 16) if name == "b/3.jpg" else (16, 12)
            write_image(tmp_path / ("CUBV2" if part == "val" else "CUB/images") / name, width, height)
    text(tmp_path / "CUB/classes.txt", "1 001.Ani", "2 002.Wren")
    return tmp_path


def test_cub(cub):
    data = load(cub, train_size=10)
    assert data.classes == ("001.Ani", "002.Wren")
    assert [split.labels.tolist() for split in data.splits().values()] == [[0, 1, 0], [1], [1, 0]]
    assert data.train.images.paths == tuple(f"{cub}/CUB/images/{name}" for name in PARTS["train"])
    assert data.val.images.paths == (f"{cub}/CUBV2/b/v.jpg",)
    assert data.train.images.read([0]).shape == (1, 10, 10, 3)
    assert data.test.images.read([0, 1]).shape == (2, SIDE, SIDE, 3)
    assert (data.train.boxes, data.train.masks, data.test.masks, data.cues) == (None, None, None, None)
    # By hand: times 8/20 and 8/10, 8/15 and 8/16, 8/16 and 8/12, cut off; a box may end one behind the last pixel.
    assert [boxes.tolist() for boxes in data.val.boxes] == [[[0, 2, 8, 8], [0, 0, 7, 7]]]
    assert [boxes.tolist() for boxes in data.test.boxes] == [[[0, 1, 6, 7]], [[1, 0, 3, 7]]]
    assert data.superclasses == {0: (0, 1), 1: (0, 1)}
    assert (data.name, data.image_size, data.mirrorable) == ("cub_localisation", SIDE, True)


def test_the_other_layouts_of_the_folders(cub):
    (cub / "CUB/classes.txt").unlink()
    for folder in ("a", "b"):
        (cub / "CUB/images" / folder).rename(cub / "CUB" / folder)
    (cub / "CUB/images").rmdir()
    (cub / "CUBV2/b/v.jpg").rename(cub / "CUB/b/v.jpg")
    (cub / "CUBV2/b").rmdir()
    (cub / "CUBV2").rmdir()
    (cub / "metadata").rename(cub / "lists")
    data = load(cub, metadata="lists")
    assert data.classes == ("0", "1")
    assert data.val.images.paths == (f"{cub}/CUB/b/v.jpg",)
    assert data.test.images.paths[0] == f"{cub}/CUB/b/3.jpg"
    assert load(cub, metadata=str(cub / "lists")).fingerprint == data.fingerprint
    fail_naming(cub / "metadata/CUB", "is not a folder: expected the lists of cub_localisation", cub)


def test_the_fingerprint_sees_truth_and_files_but_not_sizes(cub):
    first = load(cub).fingerprint
    assert load(cub, train_size=9).fingerprint == first
    text(cub / "metadata/CUB/test/localization.txt", "b/3.jpg,1,2,13,15", "a/3.jpg,3,1,7,10")
    moved = load(cub).fingerprint
    write_image(cub / "CUB/images/a/1.jpg", 17, 300)
    groups = text(cub / "groups.txt", "0,one", "1,other")
    assert len({first, moved, load(cub).fingerprint, load(cub, superclasses=groups.name).fingerprint}) == 4


def test_decoded_images_go_into_the_cache(cub):
    data = load(cub, cache=str(cub / "cache"))
    assert (data.train.images.in_memory, data.val.images.in_memory, data.test.images.in_memory) == (False, True, True)
    assert len(list((cub / "cache").glob("*.npy"))) == 2


def test_images_with_their_classes_alone(cub):
    for part in ("val", "test"):
        (cub / "metadata/CUB" / part / "localization.txt").unlink()
    config = LocalisationFilesConfig(name="cub_localisation", root=str(cub), progress=False)
    crop = Preprocessing(image_size=4, resize="crop")
    data = load_localisation_classes(config, crop)
    assert [split.labels.tolist() for split in data.splits().values()] == [[0, 1, 0], [1], [1, 0]]
    assert data.test.images.read([0]).shape == (1, 4, 4, 3)
    assert (data.classes, data.concept) == (("001.Ani", "002.Wren"), "bird")
    alone = load_localisation_classes(config, crop, ["test"])
    assert (alone.train, alone.val, len(alone.test)) == (None, None, 2)
    with pytest.raises(ValueError, match=r"must have resize='stretch' for cub_localisation, .*, got 'crop'"):
        load_localisation(config, crop)


@pytest.mark.parametrize(
    ("part", "file", "lines", "message"),
    [
        ("train", "image_ids", [], "is empty: expected one image's path a line"),
        ("train", "image_ids", ["a/1.jpg", "a/1.jpg"], "names the image 'a/1.jpg' twice"),
        ("train", "class_labels", ["a/1.jpg,0", "b/1.jpg"], "line 2: expected lines 'path,label', got 'b/1.jpg'"),
        ("train", "class_labels", ["a/1.jpg,2"], r"line 1: the label must be in 0\.\.1, got '2'"),
        ("test", "class_labels", ["a/3.jpg,0", "b/3.jpg,-1"], r"line 2: the label must be in 0\.\.1, got '-1'"),
        ("test", "class_labels", ["a/3.jpg,0", "a/3.jpg,0"], "line 2: a/3.jpg already has the label 0"),
        ("train", "class_labels", ["a/1.jpg,0", "b/1.jpg,1"], "lacks 1 of the 3 images of image_ids.txt, first: a/2"),
        ("train", "class_labels", ["a/9.jpg,0"], "line 1: a/9.jpg is not among the images of .*train/image_ids.txt"),
        ("val", "image_sizes", ["b/v.jpg,20"], "line 1: expected lines 'path,width,height', got 'b/v.jpg,20'"),
        (
            "val",
            "image_sizes",
            ["b/v.jpg,0,3"],
            "line 1: width and height must be integers of at least 1, got 0,3",
        ),
        ("val", "image_sizes", ["b/v.jpg,9,9", "b/v.jpg,9,9"], "line 2: b/v.jpg already has a size"),
        ("val", "image_sizes", ["b/w.jpg,9,9"], "line 1: b/w.jpg is not among the images"),
        ("val", "localization", ["b/v.jpg,1,2,3"], "line 1: expected lines 'path,x0,y0,x1,y1'"),
        ("val", "localization", ["b/v.jpg,1,2,3,4.5"], "line 1: expected lines 'path,x0,y0,x1,y1' of whole numbers"),
        ("val", "localization", ["b/v.jpg,1,2,21,4"], r"line 1: the box \[1, 2, 21, 4\] must lie inside .* 20 x 10"),
        ("val", "localization", ["b/v.jpg,-1,2,3,4"], r"line 1: the box \[-1, 2, 3, 4\] must lie inside"),
        ("val", "localization", ["b/v.jpg,20,2,20,4"], r"line 1: the box \[20, 2, 20, 4\] must lie inside"),
        ("val", "localization", ["b/v.jpg,5,2,3,4"], r"line 1: the box \[5, 2, 3, 4\] must lie inside"),
        ("test", "localization", ["a/3.jpg,1,2,3,4"], "lacks 1 of the 2 images of image_ids.txt, first: b/3.jpg"),
        ("test", "localization", ["v.jpg,1,2,3,4"], "line 1: v.jpg is not among the images"),
    ],
)
def test_malformed_lists(cub, part, file, lines, message):
    path = text(cub / "metadata/CUB" / part / f"{file}.txt", *lines)
    fail_naming(path, message, cub)


@pytest.mark.parametrize("file", ["image_ids", "class_labels", "image_sizes", "localization"])
def test_missing_lists(cub, file):
    path = cub / f"metadata/CUB/test/{file}.txt"
    path.unlink()
    fail_naming(path, "is missing: expected", cub)


def test_labels_of_classes_that_training_lacks(cub):
    (cub / "CUB/classes.txt").unlink()
    path = text(cub / "metadata/CUB/test/class_labels.txt", "a/3.jpg,0", "b/3.jpg,2")
    fail_naming(path, r"line 2: the label must be in 0\.\.1, got '2'", cub)
    text(cub / "metadata/CUB/train/class_labels.txt", "a/1.jpg,0", "b/1.jpg,3", "a/2.jpg,0")
    with pytest.raises(ValueError, match="2 of 4 classes have no training image, first: '1'"):
        load(cub)
    path = text(cub / "metadata/CUB/train/class_labels.txt", "a/1.jpg,x")
    fail_naming(path, "line 1: the label must be at least 0, got 'x'", cub)


def test_images_that_are_missing_or_in_two_parts(cub):
    path = cub / "CUB/images/a/3.jpg"
    path.unlink()
    fail_naming(path, "1 of 2 listed images are not on disk, first: ", cub)
    text(cub / "metadata/CUB/test/image_ids.txt", "b/3.jpg", "a/1.jpg")
    for name, line in {"class_labels": "{},0", "image_sizes": "{},16,12", "localization": "{},1,1,2,2"}.items():
        lines = [line.format(each) for each in ("b/3.jpg", "a/1.jpg")]
        text(cub / f"metadata/CUB/test/{name}.txt", *lines)
    fail_naming(cub / "CUB/images/a/1.jpg", "is in the train part and in the test part", cub)
    fail_naming(cub / "gone", "root must be the folder of the data set cub_localisation", cub / "gone")


# Superclasses -----------------------------------------------------------------------------------------------------


def test_superclasses_from_files(cub):
    content = json.dumps({"all": [1, "001.Ani"]})
    assert load(cub, superclasses=text(cub / "s.json", content).name).superclasses == {0: (0, 1), 1: (0, 1)}
    lines = text(cub / "s.txt", "002.Wren,small birds", "0, big birds")
    assert load(cub, superclasses=str(lines)).superclasses == {0: (0,), 1: (1,)}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("s.json", "{", "expected JSON of a superclass's name to a list of its classes, numbers or names"),
        ("s.json", "[[0, 1]]", "expected JSON of a superclass's name"),
        ("s.json", '{"a": 0}', "expected JSON of a superclass's name"),
        ("s.json", '{"a": [0, true]}', "expected JSON of a superclass's name"),
        ("s.json", '{"a": [0, 2]}', r"'a': '2' is not a class; classes are 0\.\.1 or their names"),
        ("s.json", '{"a": [0], "b": [1, 0]}', r"class 0 \(001.Ani\) must be in one superclass, but is repeated"),
        ("s.json", '{"a": [0, 0, 1]}', r"class 0 \(001.Ani\) must be in one superclass, but is repeated"),
        ("s.json", '{"a": [1]}', r"1 of 2 classes are in no superclass, first: 0 \(001.Ani\)"),
        ("s.txt", "0 birds", "line 1: expected lines 'class,superclass'"),
        ("s.txt", "Owl,birds", "line 1: 'Owl' is not a class"),
    ],
)
def test_superclasses_malformed(cub, file, content, message):
    fail_naming(text(cub / file, content), message, cub, superclasses=file)


@pytest.mark.parametrize("file", ["s.json", "s.txt"])
def test_superclasses_missing(cub, file):
    fail_naming(cub / file, re.escape(f"{file} is missing: expected "), cub, superclasses=file)


# CUB's cues -------------------------------------------------------------------------------------------------------

NAMES_OF_ATTRIBUTES = ["has_bill_shape::dagger", "has_wing_color::red", "has_size::small"]


@pytest.fixture
def cues(cub) -> Path:
    base = cub / "CUB"
    attributes = (f"{number} {name}" for number, name in enumerate(NAMES_OF_ATTRIBUTES, start=1))
    text(base / "attributes/attributes.txt", *attributes)
    text(base / "attributes/class_attribute_labels_continuous.txt", "0.0 60.5 100", "50 0.25 3e1")
    text(base / "images.txt", "1 a/1.jpg", "2 b/3.jpg", "3 a/2.jpg", "4 a/3.jpg", "5 b/1.jpg")
    points = ["2 15 3.5 4.0 1", "2 2 7.0 8.25 1", "2 3 0.0 0.0 0", "4 1 1.0 2.0 0", "1 1 5.0 5.0 1"]
    text(base / "parts/part_locs.txt", *points)
    block = np.zeros((16, 16))
    block[:8, 8:] = 60  # a fifth of the annotators
    grey(base / "segmentations/b/3.png", block, "LA")
    grey(base / "segmentations/a/3.png", np.full((12, 16), 255))
    return cub


def test_cues(cues):
    truth = load(cues).cues
    np.testing.assert_array_equal(truth.class_attribute_percent, [[0, 60.5, 100], [50, 0.25, 30]])
    assert truth.attribute_names == tuple(NAMES_OF_ATTRIBUTES)
    # Of the test images in their order, b/3 and a/3: visible points, by ascending part.
    assert [ids.tolist() for ids in truth.part_ids] == [[2, 15], []]
    np.testing.assert_array_equal(truth.part_xy[0], [[7.0, 8.25], [3.5, 4.0]])
    assert truth.part_xy[1].shape == (0, 2)
    assert truth.image_wh.tolist() == [[15, 16], [16, 12]]
    masks = truth.foregrounds.read([1, 0])
    assert masks[0].all()
    expected = np.zeros((SIDE, SIDE), dtype=np.uint8)
    expected[:4, 4:] = 1
    assert (masks[1] >= expected).all()
    assert masks[1].sum() <= 5 * 5  # smooth resizing adds a fringe of one pixel
    assert load(cues).fingerprint != load_without_cues(cues)


def load_without_cues(root: Path) -> str:
    (root / "CUB/segmentations").rename(root / "CUB/other")
    data = load(root)
    assert data.cues is None
    return data.fingerprint


def test_cues_with_the_attributes_beside_the_folder(cues):
    (cues / "CUB/attributes/attributes.txt").rename(cues / "attributes.txt")
    assert load(cues).cues.attribute_names == tuple(NAMES_OF_ATTRIBUTES)


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("attributes/attributes.txt", ["2 a"], "line 1: expected lines 'attribute_id name'"),
        ("attributes/class_attribute_labels_continuous.txt", ["1 2 3"], "so 2 lines, got 1"),
        (
            "attributes/class_attribute_labels_continuous.txt",
            ["1 2 3", "1 2"],
            "line 2: expected 3 percentages, .*got 2",
        ),
        ("attributes/class_attribute_labels_continuous.txt", ["1 2 3", "1 x 2"], "line 2: expected a line for each"),
        ("attributes/class_attribute_labels_continuous.txt", ["1 2 3", "1 101 2"], r"line 2: .*lie in 0\.\.100"),
        ("attributes/class_attribute_labels_continuous.txt", ["1 2 3", "1 nan 2"], r"line 2: .*lie in 0\.\.100"),
        ("images.txt", ["1 a/1.jpg", "2 a/3.jpg"], "lacks 1 of 2 test images, first: b/3.jpg"),
        ("parts/part_locs.txt", ["2 1 3.0 4.0"], "line 1: expected lines 'image part x y visible'"),
        ("parts/part_locs.txt", ["2 16 3.0 4.0 1"], "line 1: expected lines 'image part x y visible'"),
        ("parts/part_locs.txt", ["6 1 3.0 4.0 1"], r"line 1: expected .* images 1\.\.5, got '6 1 3.0 4.0 1'"),
        ("parts/part_locs.txt", ["2 1 3.0 inf 1"], "line 1: expected lines"),
        ("parts/part_locs.txt", ["2 1 3.0 4.0 2"], "line 1: expected lines"),
        ("parts/part_locs.txt", ["2 1 3.0 4.0 1", "2 1 3.0 4.0 1"], "line 2: part 1 of image 2 is repeated"),
    ],
)
def test_cues_malformed(cues, file, lines, message):
    fail_naming(text(cues / "CUB" / file, *lines), message, cues)


def test_cues_missing(cues):
    for file in ("parts/part_locs.txt", "images.txt", "attributes/class_attribute_labels_continuous.txt"):
        path = cues / "CUB" / file
        content = path.read_text()
        path.unlink()
        fail_naming(path, "is missing: expected", cues)
        path.write_text(content)
    (cues / "CUB/segmentations/a/3.png").unlink()
    fail_naming(cues / "CUB/segmentations/a/3.png", "1 of 2 listed images are not on disk", cues)


# ImageNet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["ImageNetV2", "ILSVRC"])
def test_imagenet(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(localisation_files, "imagenet_names", lambda: ("tench", "goldfish"))
    base = tmp_path / "metadata/ILSVRC"
    lists(base / "train", {"train/n1/1.JPEG": 0, "train/n2/1.JPEG": 1})
    truth = {"image_sizes": ["val2/1/x.jpeg,16,12"], "localization": ["val2/1/x.jpeg,0,0,15,11"]}
    lists(base / "val", {"val2/1/x.jpeg": 1}, **truth)
    truth = {"image_sizes": ["val/1.JPEG,16,12"], "localization": ["val/1.JPEG,4,3,16,12", "val/1.JPEG,0,0,0,0"]}
    lists(base / "test", {"val/1.JPEG": 0}, **truth)
    for name in ("ILSVRC/train/n1/1.JPEG", "ILSVRC/train/n2/1.JPEG", "ILSVRC/val/1.JPEG", f"{folder}/val2/1/x.jpeg"):
        write_image(tmp_path / name)
    data = load(tmp_path, "imagenet_localisation")
    assert data.classes == ("tench", "goldfish")
    assert [split.labels.tolist() for split in data.splits().values()] == [[0, 1], [1], [0]]
    assert data.val.images.paths == (f"{tmp_path}/{folder}/val2/1/x.jpeg",)
    assert [boxes.tolist() for boxes in data.test.boxes] == [[[2, 2, 8, 8], [0, 0, 0, 0]]]
    assert (data.superclasses, data.cues, data.val.masks) == (None, None, None)
    path = text(base / "test/class_labels.txt", "val/1.JPEG,1000")
    fail_naming(path, r"line 1: the label must be in 0\.\.1, got '1000'", tmp_path, "imagenet_localisation")


# OpenImages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def openimages(tmp_path) -> Path:
    base, data = tmp_path / "metadata/OpenImages", tmp_path / "OpenImages"
    lists(base / "train", {"train/x/1.jpg": 0, "train/y/1.jpg": 1})
    lists(base / "val", {"val/x/1.jpg": 0}, localization=["val/x/1.jpg,val/x/1_m.png,"])
    first, second = "test/y/1.jpg", "test/x/1.jpg"
    truth = [f"{first},test/y/1_m1.png,test/y/1_ignore.png", f"{second},test/x/1_m.png,", f"{first},test/y/1_m2.png,"]
    lists(base / "test", {first: 1, second: 0}, localization=truth)
    for name in ("train/x/1.jpg", "train/y/1.jpg", "val/x/1.jpg", first, second):
        write_image(data / name)
    left, corner, right = np.zeros((12, 16)), np.zeros((24, 32)), np.zeros((16, 16))
    left[:, :4], corner[12:, 16:], right[:, 8:] = 255, 1, 255
    grey(data / "test/y/1_m1.png", left, "1")
    grey(data / "test/y/1_m2.png", corner)  # another size, another brightness
    grey(data / "test/y/1_ignore.png", right, "1")
    grey(data / "test/x/1_m.png", np.zeros((5, 5)))
    grey(data / "val/x/1_m.png", np.eye(3) * 255)
    return tmp_path


def test_openimages(openimages):
    data = load(openimages, "openimages_localisation")
    assert (data.classes, data.train.masks, data.test.boxes) == (("0", "1"), None, None)
    assert data.train.labels.tolist() == [0, 1]
    assert data.test.labels.tolist() == [1, 0]
    masks = data.test.read_masks([1, 0])
    assert not masks[0].any()
    # The objects are the left quarter and the lower right quarter; of the right half what is no object is ignored.
    expected = np.zeros((SIDE, SIDE), dtype=np.uint8)
    expected[:, 4:] = 255
    expected[:, :2] = 1
    expected[4:, 4:] = 1
    np.testing.assert_array_equal(masks[1], expected)
    # 3 pixels shown by 8: i * 3 / 8 cut off.
    shown = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(data.val.read_masks([0])[0], shown[:, None] == shown)
    assert data.superclasses is None


def test_masks_travel_to_other_processes(openimages):
    masks = load(openimages, "openimages_localisation").test.masks
    moved = pickle.loads(pickle.dumps(masks))
    np.testing.assert_array_equal(moved.read([0]), masks.read([0]))
    with pytest.raises(IndexError, match=r"indices must be in 0\.\.1, got 2\.\.2"):
        masks.read([2])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["val/x/1.jpg,val/x/1_m.png"], "line 1: expected lines 'path,mask,ignored'"),
        (["val/x/1.jpg,,val/x/1_m.png"], "line 1: expected lines 'path,mask,ignored'"),
        (
            ["val/x/1.jpg,val/x/1_m.png,", "val/x/1.jpg,val/x/1_m.png,val/x/1_m.png"],
            "line 2: expected lines 'path,mask",
        ),
        (["val/x/2.jpg,val/x/1_m.png,"], "line 1: val/x/2.jpg is not among the images"),
    ],
)
def test_openimages_malformed(openimages, lines, message):
    path = text(openimages / "metadata/OpenImages/val/localization.txt", *lines)
    fail_naming(path, message, openimages, "openimages_localisation")


def test_masks_missing_or_damaged(openimages):
    path = openimages / "OpenImages/test/y/1_m2.png"
    path.write_bytes(path.read_bytes()[:40])
    masks = load(openimages, "openimages_localisation").test.masks
    with pytest.raises(ValueError, match=rf"cannot decode mask {re.escape(str(path))}: expected a PNG"):
        masks.read([0])
    path.unlink()
    with pytest.raises(ValueError, match=rf"cannot read mask {re.escape(str(path))}: No such file"):
        masks.read([0])
    fail_naming(path, "1 of 4 listed images are not on disk, first: ", openimages, "openimages_localisation")


def test_segmentations_and_masks_are_checked_on_reading(tmp_path):
    path = text(tmp_path / "broken.png", "no image")
    for source in (Segmentations([str(path)], 4), MaskImages([[str(path)]], [None], 4)):
        assert len(source) == 1
        with pytest.raises(ValueError, match=r"cannot decode mask .*broken\.png: expected a PNG"):
            source.read([0])


# Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cub200"}, "name must be one of cub_localisation, imagenet_localisation, openimages_localisation"),
        ({"root": ""}, "root must be the data set's folder"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        LocalisationFilesConfig(**({"name": "cub_localisation", "root": "/data"} | changes))


def test_every_reader_is_in_the_catalogue():
    assert {name for name, entry in DATA.items() if entry.config.endswith(":LocalisationFilesConfig")} == set(NAMES)
    assert DATA[NAMES[0]].config_class() is LocalisationFilesConfig
    assert {name for name, entry in DATA.items() if entry.localisation} == {"handwriting", *NAMES}
