"""Concept tasks of the embedded data: pairs and sums from their source digits, scenes by groups, noise, refusals."""

import hashlib
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.config import compose_job
from tenfold.config import ConfigError
from tenfold.data.catalog import load_concepts
from tenfold.data.concepts import concept_group_matrix
from tenfold.data.embedded.handwriting.build import BLOCK, build, load, source_digits
from tenfold.data.embedded.handwriting.concepts import (
    DIGIT_CONCEPT_MATRIX,
    DIGIT_CONCEPTS,
    PAIR_CONCEPT_MATRIX,
    PAIR_CONCEPTS,
    SCENE_CONCEPTS,
    sum_concepts,
)
from tenfold.data.embedded.handwriting.config import SPLITS, HandwritingConfig
from tenfold.data.embedded.handwriting.grids import noise_levels
from tenfold.data.embedded.handwriting.localisation import build_cue_scenes
from tenfold.data.embedded.handwriting.multilabel import load_scenes
from tenfold.data.embedded.handwriting.splits import Digits, Pairs, Scenes, Sums, cell_grid
from tenfold.data.embedded.handwriting.store import StoredFolder, cache_root
from tenfold.data.embedded.handwriting.stream import Stream
from tenfold.data.images import ArrayImages, resize_image
from tenfold.types import Preprocessing

# Content of a tiny build with noise and repetition: it may change only together with BUILDER_VERSION.
RECORDED = {
    "pairs": "7000a625be8d456fe4c2821e31bffe604eb7e80ceea06dc3a4cfc45dea1c5e9a",
    "sums": "e6a96278381f09cc5a2ef906638def7b1b4a978fe36eab2072f99f1a133a6c1c",
}
NOISE_SHA256 = "af06032976f7953970dadf714599fecd9b9e59c8cc5966115cc72ff166d006eb"
NETWORK = Preprocessing(image_size=48)
KINDS = {"pairs": Pairs, "sums": Sums}
TASKS = ("pairs", "scenes", "sums")


@pytest.fixture(scope="module")
def config(embedded_cache: Path) -> HandwritingConfig:
    return HandwritingConfig(num_train=600, num_val=40, num_test=50, cache=str(embedded_cache))


def cells_of(pictures: np.ndarray, num_cells: int) -> np.ndarray:
    """Cut ``(N, H, W, 3)`` into its first cells, row by row, ``(N, num_cells, 32, 32, 3)``."""
    rows, columns = cell_grid(num_cells)
    places = [(32 * row, 32 * column) for row in range(rows) for column in range(columns)][:num_cells]
    return np.stack([pictures[:, y : y + 32, x : x + 32] for y, x in places], axis=1)


def digit_images(config: HandwritingConfig) -> dict[int, np.ndarray]:
    """Return the 32x32 picture of every source digit by its row."""
    parts = [load(Digits, config, split) for split in SPLITS]
    return {int(row): image for part in parts for row, image in zip(part.sources, part.images, strict=True)}


@pytest.mark.parametrize("task", list(RECORDED))
def test_tiny_build_with_noise_and_repetition_has_the_recorded_bytes(task, config):
    tiny = replace(config, num_train=4, num_val=4, num_test=4, noise=0.15, repeat=0.5)
    assert build(task, tiny).fingerprint == RECORDED[task]


@pytest.mark.parametrize("task", list(KINDS))
def test_one_worker_draws_the_same_bytes_as_two(task, config):
    small = replace(config, num_train=BLOCK + 1, num_val=2, num_test=2, noise=0.1, repeat=0.3)
    parallel = build(task, small, workers=2)
    shutil.rmtree(parallel.stored.path)
    assert build(task, small, workers=1) == parallel


@pytest.mark.parametrize("task", list(KINDS))
def test_the_digits_of_a_picture_are_source_digits_of_its_class(task, config):
    _, classes = source_digits(cache_root(config.cache))
    images = digit_images(config)
    used: dict[str, set[int]] = {}
    for split in SPLITS:
        drawn = load(KINDS[task], config, split)
        np.testing.assert_array_equal(classes[drawn.sources], drawn.digits)
        cells = cells_of(drawn.images, drawn.digits.shape[1])
        expected = np.stack([images[row] for row in drawn.sources.ravel().tolist()]).reshape(cells.shape)
        np.testing.assert_array_equal(cells, expected)
        used[split] = set(drawn.sources.ravel().tolist())
        assert used[split] <= set(load(Digits, config, split).sources.tolist())
    assert sum(map(len, used.values())) == len(set.union(*used.values()))


