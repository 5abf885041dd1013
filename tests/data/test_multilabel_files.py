import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.data.files import multilabel as multilabel_files
from tenfold.data.files.multilabel import MultiLabelFilesConfig, load_multilabel_files
from tenfold.data.files.readers import coco, cub, voc
from tenfold.data.files.readers.matrices import read_matrices
from tenfold.data.files.readers.openimages import read_openimages
from tenfold.data.images import FileImages
from tenfold.data.partial_labels import observe_labels, train_val_split


def write_image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(path, "PNG")  # by content, whatever the name says


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def config(root: Path, name: str, **changes) -> MultiLabelFilesConfig:
    settings = {"image_size": 8, "val_fraction": 0.4, "num_workers": 2, "progress": False}
    return MultiLabelFilesConfig(name=name, root=str(root), **(settings | changes))


# COCO -----------------------------------------------------------------------------------------------------------------

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def write_coco_list(root: Path, part: str, pairs: list[tuple[int, int]], ids: list[int], **changes) -> Path:
    content = {
        "info": {"year": 2014},
        "images": [{"id": i, "file_name": f"COCO_{part}_{i:012d}.jpg", "height": 4} for i in ids],
        "annotations": [
            {
                # Crowds have run lengths where others have polygons.
                "segmentation": {"counts": [1, 2], "size": [4, 6]} if number % 2 else [[1.5, 2.0, 3.0, 4.0]],
                "iscrowd": number % 2,
                "image_id": image,
                "category_id": category,
                "id": number,
            }
            for number, (image, category) in enumerate(pairs)
        ],
        "categories": CATEGORIES,
    }
    path = root / "annotations" / f"instances_{part}.json"
    write_text(path, json.dumps(content | changes))
    return path


@pytest.fixture
def coco_root(tmp_path) -> Path:
    # As strings the ids sort 100 < 20 < 3 < 9; image 7 has no annotation.
    write_coco_list(tmp_path, "train2014", [(9, 18), (9, 18), (100, 90), (20, 1), (20, 18), (3, 1)], [3, 7, 9, 20, 100])
    write_coco_list(tmp_path, "val2014", [(5, 1), (40, 90)], [40, 5])
    for part, ids in (("train2014", (3, 7, 9, 20, 100)), ("val2014", (5, 40))):
        for image_id in ids:
            write_image(tmp_path / part / f"COCO_{part}_{image_id:012d}.jpg", image_id)
    return tmp_path


def test_coco(coco_root):
    lists = coco.read_coco(coco_root)
    assert lists.classes == ("dog", "person", "toothbrush")
    assert lists.train.names == [f"COCO_train2014_{i:012d}.jpg" for i in (100, 20, 3, 9)]
    np.testing.assert_array_equal(lists.train.full, [[0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]])
    assert lists.test.names == [f"COCO_val2014_{i:012d}.jpg" for i in (40, 5)]
    np.testing.assert_array_equal(lists.test.full, [[0, 0, 1], [0, 1, 0]])
    assert len(coco.CLASSES) == len(set(coco.CLASSES)) == 80


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        ([(3, 55)], {}, "category id 55"),
        ([(4, 1)], {}, "image id 4"),
        ([], {}, "annotations is empty"),
        ([(3, 1)], {"categories": None}, "categories is empty"),
        ([(3, 1)], {"images": "none"}, "not JSON of COCO's layout"),
        ([(3, 1)], {"annotations": [{"image_id": 3}]}, "an entry of annotations has no category_id"),
        ([(3, 1)], {"annotations": [{"image_id": "three", "category_id": 1}]}, "not JSON of COCO's layout"),
        ([(3, 1)], {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "names the category 'a' twice"),
    ],
)
def test_coco_errors_name_the_file(coco_root, annotations, changes, message):
    path = write_coco_list(coco_root, "val2014", annotations, [3], **changes)
    with pytest.raises(ValueError, match=message) as caught:
        coco.read_coco(coco_root)
    assert str(path) in str(caught.value)


