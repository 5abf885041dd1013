"""Batching: who shares a pass, who waits, and who never runs."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from serve.contract import Failure, RefusedError
from serve.tasks.batches import Batcher, divided, isolated, joined


@dataclass(frozen=True)
class Part:
    name: str
    weight: int = 1

    def __len__(self):
        return self.weight


class Pass:
    """Stands for a predictor: records its batches; ``hold`` keeps a pass running until it is set free;
    one with ``bad`` raises."""

    def __init__(self):
        self.batches = []
        self.free = threading.Event()
        self.free.set()
        self.started = threading.Event()

    def __call__(self, parts):
        self.batches.append([part.name for part in parts])
        self.started.set()
        assert self.free.wait(10)
        if "bad" in self.batches[-1]:
            raise KeyError("gone")
        return [{"name": np.array([part.name])} for part in parts]

    def hold(self):
        self.free.clear()
        self.started.clear()


class Meter:
    def __init__(self):
        self.sizes = []

    def batch(self, num_examples, latency_ms):
        assert latency_ms >= 0
        self.sizes.append(num_examples)

    def texts(self, latency_ms):
        raise AssertionError("there are no texts")


def run(story, max_weight=8, wait_s=0.0):
    """Run ``story(batcher, passes, meter)``."""

    async def go():
        passes, meter = Pass(), Meter()
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(passes, executor, max_weight=max_weight, wait_s=wait_s, meter=meter)
            try:
                await asyncio.wait_for(story(batcher, passes, meter), 20)
            finally:
                passes.free.set()

    asyncio.run(go())


def submit(batcher, *names, weight=1, **options):
    return [asyncio.ensure_future(batcher.submit(Part(name, weight), **options)) for name in names]


async def busy(batcher, passes):
    """Keep the model busy with a call ``first``; return its future once it runs."""
    passes.hold()
    [first] = submit(batcher, "first")
    while not passes.started.is_set():
        await asyncio.sleep(0.001)
    return first


def name_of(result):
    return str(result["name"][0])


def test_calls_that_come_while_a_batch_runs_share_the_next():
    async def story(batcher, passes, meter):
        first = await busy(batcher, passes)
        later = submit(batcher, "a", "b", "c")
        await asyncio.sleep(0.01)
        passes.free.set()
        assert [name_of(result) for result in await asyncio.gather(first, *later)] == ["first", "a", "b", "c"]
        assert passes.batches == [["first"], ["a", "b", "c"]]
        assert meter.sizes == [1, 3]

    run(story)


def test_a_batch_is_full_at_its_weight_and_what_is_heavier_runs_alone():
    async def story(batcher, passes, _):
        first = await busy(batcher, passes)
        later = [*submit(batcher, "a", "b", weight=3), *submit(batcher, "c", weight=2), *submit(batcher, "d", weight=9)]
        later += submit(batcher, "e")
        await asyncio.sleep(0.01)
        passes.free.set()
        await asyncio.gather(first, *later)
        assert passes.batches == [["first"], ["a", "b", "c"], ["d"], ["e"]]

    run(story)


def test_an_incomplete_batch_waits_for_others_and_a_full_one_does_not():
    async def story(batcher, passes, _):
        early = submit(batcher, "a")
        await asyncio.sleep(0.02)
        await asyncio.gather(*early, *submit(batcher, "b"))
        assert passes.batches == [["a", "b"]]

    run(story, wait_s=0.3)

    async def at_once(batcher, passes, _):
        started = time.monotonic()
        await asyncio.gather(*submit(batcher, "a", weight=4), *submit(batcher, "b", weight=4))
        assert time.monotonic() - started < 5
        early = submit(batcher, "c", weight=4)
        await asyncio.sleep(0.01)
        await asyncio.gather(*early, *submit(batcher, "d", weight=4))
        assert time.monotonic() - started < 5
        assert passes.batches == [["a", "b"], ["c", "d"]]

    run(at_once, wait_s=10)


def test_the_wait_ends():
    async def story(batcher, passes, _):
        started = time.monotonic()
        await asyncio.gather(*submit(batcher, "a"))
        assert 0.05 <= time.monotonic() - started < 5

    run(story, wait_s=0.05)


def test_a_call_that_nobody_awaits_any_more_never_runs():
    async def story(batcher, passes, _):
        first = await busy(batcher, passes)
        gone, stays = submit(batcher, "gone", "stays")
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        passes.free.set()
        await asyncio.gather(first, stays)
        assert passes.batches == [["first"], ["stays"]]
        # Nor does a queue of cancelled calls alone leave the batcher stuck.
        first = await busy(batcher, passes)
        [gone] = submit(batcher, "gone")
        await asyncio.sleep(0.01)
        gone.cancel()
        passes.free.set()
        await first
        await asyncio.gather(*submit(batcher, "next"))
        assert passes.batches[2:] == [["first"], ["next"]]

    run(story)


def test_a_caller_that_leaves_during_its_pass_takes_nothing_from_the_others():
    async def story(batcher, passes, _):
        leaving = await busy(batcher, passes)
        [stays] = submit(batcher, "stays")
        leaving.cancel()
        passes.free.set()
        assert name_of(await stays) == "stays"

    run(story)


def test_a_late_call_is_refused_and_never_runs():
    async def story(batcher, passes, _):
        first = await busy(batcher, passes)
        [late] = submit(batcher, "late", deadline=time.time() + 0.01)
        [early] = submit(batcher, "early", deadline=time.time() + 60)
        await asyncio.sleep(0.05)
        passes.free.set()
        await asyncio.gather(first, early)
        refused = await late
        assert isinstance(refused, RefusedError)
        assert (refused.status, refused.reason) == (504, "timeout")
        assert passes.batches == [["first"], ["early"]]

    run(story)


def test_an_error_reaches_every_caller_of_its_batch_and_the_next_batch_works():
    async def story(batcher, passes, meter):
        first = await busy(batcher, passes)
        failing = submit(batcher, "bad", "b")
        await asyncio.sleep(0.01)
        passes.free.set()
        await first
        assert await asyncio.gather(*failing) == [Failure("KeyError: 'gone'")] * 2
        assert [name_of(result) for result in await asyncio.gather(*submit(batcher, "c"))] == ["c"]
        assert meter.sizes == [1, 2, 1]

    run(story)


@pytest.mark.parametrize("results", [[], [{}], [{}, {}, {}]])
def test_a_model_that_forgets_a_caller_fails_for_all_of_them(results):
    async def story(batcher, passes, _):
        batcher._run = lambda parts: results
        for result in await asyncio.gather(*submit(batcher, "a", "b")):
            assert isinstance(result, Failure)
        batcher._run = passes
        assert name_of(await batcher.submit(Part("c"))) == "c"

    run(story)


def test_what_fails_together_is_tried_alone():
    def double(parts):
        if any(part.name == "bad" for part in parts):
            raise ValueError("bad")
        return [part.name * 2 for part in parts]

    parts = [Part(name) for name in ("a", "bad", "b")]
    assert isolated(double, parts) == ["aa", Failure("ValueError: bad"), "bb"]


def test_outputs_are_divided_into_the_rows_of_each_and_joined_again():
    outputs = {"mean": np.arange(12.0).reshape(6, 2), "text": np.array(list("abcdef"), object)}
    parts = divided(outputs, [Part("a", 2), Part("b", 1), Part("c", 3)])
    assert [part["text"].tolist() for part in parts] == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert all(part["mean"].base is None for part in parts)  # a view would be sent with the whole batch
    again = joined(parts)
    assert all((again[name] == values).all() for name, values in outputs.items())


def test_an_error_of_any_type_stays_with_its_piece():
    def run(pieces):
        if "bad" in pieces:
            raise KeyError("bad")
        return [piece.upper() for piece in pieces]

    results = isolated(run, ["a", "bad", "b"])
    assert (results[0], results[2]) == ("A", "B")
    assert isinstance(results[1], Failure)
