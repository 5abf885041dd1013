"""Vocabularies of requests: refusals, and the prototype cache."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from serve.contract import Limits, RefusedError
from serve.tasks.labels.prototypes import PrototypeCache
from serve.tasks.labels.vocabulary import Vocabulary, read_vocabulary

LIMITS = Limits(max_classes=3, max_prompts=5, max_text_characters=10)


def test_what_is_read():
    assert read_vocabulary(None, None, LIMITS) is None
    assert read_vocabulary(["b", "a"], None, LIMITS) == Vocabulary(("b", "a"))
    prompts = {"b": ["x", "x"], "a": ["y"]}
    assert read_vocabulary(None, prompts, LIMITS) == Vocabulary(("b", "a"), (("x", "x"), ("y",)))


@pytest.mark.parametrize(
    ("classes", "prompts", "message"),
    [
        ([], None, "'classes' must name at least one class"),
        (None, {}, "'prompts' must name at least one class"),
        (["a", "b", "a"], None, "'classes' names the class 'a' twice"),
        (["a", ""], None, "a class name must not be empty, got ''"),
        (["a", " \n"], None, "a class name must not be empty"),
        (["a", None], None, "a class name must be a text, got null"),
        (["a", True], None, "a class name must be a text, got a boolean"),
        (["a", ["b"]], None, "a class name must be a text, got a list"),
        ({"a": 1}, None, "'classes' must be a list of class names, got an object"),
        (7, None, "'classes' must be a list of class names, got a number"),
        (list("abcd"), None, "at most 3 classes, got 4"),
        (["a" * 11], None, "a class name may have at most 10 characters, got 11"),
        (["\ud800"], None, "a class name must be Unicode text"),
        (["a"], {"a": ["b"]}, "either 'classes' or 'prompts', not both"),
        (None, ["a"], "'prompts' must be an object of class name to a list of texts, got a list"),
        (None, {"a": []}, "the prompts of 'a' must be a list of at least one text, got an empty list"),
        (None, {"a": "b"}, "the prompts of 'a' must be a list of at least one text, got a text"),
        (None, {"a": ["b", 1.5]}, "a prompt of 'a' must be a text, got a number"),
        (None, {"a": ["b", ""]}, "a prompt of 'a' must not be empty"),
        (None, {"a": ["b" * 11]}, "a prompt of 'a' may have at most 10 characters, got 11"),
        (None, {"": ["b"]}, "a class name must not be empty"),
        (None, {name: ["b"] for name in "abcd"}, "at most 3 classes, got 4"),
        (None, {"a": ["b"] * 3, "b": ["c"] * 3}, "at most 5 prompts in all, got 6"),
    ],
)
def test_what_is_refused(classes, prompts, message):
    with pytest.raises(RefusedError) as refused:
        read_vocabulary(classes, prompts, LIMITS)
    assert (refused.value.status, refused.value.reason) == (422, "vocabulary")
    assert message in refused.value.sentence


class Tower:
    """Stands for a text tower: counts its calls; names that say so block until let go, or fail."""

    def __init__(self):
        self.calls = []
        self.free = threading.Event()

    def __call__(self, vocabulary):
        self.calls.append(vocabulary.classes)
        if "slow" in vocabulary.classes:
            assert self.free.wait(10)
        if "bad" in vocabulary.classes:
            raise ValueError("bad")
        return torch.full((len(vocabulary.classes), 2), float(len(self.calls)))


def run(story, **options):
    """Run ``story(tower, get)`` with a cache; ``get`` takes class names."""
    tower = Tower()

    async def go():
        with ThreadPoolExecutor(1) as executor:
            cache = PrototypeCache(tower, executor, **options)
            try:
                await story(tower, lambda *names: cache.get(Vocabulary(names)))
            finally:
                tower.free.set()

    asyncio.run(go())


def test_each_list_is_encoded_once_also_at_the_same_time():
    async def story(tower, get):
        results = await asyncio.gather(*(get("a", "b") for _ in range(10)), get("b", "a"))
        assert all(result is results[0] for result in results[:10])
        assert results[10] is not results[0]
        await get("a", "b")
        assert tower.calls == [("a", "b"), ("b", "a")]

    run(story)


def test_names_and_prompts_are_told_apart():
    async def story(tower, get):
        with ThreadPoolExecutor(1) as executor:
            cache = PrototypeCache(tower, executor)
            for vocabulary in (
                Vocabulary(("a", "b")),
                Vocabulary(("a", "b"), (("x",), ("y",))),
                Vocabulary(("a", "b"), (("x", "y"), ("y",))),
                Vocabulary(("a,b",)),
            ):
                await cache.get(vocabulary)
                await cache.get(vocabulary)
        assert len(tower.calls) == 4

    run(story)


def test_a_list_that_is_known_waits_for_nobody():
    async def story(tower, get):
        await get("a")
        slow = asyncio.ensure_future(get("slow"))
        await asyncio.wait_for(get("a"), 5)
        assert not slow.done()
        tower.free.set()
        await slow

    run(story)


def test_a_failure_goes_to_those_who_asked_and_is_not_kept():
    async def story(tower, get):
        results = await asyncio.gather(get("bad"), get("bad"), get("a"), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, ValueError, torch.Tensor]
        assert len(tower.calls) == 2
        with pytest.raises(ValueError, match="bad"):
            await get("bad")
        assert len(tower.calls) == 3

    run(story)


def test_a_client_that_goes_away_takes_nothing_from_others():
    async def story(tower, get):
        first, second = (asyncio.ensure_future(get("slow")) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        tower.free.set()
        assert (await second).shape == (1, 2)
        assert len(tower.calls) == 1

    run(story)


def test_the_least_recently_used_is_forgotten():
    async def story(tower, get):
        for name in ("a", "b", "a", "c", "a", "b"):
            await get(name)
        assert tower.calls == [("a",), ("b",), ("c",), ("b",)]

    run(story, max_kept=2)


def test_more_new_lists_than_there_is_room_for_are_refused():
    async def story(tower, get):
        waiting = [asyncio.create_task(get("slow", str(number))) for number in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="try again") as refused:
            await get("one more")
        assert refused.value.status == 503
        tower.free.set()
        await asyncio.gather(*waiting)
        assert len(await get("one more")) == 1

    run(story)
