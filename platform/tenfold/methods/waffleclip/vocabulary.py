"""What random descriptors are made of: the words of many data sets, the characters and the name lengths of one.

Roth et al., "Waffling around for Performance", ICCV 2023. A random descriptor is as long as the class names are on
average, so that it adds noise of the size of what it stands beside.
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
    """How long the random descriptors of a data set are."""

    n_words: int
    """Words of a random word descriptor, at least 1."""
    word_len: int
    """Characters that are kept of each vocabulary word."""
    groups: int
    """Blocks of a random character descriptor, at least 1."""
    group_len: int
    """Characters of one block, at least 1."""


def build_vocabulary(descriptor_sets: Sequence[Mapping[str, Sequence[str]]]) -> list[str]:
    """The distinct words of several data sets' descriptors, in lower case and without punctuation.

    Args:
        descriptor_sets: For each data set, class name to descriptors.

    Returns:
        Words sorted by code point. "" is among them where a descriptor is empty, holds two spaces in a row or a word of
        punctuation only; a class without descriptors adds nothing.

    Raises:
        ValueError: If a class has a bare string in place of a list of descriptors.
    """
    words = {
        word.translate(_NOT_IN_WORDS).lower()
        for descriptors in descriptor_sets
        for descriptor in _all_descriptors(descriptors)
        for word in descriptor.split(" ")
    }
    return sorted(words)


def character_pool(descriptors: Mapping[str, Sequence[str]]) -> str:
    """The distinct characters of one data set's descriptors but space, comma and full stop, sorted by code point.

    Raises:
        ValueError: If a class has a bare string in place of a list of descriptors.
    """
    return "".join(sorted(set().union(*_all_descriptors(descriptors)) - _NOT_IN_POOL))


def descriptor_shape(class_names: Sequence[str]) -> DescriptorShape:
    """The lengths of random descriptors that fit the class names of a data set.

    Args:
        class_names: Raw keys. Words are counted in the names as displayed, with underscores as spaces; blocks and their
            length in the keys as they are.

    Raises:
        ValueError: If there are no names or one is empty.
    """
    if not class_names:
        raise ValueError("class names are needed to fit random descriptors to them, got an empty list")
    if blank := [name for name in class_names if not display(name).strip()]:
        raise ValueError(f"every class needs a name, got {blank[0]!r} at place {list(class_names).index(blank[0])}")
    words = [display(name).split(" ") for name in class_names]
    groups = _rounded_mean([name.count(" ") for name in class_names]) + 1
    characters = math.ceil(np.mean([max(map(len, name.split(" "))) for name in class_names]))
    return DescriptorShape(
        n_words=max(1, _rounded_mean([len(parts) for parts in words])),
        word_len=_rounded_mean([float(np.mean([len(part) for part in parts])) for parts in words]),
        groups=groups,
        # Always one more than the whole blocks that fit: an even division gains a character a block as well.
        group_len=characters // groups + 1,
    )


def check_lists(descriptors: Mapping[str, Sequence[str]]) -> None:
    """See that every class has a list: a bare string would be read letter by letter.

    Raises:
        ValueError: If a class has a string.
    """
    for name, own in descriptors.items():
        if isinstance(own, str):
            raise ValueError(  # noqa: TRY004 - the content of a file, not a programmer's argument
                f"class {name!r} needs a list of descriptors, got the string {own!r}: wrap it in a list"
            )


def _all_descriptors(descriptors: Mapping[str, Sequence[str]]) -> list[str]:
    check_lists(descriptors)
    return [descriptor for own in descriptors.values() for descriptor in own]


def _rounded_mean(numbers: Sequence[float]) -> int:
    return round(float(np.mean(numbers)))  # half to even
