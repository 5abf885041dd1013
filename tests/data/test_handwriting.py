"""Tasks of the embedded data: determinism, disjoint splits, ground truth of single characters, reading."""

import hashlib
import re
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import tenfold.data.embedded.handwriting
from tenfold.data.embedded.handwriting.__main__ import main
from tenfold.data.embedded.handwriting.affine import inverse_matrices, parameters
from tenfold.data.embedded.handwriting.build import BLOCK, KINDS, build, load, source_digits
from tenfold.data.embedded.handwriting.config import SPLITS, HandwritingConfig
from tenfold.data.embedded.handwriting.fonts import CHARACTERS, FONTS, SPLIT_FONTS, glyphs
from tenfold.data.embedded.handwriting.multilabel import load_scenes
from tenfold.data.embedded.handwriting.raster import FIXED, fill_outline, resize, warp
from tenfold.data.embedded.handwriting.splits import Ambiguous, Digits, Glyphs, Letters, Scenes, Warps, schema
from tenfold.data.embedded.handwriting.store import cache_root
from tenfold.data.embedded.handwriting.stream import Stream
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS, LETTERS

# Content of a tiny build (num_train=num_val=num_test=4, seed 0): it may change only together with BUILDER_VERSION.
RECORDED = {
    "digits": "1222344f8c4b67a968b0ab63d51a2af1aa56cc6a77733d0b46479d493cc6d14f",
    "glyphs": "fb35fef0d061b42260ff15c402d062df372bc07f8595ebc90ff180c32323d99e",
    "letters": "e4945f0763d0e719251d88510cf86bed58492e82b9a2ec61a7d6edfafba6c997",
    "scenes": "343aaa91d0a90c47ad4bea372c56cb11e9aed78dfd24b66f59abb4eb6a5312d2",
    "warps": "fe29a32fcd35306f3dc5a010301c79f50f216942256c3c8d488f91cec721526b",
    "ambiguous": "ec717a232ed86f710199f8b95c14fa29272c188393eb7696a9c037a9be86a161",
    "pairs": "0f3d55b9f0ab1706d9bd3d8ad31fdd601a7b870c60bb3e015dcfbb238b68d291",
    "sums": "2b7b9a19dd0ab9014a075eb6d653d8b684a8be96c1545893d2d90419fd4430dc",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HandwritingConfig:
    cache = str(tmp_path_factory.mktemp("handwriting"))
    return HandwritingConfig(num_train=600, num_val=100, num_test=100, cache=cache)


@pytest.mark.parametrize("task", list(KINDS))
def test_tiny_build_has_the_recorded_bytes(task, config):
    tiny = replace(config, num_train=4, num_val=4, num_test=4)
    assert build(task, tiny).fingerprint == RECORDED[task]


@pytest.mark.parametrize("task", ["scenes", "glyphs", "warps", "ambiguous"])
def test_parallel_build_equals_serial_build(task, config):
    parallel = build(task, config, workers=3)
    shutil.rmtree(parallel.stored.path)
    assert build(task, config, workers=1) == parallel


def test_asking_for_more_images_keeps_the_first(config):
    few, many = load(Scenes, replace(config, num_train=300), "train"), load(Scenes, config, "train")
    assert BLOCK < 300 < len(many.images)
    for column in fields(Scenes):
        np.testing.assert_array_equal(getattr(few, column.name), getattr(many, column.name)[:300])


@pytest.mark.parametrize("task", list(KINDS))
def test_seeds_give_other_images(task, config):
    first = build(task, config).split("train")["images"]
    second = build(task, replace(config, seed=1)).split("train")["images"]
    assert (first[:50] != second[:50]).any(axis=(1, 2, 3)).mean() > 0.9


def test_what_leaves_the_images_alone_shares_the_cache(config):
    other = replace(config, num_pos=2, num_neg=-1, label_seed=3, cooccurrence_test=0.0)
    assert build("scenes", other).stored.path == build("scenes", config).stored.path
    assert build("digits", replace(config, num_train=5)).stored.path == build("digits", config).stored.path


@pytest.mark.parametrize(("task", "kind"), list(KINDS.items()))
def test_arrays_follow_the_schema_and_are_memory_mapped(task, kind, config):
    rows = schema(kind, config)
    for split in SPLITS:
        arrays = build(task, config).split(split)
        assert set(arrays) == set(rows)
        for name, array in arrays.items():
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable
            assert array.dtype == rows[name].base
            assert array.shape == (len(arrays["images"]), *rows[name].shape)
            if name == "images":
                assert array.max() > 200, "nothing was drawn"


def test_package_docstring_lists_every_array():
    text = tenfold.data.embedded.handwriting.__doc__ or ""
    sections = dict(zip(*[iter(re.split(r"^``(\w+)``, .*$", text, flags=re.M)[1:])] * 2, strict=True))
    assert list(sections) == list(KINDS)
    config = HandwritingConfig()
    for task, kind in KINDS.items():
        listed = re.findall(r"^    (\w+) +(\w+) +\((.*?)\)  ", sections[task], flags=re.M)
        assert [name for name, _, _ in listed] == [column.name for column in fields(kind)]
        for name, dtype, shape in listed:
            row = schema(kind, config)[name]
            assert dtype == ("unicode" if row.base.kind == "U" else row.base.name)
            sizes = tuple(int(n.replace("K", "4")) for n in shape.replace("N", "").split(",") if n.strip())
            assert sizes == row.shape


def test_splits_share_no_source_digit_and_no_font(config):
    used = {split: set() for split in SPLITS}
    for kind in (Digits, Scenes, Warps, Ambiguous):
        for split in SPLITS:
            used[split] |= set(np.unique(load(kind, config, split).sources).tolist()) - {-1}
    assert [len(used[split]) for split in SPLITS] == [3000, 750, 1250]
    assert len(set.union(*used.values())) == 5000
    for kind in (Glyphs, Letters):
        fonts = [set(np.unique(load(kind, config, split).fonts).tolist()) for split in SPLITS]
        assert fonts == [set(SPLIT_FONTS[split]) for split in SPLITS]
    assert sorted(index for split in SPLITS for index in SPLIT_FONTS[split]) == list(range(len(FONTS)))


def test_digits_are_the_source_digits(config):
    images, labels = source_digits(cache_root(config.cache))
    for split in SPLITS:
        digits = load(Digits, config, split)
        np.testing.assert_array_equal(digits.images[:, 2:30, 2:30, 1], images[digits.sources])
        np.testing.assert_array_equal(digits.labels, labels[digits.sources])
        np.testing.assert_array_equal(np.bincount(digits.labels), len(digits.labels) // 10)
        assert [f"a photo of the digit {DIGIT_WORDS[label]}" for label in digits.labels] == digits.captions.tolist()


def test_every_font_shows_twenty_different_characters():
    images = glyphs().reshape(len(FONTS), len(CHARACTERS), -1).astype(np.float64)
    for font in images:
        unit = font / np.linalg.norm(font, axis=1, keepdims=True)
        assert (unit @ unit.T - np.eye(len(CHARACTERS))).max() < 0.97
    # The same character in another font is nearer than other characters, for nearly all: no symbols slipped in.
    mean = images.mean(axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    nearest = np.argmax(images @ mean.T, axis=2)
    assert (nearest == np.arange(len(CHARACTERS))).mean() > 0.9


@pytest.mark.parametrize(("kind", "names"), [(Glyphs, DIGIT_WORDS), (Letters, LETTERS)])
def test_captions_of_printed_characters_name_the_class(kind, names, config):
    printed = load(kind, config, "train")
    others = "|".join(names)
    for label, caption in zip(printed.labels, printed.captions, strict=True):
        assert re.findall(rf"(?:digit|letter) ({others})\b", caption) == [names[label]]
    assert len(set(printed.captions.tolist())) > 60


def test_glyphs_show_their_class(config):
    printed = load(Glyphs, config, "train")
    upright = np.stack([resize(glyphs()[font, :10], 32) for font in range(len(FONTS))]).astype(np.float64)
    right = 0
    for row in range(200):
        jitter = printed.images[row, :, :, 0].astype(np.float64)
        templates = upright[printed.fonts[row]].reshape(10, -1)
        right += np.argmax(templates @ jitter.reshape(-1) / np.linalg.norm(templates, axis=1)) == printed.labels[row]
    assert right > 150


def test_warp_moves_a_point_as_its_parameters_say():
    rng = np.random.RandomState(0)
    steps = rng.randint([-450, -64, -64, 179, -77], [451, 65, 65, 308, 78], size=(50, 5))
    angle, right, down, scale, shear = parameters(steps).astype(np.float64).T
    images = np.zeros((50, 32, 32), dtype=np.uint8)
    images[:, 11:14, 18:21] = 255  # a spot at x 19, y 12: 3.5 right of the centre and 3.5 above
    warped = warp(images, inverse_matrices(steps, 32, 32), 32).astype(np.float64)
    total = warped.sum(axis=(1, 2))
    found_x = (warped.sum(axis=1) @ np.arange(32)) / total - 15.5
    found_y = (warped.sum(axis=2) @ np.arange(32)) / total - 15.5
    x, y = scale * 3.5 + shear * scale * -3.5, scale * -3.5
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    np.testing.assert_allclose(found_x, cos * x + sin * y + right, atol=0.1)
    np.testing.assert_allclose(found_y, -sin * x + cos * y + down, atol=0.1)


def test_warps_follow_from_their_originals_and_matrices(config):
    images, labels = source_digits(cache_root(config.cache))
    warps = load(Warps, config, "test")
    np.testing.assert_array_equal(warps.images[..., 0], warp(warps.originals[..., 0], warps.matrices, 32))
    np.testing.assert_array_equal(warps.originals[:, 2:30, 2:30, 2], images[warps.sources])
    np.testing.assert_array_equal(warps.labels, labels[warps.sources])
    # The linear part shrinks by the scale: its determinant is 1 / scale**2, whatever the rotation and the shear.
    determinant = np.linalg.det(warps.matrices[:, :, :2] / FIXED)
    np.testing.assert_allclose(determinant, 1 / warps.parameters[:, 3].astype(np.float64) ** 2, rtol=1e-3)


def test_ambiguous_digits_hold_both_classes(config):
    images, labels = source_digits(cache_root(config.cache))
    blends = load(Ambiguous, config, "train")
    np.testing.assert_array_equal(blends.labels, labels[blends.sources])
    assert (blends.labels[:, 0] != blends.labels[:, 1]).all()
    np.testing.assert_allclose(blends.weights.sum(axis=1), 1)
    np.testing.assert_array_equal(np.take_along_axis(blends.targets, blends.labels, axis=1), blends.weights)
    assert ((blends.targets > 0).sum(axis=1) == 2).all()
    mixed = (images[blends.sources] * blends.weights[:, :, None, None]).sum(axis=1) * 1.25
    assert np.abs(np.minimum(mixed, 255) - blends.images[:, 2:30, 2:30, 0]).max() <= 1


def test_resize_agrees_with_pillow():
    from PIL import Image

    images = glyphs()[0, :4, ::2, ::2][:, :28, :28]
    for size in (16, 21, 32):
        expected = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR)) for p in images]
        # Weights are rounded to 64ths: up to three of them in each direction, half a 64th of 255 each.
        assert np.abs(resize(images, size).astype(int) - np.stack(expected)).max() <= 12
    np.testing.assert_array_equal(resize(images, 28), images)


