import numpy as np
import pytest

from tenfold.data.catalog import DATA, load_classification
from tenfold.data.classification import ClassificationData, ClassificationSplit, check_splits
from tenfold.data.domains import DOMAINS
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.images import ArrayImages, resize_image
from tenfold.types import Preprocessing


def split(*labels: int) -> ClassificationSplit:
    images = ArrayImages(np.zeros((len(labels), 2, 2, 3), dtype=np.uint8))
    return ClassificationSplit(images=images, labels=np.array(labels, dtype=np.int64))


def data(**changes) -> ClassificationData:
    settings = {"name": "pets", "classes": ("cat", "dog"), "test": split(0, 1), "image_size": 2, "fingerprint": "f"}
    return ClassificationData(**(settings | changes))


@pytest.mark.parametrize("labels", [np.zeros(3, np.int64), np.zeros(2, np.int32), np.zeros((2, 1), np.int64)])
def test_labels_must_be_whole_numbers_one_for_each_image(labels):
    images = ArrayImages(np.zeros((2, 2, 2, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(2,\), one for each image, got int"):
        ClassificationSplit(images=images, labels=labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "pets has no classes"),
        ({"classes": ("cat", "")}, "name of class 1 is empty"),
        ({"classes": ("cat", "cat")}, "names the class 'cat' twice"),
        ({"prompt_names": ("a cat",)}, "a prompt name for each of 2 classes, got 1"),
        ({"test": split()}, "the test part holds no image"),
        ({"test": split(0, 2)}, r"test labels must lie in 0\.\.1, got 0\.\.2"),
        ({"val": split(-1, 1)}, r"val labels must lie in 0\.\.1, got -1\.\.1"),
        ({"train": split(1, 1)}, "1 of 2 classes have no training image, first: 'cat'"),
    ],
)
def test_inconsistent_data_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        data(**changes)


def test_parts_by_name():
    both = data(train=split(0, 1, 1), test=split(1))  # a class may be absent from the test part
    assert list(both.splits()) == ["train", "test"]
    assert len(both.split("train")) == 3
    with pytest.raises(ValueError, match="pets has no val part here; it has train, test"):
        both.split("val")


def test_splits_are_checked_and_ordered():
    assert check_splits(["test", "train"]) == ("train", "test")
    for bad in ([], ["train", "dev"]):
        with pytest.raises(ValueError, match="splits must be some of train, val, test"):
            check_splits(bad)


def test_handwritten_digits():
    digits = load_classification(HandwritingConfig(), Preprocessing(image_size=32))
    assert digits.classes[:3] == ("zero", "one", "two")
    assert (digits.domain_word, digits.concept, digits.mirrorable) == ("digit ", "digit", False)
    assert {part: len(content) for part, content in digits.splits().items()} == {
        "train": 3000,
        "val": 750,
        "test": 1250,
    }
    assert digits.train.images.in_memory
    assert np.bincount(digits.train.labels).tolist() == [300] * 10
    zero, one = (np.flatnonzero(digits.test.labels == label)[:100] for label in (0, 1))
    # White on black, and a one has less ink than a zero.
    assert digits.test.images.read(zero).float().mean() > 1.5 * digits.test.images.read(one).float().mean()


def test_handwritten_digits_at_another_size():
    larger = Preprocessing(image_size=40, resize="crop", interpolation="bicubic")
    digits = load_classification(HandwritingConfig(), larger, ["test"])
    assert (digits.train, digits.val, digits.image_size) == (None, None, 40)
    raw = digits.test.images.read_raw([5])[0]
    assert raw.shape == (32, 32, 3)
    np.testing.assert_array_equal(digits.test.images.read([5])[0], resize_image(raw, 40, "crop", "bicubic"))
    small = load_classification(HandwritingConfig(), Preprocessing(image_size=32))
    assert digits.fingerprint == small.fingerprint  # how a network wants its images does not make other data
    assert load_classification(HandwritingConfig(seed=1), larger, ["test"]).fingerprint != digits.fingerprint


def test_data_without_single_labels_is_refused():
    with pytest.raises(ValueError, match=r"data must be one of handwriting, .* got 'coco', which has no single-label"):
        load_classification(DATA["coco"].config_class()(name="coco", root="/data"), Preprocessing(image_size=32))


def test_every_data_set_with_single_labels_has_words():
    assert set(DOMAINS) == {name for name, entry in DATA.items() if entry.classification}
    assert all(domain.word == "" or domain.word.endswith(" ") for domain in DOMAINS.values())
