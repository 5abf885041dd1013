"""Random words and characters, drawn from numpy's legacy generator exactly as in the reference implementation.

The reference shuffles the whole pool for every word and every character and takes the first entry
(``rs.choice(pool, 1, replace=False)``). The numbers here are the same, but only indices are shuffled, small pools many
at a time, and lists that are discarded advance the stream without being built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.methods.waffleclip.vocabulary import DescriptorShape

_SMALL_POOL = 256
"""Largest pool that is shuffled many at a time; above it numpy's own shuffle is faster."""

_MANY = 32
"""Fewest shuffles that are drawn together; below it one at a time is faster."""


class RandomText:
    """Random word and character descriptors of one data set, drawn from one stream.

    Args:
        rs: Random stream, advanced by every draw.
        vocabulary: Words, of which the first ``shape.word_len`` characters are used; may be empty if none are drawn.
        characters: Character pool.
        shape: Lengths of the descriptors.
    """

    def __init__(
        self, rs: np.random.RandomState, vocabulary: Sequence[str], characters: str, shape: DescriptorShape
    ) -> None:
        self._rs = rs
        self._words = [word[: shape.word_len] for word in vocabulary]
        self._characters = characters
        self._shape = shape

    def descriptors(self, count: int, *, words: bool = True) -> list[str]:
        """Draw ``count`` pairs of a word and a character descriptor, or character descriptors only.

        Raises:
            ValueError: A pool that is drawn from is empty.
        """
        return self._spell(_draw(self._rs, self._plan(words=words), count))

    def shared_descriptors(self, num_classes: int, count: int, *, words: bool = True) -> list[str]:
        """Draw the list that all classes share: a list is drawn for every class, and one of them is chosen.

        The lists of the other classes advance the stream and are never built. Results are kept in an LRU cache, since
        the same seed recurs with other prefixes, suffixes and separators.

        Raises:
            ValueError: A pool that is drawn from is empty.
        """
        _, key, position, *_ = self._rs.get_state(legacy=True)
        plan = self._plan(words=words)
        chosen, state = _chosen_draw(np.asarray(key).tobytes(), int(position), plan, count, num_classes)
        self._rs.set_state(state)
        return self._spell(chosen)

    def _plan(self, *, words: bool) -> "_Plan":
        if words and not self._words:
            raise ValueError("vocabulary must hold words to draw from, got an empty list; build_vocabulary makes one")
        if not self._characters:
            raise ValueError("descriptors must hold some characters for random characters, got empty descriptors only")
        shape = self._shape
        return _Plan(
            n_words=shape.n_words if words else 0,
            n_characters=shape.groups * shape.group_len,
            num_words=len(self._words),
            num_characters=len(self._characters),
        )

    def _spell(self, draw: "_Draw") -> list[str]:
        descriptors = []
        length = self._shape.group_len
        for words, characters in zip(draw.words.tolist(), draw.characters.tolist(), strict=True):
            if words:
                descriptors.append(" ".join(self._words[i] for i in words))
            text = "".join(self._characters[i] for i in characters)
            descriptors.append(", ".join(text[i : i + length] for i in range(0, len(text), length)))
        return descriptors


def first_of_permutations(rs: np.random.RandomState, length: int, count: int) -> NDArray[np.int64]:
    """First entries of ``count`` successive permutations of ``range(length)``.

    Equal to ``[rs.choice(length, 1, replace=False)[0] for _ in range(count)]``; leaves the stream in the same state.
    """
    if length > _SMALL_POOL:
        firsts = np.empty(count, np.int64)
        ordered = np.arange(length)
        shuffled = np.empty_like(ordered)
        for i in range(count):
            shuffled[:] = ordered
            rs.shuffle(shuffled)
            firsts[i] = shuffled[0]
        return firsts
    swaps = _shuffle_swaps(rs, length, count)
    # The shuffle swaps entry i with entry swaps[i] for i = length - 1 ... 1. Traced backwards from index 0, an entry
    # moves only when a swap names its current index, and then to i.
    firsts = np.zeros(count, np.int64)
    for i in range(1, length):
        firsts[swaps[:, length - 1 - i] == firsts] = i
    return firsts


def skip_permutations(rs: np.random.RandomState, length: int, count: int) -> None:
    """Advance the stream by ``count`` permutations of ``range(length)``."""
    if length <= _SMALL_POOL and count >= _MANY:
        _shuffle_swaps(rs, length, count)
        return
    entries = np.arange(length)  # of machine-word size, which numpy shuffles fastest
    shuffle = rs.shuffle
    for _ in range(count):
        shuffle(entries)


def _shuffle_swaps(rs: np.random.RandomState, length: int, count: int) -> NDArray[np.uint32]:
    """Indices that ``count`` shuffles swap with, ``(count, length - 1)``; column k is below ``length - k``.

    A shuffle masks and rejects 32 random bits at a time, as does ``randint`` with 32-bit bounds.
    """
    bounds = np.arange(length, 1, -1, dtype=np.uint32)
    return rs.randint(0, bounds, size=(count, length - 1), dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Draws of a pair of descriptors: first the words, of which character-only lists have none, then the characters."""

    n_words: int
    n_characters: int
    num_words: int  # sizes of the pools
    num_characters: int


@dataclass(frozen=True, slots=True)
class _Draw:
    words: NDArray[np.int64]  # (count, n_words) indices into the word pool
    characters: NDArray[np.int64]  # (count, n_characters) indices into the character pool


def _draw(rs: np.random.RandomState, plan: _Plan, count: int) -> _Draw:
    words = np.empty((count, plan.n_words), np.int64)
    characters = np.empty((count, plan.n_characters), np.int64)
    if not plan.n_words:
        characters[:] = first_of_permutations(rs, plan.num_characters, characters.size).reshape(characters.shape)
        return _Draw(words, characters)
    for i in range(count):
        words[i] = first_of_permutations(rs, plan.num_words, plan.n_words)
        characters[i] = first_of_permutations(rs, plan.num_characters, plan.n_characters)
    return _Draw(words, characters)


def _skip(rs: np.random.RandomState, plan: _Plan, count: int) -> None:
    if not plan.n_words:
        skip_permutations(rs, plan.num_characters, count * plan.n_characters)
        return
    for _ in range(count):
        skip_permutations(rs, plan.num_words, plan.n_words)
        skip_permutations(rs, plan.num_characters, plan.n_characters)


@lru_cache(maxsize=128)
def _chosen_draw(key: bytes, position: int, plan: _Plan, count: int, num_classes: int) -> tuple[_Draw, tuple[Any, ...]]:
    """Draw of the chosen class, and the state after the choice; key and position are the state before it."""
    rs = np.random.RandomState()
    rs.set_state(("MT19937", np.frombuffer(key, np.uint32), position, 0, 0.0))
    starts = []
    for _ in range(num_classes):
        starts.append(rs.get_state(legacy=True))
        _skip(rs, plan, count)
    chosen = rs.choice(num_classes)
    state = rs.get_state(legacy=True)
    rs.set_state(starts[chosen])
    return _draw(rs, plan, count), tuple(state)
