"""Scenes: boxes, masks, labels, captions, concepts and removal against the pixels; co-occurrence; layout."""

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from tenfold.data.embedded.handwriting.build import load, source_digits
from tenfold.data.embedded.handwriting.concepts import DIGIT_CONCEPT_MATRIX, DIGIT_CONCEPTS, SCENE_CONCEPTS
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.embedded.handwriting.removal import remove_object
from tenfold.data.embedded.handwriting.scenes import draw_classes, draw_scenes, render_scenes
from tenfold.data.embedded.handwriting.sources import split_rows
from tenfold.data.embedded.handwriting.splits import Scenes
from tenfold.data.embedded.handwriting.store import cache_root
from tenfold.data.embedded.handwriting.stream import Stream
from tenfold.data.embedded.handwriting.vocabulary import COLOUR_RGB, COLOURS, DIGIT_WORDS, PARTNERS, TEXTURES


@pytest.fixture(scope="module")
def config(embedded_cache: Path) -> HandwritingConfig:
    return HandwritingConfig(
        num_train=512, num_val=8, num_test=512, cooccurrence=0.9, cooccurrence_test=0.0, cache=str(embedded_cache)
    )


@pytest.fixture(scope="module")
def scenes(config: HandwritingConfig) -> Scenes:
    return load(Scenes, config, "train")


@pytest.fixture(scope="module")
def objects(scenes: Scenes) -> list[tuple[int, int]]:
    """Scene and slot of every object."""
    return list(zip(*(axis.tolist() for axis in np.nonzero(scenes.digits >= 0)), strict=True))


def test_labels_counts_and_slots_agree_with_the_objects(scenes, config):
    _, source_labels = source_digits(cache_root(config.cache))
    for row in range(len(scenes.digits)):
        count = int(scenes.counts[row])
        present = scenes.digits[row, :count]
        assert 1 <= count <= 4
        assert sorted(np.flatnonzero(scenes.labels[row])) == sorted(present)
        assert len(set(present.tolist())) == count
        np.testing.assert_array_equal(source_labels[scenes.sources[row, :count]], present)
        for name in ("digits", "colours", "sources", "sizes", "offsets", "boxes"):
            assert (getattr(scenes, name)[row, count:] == -1).all()
    assert set(np.unique(scenes.counts)) == {1, 2, 3, 4}


