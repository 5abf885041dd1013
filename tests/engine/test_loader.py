"""Order, shards and prefetching of the loader."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold.engine.loader import Loader


def read(rows: np.ndarray) -> dict[str, torch.Tensor]:
    return {"value": torch.from_numpy(rows * 10)}


@given(
    num=st.integers(1, 40), batch=st.integers(1, 9), world=st.integers(1, 4), epoch=st.integers(0, 3),
    seed=st.integers(0, 5), shuffle=st.booleans(),
)  # fmt: skip
def test_shards_cover_every_row_in_batches_of_equal_number(num, batch, world, epoch, seed, shuffle):
    loaders = [Loader(read, num, batch, shuffle=shuffle, seed=seed, rank=r, world_size=world) for r in range(world)]
    shards = [np.concatenate(loader.rows(epoch)) for loader in loaders]
    assert {len(shard) for shard in shards} == {-(-num // world)}
    assert set(np.concatenate(shards)) == set(range(num))
    assert all(len(loader.rows(epoch)) == loader.num_batches() for loader in loaders)


def test_each_epoch_has_its_own_order_and_the_seed_fixes_it():
    loader = Loader(read, 50, 8, shuffle=True, seed=1)
    first, second = (np.concatenate(loader.rows(epoch)) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, np.concatenate(Loader(read, 50, 8, shuffle=True, seed=1).rows(0)))


@pytest.mark.parametrize("prefetch", [0, 3])
def test_starting_late_gives_the_same_batches(prefetch):
    loader = Loader(read, 50, 8, shuffle=True, prefetch=prefetch)
    batches = list(loader.epoch(2))
    late = list(loader.epoch(2, start=3))
    assert len(late) == len(batches) - 3
    for left, right in zip(batches[3:], late, strict=True):
        torch.testing.assert_close(left, right)
        torch.testing.assert_close(left["value"], left["index"] * 10)


def test_an_error_in_the_thread_is_raised_in_the_consumer():
    def broken(rows: np.ndarray) -> dict[str, torch.Tensor]:
        if 13 in rows:
            raise ValueError("cannot decode image 13")
        return read(rows)

    with pytest.raises(ValueError, match="image 13"):
        list(Loader(broken, 20, 2, shuffle=False, prefetch=2).epoch(0))


def test_leaving_early_ends_the_thread():
    batches = Loader(read, 1000, 1, shuffle=False, prefetch=2).epoch(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_a_given_order_is_dealt_out_in_whole_rounds():
    order = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])]
    loaders = [Loader(read, 6, 2, shuffle=False, rank=r, world_size=2, order=lambda epoch: order) for r in (0, 1)]
    assert [loader.num_batches() for loader in loaders] == [1, 1]
    assert [loader.rows(0)[0].tolist() for loader in loaders] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_examples": 0}, "num_examples must be at least 1"), ({"batch_size": 0}, "batch_size must be at least 1")],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Loader(read, **{"num_examples": 5, "batch_size": 2, "shuffle": False, **options})
