"""The prompts of all classes of a data set, in every way that the paper compares.

Roth et al., "Waffling around for Performance", ICCV 2023.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tenfold.methods.waffleclip.prompt_modes import MODES, Build
from tenfold.methods.waffleclip.prompts import PREFIX, Wording
from tenfold.methods.waffleclip.vocabulary import check_lists

_FEWEST_PAIRS = {"waffle_and_gpt": 2, "adaptive_randomness_and_gpt_descriptions": 2}


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
    """The prompts of every class.

    Args:
        mode: One of ``MODES``.
        descriptors: Class key to its descriptors, in label order; a class without any counts as one with [""]. In mode
            "sentences" they are whole sentences and become the prompts.
        vocabulary: Words for the modes that draw random ones; the others take an empty list.
        seed: Of the random stream, from 0 on: the index of the repetition.
        n_pairs: Pairs of a random word and a random character descriptor, hence half the prompts of a class; the modes
            that mix with a language model's descriptors need at least 2.
        budget: In the modes that pool descriptors: prompts of a class, in multiples of the average number of
            descriptors.
        prefix: Text before the class name, with the concept in it (see ``concept_prefix``).
        suffix: Text at the end of a prompt.
        separator: Text between class name and descriptor.
        pre: Text before everything, in prompts with a descriptor only.
        phrase: Turn descriptors into relative clauses.
        sort_case_insensitive: Return the classes sorted by lower-cased key, as the labels of Oxford-IIIT Pets are.

    Returns:
        Class key to prompts, in the order of ``descriptors`` unless sorted.

    Raises:
        ValueError: If the mode is unknown, there are no classes or one has no name or a bare string of descriptors,
            ``n_pairs``, ``budget`` or ``seed`` are too small, or what the mode draws from is empty.
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
    """What a text tower has to read for several prompt sets, each text once.

    Repetitions often agree (all of them without randomness, most of those that choose among given descriptors).

    Args:
        prompt_sets: Results of ``build_prompt_sets``, R of them.

    Returns:
        The distinct texts in the order of their first use; for every prompt, set after set and class after class, the
        place of its text; and the number of prompts of every class of every set. ``embed(texts)[rows]`` with these
        counts is what ``prototypes`` takes, R * C classes at once.
    """
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for prompts in prompt_sets for own in prompts.values() for text in own]
    return list(places), rows, [len(own) for prompts in prompt_sets for own in prompts.values()]


def _check(mode: str, descriptors: Mapping[str, Sequence[str]], *, seed: int, n_pairs: int, budget: int) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if not descriptors:
        raise ValueError("prompts need classes, got no class at all in the descriptors")
    for name in descriptors:
        if not name.strip(" _"):
            raise ValueError(f"every class needs a name, got {name!r}")
    check_lists(descriptors)
    fewest = _FEWEST_PAIRS.get(mode, 1)
    if n_pairs < fewest:
        raise ValueError(f"mode {mode!r} needs n_pairs of at least {fewest}, got {n_pairs}")
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