def test_class_and_concepts_of_a_pair_follow_from_its_digits(config):
    pairs = load(Pairs, config, "train")
    left, right = pairs.digits.T.astype(np.int64)
    np.testing.assert_array_equal(pairs.labels, 10 * left + right)
    np.testing.assert_array_equal(pairs.concepts[:, :13], DIGIT_CONCEPT_MATRIX[left])
    np.testing.assert_array_equal(pairs.concepts[:, 13:], DIGIT_CONCEPT_MATRIX[right])
    # 38, by hand: a three has neither loop nor middle left stroke, an eight everything but straight, prime.
    named = {name for name, value in zip(PAIR_CONCEPTS, PAIR_CONCEPT_MATRIX[38], strict=True) if value}
    three = {"segment_top", "segment_upper_right", "segment_lower_right", "segment_bottom", "segment_middle", "prime"}
    eight = set(DIGIT_CONCEPTS) - {"straight", "prime"}
    assert named == {f"first_{name}" for name in three} | {f"second_{name}" for name in eight}
    # Ten classes, independent: each digit about a tenth of 600, each of the 26 concepts about its share.
    assert np.abs(np.bincount(left, minlength=10) / 600 - 0.1).max() < 0.05
    np.testing.assert_allclose(pairs.concepts.mean(axis=0), PAIR_CONCEPT_MATRIX.mean(axis=0), atol=0.08)
    assert 0.06 < (left == right).mean() < 0.14


def test_repeat_is_the_probability_that_the_right_digit_repeats_the_class(config):
    always, half, never = (load(Pairs, replace(config, repeat=share), "train") for share in (1.0, 0.5, 0.0))
    assert (always.digits[:, 0] == always.digits[:, 1]).all()
    assert (always.sources[:, 0] != always.sources[:, 1]).mean() > 0.95  # a picture of its own
    assert (half.digits[:, 0] == half.digits[:, 1]).mean() == pytest.approx(0.55, abs=0.08)  # 1/2 + 1/2 * 1/10
    for other in (always, half):
        np.testing.assert_array_equal(other.digits[:, 0], never.digits[:, 0])
        np.testing.assert_array_equal(other.images[:, :, :32], never.images[:, :, :32])


def test_concepts_of_a_sum_are_one_hot_and_its_class_is_the_sum(config):
    sums = load(Sums, config, "train")
    assert sums.digits.shape == (600, 12)
    assert sums.concepts.shape == (600, 72)
    np.testing.assert_array_equal(sums.labels, sums.digits.sum(axis=1))
    np.testing.assert_array_equal(sums.digits.max(axis=0), np.array(config.operands) - 1)
    names = sum_concepts(config.operands)
    assert (names[0], names[3], names[71]) == ("operand_1_is_0", "operand_2_is_0", "operand_12_is_9")
    for row in range(20):
        true = {names[column] for column in np.flatnonzero(sums.concepts[row])}
        assert true == {f"operand_{place}_is_{digit}" for place, digit in enumerate(sums.digits[row], 1)}


def test_repeated_operands_have_the_picture_of_the_one_before(config):
    always, half = (load(Sums, replace(config, repeat=share), "train") for share in (1.0, 0.5))
    np.testing.assert_array_equal(always.sources[:, ::2], always.sources[:, 1::2])
    np.testing.assert_array_equal(always.digits[:, ::2], always.digits[:, 1::2])
    np.testing.assert_array_equal(always.labels, always.digits.sum(axis=1))
    same = half.sources[:, ::2] == half.sources[:, 1::2]
    assert same.mean() == pytest.approx(0.5, abs=0.03)
    assert (half.sources[:, 1:-1:2] == half.sources[:, 2::2]).mean() < 0.01  # the third does not repeat the second


@pytest.mark.parametrize(
    ("num_cells", "grid"), [(2, (1, 2)), (3, (2, 2)), (4, (2, 2)), (5, (2, 3)), (12, (3, 4)), (16, (4, 4))]
)
def test_grid_is_nearly_square(num_cells, grid):
    assert cell_grid(num_cells) == grid


def test_sums_of_any_operands(config):
    drawn = load(Sums, replace(config, operands=(10, 2, 4), num_train=30), "train")
    assert drawn.images.shape == (30, 64, 64, 3)
    assert drawn.concepts.shape == (30, 16)
    assert not drawn.images[:, 32:, 32:].any()  # the fourth cell is empty
    data = load_concepts(replace(config, operands=(10, 2, 4), concept_task="sums"), NETWORK)
    assert data.classes == tuple(map(str, range(14)))


