"""Vocabulary, characters and lengths of random descriptors.

Roth et al., "Waffling around for Performance", ICCV 2023. Words come from the descriptors of many data sets, characters
and lengths from one. A random descriptor has the mean length of the class names, so that its noise is of their size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tenfold.methods.waffleclip.prompts import display

_NOT_IN_WORDS = str.maketrans("", "", ',.()"')
_NOT_IN_POOL = frozenset(" ,.")


@dataclass(frozen=True, slots=True)
class DescriptorShape:
    """Lengths of the random descriptors of a data set."""

    n_words: int
    """Number of words of a random word descriptor, at least 1."""
    word_len: int
    """Number of characters kept of each vocabulary word."""
    groups: int
    """Number of blocks of a random character descriptor, at least 1."""
    group_len: int
    """Number of characters of a block, at least 1."""


def build_vocabulary(descriptor_sets: Sequence[Mapping[str, Sequence[str]]]) -> list[str]:
    """Collect the distinct words of several data sets' descriptors, in lower case and without punctuation.

    Args:
        descriptor_sets: Class name to descriptors, for each data set.

    Returns:
        Words sorted by code point. "" is among them if a descriptor is empty or holds two spaces in a row or a word of
        punctuation only; a class without descriptors adds nothing.

    Raises:
        ValueError: A class has a string in place of a list of descriptors.
    """
    words = {
        word.translate(_NOT_IN_WORDS).lower()
        for descriptors in descriptor_sets
        for descriptor in _all_descriptors(descriptors)
        for word in descriptor.split(" ")
    }
    return sorted(words)


def character_pool(descriptors: Mapping[str, Sequence[str]]) -> str:
    """Collect the distinct characters of a data set's descriptors except space, comma and full stop, by code point.

    Raises:
        ValueError: A class has a string in place of a list of descriptors.
    """
    return "".join(sorted(set().union(*_all_descriptors(descriptors)) - _NOT_IN_POOL))


def descriptor_shape(class_names: Sequence[str]) -> DescriptorShape:
    """Compute the lengths of random descriptors from the class names of a data set.

    Args:
        class_names: Raw keys. Words are counted in the display names, with spaces for underscores; blocks and their
            length in the raw keys.

    Raises:
        ValueError: There are no names or one is empty.
    """
    if not class_names:
        raise ValueError("class_names must hold at least one name, got an empty list")
    if blank := [name for name in class_names if not display(name).strip()]:
        raise ValueError(
            f"class_names must not be blank, got {blank[0]!r} at index {list(class_names).index(blank[0])}"
        )
    words = [display(name).split(" ") for name in class_names]
    groups = _rounded_mean([name.count(" ") for name in class_names]) + 1
    characters = math.ceil(np.mean([max(map(len, name.split(" "))) for name in class_names]))
    return DescriptorShape(
        n_words=max(1, _rounded_mean([len(parts) for parts in words])),
        word_len=_rounded_mean([float(np.mean([len(part) for part in parts])) for parts in words]),
        groups=groups,
        # One more than the integer quotient, so that an exact division gains a character per block, too.
        group_len=characters // groups + 1,
    )


def check_lists(descriptors: Mapping[str, Sequence[str]]) -> None:
    """Check that every class has a list; a string would be read letter by letter.

    Raises:
        ValueError: A class has a string.
    """
    for name, own in descriptors.items():
        if isinstance(own, str):
            raise ValueError(  # noqa: TRY004 - content of a file, not an argument
                f"descriptors of class {name!r} must be a list of texts, got the string {own!r}; wrap it in a list"
            )


def _all_descriptors(descriptors: Mapping[str, Sequence[str]]) -> list[str]:
    check_lists(descriptors)
    return [descriptor for own in descriptors.values() for descriptor in own]


def _rounded_mean(numbers: Sequence[float]) -> int:
    return round(float(np.mean(numbers)))  # half to even