def test_coco_file_cut_off_or_missing(coco_root):
    path = coco_root / "annotations/instances_train2014.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"instances_train2014\.json is not JSON"):
        coco.read_coco(coco_root)
    path.write_text("")
    with pytest.raises(ValueError, match=r"instances_train2014\.json is not JSON"):
        coco.read_coco(coco_root)
    path.unlink()
    with pytest.raises(ValueError, match=r"instances_train2014\.json is missing"):
        coco.read_coco(coco_root)


def test_coco_lists_must_share_categories(coco_root):
    write_coco_list(coco_root, "val2014", [(5, 18)], [5], categories=CATEGORIES[:2])
    with pytest.raises(ValueError, match="different categories"):
        coco.read_coco(coco_root)


# VOC ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def voc_root(tmp_path) -> Path:
    flags = {"aeroplane": "1 -1 -1 0", "person": "-1 1 -1 1", "tvmonitor": "1 0 -1 -1"}
    devkit = tmp_path / "VOCdevkit/VOC2012"
    for part in ("train", "val"):
        ids = ["2008_000008", "2007_000032", "2009_000001", "2010_000002"]
        for name in voc.CLASSES:
            values = flags.get(name, "-1 -1 -1 -1").split()
            lines = [f"{image_id} {value:>2}" for image_id, value in zip(ids, values, strict=True)]
            write_text(devkit / f"ImageSets/Main/{name}_{part}.txt", "\n".join(lines) + "\n")
        for image_id in ids:
            write_image(devkit / "JPEGImages" / f"{image_id}.jpg")
    return tmp_path


def test_voc(voc_root):
    lists = voc.read_voc(voc_root)
    assert list(lists.classes) == sorted(voc.CLASSES)
    assert len(lists.classes) == 20
    # 2009_000001 has no positive class; a flag of 0 (difficult) is not positive.
    assert lists.train.names == ["2007_000032.jpg", "2008_000008.jpg", "2010_000002.jpg"]
    expected = np.zeros((3, 20), dtype=np.int8)
    expected[0, 14] = expected[2, 14] = 1  # person
    expected[1, 0] = expected[1, 19] = 1  # aeroplane, tvmonitor
    np.testing.assert_array_equal(lists.train.full, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "2008_000008 1\n2007_000032 2\n2009_000001 -1\n2010_000002 -1\n",
            "flag of 2007_000032 must be -1, 0 or 1, got 2",
        ),
        ("2008_000008 1\n2007_000032\n", "3 fields on 2 lines"),
        ("2008_000008 1\n2008_000008 1\n", "lists an image twice"),
        ("2008_000008 1\n2007_000032 -1\n", "lists other images"),
        ("", "0 fields on 0 lines"),
    ],
)
def test_voc_errors_name_the_file(voc_root, text, message):
    path = voc_root / "VOCdevkit/VOC2012/ImageSets/Main/cat_val.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        voc.read_voc(voc_root)
    assert str(path) in str(caught.value)


def test_voc_missing_list(voc_root):
    (voc_root / "VOCdevkit/VOC2012/ImageSets/Main/sheep_train.txt").unlink()
    with pytest.raises(ValueError, match=r"sheep_train\.txt is missing"):
        voc.read_voc(voc_root)


