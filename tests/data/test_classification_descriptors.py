import json
from pathlib import Path

import pytest

from tenfold.data.descriptors import check_descriptors, read_descriptors, shipped_descriptors
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.data.files.readers.torchvision_sets import EUROSAT_NAMES


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "descriptors.json"


def test_order_is_kept_and_a_list_may_be_empty(file):
    file.write_text('{"b": ["a long tail", "paws"], "a": [], "c": ["wings"]}')
    assert list(read_descriptors(file).items()) == [("b", ["a long tail", "paws"]), ("a", []), ("c", ["wings"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "holds list .*expected a JSON object"),
        (b"{}", "holds dict .*expected a JSON object"),
        (b'{"a": ["x"]', "expected a JSON object"),
        (b'{"a": "x"}', "'a' must have a list of texts, got 'x'"),
        (b'{"a": ["x"], "b": ["y", 3]}', r"'b' must have a list of texts, got \['y', 3\]"),
        (b'{"a": ["x"], "b": [null]}', "'b' must have a list of texts"),
        (b'{"a": ["x"], "b": null}', "'b' must have a list of texts"),
        (b'{"a": ["x"], "b": [], "a": ["z"]}', "the key 'a' is repeated"),
        (b'{" ": []}', "the empty name ' '"),
        (b'{"a": ["\xff"]}', "is not UTF-8 text"),
    ],
)
def test_malformed_files_are_named(file, content, message):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_descriptors(file)
    assert str(file) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json cannot be read"):
        read_descriptors(tmp_path / "gone.json")


def described(*keys: str) -> dict[str, list[str]]:
    return {key: [] for key in keys}


@pytest.mark.parametrize(
    ("keys", "classes"),
    [
        (("Black-footed Albatross", "Crested Auklet"), ("001.Black_footed_Albatross", "005.Crested_Auklet")),
        (("annual crop land", "forest", "lake or sea"), ("AnnualCrop", "Forest", "SeaLake")),
        (("arcade (passageway)", "arena-hockey"), ("/a/arcade", "/a/arena/hockey")),
        (("eft", "maillot", "iPod"), ("newt", "tights", "iPod")),
        (("apple pie",), ("apple_pie",)),
    ],
)
def test_keys_may_be_written_another_way(keys, classes):
    check_descriptors(described(*keys), classes, "x.json")


def test_unknown_and_missing_classes_are_named():
    with pytest.raises(ValueError, match=r"x\.json .* 3 classes, got 3; unknown: 'lion'; missing: 'dog'") as caught:
        check_descriptors(described("cat", "lion", "horse"), ("cat", "dog", "horse"), "x.json")
    assert "write the keys like the class names" in str(caught.value)
    with pytest.raises(ValueError, match=r"2 classes, got 3; unknown: 'horse'"):
        check_descriptors(described("cat", "dog", "horse"), ("cat", "dog"), "x.json")
    with pytest.raises(ValueError, match=r"3 classes, got 2; missing: 'cat'"):
        check_descriptors(described("dog", "horse"), ("cat", "dog", "horse"), "x.json")


def test_another_order_would_permute_the_labels():
    with pytest.raises(ValueError, match=r"x\.json: .*'bee', which is class 1, is at position 0, where 'cat' belongs"):
        check_descriptors(described("bee", "cat", "dog"), ("cat", "bee", "dog"), "x.json")
    # A key that is related to the class at its place, but is another class by name.
    with pytest.raises(ValueError, match="in label order"):
        check_descriptors(described("missile", "projectile missile"), ("projectile missile", "missile"), "x.json")


def test_other_names_count():
    classes = ("AnnualCrop", "Forest", "HerbaceousVegetation")
    with pytest.raises(ValueError, match="unknown: 'brushland or shrubland'; missing: 'HerbaceousVegetation'"):
        check_descriptors(described(*EUROSAT_NAMES[:3]), classes, "x.json")
    check_descriptors(described(*EUROSAT_NAMES[:3]), classes, "x.json", prompt_names=EUROSAT_NAMES[:3])


def test_pets_are_numbered_without_regard_to_case():
    classes = ("Abyssinian", "American Bulldog", "Bengal")
    keys = described("Bengal", "Abyssinian", "american bulldog")
    check_descriptors(keys, classes, "x.json", sort_case_insensitive=True)
    with pytest.raises(ValueError, match="in label order"):
        check_descriptors(keys, classes, "x.json")


def test_shipped_descriptors_of_the_digits():
    path = shipped_descriptors("handwriting")
    descriptors = read_descriptors(path)
    check_descriptors(descriptors, DIGIT_WORDS, path)
    assert list(descriptors) == list(DIGIT_WORDS)
    assert all(4 <= len(texts) <= 6 for texts in descriptors.values())
    every = [text for texts in descriptors.values() for text in texts]
    assert len(set(every)) == len(every)
    # A descriptor that names its digit would give the answer away.
    assert not any(
        word in text.split() for text in every for word in DIGIT_WORDS if word not in ("one", "two", "three")
    )
    assert shipped_descriptors("coco") is None
    assert path.read_text() == json.dumps(descriptors, indent=4) + "\n"
