"""Digits with out-of-distribution images: embedded data, MNIST in torchvision's layout, notMNIST in folders."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.data.classification import ClassificationSplit
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.embedded.handwriting.sources import read_source
from tenfold.data.embedded.handwriting.uncertainty import load_uncertain_digits
from tenfold.data.files.mnist import MnistConfig, load_mnist, load_uncertain_mnist, read_notmnist
from tenfold.data.images import ArrayImages
from tenfold.data.uncertainty import UncertaintyData, blend_pairs, smallest_margin
from tenfold.types import Preprocessing

LETTERS = "ABCDEFGHIJ"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, kind: str = "MNIST", num: int = 40) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(len(kind))
    written = {}
    for part, length in (("train", num), ("t10k", 20)):
        pixels = random.integers(0, 256, (length, 28, 28), dtype=np.uint8)
        labels = np.arange(length) % 10
        write_idx(root / kind / "raw" / f"{part}-images-idx3-ubyte", pixels)
        write_idx(root / kind / "raw" / f"{part}-labels-idx1-ubyte", labels)
        written[part] = pixels, labels
    return written


def write_notmnist(root: Path, per_letter: int = 2) -> np.ndarray:
    random = np.random.default_rng(5)
    pixels = random.integers(0, 256, (10 * per_letter, 28, 28), dtype=np.uint8)
    for row, image in enumerate(pixels):
        path = root / "Test" / LETTERS[row // per_letter] / f"{row % per_letter}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return pixels


def test_embedded_digits_are_the_source_digits_and_no_part_shares_one(tmp_path: Path):
    config = HandwritingConfig(num_train=8, num_val=8, num_test=40, cache=str(tmp_path))
    data = load_uncertain_digits(config)
    assert {name: len(part) for name, part in data.inside.splits().items()} == {"train": 3000, "val": 750, "test": 1250}
    known = {image.tobytes() for image in read_source()[0]}
    seen: set[bytes] = set()
    for part in data.inside.splits().values():
        images = part.images.read(np.arange(len(part)))
        assert images.shape[1:] == (28, 28, 3)
        these = {image.tobytes() for image in images[..., 0].numpy()}
        assert these <= known
        assert not these & seen
        seen |= these
    assert {name: len(images) for name, images in data.outside.items()} == {"letters": 40}
    assert set(data.ambiguous) == {"blends", "confusable"}
    assert data.outside["letters"].read([0, 1]).shape == (2, 28, 28, 3)


def test_mnist_is_read_as_it_is_stored(tmp_path: Path):
    written = write_mnist(tmp_path)
    data = load_mnist(MnistConfig(root=str(tmp_path), num_val=10), Preprocessing(image_size=28))
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 20)
    np.testing.assert_array_equal(data.test.images.read(range(20))[..., 1].numpy(), written["t10k"][0])
    np.testing.assert_array_equal(data.test.labels, written["t10k"][1])
    mine = {p.tobytes() for part in (data.train, data.val) for p in part.images.read(range(len(part)))[..., 0].numpy()}
    assert mine == {image.tobytes() for image in written["train"][0]}
    resized = load_mnist(MnistConfig(root=str(tmp_path), num_val=10), Preprocessing(image_size=32), ("test",))
    assert resized.train is None
    assert resized.test.images.read([0]).shape == (1, 32, 32, 3)


def test_the_division_follows_the_seed(tmp_path: Path):
    write_mnist(tmp_path)
    load = lambda seed: load_mnist(MnistConfig(root=str(tmp_path), num_val=10, seed=seed), Preprocessing(image_size=28))  # noqa: E731
    assert load(0).fingerprint == load(0).fingerprint != load(1).fingerprint
    np.testing.assert_array_equal(load(0).val.labels, load(0).val.labels)


def test_notmnist_and_fashion_are_outside(tmp_path: Path):
    write_mnist(tmp_path)
    fashion = write_mnist(tmp_path, "FashionMNIST")
    letters = write_notmnist(tmp_path / "letters")
    (tmp_path / "letters" / "Test" / "A" / "broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"broken\.png is skipped"):
        data = load_uncertain_mnist(
            MnistConfig(root=str(tmp_path), notmnist=str(tmp_path / "letters"), fashion=str(tmp_path), num_val=10)
        )
    np.testing.assert_array_equal(data.outside["notmnist"].read(range(20))[..., 0].numpy(), letters)
    np.testing.assert_array_equal(data.outside["fashion"].read(range(20))[..., 2].numpy(), fashion["t10k"][0])
    assert 0 < len(data.ambiguous["blends"]) <= 10


def test_blends_are_means_of_two_classes():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.full((6, 2, 2, 3), 40, dtype=np.uint8)
    split = ClassificationSplit(images=ArrayImages(images), labels=np.array([0, 0, 0, 1, 1, 1]))
    blends = blend_pairs(split, seed=1)
    allowed = {(40 * a + 40 * b + 1) // 2 for a in range(3) for b in range(3, 6)}
    assert {int(blend[0, 0, 0]) for blend in blends.read(range(len(blends)))} <= allowed
    with pytest.raises(ValueError, match="images of several classes"):
        blend_pairs(ClassificationSplit(images=ArrayImages(images), labels=np.zeros(6, np.int64)), seed=1)


PROBS = torch.tensor(
    [[0.9, 0.1, 0.0], [0.45, 0.15, 0.4], [0.5, 0.5, 0.0], [0.2, 0.6, 0.2], [0.0, 0.5, 0.5], [0.1, 0.45, 0.45]]
)
"""Margins .8, .05, 0, .4, 0, 0."""


@pytest.mark.parametrize(
    ("fraction", "rows"), [(0.1, [2]), (0.5, [2, 4, 5]), (0.6, [2, 4, 5, 1]), (0.9, [2, 4, 5, 1, 3])]
)
def test_the_smallest_margins_come_first_and_of_equal_ones_the_first_row(fraction, rows):
    chosen = smallest_margin(PROBS, fraction)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == rows


def test_many_equal_margins_keep_their_order():
    # Beyond 16 rows an unstable sort does not.
    probs = torch.full((500, 4), 0.25)
    probs[::2] = torch.tensor([0.7, 0.1, 0.1, 0.1])
    assert smallest_margin(probs, 0.1).tolist() == list(range(1, 100, 2))
    assert smallest_margin(probs.flip(1), 0.6).tolist() == [*range(1, 500, 2), *range(0, 100, 2)]


@pytest.mark.parametrize(
    ("probs", "fraction", "message"),
    [
        (PROBS[None], 0.5, r"probs must be \(N, C\) with C at least 2, got \(1, 6, 3\)"),
        (PROBS[:, :1], 0.5, r"got \(6, 1\)"),
        (PROBS / 0, 0.5, "probs must be finite"),
        (PROBS, 0.0, r"fraction must lie in \(0, 1\), got 0.0"),
        (PROBS, 1.0, r"fraction must lie in \(0, 1\), got 1.0"),
        (PROBS, 0.05, "got 0.05, which selects 0"),
        (PROBS, 0.95, "got 0.95, which selects 6"),
    ],
)
def test_margins_that_are_refused(probs, fraction, message):
    with pytest.raises(ValueError, match=message):
        smallest_margin(probs, fraction)


def test_confusing_images_are_rows_of_the_test_part(tmp_path: Path):
    write_mnist(tmp_path)
    inside = load_mnist(MnistConfig(root=str(tmp_path), num_val=10), Preprocessing(image_size=28))
    outside = {"itself": inside.val.images}
    data = UncertaintyData(inside=inside, outside=outside, ambiguous={}, confusing={"odd": np.array([7, 3])})
    assert list(data.sets()) == ["itself", "odd"]
    assert torch.equal(data.sets()["odd"].read([0, 1]), inside.test.images.read([7, 3]))
    for rows in ([], [1, 1], range(20)):
        with pytest.raises(ValueError, match="'odd' must hold some of the 20 test images, each once, and leave some"):
            UncertaintyData(inside=inside, outside=outside, ambiguous={}, confusing={"odd": np.array(rows, int)})


def test_missing_and_foreign_files_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"MNIST/raw must hold MNIST in torchvision's layout"):
        load_mnist(MnistConfig(root=str(tmp_path)), Preprocessing(image_size=28))
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match=r"num_val must be less than the 40 training digits, got 5000"):
        load_mnist(MnistConfig(root=str(tmp_path)), Preprocessing(image_size=28))
    with pytest.raises(ValueError, match=r"data\.notmnist or data\.fashion must name a folder"):
        load_uncertain_mnist(MnistConfig(root=str(tmp_path), num_val=10))
    with pytest.raises(ValueError, match=r"Test/A is missing: expected notMNIST, Test/A to Test/J"):
        read_notmnist(tmp_path)
    write_notmnist(tmp_path)
    Image.new("L", (30, 28)).save(tmp_path / "Test" / "B" / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png must be 28x28 pixels, got 30x28"):
        read_notmnist(tmp_path)
    for path in (tmp_path / "Test").glob("*/*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="no PNG file that can be decoded"):
        read_notmnist(tmp_path)


@pytest.mark.parametrize("settings", [{"name": "cifar"}, {"num_val": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="got"):
        MnistConfig(root="x", **settings)


def test_data_without_something_outside_are_refused(tmp_path: Path):
    write_mnist(tmp_path)
    inside = load_mnist(MnistConfig(root=str(tmp_path), num_val=10), Preprocessing(image_size=28))
    with pytest.raises(ValueError, match="at least one set of out-of-distribution images"):
        UncertaintyData(inside=inside, outside={}, ambiguous={})