# CUB ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cub_root(tmp_path) -> Path:
    folder = tmp_path / "CUB_200_2011"
    write_text(tmp_path / "attributes.txt", "1 has_bill_shape::curved\n2 has_wing_color::blue\n")
    write_text(folder / "images.txt", "1 001.A/a.jpg\n2 001.A/b.jpg\n3 002.B/c.jpg\n4 002.B/d.jpg\n5 002.B/e.jpg\n")
    write_text(folder / "train_test_split.txt", "1 0\n2 1\n3 1\n4 0\n5 1\n")
    labels = ["1 1 1 3 12.5", "1 2 0 1 1.0", "2 1 0 4 0 1.5", "2 2 1 1 2", "3 1 1 1 1", "3 2 1 1 1"]  # one sixth field
    labels += ["4 1 0 1 1", "4 2 0 2 1", "5 1 0 1 1", "5 2 1 3 1"]
    write_text(folder / "attributes/image_attribute_labels.txt", "\n".join(labels) + "\n")
    for name in ("001.A/a", "001.A/b", "002.B/c", "002.B/d", "002.B/e"):
        write_image(folder / "images" / f"{name}.jpg")
    return tmp_path


def test_cub(cub_root):
    lists = cub.read_cub(cub_root)
    assert lists.classes == ("has_bill_shape::curved", "has_wing_color::blue")
    assert lists.train.names == ["001.A/b.jpg", "002.B/c.jpg", "002.B/e.jpg"]
    np.testing.assert_array_equal(lists.train.full, [[0, 1], [1, 1], [0, 1]])
    assert lists.test.names == ["001.A/a.jpg", "002.B/d.jpg"]
    np.testing.assert_array_equal(lists.test.full, [[1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("attributes.txt", "1 a\n3 b\n", "line 2: expected lines 'attribute_id name'"),
        ("attributes.txt", "1 a\n2 a\n", "names the entry 'a' twice"),
        ("attributes.txt", "", "is empty"),
        ("CUB_200_2011/images.txt", "1\n", "line 1: expected lines 'image_id path'"),
        (
            "CUB_200_2011/train_test_split.txt",
            "1 0\n2 1\n",
            "expected a is_training for each of 5 images of images.txt, got 2",
        ),
        (
            "CUB_200_2011/train_test_split.txt",
            "1 0\n2 1\n3 1\n4 0\n5 2\n",
            "line 5: is_training must be in 0..1, got '2'",
        ),
    ],
)
def test_cub_list_errors_name_the_file(cub_root, name, text, message):
    (cub_root / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        cub.read_cub(cub_root)
    assert str(cub_root / name) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("5 2 1 3 1\n", "", "expected one line for each of 5 images and 2 attributes, got 9"),
        ("5 2 1 3 1\n", "5 1 1 3 1\n", "expected one line for each"),
        ("5 2 1 3 1\n", "6 2 1 3 1\n", r"line 10: image id must be in 1\.\.5, got 6"),
        ("5 2 1 3 1\n", "5 3 1 3 1\n", r"line 10: attribute id must be in 1\.\.2, got 3"),
        ("5 2 1 3 1\n", "5 2 -1 3 1\n", "line 10: is_present must be 0 or 1, got -1"),
        ("5 2 1 3 1\n", "5 2 yes 3 1\n", "expected lines 'image_id attribute_id"),
        ("5 2 1 3 1\n", "5 2\n", "expected lines 'image_id attribute_id"),
    ],
)
def test_cub_attribute_errors_name_the_file(cub_root, old, new, message):
    path = cub_root / "CUB_200_2011/attributes/image_attribute_labels.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        cub.read_cub(cub_root)
    assert str(path) in str(caught.value)


# OpenImages -----------------------------------------------------------------------------------------------------------

HEADER = ("ImageID", "Source", "LabelName", "Confidence")
OPENIMAGES = {
    "train": [
        ("0b", "verification", "/m/cat", 1),
        ("0a", "verification", "/m/dog", 0),
        ("0a", "crowdsource-verification", "/m/dog", 1),  # the one who saw it wins
        ("0a", "verification", "/m/car", 0),
        ("0c", "verification", "/m/unlisted", 1),  # no label within the classes: left out
        ("0d", "verification", "/m/car", 1),
        ("0d", "verification", "/m/cat", 0),
    ],
    "validation": [("1a", "verification", "/m/dog", 0), ("1b", "verification", "/m/cat", 1)],
    "test": [("2a", "verification", "/m/car", 1)],
}
FOLDERS = {"train": "images_train", "validation": "images_val", "test": "images_test"}