def test_outline_with_a_hole():
    def square(low: int, high: int) -> list[list[int]]:
        corners = [(low, low), (high, low), (high, high), (low, high)]
        return [[*a, *b] for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]

    unit = 2 * 256  # one pixel of two samples
    hole = [[x1, y1, x0, y0] for x0, y0, x1, y1 in square(2 * unit, 4 * unit)]
    filled = fill_outline(np.array(square(unit, 5 * unit) + hole), 6, 2)
    expected = np.zeros((6, 6), dtype=np.uint8)
    expected[1:5, 1:5] = 255
    expected[2:4, 2:4] = 0
    np.testing.assert_array_equal(filled, expected)
    half = fill_outline(np.array(square(unit, unit + unit // 2)), 3, 2)
    assert half[1, 1] == 255 // 4


def test_stream_is_uniform_and_keyed():
    drawn = Stream("a", 1).integers(-3, 4, (7000,))
    assert np.bincount(drawn + 3).tolist() == pytest.approx([1000] * 7, abs=150)
    np.testing.assert_array_equal(drawn, Stream("a", 1).integers(-3, 4, (7000,)))
    assert (drawn != Stream("a", 2).integers(-3, 4, (7000,))).any()
    key = int.from_bytes(hashlib.sha256(b"a/1").digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(3).tolist()
    assert Stream("a", 1).integers(0, 1000, (3,)).tolist() == [(word >> 32) * 1000 >> 32 for word in words]
    assert Stream("a", 1).integers(0, 1000, (3,)).tolist() == [655, 280, 680]  # on every machine
    orders = Stream("b").orders(500, 10)
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    assert np.bincount(orders[:, 0]).tolist() == pytest.approx([50] * 10, abs=36)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mnist"}, "name must be 'handwriting', got 'mnist'"),
        ({"num_val": 0}, "num_val must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"label_seed": -1}, "label_seed must be at least 0"),
        ({"max_digits": 10}, r"max_digits must lie in 1\.\.9, got 10"),
        ({"cooccurrence": 1.5}, r"cooccurrence must lie in \[0, 1\], got 1.5"),
        ({"cooccurrence_test": -0.1}, r"cooccurrence must lie in \[0, 1\], got -0.1"),
        ({"cooccurrence": float("nan")}, "cooccurrence must lie"),
        ({"cooccurrence": 0.5, "max_digits": 1}, "needs max_digits of at least 2, got 1"),
        ({"cooccurrence": 0.5, "distinct": False}, "needs distinct digits"),
        ({"num_pos": -2}, "num_pos must be at least 0, or -1 for all, got -2"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HandwritingConfig(**settings)


def test_bad_requests_are_refused(config):
    with pytest.raises(ValueError, match=r"task must be one of digits, .*, got 'cats'"):
        build("cats", config)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        build("scenes", config, workers=0)
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        load(Scenes, config, "dev")
    with pytest.raises(ValueError, match="kind must be one of Digits"):
        load(dict, config, "train")


def test_multilabel_data(config):
    data = load_scenes(config)
    scenes = load(Scenes, config, "train")
    assert data.name == "handwriting"
    assert data.classes == DIGIT_WORDS
    assert data.image_size == 64
    assert data.train.images.in_memory
    assert [len(part.images) for part in (data.train, data.val, data.test)] == [600, 100, 100]
    np.testing.assert_array_equal(data.train.full, scenes.labels)
    images = data.train.images.read(np.array([5, 2, 2]))
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images.numpy(), scenes.images[[5, 2, 2]])
    for part in (data.train, data.val, data.test):
        assert ((part.observed == 1).sum(axis=1) == 1).all()
        assert (part.full[part.observed == 1] == 1).all()
        assert (part.observed >= 0).all()
    everything = load_scenes(replace(config, num_pos=-1, num_neg=-1))
    np.testing.assert_array_equal(everything.train.observed, 2 * scenes.labels - 1)


def test_fingerprint_follows_the_content(config):
    tiny = replace(config, num_train=4, num_val=4, num_test=4)
    fingerprint = load_scenes(tiny).fingerprint
    shutil.rmtree(build("scenes", tiny).stored.path)
    assert load_scenes(tiny).fingerprint == fingerprint
    assert load_scenes(replace(tiny, label_seed=7)).fingerprint != fingerprint
    assert load_scenes(replace(tiny, seed=7)).fingerprint != fingerprint


def test_preview_and_build_commands(tmp_path, config, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = ["--num", "16", "--cache", str(config.cache)]
    assert main(["--build", "scenes", "--preview", str(sheet), *arguments]) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert "16 train, 1000 val, 2000 test in" in capsys.readouterr().out
    assert main(["--build", "scenes", "--num", "0"]) == 2
    assert "num_train must be at least 1, got 0" in capsys.readouterr().err
