"""Concept readers on small trees: the published preprocessing by hand, splits, and refusals."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from jobs.config import compose_job
from tenfold.config import ConfigError
from tenfold.data.catalog import DATA, load_concepts
from tenfold.data.files import cub_concepts
from tenfold.data.files.concepts import Awa2Config, CelebAConfig, CubConceptsConfig
from tenfold.data.files.readers import cub
from tenfold.types import Preprocessing

NETWORK = Preprocessing(image_size=8)


def write_image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 6), (shade, shade, shade)).save(path, "PNG")  # by content, whatever the name says


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def load(name: str, root: Path, train_size: int | None = None, **changes):
    config = DATA[name].config_class()(root=str(root), num_workers=2, progress=False, **changes)
    return load_concepts(config, NETWORK, train_size)


def fail_naming(path: Path, message: str, name: str, root: Path, **changes) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(name, root, **changes)
    assert str(path) in str(caught.value)


# CUB ----------------------------------------------------------------------------------------------------------------

# The groups of the published attributes.txt and how many attributes each has.
ATTRIBUTE_GROUPS = {
    "bill_shape": 9, "wing_color": 15, "upperparts_color": 15, "underparts_color": 15, "breast_pattern": 4,
    "back_color": 15, "tail_shape": 6, "upper_tail_color": 15, "head_pattern": 11, "breast_color": 15,
    "throat_color": 15, "eye_color": 14, "bill_length": 3, "forehead_color": 15, "under_tail_color": 15,
    "nape_color": 15, "belly_color": 15, "wing_shape": 5, "size": 5, "shape": 14, "back_pattern": 4, "tail_pattern": 4,
    "belly_pattern": 4, "primary_color": 15, "leg_color": 15, "bill_color": 15, "crown_color": 15, "wing_pattern": 4,
}  # fmt: skip
# How many concepts each has, as ../shared/methods/concept_realignment.md says.
KEPT_SIZES = (4, 6, 6, 6, 3, 6, 1, 5, 2, 6, 5, 1, 2, 6, 5, 6, 6, 2, 3, 2, 3, 3, 1, 6, 3, 3, 6, 4)
ATTRIBUTES = [f"has_{group}::{value}" for group, size in ATTRIBUTE_GROUPS.items() for value in range(size)]
CLASSES, EACH = 10, 4  # of each class three images are for training, then one for test
NO, HIDDEN = (0, 4), (0, 1)
MARKS = {
    # Class 0, published concepts 0 to 4; (image, concept): is_present, certainty.
    (0, 0): (1, 4), (1, 0): (1, 3), (2, 0): NO,  # 2 : 1
    (0, 1): (1, 2), (1, 1): NO, (2, 1): HIDDEN,  # 1 : 1, since what is not visible does not count
    (0, 2): HIDDEN, (1, 2): HIDDEN, (2, 2): HIDDEN,  # 0 : 0
    (0, 3): (1, 4), (1, 3): (0, 2), (2, 3): (0, 3), (3, 3): (1, 4),  # 1 : 2; the test image would make it a tie
    (0, 4): (1, 1), (1, 4): HIDDEN, (2, 4): HIDDEN,  # 1 : 0, positives always count
}  # fmt: skip


def write_cub(root: Path) -> Path:
    base = root / "CUB_200_2011"
    images = [(label, shot) for label in range(CLASSES) for shot in range(EACH)]
    names = [f"{label + 1:03d}.Bird_{label}/{shot}.jpg" for label, shot in images]
    table = np.tile(NO, (len(images), len(ATTRIBUTES), 1))
    for (image, concept), mark in MARKS.items():
        table[image, cub_concepts.KEPT[concept]] = mark
    table[:, cub_concepts.KEPT[5]] = (1, 4)  # in all ten classes
    table[:-EACH, cub_concepts.KEPT[6]] = (1, 4)  # in nine
    table[:, 0] = (1, 4)  # in ten, but not among the published concepts
    text(root / "attributes.txt", *(f"{number} {name}" for number, name in enumerate(ATTRIBUTES, start=1)))
    text(base / "classes.txt", *(f"{label + 1} {label + 1:03d}.Bird_{label}" for label in range(CLASSES)))
    text(base / "images.txt", *(f"{number} {name}" for number, name in enumerate(names, start=1)))
    text(base / "image_class_labels.txt", *(f"{number} {label + 1}" for number, (label, _) in enumerate(images, 1)))
    text(base / "train_test_split.txt", *(f"{number} {int(shot < 3)}" for number, (_, shot) in enumerate(images, 1)))
    text(
        base / "attributes/image_attribute_labels.txt",
        *(
            f"{image} {number} {present} {certainty} 1.5"
            for image, row in enumerate(table.tolist(), start=1)
            for number, (present, certainty) in enumerate(row, start=1)
        ),
    )
    for number, name in enumerate(names):
        write_image(base / "images" / name, number)
    return root


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    return write_cub(tmp_path_factory.mktemp("birds"))


@pytest.fixture
def own_birds(birds, tmp_path) -> Path:
    """The same tree, to be changed: links to the images, copies of the lists."""
    for path in sorted(birds.rglob("*")):
        copy = tmp_path / path.relative_to(birds)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
        elif path.suffix == ".jpg":
            copy.hardlink_to(path)
        else:
            copy.write_bytes(path.read_bytes())
    return tmp_path


def test_the_published_concepts_and_their_groups():
    assert len(set(cub_concepts.KEPT)) == 112
    assert list(cub_concepts.KEPT) == sorted(cub_concepts.KEPT)
    assert len(ATTRIBUTES) == cub_concepts.NUM_ATTRIBUTES
    groups = cub_concepts.group_by_name([ATTRIBUTES[column] for column in cub_concepts.KEPT])
    assert list(groups) == [f"has_{name}" for name in ATTRIBUTE_GROUPS]
    assert tuple(map(len, groups.values())) == KEPT_SIZES
    assert [column for columns in groups.values() for column in columns] == list(range(112))


def test_votes_by_hand():
    present = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]], dtype=np.int8)
    certainty = np.array([[4, 1, 1, 1], [2, 1, 1, 3], [3, 1, 1, 4]], dtype=np.int8)
    # 1 : 2; 2 : 0, since the negative is not visible; 0 : 0; 1 : 1. The second class has no image: 0 : 0.
    votes = cub_concepts.vote_by_class(present, certainty, np.zeros(3, dtype=np.int64), 2)
    assert votes.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert votes.dtype == np.int8


def test_votes_are_those_of_the_published_loop():
    rng = np.random.default_rng(0)
    present, certainty = rng.integers(0, 2, (60, 9), np.int8), rng.integers(1, 5, (60, 9), np.int8)
    labels = rng.integers(0, 12, 60)
    # Koh et al., data_processing: least and most frequent value by argmin and argmax, 1 where they are the same.
    counts = np.zeros((12, 9, 2))
    for shown, sure, label in zip(present, certainty, labels, strict=True):
        for attribute, value in enumerate(shown):
            if value == 0 and sure[attribute] == 1:
                continue
            counts[label, attribute, value] += 1
    expected = np.argmax(counts, axis=2)
    expected[np.argmin(counts, axis=2) == expected] = 1
    assert (counts[..., 0] == counts[..., 1]).sum() > 10
    np.testing.assert_array_equal(cub_concepts.vote_by_class(present, certainty, labels, 12), expected)


def test_soft_values_by_hand():
    certainty = np.array([[1, 2, 3, 4]], dtype=np.int8)
    assert cub_concepts.soft_values(np.ones_like(certainty), certainty).tolist() == [[0, 0.5, 0.75, 1]]
    assert cub_concepts.soft_values(np.zeros_like(certainty), certainty).tolist() == [[0, 0.5, 0.25, 0]]


def test_cub_concepts_of_the_class(birds):
    data = load("cub_concepts", birds, train_size=10)
    assert (data.name, data.image_size, data.mirrorable) == ("cub_concepts", 8, True)
    assert len(data.concepts) == 112
    assert data.concepts[:2] == ("has_bill_shape::1", "has_bill_shape::4")
    assert data.classes[:2] == ("001.Bird_0", "002.Bird_1")
    votes = data.class_concepts
    assert votes[0, :8].tolist() == [1, 1, 1, 0, 1, 1, 1, 0]
    assert votes[1, :8].tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert votes[9, :8].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert votes.sum() == 6 + 8 * 2 + 1
    for split in data.splits().values():
        np.testing.assert_array_equal(split.concepts, votes[split.labels])
        assert (split.known, split.certainty) == (None, None)
    assert list(data.groups)[:2] == ["has_bill_shape", "has_wing_color"]
    # Class 0 has three bill shapes and three wing colours; a group of one concept says nothing.
    rest = {"bill_shape", "wing_color", "tail_shape", "eye_color", "belly_pattern"}
    assert data.exclusive == tuple(f"has_{name}" for name in ATTRIBUTE_GROUPS if name not in rest)
    assert data.facts == {"concepts_kept_by_rule": 1, "attributes_kept_by_rule": 2}
    assert data.train.images.read([0]).shape == (1, 10, 10, 3)
    assert data.test.images.read([1, 0]).flatten(1).float().mean(1).tolist() == [7, 3]
    assert data.val.images.read([0]).shape == (1, 8, 8, 3)


def test_cub_concepts_of_the_image(birds):
    data = load("cub_concepts", birds, concepts="image")
    assert data.class_concepts is None
    first = data.test  # image 3 is its first
    assert first.concepts[0, :8].tolist() == [0, 0, 0, 1, 0, 1, 1, 0]
    train, val = data.train, data.val
    known, concepts = (
        np.concatenate([getattr(part, name)[part.labels == 0] for part in (train, val)])
        for name in ("known", "concepts")
    )
    # Not known: one image for concept 1, all three for concept 2, two for concept 4 - the positive is.
    assert (~known).sum(0).tolist() == [0, 1, 3, 0, 2] + [0] * 107
    assert concepts.sum(0)[:8].tolist() == [2, 1, 0, 1, 1, 3, 3, 0]
    assert first.known.all()
    # No image has two bill shapes other than image 0: it has three.
    assert "has_bill_shape" not in data.exclusive
    assert "has_upperparts_color" in data.exclusive


def test_cub_concepts_of_uncertain_annotators(birds):
    data = load("cub_concepts", birds, concepts="uncertain")
    assert (data.class_concepts, data.train.known) == (None, None)
    image = load("cub_concepts", birds, concepts="image")
    np.testing.assert_array_equal(data.train.concepts, image.train.concepts)
    values = np.concatenate([part.certainty[part.labels == 0] for part in (data.train, data.val)])
    assert values.dtype == np.float32
    assert np.sort(values[:, :5], axis=0).T.tolist() == [[0, 0.75, 1], [0, 0, 0.5], [0, 0, 0], [0.25, 0.5, 1], [0] * 3]
    assert data.test.values is data.test.certainty


def test_the_same_share_of_every_class_is_drawn(birds):
    first = load("cub_concepts", birds)
    assert np.bincount(first.val.labels).tolist() == [1] * CLASSES
    assert np.bincount(first.train.labels).tolist() == [2] * CLASSES
    assert np.bincount(first.test.labels).tolist() == [1] * CLASSES
    assert load("cub_concepts", birds).val.images.paths == first.val.images.paths
    assert load("cub_concepts", birds, split_seed=1).val.images.paths != first.val.images.paths
    assert not {*first.train.images.paths} & {*first.val.images.paths}
    fail_naming(birds, "the val part of cub_concepts holds no image", "cub_concepts", birds, val_fraction=0.1)


def test_split_file(own_birds):
    file = text(own_birds / "val.txt", "6", "1", "", "38")
    data = load("cub_concepts", own_birds, split_file="val.txt")
    assert [path.rpartition("images/")[2] for path in data.val.images.paths] == [
        "001.Bird_0/0.jpg",
        "002.Bird_1/1.jpg",
        "010.Bird_9/1.jpg",
    ]
    assert len(data.train) == 27
    # The votes count the official list, whatever the split.
    np.testing.assert_array_equal(data.class_concepts, load("cub_concepts", own_birds).class_concepts)
    for lines, message in (
        (["1", "41"], r"line 2: id must be in 1\.\.40, got '41'"),
        (["0"], r"line 1: id must be in 1\.\.40, got '0'"),
        (["001.Bird_0/0.jpg"], r"line 1: id must be in 1\.\.40, got '001"),
        (["1", "2", "1"], "line 3: image 1 is listed twice"),
        (["4"], "line 1: image 4 is a test image"),
        ([], "is empty: expected ids"),
    ):
        text(file, *lines)
        fail_naming(file, message, "cub_concepts", own_birds, split_file=str(file))
    fail_naming(own_birds / "no.txt", r"no\.txt is missing", "cub_concepts", own_birds, split_file="no.txt")


def test_pickles_are_refused(own_birds, tmp_path_factory):
    with pytest.raises(ValueError, match=r"split_file must be a text file of image ids.*never read.*again"):
        CubConceptsConfig(root="/data", split_file="class_attr_data_10/train.pkl")
    root = tmp_path_factory.mktemp("pickles")
    (root / "class_attr_data_10").mkdir()
    (root / "class_attr_data_10/train.pkl").write_bytes(pickle.dumps([]))
    for place in (root, root / "class_attr_data_10"):
        fail_naming(place, "root must be the folder that holds the official files.*never read", "cub_concepts", place)
    # Beside the official files they do no harm.
    (root / "class_attr_data_10").rename(own_birds / "class_attr_data_10")
    assert load("cub_concepts", own_birds).fingerprint


LABELS = "CUB_200_2011/attributes/image_attribute_labels.txt"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (LABELS, "40 312 0 4 1.5\n", "40 312 0 5 1.5\n", r"line 12480: certainty must be in 1\.\.4, got 5"),
        (LABELS, "40 312 0 4 1.5\n", "40 312 0 0 1.5\n", r"line 12480: certainty must be in 1\.\.4, got 0"),
        (LABELS, "40 312 0 4 1.5\n", "40 312 0\n", "line 12480: expected lines 'image_id attribute_id is_present"),
        (LABELS, "40 312 0 4 1.5\n", "40 312 0 four 1.5\n", "line 12480: expected lines 'image_id attribute_id"),
        (LABELS, "40 312 0 4 1.5\n", "", "expected one line for each of 40 images and 312 attributes, got 12479"),
        (
            "CUB_200_2011/image_class_labels.txt",
            "40 10\n",
            "40 11\n",
            r"line 40: class_id must be in 1\.\.10, got '11'",
        ),
        ("CUB_200_2011/train_test_split.txt", "40 0\n", "", "expected a is_training for each of 40 images"),
        ("CUB_200_2011/classes.txt", "2 002.Bird_1\n", "3 002.Bird_1\n", "line 2: expected lines 'class_id name'"),
    ],
)
def test_cub_refuses_malformed_lists(own_birds, name, old, new, message):
    path = own_birds / name
    path.write_text(path.read_text().replace(old, new))
    fail_naming(path, message, "cub_concepts", own_birds)


def test_cub_refuses_missing_files(own_birds):
    (own_birds / "CUB_200_2011/images/001.Bird_0/0.jpg").unlink()
    fail_naming(own_birds / "CUB_200_2011/images/001.Bird_0/0.jpg", "1 of", "cub_concepts", own_birds)
    (own_birds / LABELS).unlink()
    fail_naming(own_birds / LABELS, "is missing: expected lines 'image_id", "cub_concepts", own_birds)
    text(own_birds / "attributes.txt", "1 a", "2 b")
    (own_birds / LABELS).write_text("")
    with pytest.raises(ValueError, match="expected lines 'image_id attribute_id"):
        load("cub_concepts", own_birds)
    text(own_birds / LABELS, *(f"{image} {number} 0 4 1" for image in range(1, 41) for number in (1, 2)))
    fail_naming(own_birds, r"attributes\.txt must name 312 attributes, got 2", "cub_concepts", own_birds)
    (own_birds / "attributes.txt").unlink()
    fail_naming(own_birds, r"attributes/attributes\.txt is missing: expected lines", "cub_concepts", own_birds)
    with pytest.raises(ValueError, match="root must be the folder of the data set cub_concepts"):
        load("cub_concepts", own_birds / "nowhere")


def test_the_attribute_names_may_lie_in_their_folder(own_birds):
    first = load("cub_concepts", own_birds)
    (own_birds / "attributes.txt").rename(own_birds / "CUB_200_2011/attributes/attributes.txt")
    assert load("cub_concepts", own_birds).fingerprint == first.fingerprint


@pytest.fixture
def parses(monkeypatch) -> list[Path]:
    """Files of attributes parsed so far."""
    parsed: list[Path] = []
    parse = cub._parse_attributes

    def count(path, *sizes):
        parsed.append(path)
        return parse(path, *sizes)

    monkeypatch.setattr(cub, "_parse_attributes", count)
    return parsed


def test_attributes_are_parsed_once_and_cached(own_birds, parses, tmp_path_factory):
    plain = load("cub_concepts", own_birds)
    load("cub_concepts", own_birds)
    assert len(parses) == 2  # without a cache once for each load
    cache = tmp_path_factory.mktemp("cache")
    first = load("cub_concepts", own_birds, cache=str(cache))
    again = load("cub_concepts", own_birds, cache=str(cache), concepts="image")
    assert len(parses) == 3
    assert first.fingerprint == plain.fingerprint
    assert again.fingerprint == load("cub_concepts", own_birds, concepts="image").fingerprint
    np.testing.assert_array_equal(first.val.images.read([0, 1]), plain.val.images.read([0, 1]))
    lists = cub.read_cub(own_birds, cache)
    np.testing.assert_array_equal(lists.train.full, cub.read_cub(own_birds).train.full)
    parses.clear()
    path = own_birds / LABELS
    path.write_text(path.read_text().replace("1 2 1 4 1.5\n", "1 2 0 4 1.25\n"))
    changed = load("cub_concepts", own_birds, cache=str(cache))
    assert len(parses) == 1
    assert changed.class_concepts[0, 0] == 0


def test_the_fingerprint_sees_the_data_and_not_their_place(birds, own_birds, tmp_path_factory):
    first = load("cub_concepts", birds).fingerprint
    cache = str(tmp_path_factory.mktemp("cache"))
    others = {"cache": cache, "costs": {"has_size": 2.0}, "mirrorable": False}
    assert load("cub_concepts", own_birds, train_size=9, **others).fingerprint == first
    seen = {first}
    for changes in ({"concepts": "image"}, {"concepts": "uncertain"}, {"split_seed": 3}, {"val_fraction": 0.5}):
        seen.add(load("cub_concepts", own_birds, **changes).fingerprint)
    assert len(seen) == 5
    path = own_birds / LABELS
    path.write_text(path.read_text().replace("2 2 1 3 1.5\n", "2 2 0 3 1.5\n"))  # a majority less
    seen.add(load("cub_concepts", own_birds).fingerprint)
    picture = own_birds / "CUB_200_2011/images/010.Bird_9/3.jpg"
    picture.unlink()
    Image.new("RGB", (50, 40)).save(picture, "PNG")
    seen.add(load("cub_concepts", own_birds).fingerprint)
    assert len(seen) == 7


def test_costs(birds):
    assert load("cub_concepts", birds, costs={"has_size": 2.5}).costs == {"has_size": 2.5}
    assert load("cub_concepts", birds).costs == {}
    with pytest.raises(ValueError, match=r"costs must name groups .*got 'size'"):
        load("cub_concepts", birds, costs={"size": 2.0})


# Animals ------------------------------------------------------------------------------------------------------------

ANIMALS = "train_val_test_classification_split.txt"


@pytest.fixture
def animals(tmp_path) -> Path:
    text(tmp_path / "classes.txt", "    1\tgrizzly+bear", "    2\tfox", "    3\twhale")
    text(tmp_path / "predicates.txt", "    1\tblack", "    2\tbrown", "    3\tswims", "    4\tfur")
    text(tmp_path / "predicate-matrix-binary.txt", "0 1 1 1", "0 1 0 1", "1 0 1 0")
    images = ["grizzly+bear/b_1.jpg", "fox/f_1.jpg", "whale/w_1.jpg", "fox/f_2.jpg", "whale/w_2.jpg"]
    # Three ways of writing a path that have been seen, one of them of another machine.
    prefixes = ["JPEGImages/", "/home/x/Animals_with_Attributes2/JPEGImages/", "", "./JPEGImages/", "./"]
    labels, parts = (1, 2, 3, 2, 3), (1, 1, 2, 0, 0)
    text(
        tmp_path / ANIMALS,
        *(f"{i} {prefixes[i]}{images[i]} {labels[i]} {parts[i]}" for i in range(5)),
    )
    for number, name in enumerate(images):
        write_image(tmp_path / "JPEGImages" / name, number)
    return tmp_path


def test_awa2(animals):
    data = load("awa2", animals, train_size=6)
    assert data.concepts == ("black", "brown", "swims", "fur")
    assert data.classes == ("grizzly+bear", "fox", "whale")
    assert (data.groups, data.exclusive, data.mirrorable) == (None, (), True)
    assert data.class_concepts.tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert [split.labels.tolist() for split in data.splits().values()] == [[0, 1], [2], [1, 2]]
    assert data.train.concepts.tolist() == [[0, 1, 1, 1], [0, 1, 0, 1]]
    assert data.test.images.paths == tuple(f"{animals}/JPEGImages/{name}" for name in ("fox/f_2.jpg", "whale/w_2.jpg"))
    assert data.train.images.read([0, 1]).shape == (2, 6, 6, 3)
    assert load("awa2", animals, costs={"swims": 0.5}).costs == {"swims": 0.5}


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("classes.txt", ["1 fox", "3 whale"], "line 2: expected lines 'number class'"),
        ("predicates.txt", ["1 black", "2 black"], "names the entry 'black' twice"),
        ("predicate-matrix-binary.txt", ["0 1 1 1"], "so 3 lines, got 1"),
        ("predicate-matrix-binary.txt", ["0 1 1 1", "0 1 1", "0 1 1 1"], "line 2: expected 4 values.*got 3"),
        ("predicate-matrix-binary.txt", ["0 1 1 1", "0 1 1 2", "0 1 1 1"], "line 2: expected a line .* got '2'"),
        (ANIMALS, ["0 fox/f_1.jpg 2"], "line 1: expected lines 'image_id path class split'"),
        (ANIMALS, ["0 fox/f_1.jpg 2 1", "1 fox/f_2.jpg 2 3"], "line 2: expected lines 'image_id path class split'"),
        (ANIMALS, ["0 fox/f_1.jpg 0 1"], r"line 1: class must be in 1\.\.3, got '0'"),
        (ANIMALS, ["0 fox/f_1.jpg 4 1"], r"line 1: class must be in 1\.\.3, got '4'"),
        (ANIMALS, ["0 fox/f_1.jpg 2 1", "1 ./fox/f_1.jpg 2 0"], r"line 2: \./fox/f_1\.jpg is listed twice"),
        (ANIMALS, ["0 fox/f_1.jpg 2 1", "1 fox/f_2.jpg 2 0"], "lists no image of the val part"),
    ],
)
def test_awa2_refuses_malformed_lists(animals, name, lines, message):
    fail_naming(text(animals / name, *lines), message, "awa2", animals)


@pytest.mark.parametrize("name", ["classes.txt", "predicates.txt", "predicate-matrix-binary.txt", ANIMALS])
def test_awa2_refuses_missing_lists(animals, name):
    (animals / name).unlink()
    fail_naming(animals / name, "is missing: expected", "awa2", animals)


def test_awa2_sees_missing_images_and_changes(animals):
    first = load("awa2", animals).fingerprint
    text(animals / "predicate-matrix-binary.txt", "0 1 1 1", "0 1 0 1", "1 0 1 1")
    assert load("awa2", animals).fingerprint != first
    (animals / "JPEGImages/fox/f_2.jpg").unlink()
    fail_naming(animals / "JPEGImages/fox/f_2.jpg", "1 of 2 listed images are not on disk", "awa2", animals)


# CelebA -------------------------------------------------------------------------------------------------------------

FACES = 40
FREQUENT = {"Male": 20, "Young": 30, "Hat": 2, "Smiling": 22, "Wavy": 16}
"""Attributes and how many faces have them."""


def faces_table() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(np.arange(FACES) < count) for count in FREQUENT.values()], axis=1).astype(int)


@pytest.fixture
def faces(tmp_path) -> Path:
    names = [f"{number:06d}.jpg" for number in range(1, FACES + 1)]
    rows = zip(names, (2 * faces_table() - 1).tolist(), strict=True)
    lines = [f"{name} " + " ".join(f"{value:2d}" for value in values) for name, values in rows]
    text(tmp_path / "celeba/list_attr_celeba.txt", str(FACES), " ".join(FREQUENT) + " ", *lines)
    for number, name in enumerate(names):
        write_image(tmp_path / "celeba/img_align_celeba" / name, number)
    return tmp_path


def face_rows(split) -> np.ndarray:
    return np.array([int(Path(path).stem) - 1 for path in split.images.paths])


def test_celeba(faces):
    data = load("celeba", faces, num_concepts=3, subset_fraction=0.5)
    table = faces_table()
    # Closest to 20 of 40: Male 20, Smiling 22, Wavy 16; in the order of the list.
    assert data.concepts == ("Male", "Smiling", "Wavy")
    assert (data.groups, data.exclusive) == (None, ())
    assert [len(split) for split in data.splits().values()] == [14, 2, 4]
    rows = {part: face_rows(split) for part, split in data.splits().items()}
    assert len({*np.concatenate(list(rows.values())).tolist()}) == 20
    for part, split in data.splits().items():
        bits = table[rows[part]][:, [0, 3, 4]]
        np.testing.assert_array_equal(split.concepts, bits)
        np.testing.assert_array_equal(data.class_concepts[split.labels], bits)
        assert [data.classes[label] for label in split.labels] == ["".join(map(str, row)) for row in bits]
        assert (split.images.read(range(len(split))).flatten(1).float().mean(1).numpy() == rows[part]).all()
    assert list(data.classes) == sorted(data.classes)
    assert len(data.classes) <= 8
    again = load("celeba", faces, num_concepts=3, subset_fraction=0.5, split_seed=7)
    assert again.fingerprint != data.fingerprint
    assert load("celeba", faces, num_concepts=3, subset_fraction=0.5).fingerprint == data.fingerprint


def test_celeba_hides_the_last_concepts_from_the_model_but_not_from_the_classes(faces):
    whole = load("celeba", faces, num_concepts=4, subset_fraction=1.0)
    data = load("celeba", faces, num_concepts=4, hidden_concepts=3, subset_fraction=1.0)
    assert whole.concepts == ("Male", "Young", "Smiling", "Wavy")
    assert data.concepts == ("Male",)
    assert data.classes == whole.classes
    np.testing.assert_array_equal(data.train.labels, whole.train.labels)
    np.testing.assert_array_equal(data.train.concepts, whole.train.concepts[:, :1])
    assert data.class_concepts.tolist() == [[int(name[0])] for name in data.classes]
    assert data.fingerprint != whole.fingerprint


def test_celeba_is_read_as_torchvision_reads_it(faces, monkeypatch):
    monkeypatch.setattr(datasets.CelebA, "_check_integrity", lambda self: True)
    names = [f"{number:06d}.jpg" for number in range(1, FACES + 1)]
    for name, header in (("identity_CelebA", 0), ("list_bbox_celeba", 2), ("list_landmarks_align_celeba", 2)):
        text(faces / f"celeba/{name}.txt", *["head"] * header, *(f"{each} 1" for each in names))
    text(faces / "celeba/list_eval_partition.txt", *(f"{each} 0" for each in names))
    theirs = datasets.CelebA(faces, split="all")
    data = load("celeba", faces, num_concepts=5, subset_fraction=1.0)
    assert theirs.attr_names[: len(FREQUENT)] == list(data.concepts)  # the last is an empty one
    for split in data.splits().values():
        rows = face_rows(split)
        assert [theirs.filename[row] for row in rows] == [Path(path).name for path in split.images.paths]
        np.testing.assert_array_equal(theirs.attr.numpy()[rows], split.concepts)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1: expected the number of images"),
        (["Male Young", "1.jpg 1 1"], "line 1: expected the number of images"),
        (["2", "Male Young", "1.jpg 1 1"], "expected 2 images as line 1 says, got 1; is it truncated"),
        (["1", "Male Male", "1.jpg 1 1"], "names the attribute 'Male' twice"),
        (["2", "Male Young", "1.jpg 1 1", "1.jpg -1 1"], r"names the image '1\.jpg' twice"),
        (["1", "Male Young", "1.jpg 1 0"], "line 3: expected an image and 2 values -1 or 1, got '1.jpg 1 0'"),
        (["2", "Male Young", "1.jpg 1 1", "2.jpg 1"], "line 4: expected an image and 2 values"),
        (["1", "Male Young", "1.jpg 1 1 1"], "line 3: expected an image and 2 values"),
    ],
)
def test_celeba_refuses_malformed_lists(faces, lines, message):
    fail_naming(text(faces / "celeba/list_attr_celeba.txt", *lines), message, "celeba", faces)


def test_celeba_refuses_missing_files_and_too_few(faces):
    fail_naming(faces, "num_concepts must be at most the 5 attributes", "celeba", faces)
    fail_naming(faces, "the train part of celeba holds no image", "celeba", faces, num_concepts=2, subset_fraction=0.01)
    (faces / "celeba/img_align_celeba/000009.jpg").unlink()
    path = faces / "celeba/img_align_celeba/000009.jpg"
    fail_naming(path, "1 of", "celeba", faces, num_concepts=2, subset_fraction=1.0)
    (faces / "celeba/img_align_celeba").rename(faces / "celeba/elsewhere")
    fail_naming(faces / "celeba/img_align_celeba", "is not a folder: expected CelebA's aligned", "celeba", faces)
    (faces / "celeba/list_attr_celeba.txt").unlink()
    fail_naming(faces / "celeba/list_attr_celeba.txt", "is missing: expected the number", "celeba", faces)


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (CubConceptsConfig, {"name": "awa2"}, "name must be one of cub_concepts, got 'awa2'"),
        (CubConceptsConfig, {"root": ""}, "root must be the data set's folder"),
        (CubConceptsConfig, {"concepts": "soft"}, "concepts must be class, image or uncertain, got 'soft'"),
        (CubConceptsConfig, {"val_fraction": 1.0}, "val_fraction must lie strictly between 0 and 1, got 1.0"),
        (CubConceptsConfig, {"split_seed": -1}, r"split_seed must be in 0\.\.2\^32 - 1, got -1"),
        (CubConceptsConfig, {"costs": {"a": 0.0}}, "costs must be positive"),
        (Awa2Config, {"num_workers": 0}, "num_workers must be at least 1, got 0"),
        (CelebAConfig, {"num_concepts": 9}, r"num_concepts must lie in 1\.\.8, got 9"),
        (CelebAConfig, {"hidden_concepts": -1}, "hidden_concepts must be at least 0, got -1"),
        (CelebAConfig, {"hidden_concepts": 8}, "hidden_concepts must be less than num_concepts, 8, got 8"),
        (CelebAConfig, {"subset_fraction": 0.0}, r"subset_fraction must lie in \(0, 1\], got 0.0"),
        (CelebAConfig, {"split_seed": 2**32}, "split_seed must be in"),
    ],
)
def test_settings_refuse(cls, changes, message):
    with pytest.raises(ValueError, match=message):
        cls(**({"root": "/data"} | changes))
    assert json.dumps(replace(cls(root="/data"), root="/elsewhere").root)


def test_settings_come_from_the_command_line():
    job = compose_job(["data=cub_concepts", "data.root=/data", "data.costs={has_size: 2, has_shape: 0.5}"])
    assert job.data == CubConceptsConfig(root="/data", costs={"has_size": 2.0, "has_shape": 0.5})
    with pytest.raises(ConfigError, match=r"data\.hidden_concepts must be less than num_concepts, 8, got 8"):
        compose_job(["data=celeba", "data.root=/data", "data.hidden_concepts=8"])
    with pytest.raises(ConfigError, match=r"data\.costs must be positive"):
        compose_job(["data=awa2", "data.root=/data", "data.costs={swims: -1}"])
    with pytest.raises(ConfigError, match=r"data\.concepts.*'class', 'image' or 'uncertain'"):
        compose_job(["data=cub_concepts", "data.root=/data", "data.concepts=soft"])
    with pytest.raises(ConfigError, match=r"data\.split_file must be a text file of image ids"):
        compose_job(["data=cub_concepts", "data.root=/data", "data.split_file=val.pkl"])