def write_annotations(root: Path, part: str, rows: list[tuple], header: tuple[str, ...] = HEADER) -> Path:
    path = root / "2017_11" / part / "annotations-human.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def openimages_root(tmp_path) -> Path:
    write_text(tmp_path / "classes-trainable.txt", "/m/dog\n/m/cat\n/m/car\n")
    for part, rows in OPENIMAGES.items():
        write_annotations(tmp_path, part, rows)
        for image_id, *_ in rows:
            write_image(tmp_path / FOLDERS[part] / f"{image_id}.jpg")
    return tmp_path


def test_openimages_lists(openimages_root):
    lists = read_openimages(openimages_root)
    assert lists.classes == ("/m/dog", "/m/cat", "/m/car")
    assert lists.train.names == ["0a.jpg", "0b.jpg", "0d.jpg"]
    assert lists.train.full is None
    np.testing.assert_array_equal(lists.train.observed.toarray(), [[1, 0, -1], [0, 1, 0], [0, -1, 1]])
    assert lists.val is not None
    np.testing.assert_array_equal(lists.val.observed.toarray(), [[-1, 0, 0], [0, 1, 0]])


def test_openimages_codings_and_its_own_validation_list(openimages_root):
    data = load_multilabel_files(config(openimages_root, "openimages"))
    np.testing.assert_array_equal(data.train.observed, [[1, 0, -1], [0, 1, 0], [0, -1, 1]])
    np.testing.assert_array_equal(data.train.full, [[1, -1, 0], [-1, 1, -1], [-1, 0, 1]])  # -1: nobody looked
    assert (data.train.full.dtype, data.train.observed.dtype) == (np.int8, np.int8)
    assert [len(split.images) for split in (data.train, data.val, data.test)] == [3, 2, 1]


def test_openimages_classes_by_a_list_with_words(openimages_root):
    write_text(openimages_root / "my-classes.txt", "/m/car\n/m/cat\n/m/dog\n")
    write_text(openimages_root / "class-descriptions.csv", '/m/car,"Car, red"\n/m/cat,Pet\n/m/dog,Pet\n/m/x,X\n')
    chosen = str(openimages_root / "my-classes.txt")
    data = load_multilabel_files(config(openimages_root, "openimages", classes_file=chosen))
    assert data.classes == ("Car, red", "/m/cat", "/m/dog")  # a repeated word would not name a class
    np.testing.assert_array_equal(data.train.observed, [[-1, 0, 1], [0, 1, 0], [1, -1, 0]])


def test_labels_too_large_for_memory_are_memory_maps(openimages_root, tmp_path, monkeypatch):
    expected = load_multilabel_files(config(openimages_root, "openimages"))
    monkeypatch.setattr(multilabel_files, "_MAX_DENSE_BYTES", 12)  # the training part needs 18 bytes, the others less
    with pytest.raises(ValueError, match=r"cache must be a folder with room for the dense labels \(3, 3\)"):
        load_multilabel_files(config(openimages_root, "openimages"))
    settings = config(openimages_root, "openimages", cache=str(tmp_path / "cache"), cache_images=False)
    data = load_multilabel_files(settings)
    assert isinstance(data.train.full, np.memmap)
    assert not data.train.images.in_memory
    np.testing.assert_array_equal(data.train.full, expected.train.full)
    np.testing.assert_array_equal(data.train.observed, expected.train.observed)
    np.testing.assert_array_equal(data.val.full, expected.val.full)
    assert len(list((tmp_path / "cache").glob("labels-*.npy"))) == 2
    assert data.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("0a", "v", "/m/dog", 0.5)], HEADER, "line 2: Confidence must be 0 or 1, got 0.5"),
        ([("0a", "v", "/m/dog", 1), ("0b", "v", "/m/dog", "")], HEADER, "line 3: Confidence must be 0 or 1, got nan"),
        ([("0a", "v", "/m/dog", "sure")], HEADER, "columns ImageID, LabelName, Confidence"),
        ([("0a", "v", "/m/dog", 1)], ("ImageID", "Source", "Label", "Confidence"), "columns ImageID, LabelName"),
        ([("0a", "v", "/m/dog")], HEADER, "columns ImageID, LabelName"),
        ([("0a", "v", "/m/other", 1)], HEADER, "none of its labels is among the 3 classes"),
        ([], HEADER, "holds no annotation"),
    ],
)
def test_openimages_errors_name_the_file(openimages_root, rows, header, message):
    path = write_annotations(openimages_root, "test", rows, header)
    with pytest.raises(ValueError, match=message) as caught:
        read_openimages(openimages_root)
    assert str(path) in str(caught.value)


