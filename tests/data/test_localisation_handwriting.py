"""Single-cue scenes: the digit's mask and box against its source, distractors, disjoint splits, determinism."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from tenfold.data.catalog import load_localisation
from tenfold.data.embedded.handwriting.build import BLOCK, source_digits
from tenfold.data.embedded.handwriting.config import SPLITS, HandwritingConfig
from tenfold.data.embedded.handwriting.localisation import REACH, SIZES, build_cue_scenes, shuffled_digits
from tenfold.data.embedded.handwriting.raster import resize
from tenfold.data.embedded.handwriting.scenes import MASK_ALPHA
from tenfold.data.embedded.handwriting.sources import split_rows
from tenfold.data.embedded.handwriting.store import cache_root
from tenfold.data.localisation import LocalisationData
from tenfold.types import Preprocessing

# Content of a tiny build (num_train=10, num_val=num_test=4, seed 0): it may change only together with VERSION.
RECORDED = "4e90b774870362be9edc51c7e6b369a496ccecbe57d59a8c64e6c1073722415d"


@pytest.fixture(scope="module")
def config(embedded_cache: Path) -> HandwritingConfig:
    return HandwritingConfig(num_train=300, num_val=20, num_test=60, cache=str(embedded_cache))


@pytest.fixture(scope="module")
def data(config: HandwritingConfig) -> LocalisationData:
    return load_localisation(config, Preprocessing(image_size=64))


def ink_of(config: HandwritingConfig, part: str, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ink coverage of the canvas, redrawn from the source, uint8 ``(64, 64)``, and the mask of the ink."""
    folder = build_cue_scenes(config)
    source, side = (int(folder.array(part, name)[row]) for name in ("sources", "sizes"))
    x, y = folder.array(part, "offsets")[row].tolist()
    images, _ = source_digits(cache_root(config.cache))
    canvas = np.zeros((128, 128), dtype=np.uint8)  # a margin of 32 around the canvas
    canvas[y + 32 : y + 32 + side, x + 32 : x + 32 + side] = resize(images[source][None], side)[0]
    outside = canvas.copy()
    outside[32:96, 32:96] = 0
    assert not outside.any()  # no ink off the canvas
    return canvas[32:96, 32:96], canvas[32:96, 32:96] >= MASK_ALPHA


def test_counts_and_classes(data):
    assert [len(part) for part in data.splits().values()] == [300, 20, 60]
    assert (data.classes[0], data.image_size, data.mirrorable, data.superclasses) == ("zero", 64, False, None)
    for part in data.splits().values():
        assert part.images.read([0, 5]).shape == (2, 64, 64, 3)
        for start in range(0, 20, 10):
            assert sorted(part.labels[start : start + 10]) == list(range(10))


@pytest.mark.parametrize("part", SPLITS)
def test_the_mask_is_where_the_ink_is_and_the_box_is_tight(config, data, part):
    split = data.splits()[part]
    _, classes = source_digits(cache_root(config.cache))
    folder = build_cue_scenes(config)
    near = np.ones((2 * REACH + 1, 2 * REACH + 1), dtype=bool)
    masks = split.read_masks(range(len(split)))
    for row in range(0, len(split), 5):
        coverage, ink = ink_of(config, part, row)
        assert classes[folder.array(part, "sources")[row]] == split.labels[row]
        np.testing.assert_array_equal(masks[row], binary_dilation(ink, near))
        y, x = np.nonzero(masks[row])
        assert split.boxes[row].tolist() == [[x.min(), y.min(), x.max(), y.max()]]
        # Where the digit covers the paper, all pixels have one colour; nothing lies over it.
        full = split.images.read([row])[0].numpy()[coverage == 255]
        assert len(np.unique(full, axis=0)) <= 1
    assert set(np.unique(folder.array(part, "sizes"))) <= set(range(SIZES[0], SIZES[1] + 1))


