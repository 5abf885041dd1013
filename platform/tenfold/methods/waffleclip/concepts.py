"""Concepts: choice of the class names to ask about, parsing of answers, and the prefix with a concept.

Roth et al., "Waffling around for Performance", ICCV 2023. Nothing here calls a language model.
"""

from collections.abc import Sequence

import numpy as np

from tenfold.methods.waffleclip.prompts import PREFIX

_NOT_IN_CONCEPT = str.maketrans("", "", "\r\n.?")
_DASH = "- "


def concept_prefix(concept: str | None) -> str:
    """Build the text before a class name from the concept that all classes share.

    Args:
        concept: For example "bird" or "land use"; None or a blank text for no concept.

    >>> concept_prefix("bird")
    'A photo of a bird: a '
    """
    concept = (concept or "").strip()
    return f"{PREFIX}{concept}: a " if concept else PREFIX


def concept_subset(class_names: Sequence[str], limit: int = 25, seed: int = 0) -> list[str]:
    """Draw the class names that a language model is shown when it is asked for their concept.

    Args:
        class_names: Raw keys of the data set, in file order.
        limit: Maximum number of names.
        seed: Seed of numpy's legacy generator, created anew for each call.

    Returns:
        ``min(limit, C)`` raw keys, drawn without replacement, in the order drawn.

    Raises:
        ValueError: There are no names or the limit is below 1.
    """
    if not class_names:
        raise ValueError("class_names must hold at least one name, got an empty list")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    rs = np.random.RandomState(seed)
    chosen = rs.choice(len(class_names), min(limit, len(class_names)), replace=False)
    return [class_names[i] for i in chosen]


def parse_concept(text: str) -> str:
    """Parse a language model's answer into a concept.

    Line breaks, full stops and question marks are removed, letters are lower-cased, and one final "s" is dropped,
    whatever the word: "class" becomes "clas". An empty answer stays empty.
    """
    return text.translate(_NOT_IN_CONCEPT).lower().removesuffix("s")


def parse_descriptors(text: str) -> list[str]:
    """Parse the dash list in a language model's answer; lines that do not begin with "- " are ignored."""
    return [line.removeprefix(_DASH) for line in text.splitlines() if line.startswith(_DASH)]
