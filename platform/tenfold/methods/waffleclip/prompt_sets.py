"""Prompt sets: the prompts of all classes of a data set, in every mode that the paper compares.

Roth et al., "Waffling around for Performance", ICCV 2023.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tenfold.methods.waffleclip.prompt_modes import MODES, Build
from tenfold.methods.waffleclip.prompts import PREFIX, Wording
from tenfold.methods.waffleclip.settings import PAIRS_IN_THIRDS
from tenfold.methods.waffleclip.vocabulary import check_lists


def build_prompt_sets(
    mode: str,
    descriptors: Mapping[str, Sequence[str]],
    vocabulary: Sequence[str],
    *,
    seed: int,
    n_pairs: int = 15,
    budget: int = 1,
    prefix: str = PREFIX,
    suffix: str = ".",
    separator: str = ", ",
    pre: str = "",
    phrase: bool = True,
    sort_case_insensitive: bool = False,
) -> dict[str, list[str]]:
    """Build the prompts of every class.

    Args:
        mode: One of ``MODES``.
        descriptors: Class key to its descriptors, in label order; an empty list counts as [""]. In mode "sentences"
            they are whole sentences and become the prompts.
        vocabulary: Words for the modes that draw random words; empty for the others.
        seed: Seed of the random stream, at least 0; the index of the repetition.
        n_pairs: Pairs of a random word and a random character descriptor, hence half the prompts of a class; the modes
            that mix them with descriptors from a language model need at least 2.
        budget: In the modes that pool descriptors, prompts of a class as a multiple of the average number of
            descriptors.
        prefix: Text before the class name, with the concept in it (see ``concept_prefix``).
        suffix: Text at the end of a prompt.
        separator: Text between class name and descriptor.
        pre: Text before the whole prompt, in prompts with a descriptor only.
        phrase: Whether descriptors are turned into relative clauses.
        sort_case_insensitive: Whether classes are sorted by lower-cased key, as the labels of Oxford-IIIT Pets are.

    Returns:
        Class key to prompts, in the order of ``descriptors`` unless sorted.

    Raises:
        ValueError: The mode is unknown; there are no classes, or one has no name or a string in place of a list;
            ``n_pairs``, ``budget`` or ``seed`` is too small; or the source of the mode's draws is empty.
    """
    _check(mode, descriptors, seed=seed, n_pairs=n_pairs, budget=budget)
    build = Build(
        descriptors=descriptors,
        vocabulary=vocabulary,
        rs=np.random.RandomState(seed),
        wording=Wording(prefix=prefix, suffix=suffix, separator=separator, pre=pre, phrase=phrase),
        n_pairs=n_pairs,
        budget=budget,
    )
    prompts = MODES[mode](build)
    names = sorted(prompts, key=str.lower) if sort_case_insensitive else list(prompts)
    return {name: prompts[name] for name in names}


def distinct_prompts(
    prompt_sets: Sequence[Mapping[str, Sequence[str]]],
) -> tuple[list[str], list[int], list[int]]:
    """Deduplicate the prompts of several prompt sets, so that the text tower encodes each text once.

    Repetitions often share prompts: all of them without randomness, most of them when drawn from given descriptors.

    Args:
        prompt_sets: R results of ``build_prompt_sets``.

    Returns:
        The distinct texts in order of first use; for every prompt, set by set and class by class, the index of its
        text; and the number of prompts of every class of every set. ``prototypes`` takes ``embed(texts)[rows]`` with
        these counts, R * C classes at once.
    """
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for prompts in prompt_sets for own in prompts.values() for text in own]
    return list(places), rows, [len(own) for prompts in prompt_sets for own in prompts.values()]


def _check(mode: str, descriptors: Mapping[str, Sequence[str]], *, seed: int, n_pairs: int, budget: int) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if not descriptors:
        raise ValueError("descriptors must hold at least one class, got none")
    for name in descriptors:
        if not name.strip(" _"):
            raise ValueError(f"class names must not be blank, got {name!r}")
    check_lists(descriptors)
    fewest = 2 if mode in PAIRS_IN_THIRDS else 1
    if n_pairs < fewest:
        raise ValueError(f"n_pairs must be at least {fewest} with mode {mode!r}, got {n_pairs}")
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