@pytest.mark.parametrize("std", [0.0, 0.02, 0.15, 0.35, 1.0])
def test_noise_is_normal(std):
    levels = noise_levels(std).astype(np.float64)
    assert abs(levels.mean()) < 1e-3
    # Rounding to whole levels adds a variance of 1/12.
    assert levels.std() == pytest.approx(np.hypot(255 * std, np.sqrt(1 / 12)) if std else 0, rel=1e-3)
    for share in (0.0228, 0.1587, 0.8413):  # -2, -1 and 1 standard deviations
        sigmas = {0.0228: -2, 0.1587: -1, 0.8413: 1}[share]
        assert np.quantile(levels, share) == pytest.approx(sigmas * 255 * std, abs=1)


def test_noise_table_is_the_same_on_every_machine():
    assert hashlib.sha256(noise_levels(0.15).astype("<i2").tobytes()).hexdigest() == NOISE_SHA256


def test_shorts_are_uniform_and_seeded():
    drawn = Stream("test", 0).shorts((1000, 21))
    assert drawn.dtype == np.uint16
    np.testing.assert_array_equal(drawn, Stream("test", 0).shorts((1000, 21)))
    assert np.abs(np.bincount(drawn.ravel() >> 12, minlength=16) / drawn.size - 1 / 16).max() < 0.006
    assert np.abs(np.bincount(drawn.ravel() & 15, minlength=16) / drawn.size - 1 / 16).max() < 0.006
    assert abs(np.corrcoef(drawn.ravel()[:-1], drawn.ravel()[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("task", list(KINDS))
def test_noise_is_added_to_the_clean_pictures_and_cut_at_black_and_white(task, config):
    few = replace(config, num_train=BLOCK)
    clean, noisy = (load(KINDS[task], replace(few, noise=std), "train") for std in (0.0, 0.1))
    for name in ("labels", "digits", "sources", "concepts"):
        np.testing.assert_array_equal(getattr(clean, name), getattr(noisy, name))
    assert (noisy.images == noisy.images[..., :1]).all()  # the same in the three channels
    before, after = clean.images[..., 0].astype(int), noisy.images[..., 0].astype(int)
    inside = (before > 115) & (before < 140)  # nothing is cut within 4.3 standard deviations
    added = (after - before)[inside]
    assert added.size > 1000
    assert abs(added.mean()) < 2
    assert added.std() == pytest.approx(25.5, rel=0.05)
    black = after[before == 0]
    assert (black == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert black.max() <= round(4.33 * 25.5)
    assert after[before == 255].min() < 255
    flat = (after - before)[:, 0]  # a margin: no pixel depends on its neighbour, nor on the picture before
    assert abs(np.corrcoef(flat[:, :-1].ravel(), flat[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 0.03


def test_groups_of_pairs(config):
    data = load_concepts(replace(config, concept_task="pairs"), NETWORK)
    assert data.questions == tuple(
        f"{place}_{kind}"
        for place in ("first", "second")
        for kind in ("segments", "loops", "straight", "parity", "prime", "size")
    )
    assert [len(columns) for columns in data.groups.values()] == [7, 2, 1, 1, 1, 1] * 2
    assert [data.concepts[column] for column in data.groups["second_loops"]] == ["second_loop", "second_two_loops"]
    assert data.exclusive == ()
    assert data.classes == tuple(f"{label:02d}" for label in range(100))
    np.testing.assert_array_equal(data.train.concepts, data.class_concepts[data.train.labels])
    assert len(np.unique(data.class_concepts, axis=0)) == 100


def test_groups_and_classes_of_scenes(config):
    data = load_concepts(replace(config, concept_task="scenes"), NETWORK)
    assert data.concepts == SCENE_CONCEPTS
    kinds = ("segments", "loops", "straight", "parity", "prime", "size")
    assert data.questions == (
        *(f"any_{kind}" for kind in kinds),
        *("colours", "background", "count", "size", "place"),
    )
    assert [len(columns) for columns in data.groups.values()] == [7, 2, 1, 1, 1, 1, 8, 6, 4, 2, 4]
    assert {data.concepts[column] for column in data.groups["place"]} == {
        f"any_in_{half}_half" for half in ("left", "right", "upper", "lower")
    }
    assert data.exclusive == ("background", "count")
    assert data.class_concepts is None
    assert (len(data.classes), data.classes[0], data.classes[11]) == (24, "1 object on plain", "2 objects on clouds")
    for row in range(40):
        number, background = data.classes[data.val.labels[row]].split(" on ")
        named = {name for name, value in zip(data.concepts, data.val.concepts[row], strict=True) if value}
        count = number.split()[0]
        assert {f"background_{background}", f"count_{count}" if count != "4" else "count_4_or_more"} <= named
    # The class says nothing of the digits: scenes of one class have other rows of concepts.
    assert len(np.unique(data.train.concepts, axis=0)) > 400
    tilted = replace(config, concept_task="scenes", cooccurrence=0.9)
    assert load_concepts(tilted, NETWORK).fingerprint != data.fingerprint


@pytest.mark.parametrize("task", TASKS)
def test_groups_hold_every_concept_and_of_the_exclusive_exactly_one_is_true(task, config):
    data = load_concepts(replace(config, concept_task=task), NETWORK)
    assert (concept_group_matrix(data.groups, len(data.concepts)).sum(0) == 1).all()
    for split in data.splits().values():
        for name in data.exclusive:
            assert (split.concepts[:, list(data.groups[name])].sum(axis=1) == 1).all()
        assert split.known is None
        assert split.certainty is None
    assert not data.mirrorable
    if task == "sums":
        assert data.exclusive == data.questions == tuple(f"operand_{place}" for place in range(1, 13))
        assert data.class_concepts is None


@pytest.mark.parametrize(("task", "shape"), [("pairs", (32, 64, 3)), ("scenes", (64, 64, 3)), ("sums", (96, 128, 3))])
def test_images_are_stretched_once_and_kept_as_they_were(task, shape, config):
    chosen = replace(config, concept_task=task, noise=0.0 if task == "scenes" else 0.1)
    stored = build(task, chosen).split("train")["images"]
    data = load_concepts(chosen, NETWORK, train_size=56)
    assert [data.image_size, *(len(split) for split in data.splits().values())] == [48, 600, 40, 50]
    assert data.val.images.read([0]).shape == (1, 48, 48, 3)
    rows = [5, 2, 2]
    images = data.train.images
    assert images.in_memory
    pictures = images.read_raw(rows)
    assert [picture.shape for picture in pictures] == [shape] * 3
    np.testing.assert_array_equal(pictures, stored[rows])
    np.testing.assert_array_equal(images.read(rows).numpy(), [resize_image(picture, 56) for picture in pictures])
    again = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(again.read_raw(rows), pictures)
    np.testing.assert_array_equal(again.read(rows), images.read(rows))
    with pytest.raises(IndexError, match="must be in"):
        images.read_raw([600])


def test_pictures_of_the_networks_size_are_read_from_the_cache(config):
    data = load_concepts(replace(config, concept_task="scenes"), Preprocessing(image_size=64))
    assert isinstance(data.train.images.array, np.memmap)
    large = load_concepts(replace(config, concept_task="sums"), NETWORK).train.images
    assert len(pickle.dumps(large)) < large.array.nbytes + 10_000  # the stored pictures by their path


def test_originals_must_be_pictures():
    with pytest.raises(ValueError, match=r"originals must be uint8 \(N, H, W, 3\), got float64"):
        ArrayImages(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 8, 3)))


def test_fingerprint_follows_content_and_task_only(config):
    def fingerprint(size: int = 48, **changes: object) -> str:
        chosen = replace(config, num_train=20, num_val=20, num_test=20, **changes)
        return load_concepts(chosen, Preprocessing(image_size=size)).fingerprint

    assert fingerprint() == fingerprint(size=32) == fingerprint(costs={"first_loops": 2.0})
    assert fingerprint() == fingerprint(max_digits=3) == fingerprint(operands=(3, 3)) == fingerprint(num_pos=2)
    different = [{}, {"noise": 0.1}, {"noise": 0.2}, {"repeat": 0.9}, {"seed": 1}, {"concept_task": "sums"}]
    different += [{"concept_task": "sums", "operands": (10, 10)}, {"concept_task": "scenes"}]
    assert len({fingerprint(**changes) for changes in different}) == len(different)


def test_settings_of_the_concept_tasks_leave_the_other_tasks_alone(config, monkeypatch):
    tiny = replace(config, num_train=10, num_val=4, num_test=4, cooccurrence=0.8, max_digits=5, seed=3)
    tiny = replace(tiny, cooccurrence_test=0.1)
    other = replace(tiny, concept_task="sums", noise=0.2, repeat=0.5, operands=(10, 10), costs={"operand_1": 2.0})
    # As it was before these settings: content, and the hash of the key in the folder's name.
    assert load_scenes(other).fingerprint == "6b41f2ba87774430172a256f04ab153f8d8b763ac66eaa7cb15f8cca49f73d04"
    assert build("scenes", other).stored.path.name == "handwriting-scenes-8991ba0cc7df71cf"

    def unbuilt(root: Path, name: str, settings: dict[str, object], fill: object) -> StoredFolder:
        return StoredFolder(root / name, str(settings))

    for module in ("build", "localisation"):
        monkeypatch.setattr(f"tenfold.data.embedded.handwriting.{module}.stored", unbuilt)
    for task in ("digits", "glyphs", "letters", "scenes", "warps", "ambiguous"):
        assert build(task, other) == build(task, tiny)
    assert build_cue_scenes(other) == build_cue_scenes(tiny)
    for task in ("pairs", "sums"):
        assert build(task, other) != build(task, tiny)


def test_costs_come_from_the_command_line():
    words = ["data.concept_task=sums", "data.operands=[10,10]", "data.costs={operand_1: 3, operand_2: 0.5}"]
    words += ["data.num_train=20", "data.num_val=20", "data.num_test=20"]
    config = compose_job(["method=large_loss", "data=handwriting", *words]).data
    assert config.operands == (10, 10)
    assert load_concepts(config, NETWORK).costs == {"operand_1": 3.0, "operand_2": 0.5}
    with pytest.raises(ConfigError, match=r"data\.noise must lie in \[0, 1\], got 2"):
        compose_job(["method=large_loss", "data=handwriting", "data.noise=2"])


def test_costs_must_name_groups_of_the_task(config):
    with pytest.raises(ValueError, match=r"must name groups \(first_segments, .*got 'operand_1'"):
        load_concepts(replace(config, costs={"operand_1": 2.0}), NETWORK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concept_task": "triples"}, "concept_task must be one of pairs, scenes, sums, got 'triples'"),
        ({"noise": -0.1}, r"noise must lie in \[0, 1\], got -0.1"),
        ({"noise": float("nan")}, r"noise must lie in \[0, 1\], got nan"),
        ({"repeat": 1.5}, r"repeat must lie in \[0, 1\], got 1.5"),
        ({"concept_task": "scenes", "noise": 0.1}, "noise must be 0 for scenes, got 0.1; set concept_task to pairs or"),
        ({"concept_task": "scenes", "repeat": 0.1}, "repeat must be 0 for scenes, got 0.1"),
        ({"operands": (10,)}, r"operands must be 2 to 16 numbers in 2\.\.10, got \[10\]"),
        ({"operands": (10, 11)}, r"operands must be 2 to 16 numbers in 2\.\.10, got \[10, 11\]"),
        ({"operands": (10, 1)}, r"operands must be 2 to 16 numbers in 2\.\.10, got \[10, 1\]"),
        ({"operands": (2,) * 17}, "operands must be 2 to 16 numbers"),
        ({"operands": (3, 10), "concept_task": "sums", "repeat": 0.5}, "operands must be equal in twos .* repeat to 0"),
        ({"costs": {"first_loops": 0.0}}, "costs must be positive, got 0.0 for 'first_loops'; leave out what costs 1"),
        ({"costs": {"first_loops": float("inf")}}, "costs must be positive, got inf for 'first_loops'"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        HandwritingConfig(**changes)


def test_a_network_that_crops_is_refused_where_pictures_are_not_square(config):
    crops = replace(NETWORK, resize="crop")
    with pytest.raises(ValueError, match=r"resize must be stretch for pairs, whose pictures of 32x64 pixels .* 'crop'"):
        load_concepts(config, crops)
    assert load_concepts(replace(config, concept_task="scenes"), crops).train.images.read([0]).shape == (1, 48, 48, 3)
    with pytest.raises(ValueError, match="train_size must be at least 1, got 0"):
        load_concepts(config, NETWORK, train_size=0)


def test_scenes_have_the_concepts_of_the_scenes_task(config):
    data = load_concepts(replace(config, concept_task="scenes"), NETWORK)
    scenes = load(Scenes, config, "test")
    np.testing.assert_array_equal(data.test.concepts, scenes.concepts)
    np.testing.assert_array_equal(data.test.labels % 6, scenes.textures)
    np.testing.assert_array_equal(data.test.labels // 6 + 1, scenes.counts)