def test_boxes_are_tight_around_the_masks(scenes, objects):
    for row, slot in objects:
        y, x = np.nonzero(scenes.instances[row] == slot + 1)
        np.testing.assert_array_equal(scenes.boxes[row, slot], [x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert (scenes.instances.max(axis=(1, 2)) == scenes.counts).all()


def test_masks_agree_with_the_pixels(scenes, objects, config):
    rows, slots = np.array(objects).T
    without = remove_object(scenes, rows, slots, config)
    changed = (without.images != scenes.images[rows]).any(axis=-1)
    mask = scenes.instances[rows] == slots[:, None, None] + 1
    # Ink over ink of the same colour (or nearly) changes nothing; elsewhere every mask pixel shows the object.
    assert (changed & mask).sum() > 0.995 * mask.sum()
    # What changes beyond the mask is the soft edge of the stroke: within two pixels of the box.
    x, y = np.arange(64), np.arange(64)[:, None]
    box = scenes.boxes[rows, slots].astype(int)[:, :, None, None]
    near = (x >= box[:, 0] - 3) & (x < box[:, 2] + 3) & (y >= box[:, 1] - 3) & (y < box[:, 3] + 3)
    assert (changed & ~near).sum() < 0.001 * changed.sum()


def test_strokes_have_the_colour_that_is_named(scenes, objects):
    palette = np.array([COLOUR_RGB[name] for name in COLOURS], dtype=int)
    right = 0
    for row, slot in objects:
        ink = scenes.images[row][scenes.instances[row] == slot + 1].astype(int)  # (n, 3)
        distance = np.abs(ink[:, None] - palette).max(axis=-1).min(axis=0)
        right += int(np.argmin(distance)) == scenes.colours[row, slot]
    assert right >= 0.995 * len(objects)


def test_digits_hardly_overlap_and_are_readable(scenes, objects, config):
    rows, slots = np.array(objects).T
    alone = {}
    for row, slot in objects:
        alone[row, slot] = (scenes.instances[row] == slot + 1).sum()
    crowded = [(row, slot) for row, slot in objects if scenes.counts[row] > 1]
    # Remove a later object: an earlier one may come to light, by little.
    for row, slot in crowded[:200]:
        later = [other for other in range(int(scenes.counts[row])) if other > slot]
        if later:
            without = remove_object(scenes, np.array([row]), np.array(later[:1]), config)
            whole = (without.instances[0] == slot + 1).sum()
            assert alone[row, slot] >= 0.8 * whole
    sides = scenes.boxes[rows, slots, 2:] - scenes.boxes[rows, slots, :2]
    assert sides.max(axis=1).min() >= 9
    assert scenes.boxes[rows, slots].min() >= 0
    assert scenes.boxes[rows, slots].max() <= 64


@pytest.mark.parametrize("max_digits", [1, 2, 6, 9])
def test_any_number_of_digits_finds_room(max_digits, config):
    settings = replace(config, max_digits=max_digits, cooccurrence=0.0)
    images, labels = source_digits(cache_root(config.cache))
    spec = draw_scenes(settings, "train", split_rows(labels, "train", 0), images, Stream("room"), 128)
    drawn = render_scenes(spec, images)
    assert spec["counts"].max() == max_digits
    for row in range(128):
        present = np.flatnonzero(spec["digits"][row] >= 0)
        assert len(present) == spec["counts"][row]
        boxes = drawn["boxes"][row, present].astype(int)
        assert (boxes >= 0).all()
        assert (boxes <= 64).all()
        for first in range(len(boxes)):
            for second in range(first):
                low = np.maximum(boxes[first, :2], boxes[second, :2])
                high = np.minimum(boxes[first, 2:], boxes[second, 2:])
                shared = np.prod(np.maximum(high - low, 0))
                areas = [np.prod(box[2:] - box[:2]) for box in (boxes[first], boxes[second])]
                # A twelfth of the smaller box of all ink; boxes of the mask are a little smaller than that.
                assert shared <= min(areas) / 6


def test_captions_mention_exactly_the_objects_and_their_relations(scenes):
    noun = rf"an? ({'|'.join(COLOURS)}) ({'|'.join(DIGIT_WORDS)})"
    for row in range(len(scenes.captions)):
        caption = str(scenes.captions[row])
        mentioned = [(COLOURS.index(colour), DIGIT_WORDS.index(word)) for colour, word in re.findall(noun, caption)]
        count = int(scenes.counts[row])
        assert mentioned == list(zip(scenes.colours[row, :count], scenes.digits[row, :count], strict=True))
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)
        relations = re.findall(r"above|below|left of|right of", caption)
        assert len(relations) == count // 2
        for pair, relation in enumerate(relations):
            first, second = scenes.boxes[row, 2 * pair].astype(int), scenes.boxes[row, 2 * pair + 1].astype(int)
            right, down = (second[:2] + second[2:] - first[:2] - first[2:]).tolist()
            holds = {"above": down > 0, "below": down <= 0, "left of": right > 0, "right of": right < 0}
            assert holds[relation], caption
            assert ("of" in relation) == (abs(right) > abs(down))
    assert str(scenes.captions[int(np.argmax(scenes.counts == 4))]).count(" and ") == 1


def test_concepts_of_a_scene_follow_from_its_objects(scenes):
    column = {name: index for index, name in enumerate(SCENE_CONCEPTS)}
    for row in range(64):
        count = int(scenes.counts[row])
        present = scenes.digits[row, :count].tolist()
        concepts = scenes.concepts[row]
        assert concepts[column["any_even"]] == any(digit % 2 == 0 for digit in present)
        assert concepts[column["any_prime"]] == any(digit in (2, 3, 5, 7) for digit in present)
        assert concepts[column["any_two_loops"]] == (8 in present)
        assert concepts[column["any_segment_lower_left"]] == bool({0, 2, 6, 8} & set(present))
        colours = {COLOURS[tint] for tint in scenes.colours[row, :count]}
        assert {name for name in COLOURS if concepts[column[f"colour_{name}"]]} == colours
        assert [name for name in TEXTURES if concepts[column[f"background_{name}"]]] == [TEXTURES[scenes.textures[row]]]
        assert concepts[column["count_4_or_more"]] == (count == 4)
        assert sum(concepts[column[name]] for name in ("count_1", "count_2", "count_3", "count_4_or_more")) == 1
        boxes = scenes.boxes[row, :count]
        assert concepts[column["any_in_left_half"]] == any(box[0] + box[2] < 64 for box in boxes)
        assert concepts[column["any_in_lower_half"]] == any(box[1] + box[3] >= 64 for box in boxes)
        assert concepts[column["any_large"]] == (scenes.sizes[row, :count] >= 26).any()


def test_concepts_of_the_digits():
    assert len(np.unique(DIGIT_CONCEPT_MATRIX, axis=0)) == 10
    segments = [index for index, name in enumerate(DIGIT_CONCEPTS) if name.startswith("segment")]
    assert DIGIT_CONCEPT_MATRIX[:, segments].sum(axis=1).tolist() == [6, 2, 5, 5, 4, 5, 6, 3, 7, 6]
    assert DIGIT_CONCEPT_MATRIX[8].tolist() == [1] * 9 + [0, 1, 0, 1]


def test_removal_changes_nothing_but_the_object(scenes, objects, config):
    rows, slots = np.array(objects[:300]).T
    without = remove_object(scenes, rows, slots, config)
    for index, (row, slot) in enumerate(objects[:300]):
        # Where the tile of the object holds no ink, every byte stays.
        size, (left, top) = int(scenes.sizes[row, slot]), scenes.offsets[row, slot].tolist()
        outside = np.ones((64, 64), dtype=bool)
        outside[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = False
        np.testing.assert_array_equal(without.images[index][outside], scenes.images[row][outside])
        kept = [other for other in range(int(scenes.counts[row])) if other != slot]
        assert without.counts[index] == len(kept)
        assert sorted(np.flatnonzero(without.labels[index])) == sorted(scenes.digits[row, kept])
        np.testing.assert_array_equal(without.digits[index, kept], scenes.digits[row, kept])
        assert (without.boxes[index, slot] == -1).all()
        assert not (without.instances[index] == slot + 1).any()
        for other in kept:
            seen = scenes.instances[row] == other + 1
            assert (without.instances[index][seen] == other + 1).all()
    assert (without.captions[without.counts == 0] == "an empty canvas").all()
    assert (without.counts == 0).any()


def test_drawing_again_gives_the_stored_scene(scenes, config):
    images, _ = source_digits(cache_root(config.cache))
    again = render_scenes({column.name: getattr(scenes, column.name) for column in fields(Scenes)}, images)
    for name, array in again.items():
        np.testing.assert_array_equal(array, getattr(scenes, name))


def test_order_of_removals_does_not_matter(scenes, config):
    rows = np.flatnonzero(scenes.counts >= 3)[:20]
    first, second = np.zeros_like(rows), np.full_like(rows, 2)
    every = np.arange(len(rows))
    one = remove_object(remove_object(scenes, rows, first, config), every, second, config)
    other = remove_object(remove_object(scenes, rows, second, config), every, first, config)
    for column in fields(Scenes):
        np.testing.assert_array_equal(getattr(one, column.name), getattr(other, column.name))


@pytest.mark.parametrize(
    ("rows", "slots", "message"),
    [
        ([0, 1], [0], r"rows and slots must both be \(B,\), got \(2,\) and \(1,\)"),
        ([], [], "at least one scene"),
        ([512], [0], r"rows must lie in 0\.\.511"),
        ([0], [4], r"slots in 0\.\.3"),
    ],
)
def test_removal_refuses_what_is_not_there(rows, slots, message, scenes, config):
    with pytest.raises(ValueError, match=message):
        remove_object(scenes, np.array(rows, dtype=int), np.array(slots, dtype=int), config)
    empty = int(np.argmax(scenes.counts == 1))
    with pytest.raises(ValueError, match=f"slot 1 of scene {empty} is empty"):
        remove_object(scenes, np.array([empty]), np.array([1]), config)


def test_cooccurrence_moves_the_joint_frequency_and_not_the_marginals():
    for strength in (0.0, 0.5, 1.0):
        classes = draw_classes(Stream("pairs", str(strength)), 20_000, 4, strength, distinct=True)
        partner = np.array(PARTNERS)[classes[:, 0]] == classes[:, 1]
        # 5 standard deviations of a share of 20,000 draws are below 0.018.
        assert partner.mean() == pytest.approx(strength + (1 - strength) / 9, abs=0.018)
        assert np.bincount(classes[:, 1], minlength=10) / 20_000 == pytest.approx(np.full(10, 0.1), abs=0.011)
        assert all(len(set(row)) == 4 for row in classes[:500].tolist())
    assert [PARTNERS[partner] for partner in PARTNERS] == list(range(10))


def test_the_test_split_can_break_the_cooccurrence(config):
    def share(split: str) -> float:
        scenes = load(Scenes, config, split)
        two = scenes.digits[scenes.counts == 2]
        return float((np.array(PARTNERS)[two[:, 0]] == two[:, 1]).mean())

    assert share("train") > 0.8
    assert share("test") < 0.3


def test_classes_may_repeat_where_asked_for():
    classes = draw_classes(Stream("repeat"), 5000, 2, 0.0, distinct=False)
    assert (classes[:, 0] == classes[:, 1]).mean() == pytest.approx(0.1, abs=0.025)