def test_openimages_missing_files(openimages_root):
    (openimages_root / "classes-trainable.txt").rename(openimages_root / "2017_11/classes-trainable.txt")
    assert len(read_openimages(openimages_root).classes) == 3
    (openimages_root / "2017_11/validation/annotations-human.csv").unlink()
    with pytest.raises(ValueError, match=r"validation/annotations-human\.csv is missing"):
        read_openimages(openimages_root)
    (openimages_root / "2017_11/classes-trainable.txt").write_text("/m/dog\n/m/dog\n")
    with pytest.raises(ValueError, match="names the label '/m/dog' twice"):
        read_openimages(openimages_root)
    (openimages_root / "2017_11/classes-trainable.txt").unlink()
    with pytest.raises(ValueError, match=r"classes-trainable\.txt is missing"):
        read_openimages(openimages_root)


# Label matrices -------------------------------------------------------------------------------------------------------

NUM_TRAIN, NUM_TEST, NUM_CLASSES = 10, 4, 3


def write_matrices(root: Path, folder: str = ".") -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", NUM_TRAIN), ("val", NUM_TEST)):
        names = np.array([f"{part}/{row:03d}.jpg" for row in range(count)])
        labels = rng.integers(0, 2, (count, NUM_CLASSES)).astype(np.float64)
        labels[:, 0] = np.arange(count) % 2
        labels[:, 1] = 1 - labels[:, 0]
        np.save(root / f"formatted_{part}_images.npy", names)
        np.save(root / f"formatted_{part}_labels.npy", labels)
        for row, name in enumerate(names):
            write_image(root / folder / name, shade=row)


@pytest.fixture
def matrices_root(tmp_path) -> Path:
    write_matrices(tmp_path)
    return tmp_path


def load_npy(root: Path, part: str, kind: str) -> np.ndarray:
    return np.load(root / f"formatted_{part}_{kind}.npy")


def test_matrices_are_drawn_on_the_whole_list_then_split(matrices_root):
    data = load_multilabel_files(config(matrices_root, "matrices"))
    full, test_full = (load_npy(matrices_root, part, "labels") for part in ("train", "val"))
    train, val = train_val_split(NUM_TRAIN, 0.4, 1200)
    observed = observe_labels(full, 1, 0, 1200)
    for split, rows in ((data.train, train), (data.val, val)):
        np.testing.assert_array_equal(split.full, full[rows])
        np.testing.assert_array_equal(split.observed, observed[rows])
        np.testing.assert_array_equal(split.images.read(range(len(rows)))[:, 0, 0, 0].numpy(), rows)  # shade = row
    np.testing.assert_array_equal(data.test.full, test_full)
    np.testing.assert_array_equal(data.test.observed, observe_labels(test_full, 1, 0, 1200))
    assert data.classes == ("class_0", "class_1", "class_2")
    assert data.train.full.dtype == np.int8
    assert (len(data.train.full), len(data.val.full), len(data.test.full)) == (6, 4, 4)
    assert data.train.images.read([0]).shape == (1, 8, 8, 3)