def test_digits_are_in_many_places_and_not_alone(data):
    centres = np.array([(box[0, :2] + box[0, 2:]) / 2 for box in data.train.boxes])
    assert (centres.std(axis=0) > 10).all()
    corners = {(x > 31.5, y > 31.5) for x, y in centres.tolist()}
    assert len(corners) == 4
    # Bright strokes outside of the mask: the distractors, in every scene, several times the digit's own.
    images, masks = data.train.images.read(range(300)).numpy(), data.train.read_masks(range(300))
    bright = images.max(axis=-1) > 150
    outside = (bright & (masks == 0)).sum(axis=(1, 2))
    assert outside.min() > 50
    assert outside.mean() > 2 * (bright & (masks == 1)).sum(axis=(1, 2)).mean()


def test_splits_share_no_source_digit(config):
    folder = build_cue_scenes(config)
    _, labels = source_digits(cache_root(config.cache))
    used = {part: set(folder.array(part, "sources").tolist()) for part in SPLITS}
    for part in SPLITS:
        assert used[part] <= set(split_rows(labels, part, config.seed).reshape(-1).tolist())
    assert not used["train"] & used["test"]
    assert not (used["train"] | used["test"]) & used["val"]


def test_shuffled_digits_have_the_same_ink_elsewhere(config):
    images, labels = source_digits(cache_root(config.cache))
    digits = images[split_rows(labels, "val", 0)[:, :3].reshape(-1)]
    straight = np.tile(np.arange(25), (len(digits), 1))
    same = shuffled_digits(digits, straight)
    for digit, moved in zip(digits, same, strict=True):
        (y, x), (v, u) = np.nonzero(digit), np.nonzero(moved)
        np.testing.assert_array_equal(digit[y, x], moved[v, u])  # the digit itself, at most moved
        assert len(set((y - v).tolist())) == len(set((x - u).tolist())) == 1
    turned = shuffled_digits(digits, straight[:, ::-1])
    np.testing.assert_array_equal(np.sort(turned.reshape(len(digits), -1)), np.sort(digits.reshape(len(digits), -1)))
    # Squares in reverse order, by hand: the last one comes first.
    np.testing.assert_array_equal(turned[:, 4:8, 4:8], same[:, 20:24, 20:24])
    assert (turned != same).any(axis=(1, 2)).all()


def test_tiny_build_has_the_recorded_bytes(config):
    assert build_cue_scenes(replace(config, num_train=10, num_val=4, num_test=4)).fingerprint == RECORDED


def test_parallel_build_equals_serial_build_and_more_keeps_the_first(config):
    few = replace(config, num_train=270, num_val=4, num_test=4)
    parallel = build_cue_scenes(few, workers=3)
    shutil.rmtree(parallel.path)
    assert build_cue_scenes(few, workers=1) == parallel
    assert BLOCK < 270
    for name in ("images", "masks", "boxes", "labels"):
        np.testing.assert_array_equal(
            parallel.array("train", name), build_cue_scenes(config).array("train", name)[:270]
        )


def test_what_leaves_the_scenes_alone_shares_the_cache(config):
    same = replace(config, max_digits=2, cooccurrence=0.5, num_pos=2)
    assert build_cue_scenes(same).path == build_cue_scenes(config).path
    other = build_cue_scenes(replace(config, seed=1, num_train=10, num_val=4, num_test=4))
    assert (
        (other.array("train", "images")[:10] != build_cue_scenes(config).array("train", "images")[:10])
        .any(axis=(1, 2, 3))
        .all()
    )


def test_other_sizes(config, data):
    large = load_localisation(config, Preprocessing(image_size=128), train_size=96)
    assert large.train.images.read([0]).shape == (1, 96, 96, 3)
    assert large.train.read_masks([0]).shape == (1, 96, 96)
    assert large.test.images.read([1]).shape == (1, 128, 128, 3)
    np.testing.assert_array_equal(large.test.read_masks([3])[0, ::2, 1::2], data.test.read_masks([3])[0])
    np.testing.assert_array_equal(large.test.boxes[3], 2 * data.test.boxes[3])
    assert large.fingerprint == data.fingerprint


def test_too_few_images_for_ten_classes(config):
    with pytest.raises(ValueError, match="num_train must be at least 10, one for each digit, got 9"):
        load_localisation(replace(config, num_train=9), Preprocessing(image_size=64))
