"""Cache of the embedded data: written atomically, verified before use, rebuilt when damaged."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tenfold.data.embedded.handwriting.store import StoredFolder, cache_root, create_array, stored

SETTINGS = {"version": 1}


def fill(folder: Path) -> None:
    create_array(folder, "train", "numbers", 100, np.dtype("<i8"))[:] = np.arange(100)
    create_array(folder, "test", "pairs", 10, np.dtype(("|u1", (2,))))[:] = 7


def make(root: Path) -> StoredFolder:
    return stored(root, "thing", SETTINGS, fill)


def test_builds_once_and_reads_memory_mapped(tmp_path):
    folder = make(tmp_path)
    numbers = folder.array("train", "numbers")
    assert isinstance(numbers, np.memmap)
    assert not numbers.flags.writeable
    np.testing.assert_array_equal(numbers, np.arange(100))
    assert folder.array("test", "pairs").shape == (10, 2)

    def refuse(folder: Path) -> None:
        raise AssertionError("built twice")

    assert stored(tmp_path, "thing", SETTINGS, refuse) == folder
    assert stored(tmp_path, "thing", {"version": 2}, fill).path != folder.path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train/numbers.npy", truncate),
        ("train/numbers.npy", flip_a_bit),
        ("test/pairs.npy", Path.unlink),
        ("manifest.json", Path.unlink),
        ("manifest.json", truncate),
        ("manifest.json", lambda path: path.write_text("[]")),
    ],
)
def test_damaged_cache_is_rebuilt(name, damage, tmp_path, caplog):
    before = make(tmp_path)
    damage(before.path / name)
    with caplog.at_level(logging.WARNING):
        after = make(tmp_path)
    assert str(before.path) in caplog.text
    assert after == before
    np.testing.assert_array_equal(after.array("train", "numbers"), np.arange(100))
    assert [path.name for path in tmp_path.iterdir()] == [after.path.name]


def test_loser_of_a_race_uses_the_winner(tmp_path):
    winners = []

    def slow(folder: Path) -> None:
        winners.append(make(tmp_path))  # another builder finishes while this one is at work
        create_array(folder, "train", "numbers", 1, np.dtype("<i8"))[:] = -1

    assert stored(tmp_path, "thing", SETTINGS, slow) == winners[0]
    assert [path.name for path in tmp_path.iterdir()] == [winners[0].path.name]


def test_failed_build_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        stored(tmp_path, "thing", SETTINGS, fail)
    assert list(tmp_path.iterdir()) == []


def test_manifest_lists_sizes_and_checksums(tmp_path):
    folder = make(tmp_path)
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["settings"] == SETTINGS
    assert set(manifest["files"]) == {"train/numbers.npy", "test/pairs.npy"}
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (folder.path / name).stat().st_size
        assert len(entry["sha256"]) == 64


def test_unwritable_cache_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"must be writable, got .*; set TENFOLD_CACHE"):
        make(tmp_path / "file" / "cache")


def test_cache_root_prefers_the_configured_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "environment"))
    assert cache_root(str(tmp_path / "configured")) == tmp_path / "configured"
    assert cache_root(None) == tmp_path / "environment"
    monkeypatch.delenv("TENFOLD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root(None) == tmp_path / ".cache" / "tenfold"