def test_counts_and_seeds_of_the_draw(matrices_root):
    full = load_npy(matrices_root, "train", "labels")
    data = load_multilabel_files(config(matrices_root, "matrices", num_pos=-1, num_neg=1, label_seed=5, split_seed=6))
    train, _ = train_val_split(NUM_TRAIN, 0.4, 6)
    np.testing.assert_array_equal(data.train.observed, observe_labels(full, -1, 1, 5)[train])


def test_subset_keeps_part_of_train_and_val_and_all_of_test(matrices_root):
    whole = load_multilabel_files(config(matrices_root, "matrices"))
    half = load_multilabel_files(config(matrices_root, "matrices", subset_fraction=0.5))
    assert [len(part.images) for part in (half.train, half.val, half.test)] == [3, 2, 4]
    shades = half.train.images.read(range(3))[:, 0, 0, 0].tolist()
    assert set(shades) < set(whole.train.images.read(range(6))[:, 0, 0, 0].tolist())
    np.testing.assert_array_equal(half.train.full, load_npy(matrices_root, "train", "labels")[shades])


def test_observed_files_are_used_unless_told_to_draw(matrices_root):
    full = load_npy(matrices_root, "train", "labels")
    observed = np.where(full == 1, 0, -1)
    np.save(matrices_root / "formatted_train_labels_obs.npy", observed)
    train, _ = train_val_split(NUM_TRAIN, 0.4, 1200)
    data = load_multilabel_files(config(matrices_root, "matrices"))
    np.testing.assert_array_equal(data.train.observed, observed[train])
    with pytest.raises(ValueError, match="set observed_files to false"):
        load_multilabel_files(config(matrices_root, "matrices", num_pos=2))
    drawn = load_multilabel_files(config(matrices_root, "matrices", num_pos=2, observed_files=False))
    np.testing.assert_array_equal(drawn.train.observed, observe_labels(full, 2)[train])


def test_matrices_born_partial(matrices_root):
    labels = np.array([[1, -1, 0], [-1, -1, 1]] * 5)
    np.save(matrices_root / "formatted_train_labels.npy", labels)
    data = load_multilabel_files(config(matrices_root, "matrices"))
    train, val = train_val_split(NUM_TRAIN, 0.4, 1200)
    np.testing.assert_array_equal(data.train.full, labels[train])
    np.testing.assert_array_equal(data.val.observed, np.array([[1, 0, -1], [0, 0, 1]] * 5)[val])
    np.save(matrices_root / "formatted_train_labels_obs.npy", np.zeros_like(labels))
    with pytest.raises(ValueError, match=r"labels_obs\.npy contradicts"):
        load_multilabel_files(config(matrices_root, "matrices"))


@pytest.mark.parametrize(
    ("name", "folder"), [("nuswide", "Flickr"), ("voc", "VOCdevkit/VOC2012/JPEGImages"), ("coco", ".")]
)
def test_matrices_of_a_named_data_set(tmp_path, name, folder):
    write_matrices(tmp_path, folder)
    with pytest.raises(ValueError, match=r"expected shape \(10, \d+\), got \(10, 3\)"):
        load_multilabel_files(config(tmp_path, name))
    write_text(tmp_path / "classes.txt", "sky\nsea\nsun\n")
    data = load_multilabel_files(config(tmp_path, name))
    assert data.classes == ("sky", "sea", "sun")
    assert len(data.test.images.read([0, 3])) == 2


