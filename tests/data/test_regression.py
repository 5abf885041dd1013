"""Regression data: pairs of arrays, slices of scans, photographs, phantoms, tables."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.data.embedded.phantoms import PhantomsConfig, load_phantoms
from tenfold.data.embedded.photographs import PhotographsConfig, load_photographs, shrink
from tenfold.data.files.pairs import PairsConfig, SlicesConfig, load_pairs, load_slices
from tenfold.data.files.tables import TableConfig, load_table, read_table
from tenfold.data.regression import ArraySource, load_array

RANDOM = np.random.default_rng(0)


def write_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RANDOM.standard_normal(shape).astype(np.float32)
    np.save(path, array)
    return array


def write_pairs(
    root: Path, source: tuple[int, ...] = (3, 16), target: tuple[int, ...] = (3, 16)
) -> dict[str, np.ndarray]:
    return {
        f"{part}/{side}/{row}": write_array(root / part / side / f"{row}.npy", shape)
        for part in ("train", "val", "test")
        for side, shape in (("input", source), ("target", target))
        for row in range(3)
    }


def write_slices(root: Path, num_volumes: int = 6, num_slices: int = 2) -> None:
    for folder in ("T1", "T2"):
        for volume in range(num_volumes):
            for number in range(num_slices):
                write_array(root / folder / f"IXI{volume:03}-Guys_dim_1_slice{139 + number}.npy", (1, 16, 16))


def test_pairs_come_back_as_they_were_written(tmp_path: Path):
    written = write_pairs(tmp_path)
    data = load_pairs(PairsConfig(root=str(tmp_path)))
    batch = data.val.read([2, 0])
    assert torch.equal(batch["input"], torch.from_numpy(np.stack([written["val/input/2"], written["val/input/0"]])))
    assert torch.equal(batch["targets"][1], torch.from_numpy(written["val/target/0"]))
    assert (data.network, data.max_value, data.upscale) == ("cnn1d", None, 1)
    assert data.inputs[0].shape == (3, -1)
    assert data.targets == ("channel 0", "channel 1", "channel 2")
    before = data.fingerprint
    write_array(tmp_path / "test/target/1.npy", (3, 16))
    assert load_pairs(PairsConfig(root=str(tmp_path))).fingerprint != before


def test_images_say_how_much_larger_their_targets_are(tmp_path: Path):
    write_pairs(tmp_path, (3, 4, 6), (3, 16, 24))
    data = load_pairs(PairsConfig(root=str(tmp_path), kind="pictures", max_value=2.0))
    assert (data.network, data.max_value, data.upscale) == ("cnn2d_sr", 2.0, 4)


def test_no_volume_is_in_two_parts(tmp_path: Path):
    write_slices(tmp_path)
    config = SlicesConfig(root=str(tmp_path), num_val=1, num_test=2)
    data = load_slices(config)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 4)
    assert (data.network, data.targets) == ("unet2d", ("T2",))
    every = torch.cat([part.read(range(len(part)))["input"] for part in (data.train, data.val, data.test)])
    assert len(every.flatten(1).unique(dim=0)) == 12
    assert load_slices(config).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "val/target/1.npy").unlink(), r"val: 1 is in only one of input/ and target/ \(1 such\)"),
        (lambda root: write_array(root / "train/input/0.npy", (3, 2, 2)), r"series must be \(channels, steps\)"),
        (lambda root: [write_array(p, (2, 16)) for p in (root / "val/input").glob("*")], "the val part holds"),
        (lambda root: [p.unlink() for p in (root / "test/input").glob("*")], "holds no .npy file"),
        (lambda root: (root / "train/input/0.npy").write_bytes(b"no array"), r"0\.npy must be a \.npy file of numbers"),
    ],
)
def test_folders_that_do_not_fit_are_named(tmp_path: Path, spoil, message: str):
    write_pairs(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_pairs(PairsConfig(root=str(tmp_path)))


def test_a_later_array_of_another_shape_and_values_that_are_no_numbers_are_named(tmp_path: Path):
    write_pairs(tmp_path)
    write_array(tmp_path / "train/input/1.npy", (3, 17))
    spoilt = write_array(tmp_path / "train/target/2.npy", (3, 16))
    spoilt[1, 5] = np.nan
    np.save(tmp_path / "train/target/2.npy", spoilt)
    train = load_pairs(PairsConfig(root=str(tmp_path))).train
    with pytest.raises(ValueError, match=r"1\.npy must have the shape \(3, 16\) of the first one, got \(3, 17\)"):
        train.read([0, 1])
    with pytest.raises(ValueError, match=r"2\.npy must be finite, got 1 values that are not, the first at \(1, 5\)"):
        train.read([2])


def test_slices_that_do_not_fit_are_named(tmp_path: Path):
    write_slices(tmp_path)
    with pytest.raises(ValueError, match=r"must hold more than num_val \+ num_test = 50 volumes, got 6"):
        load_slices(SlicesConfig(root=str(tmp_path)))
    write_array(tmp_path / "T1" / "scout.npy", (1, 16, 16))
    with pytest.raises(ValueError, match="scout is in only one of T1/ and T2/"):
        load_slices(SlicesConfig(root=str(tmp_path)))
    write_array(tmp_path / "T2" / "scout.npy", (1, 16, 16))
    with pytest.raises(ValueError, match=r"must be named <volume>_dim_1_slice<k>.npy"):
        load_slices(SlicesConfig(root=str(tmp_path)))


def test_a_source_of_arrays_refuses_targets_that_teach_nothing():
    with pytest.raises(ValueError, match=r"targets must be finite, got 1 values that are not, the first at \(2, 0\)"):
        ArraySource({"input": np.zeros((4, 2), np.float32)}, np.array([[0], [1], [np.nan], [3]], np.float32))
    with pytest.raises(ValueError, match="one row for each example"):
        ArraySource({"input": np.zeros((3, 2), np.float32)}, np.zeros((4, 1), np.float32))
    with pytest.raises(ValueError, match="must be float32, got float64"):
        ArraySource({"input": np.zeros((4, 2), np.float32)}, np.zeros((4, 1)))


def test_embedded_photographs_are_squares_and_the_same_made_smaller():
    data = load_photographs(PhotographsConfig(num_train=6, num_val=3, num_test=3))
    batch = data.train.read([0, 5])
    assert batch["targets"].shape == (2, 3, 32, 32)
    assert batch["input"].shape == (2, 3, 8, 8)
    torch.testing.assert_close(batch["input"], shrink(batch["targets"], 4))
    assert 0 <= batch["targets"].min() < batch["targets"].max() <= 1
    again = load_photographs(PhotographsConfig(num_train=6, num_val=3, num_test=3))
    assert torch.equal(again.train.read([0, 5])["targets"], batch["targets"])
    other = load_photographs(PhotographsConfig(num_train=6, num_val=3, num_test=3, seed=1))
    assert other.fingerprint != data.fingerprint
    assert not torch.equal(other.train.read([0, 5])["targets"], batch["targets"])


def test_photographs_of_ones_own(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train is missing: data\.root must hold train/, val/ and test/"):
        load_photographs(PhotographsConfig(root=str(tmp_path)))
    for part in ("train", "val", "test"):
        (tmp_path / part).mkdir()
        pixels = RANDOM.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / part / "a.png")
    config = PhotographsConfig(root=str(tmp_path), crop=8, num_train=50, num_val=2, num_test=2)
    windows = np.lib.stride_tricks.sliding_window_view(np.array(Image.open(tmp_path / "train" / "a.png")), (8, 8, 3))
    known = {window.tobytes() for window in windows.reshape(-1, 8, 8, 3)}
    squares = load_photographs(config).train.read(range(50))["targets"]
    read = {(255 * square).round().byte().permute(1, 2, 0).numpy().tobytes() for square in squares}
    assert read == known  # all eight places are drawn, and no other
    with pytest.raises(ValueError, match="must be at least 32 pixels high and wide, got 11x9"):
        load_photographs(PhotographsConfig(root=str(tmp_path)))
    (tmp_path / "val" / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image"):
        load_photographs(config)


def test_phantoms_follow_the_seed_and_show_fluid_dark_then_bright():
    config = PhantomsConfig(size=32, num_train=4, num_val=2, num_test=2, noise=0.0)
    data = load_phantoms(config)
    batch = data.train.read(range(4))
    assert batch["input"].shape == batch["targets"].shape == (4, 1, 32, 32)
    bright = batch["targets"] > 0.9
    assert bright.flatten(1).any(1).all()
    assert batch["input"][bright].max() < 0.25
    assert torch.equal(load_phantoms(config).train.read(range(4))["input"], batch["input"])
    assert not torch.equal(data.test.read(range(2))["input"], batch["input"][:2])


def test_the_embedded_table_is_standardised_by_its_training_rows():
    data = load_table(TableConfig())
    assert (len(data.train), len(data.val), len(data.test)) == (266, 66, 110)
    train = data.train.read(range(266))
    torch.testing.assert_close(train["input"].mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(train["input"].std(0, unbiased=False), torch.ones(10))
    assert data.targets == ("progression",)


def test_a_table_of_ones_own(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,y,z\n" + "".join(f"{i},5,{2 * i},{-i}\n" for i in range(20)))
    data = load_table(TableConfig(file=str(path), targets=("y", "z")))
    rows = torch.cat([part.read(range(len(part)))["targets"] for part in (data.train, data.val, data.test)])
    assert sorted(rows.tolist()) == [[2.0 * i, -1.0 * i] for i in range(20)]
    assert data.train.read([0])["input"][0, 1] == 0  # a constant column
    with pytest.raises(ValueError, match="among the columns a, b, y, z, got 'w'"):
        load_table(TableConfig(file=str(path), targets=("w",)))
    with pytest.raises(ValueError, match="must leave some of the columns a, b, y, z as inputs"):
        load_table(TableConfig(file=str(path), targets=("a", "b", "y", "z")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3: expected 2 values as in the header, got 1"),
        ("a,b\n1,x\n", "line 2: could not convert"),
        ("a,b\n1,nan\n", r"must be finite, got 1 values that are not, the first at \(0, 1\)"),
        ("a,a\n1,2\n", "every column needs a name of its own"),
        ("a,b\n", "a header and at least one row"),
    ],
)
def test_malformed_tables_are_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    "build",
    [
        lambda: PhotographsConfig(crop=30),
        lambda: PhotographsConfig(num_val=0),
        lambda: PhantomsConfig(size=40),
        lambda: PhantomsConfig(seed=-1),
        lambda: TableConfig(val_fraction=0.8),
        lambda: TableConfig(targets=()),
        lambda: PairsConfig(root="x", kind="films"),
        lambda: SlicesConfig(root="x", num_test=0),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ValueError, match="got"):
        build()


def test_an_array_of_texts_is_no_example(tmp_path: Path):
    np.save(tmp_path / "t.npy", np.array(["a"]))
    with pytest.raises(ValueError, match="one array of numbers"):
        load_array(tmp_path / "t.npy")
