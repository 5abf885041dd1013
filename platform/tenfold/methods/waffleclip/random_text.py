"""Random words and random characters, drawn from numpy's legacy generator exactly as the method's reference draws them.

There every word and every character costs a shuffle of its whole pool, of which the first entry is taken
(``rs.choice(pool, 1, replace=False)``). The numbers must stay the same, but no text has to be moved for them: only
indices are shuffled, small pools many at a time, and lists that are thrown away are skipped without being spelled out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.methods.waffleclip.vocabulary import DescriptorShape

_SMALL_POOL = 256
"""Pools up to this size are shuffled many at a time; beyond it numpy's own shuffle is faster."""

_MANY = 32
"""Fewer shuffles than this cost less one by one than the start of drawing them together."""


class RandomText:
    """Word and character descriptors of one data set, drawn from one stream.

    Args:
        rs: The stream; every draw advances it.
        vocabulary: Words, of which the first ``shape.word_len`` characters are used. May be empty if none are drawn.
        characters: The character pool.
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
        """A list of its own: ``count`` pairs of a word and a character descriptor, or characters only.

        Raises:
            ValueError: If a pool that is drawn from is empty.
        """
        return self._spell(_draw(self._rs, self._plan(words=words), count))

    def shared_descriptors(self, num_classes: int, count: int, *, words: bool = True) -> list[str]:
        """The list that all classes share: one is drawn for every class, then one of them chosen.

        The lists of the other classes take their part of the stream and are never spelled out. The last few results
        are remembered, since the same seed is asked again for other prefixes, suffixes and separators.

        Raises:
            ValueError: If a pool that is drawn from is empty.
        """
        _, key, position, *_ = self._rs.get_state(legacy=True)
        plan = self._plan(words=words)
        chosen, state = _chosen_draw(np.asarray(key).tobytes(), int(position), plan, count, num_classes)
        self._rs.set_state(state)
        return self._spell(chosen)

    def _plan(self, *, words: bool) -> "_Plan":
        if words and not self._words:
            raise ValueError("random words need a vocabulary, got an empty list; build_vocabulary makes one")
        if not self._characters:
            raise ValueError("random characters need descriptors that hold some characters, got empty descriptors only")
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
    """The first entries of ``count`` permutations of ``range(length)``, in turn.

    Equals ``[rs.choice(length, 1, replace=False)[0] for _ in range(count)]`` and leaves the stream in the same state.
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
    # The shuffle swaps entry i with entry swaps[i] for i = length - 1 ... 1. Run backwards from place 0, an entry
    # moves only when a swap names its present place, and then to i.
    firsts = np.zeros(count, np.int64)
    for i in range(1, length):
        firsts[swaps[:, length - 1 - i] == firsts] = i
    return firsts


def skip_permutations(rs: np.random.RandomState, length: int, count: int) -> None:
    """Advance the stream by ``count`` permutations of ``range(length)``."""
    if length <= _SMALL_POOL and count >= _MANY:
        _shuffle_swaps(rs, length, count)
        return
    entries = np.arange(length)  # the size of a machine word is the one that numpy shuffles fastest
    shuffle = rs.shuffle
    for _ in range(count):
        shuffle(entries)


def _shuffle_swaps(rs: np.random.RandomState, length: int, count: int) -> NDArray[np.uint32]:
    """The places that ``count`` shuffles swap with, ``(count, length - 1)``; column k is below ``length - k``.

    A shuffle masks and rejects 32 random bits at a time, and so does ``randint`` with 32-bit bounds.
    """
    bounds = np.arange(length, 1, -1, dtype=np.uint32)
    return rs.randint(0, bounds, size=(count, length - 1), dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a pair of descriptors asks of the stream: first the words, none in lists of characters only."""

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
    """The draw of the chosen class, and the state behind the choice; key and position are the state before."""
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