def test_cub_matrices_take_their_names_from_the_attributes(cub_root):
    rng = np.random.default_rng(1)
    for part in ("train", "val"):
        np.save(cub_root / f"formatted_{part}_images.npy", np.array(["001.A/a.jpg", "002.B/c.jpg"] * 2))
        np.save(cub_root / f"formatted_{part}_labels.npy", np.array([[1, 0], [0, 1]] * 2))
    data = load_multilabel_files(config(cub_root, "cub", val_fraction=0.5))
    assert data.classes == ("has_bill_shape::curved", "has_wing_color::blue")
    np.save(cub_root / "formatted_val_labels.npy", rng.integers(0, 2, (4, 3)))
    with pytest.raises(ValueError, match=r"formatted_val_labels\.npy: expected shape \(4, 2\), got \(4, 3\)"):
        load_multilabel_files(config(cub_root, "cub"))


def damaged(value: float) -> np.ndarray:
    labels = np.eye(NUM_TRAIN, NUM_CLASSES)
    labels[7, 2] = value
    return labels


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("labels", damaged(np.nan), "got nan at row 7, column 2"),
        ("labels", damaged(2), "got 2.0 at row 7, column 2"),
        ("labels", damaged(0.5), "got 0.5 at row 7, column 2"),
        ("labels", np.eye(9, 3), r"expected shape \(10, 3\), got \(9, 3\)"),
        ("labels", np.zeros(10), r"expected shape \(10, 3\), got \(10,\)"),
        ("labels", np.full((10, 3), "1"), "expected numbers"),
        ("labels", np.array([[{}] * 3] * 10, dtype=object), "without pickles"),
        ("labels_obs", np.zeros((10, 2)), r"expected shape \(10, 3\), got \(10, 2\)"),
        ("labels_obs", np.ones((10, 3)), "contradicts formatted_train_labels"),
        ("labels_obs", damaged(3), "got 3.0 at row 7, column 2"),
        ("images", np.arange(10), "expected unicode paths"),
        ("images", np.array(["../../etc/passwd"] * 10), "inside the image folder"),
        ("images", np.array(["/etc/passwd"] * 10), "inside the image folder"),
        ("images", np.array([], dtype="U5"), "expected unicode paths"),
    ],
)
def test_matrix_errors_name_the_file(matrices_root, kind, array, message):
    path = matrices_root / f"formatted_train_{kind}.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as caught:
        read_matrices(matrices_root, matrices_root, ("a", "b", "c"))
    assert str(path) in str(caught.value)


def test_matrix_files_missing_or_cut_off(matrices_root):
    path = matrices_root / "formatted_val_labels.npy"
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ValueError, match=r"formatted_val_labels\.npy cannot be read"):
        load_multilabel_files(config(matrices_root, "matrices"))
    path.unlink()
    with pytest.raises(ValueError, match=r"formatted_val_labels\.npy is missing: expected a label matrix \(4, 3\)"):
        load_multilabel_files(config(matrices_root, "matrices"))
    with pytest.raises(ValueError, match=r"formatted_train_images\.npy is missing"):
        load_multilabel_files(config(matrices_root.parent, "nuswide"))


# What all share -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_train", "num_val"), [("coco", 2, 2), ("voc", 2, 1), ("cub", 2, 1), ("openimages", 3, 2)]
)
def test_every_layout_loads_and_reads_its_images(name, num_train, num_val, request):
    root = request.getfixturevalue(f"{name}_root")
    data = load_multilabel_files(config(root, name))
    assert data.name == name
    assert (len(data.train.images), len(data.val.images)) == (num_train, num_val)
    for split in (data.train, data.val, data.test):
        images = split.images.read(range(len(split.images)))
        assert images.shape == (len(split.full), 8, 8, 3)
        assert images.dtype == torch.uint8
        assert split.full.shape[1] == len(data.classes)
        assert ((split.observed == 1) <= (split.full == 1)).all()


def test_missing_image_is_said_before_anything_is_read(matrices_root, monkeypatch):
    monkeypatch.setattr(FileImages, "read_into", lambda *_: pytest.fail("decoded"))
    (matrices_root / "train/003.jpg").unlink()
    (matrices_root / "train/008.jpg").unlink()
    with pytest.raises(ValueError, match=r"2 of 10 listed images are not on disk, first: .*train/003\.jpg"):
        load_multilabel_files(config(matrices_root, "matrices"))


