"""The parts around a language model: what it is asked about, how its answers are read, where a concept goes.

Roth et al., "Waffling around for Performance", ICCV 2023. Nothing here calls a model.
"""

from collections.abc import Sequence

import numpy as np

from tenfold.methods.waffleclip.prompts import PREFIX

_NOT_IN_CONCEPT = str.maketrans("", "", "\r\n.?")
_DASH = "- "


def concept_prefix(concept: str | None) -> str:
    """The text before a class name when all classes are known to be of one kind.

    Args:
        concept: "bird" or "land use", say. None, or an answer without words, means that nothing is known.

    >>> concept_prefix("bird")
    'A photo of a bird: a '
    """
    concept = (concept or "").strip()
    return f"{PREFIX}{concept}: a " if concept else PREFIX


def concept_subset(class_names: Sequence[str], limit: int = 25, seed: int = 0) -> list[str]:
    """The class names that a language model is shown when it is asked for their concept.

    Args:
        class_names: Raw keys of the data set, in file order.
        limit: How many to choose at most.
        seed: Of numpy's legacy generator; a fresh one is made for each call.

    Returns:
        ``min(limit, C)`` raw keys, drawn without replacement, in the order drawn.

    Raises:
        ValueError: If there are no names or the limit is below 1.
    """
    if not class_names:
        raise ValueError("a concept needs class names, got an empty list")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    rs = np.random.RandomState(seed)
    chosen = rs.choice(len(class_names), min(limit, len(class_names)), replace=False)
    return [class_names[i] for i in chosen]


def parse_concept(text: str) -> str:
    """A language model's answer as a concept.

    Line breaks, full stops and question marks go, letters become small, one last "s" is dropped. The rule knows no
    English: "class" becomes "clas". An empty answer stays empty.
    """
    return text.translate(_NOT_IN_CONCEPT).lower().removesuffix("s")


def parse_descriptors(text: str) -> list[str]:
    """The entries of a dash list in a language model's answer; lines that do not begin with "- " are left out."""
    return [line.removeprefix(_DASH) for line in text.splitlines() if line.startswith(_DASH)]