def test_missing_images_may_be_dropped_after_the_draw(matrices_root, caplog):
    (matrices_root / "train/003.jpg").unlink()
    full = load_npy(matrices_root, "train", "labels")
    data = load_multilabel_files(config(matrices_root, "matrices", missing_images="drop"))
    kept = np.delete(np.arange(NUM_TRAIN), 3)
    train, _ = train_val_split(NUM_TRAIN - 1, 0.4, 1200)
    np.testing.assert_array_equal(data.train.observed, observe_labels(full)[kept[train]])
    assert "1 of 10 listed images" in caplog.text


def test_cached_images_equal_decoded_ones_and_serve_every_split(matrices_root, tmp_path, monkeypatch):
    plain = config(matrices_root, "matrices")
    cached = replace(plain, cache=str(tmp_path / "cache"))
    expected, data = load_multilabel_files(plain), load_multilabel_files(cached)
    assert (expected.train.images.in_memory, data.train.images.in_memory) == (False, True)
    for part in ("train", "val", "test"):
        rows = range(len(getattr(data, part).images))
        assert torch.equal(getattr(data, part).images.read(rows), getattr(expected, part).images.read(rows))
    assert data.fingerprint == expected.fingerprint
    monkeypatch.setattr(FileImages, "read_into", lambda *_: pytest.fail("decoded again"))
    load_multilabel_files(replace(cached, split_seed=3))


def test_fingerprint_follows_content_and_not_place(matrices_root, tmp_path_factory):
    base = config(matrices_root, "matrices")
    fingerprint = load_multilabel_files(base).fingerprint
    moved = tmp_path_factory.mktemp("moved")
    write_matrices(moved)
    assert load_multilabel_files(replace(base, root=str(moved), num_workers=1)).fingerprint == fingerprint
    changed = [replace(base, image_size=16), replace(base, num_neg=1), replace(base, split_seed=1)]
    others = {load_multilabel_files(other).fingerprint for other in changed}
    labels = load_npy(moved, "val", "labels")
    labels[0, 2] = 1 - labels[0, 2]
    np.save(moved / "formatted_val_labels.npy", labels)
    others.add(load_multilabel_files(replace(base, root=str(moved))).fingerprint)
    with (matrices_root / "train/001.jpg").open("ab") as file:
        file.write(b"\0")
    others.add(load_multilabel_files(base).fingerprint)
    assert len(others | {fingerprint}) == 6


def test_labels_of_one_value_and_parts_without_images(matrices_root):
    with pytest.raises(ValueError, match="val part is empty"):
        load_multilabel_files(config(matrices_root, "matrices", val_fraction=0.01))
    np.save(matrices_root / "formatted_train_labels.npy", np.zeros((10, 3)))
    with pytest.raises(ValueError, match=f"{matrices_root}: cannot draw observed labels"):
        load_multilabel_files(config(matrices_root, "matrices"))


def test_root_must_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        load_multilabel_files(config(tmp_path / "none", "coco"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "imagenet"}, "name must be one of"),
        ({"root": ""}, "root must be"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"num_pos": -2}, "num_pos must be at least -1, got -2"),
        ({"num_neg": -2}, "num_neg must be at least -1, got -2"),
        ({"val_fraction": 0.0}, "val_fraction"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"subset_fraction": 0.0}, "subset_fraction"),
        ({"subset_fraction": 1.5}, "subset_fraction"),
        ({"label_seed": -1}, "label_seed"),
        ({"split_seed": 2**32}, "split_seed"),
        ({"missing_images": "ignore"}, "missing_images must be error or drop"),
    ],
)
def test_config_checks_itself(changes, message):
    with pytest.raises(ValueError, match=message):
        MultiLabelFilesConfig(**({"name": "coco", "root": "/data"} | changes))
