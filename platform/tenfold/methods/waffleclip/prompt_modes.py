"""Prompt modes, one function each, with the random draws in the order of the reference implementation.

Roth et al., "Waffling around for Performance", ICCV 2023; mode "sentences" is Pratt et al., "What does a platypus look
like?" (CuPL), ICCV 2023. Every function maps a ``Build`` to the prompts of its classes, in file order.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tenfold.methods.waffleclip.prompts import PREFIX, Wording, fill_template
from tenfold.methods.waffleclip.random_text import RandomText
from tenfold.methods.waffleclip.templates import imagenet_templates
from tenfold.methods.waffleclip.vocabulary import character_pool, descriptor_shape

Prompts = dict[str, list[str]]


class Build:
    """Inputs of a mode: descriptors of one data set, a random stream and a wording.

    Args:
        descriptors: Class key to descriptors, at least one class.
        vocabulary: Words for random descriptors.
        rs: Random stream, at its start.
        wording: Wording around class name and descriptor.
        n_pairs: Number of pairs of random descriptors.
        budget: Multiple of the average number of descriptors of a class.
    """

    def __init__(
        self,
        *,
        descriptors: Mapping[str, Sequence[str]],
        vocabulary: Sequence[str],
        rs: np.random.RandomState,
        wording: Wording,
        n_pairs: int,
        budget: int,
    ) -> None:
        self.sources = descriptors
        self.own: dict[str, list[str]] = {name: list(given) or [""] for name, given in descriptors.items()}
        self.names = list(self.own)
        self.pooled = [descriptor for own in self.own.values() for descriptor in own]
        self.rs = rs
        self.wording = wording
        self.n_pairs = n_pairs
        self.num_llm_pairs = int(2 / 3 * n_pairs)
        # The average number of descriptors of a class, rounded up.
        self.num_budgeted = math.ceil(len(self.pooled) / len(self.names)) * budget
        self._vocabulary = vocabulary

    def random_text(self) -> RandomText:
        """Source of random words and characters for this data set."""
        return RandomText(self.rs, self._vocabulary, character_pool(self.own), descriptor_shape(self.names))

    def shared(self, descriptors: Sequence[str]) -> Prompts:
        """Prompts with the same descriptors for every class."""
        tails = [self.wording.tail(descriptor) for descriptor in descriptors]
        return {name: _joined(self.wording.head(name), tails) for name in self.names}

    def each(self, descriptors: Iterable[Sequence[str]]) -> Prompts:
        """Prompts with separate descriptors for each class, in file order."""
        tail = self.wording.tail
        return {
            name: _joined(self.wording.head(name), map(tail, own))
            for name, own in zip(self.names, descriptors, strict=True)
        }

    def random_templates(self, count: int) -> list[str]:
        """Draw ImageNet templates with replacement, returned in their published order."""
        templates = imagenet_templates()
        return [templates[i] for i in np.sort(self.rs.choice(len(templates), count))]

    def one_own(self, name: str) -> str:
        """Draw one of a class's descriptors."""
        own = self.own[name]
        return own[self.rs.choice(len(own), 1)[0]]

    def subset(self, prompts: Sequence[str], count: int) -> list[str]:
        """Draw some of a class's prompts, without replacement."""
        return [prompts[i] for i in self.rs.choice(len(prompts), count, replace=False)]


def clip(build: Build) -> Prompts:
    """One prompt without a descriptor."""
    return {name: [build.wording.plain(name)] for name in build.names}


def gpt_descriptions(build: Build) -> Prompts:
    """Descriptors of the class from a language model (DCLIP)."""
    return build.each(build.own.values())


def sentences(build: Build) -> Prompts:
    """Sentences from a language model, used as whole prompts (CuPL)."""
    for name, own in build.sources.items():
        if not own:
            raise ValueError(f"mode 'sentences' needs at least one sentence for each class, got none for {name!r}")
    return {name: list(own) for name, own in build.sources.items()}


def waffle(build: Build) -> Prompts:
    """Pairs of random words and random characters, shared by all classes: WaffleCLIP."""
    return build.shared(build.random_text().shared_descriptors(len(build.names), build.n_pairs))


def waffle_characters(build: Build) -> Prompts:
    """Random characters only, shared by all classes."""
    return build.shared(build.random_text().shared_descriptors(len(build.names), build.n_pairs, words=False))


def adaptive_randomness(build: Build) -> Prompts:
    """Random words and characters, separate for each class."""
    text = build.random_text()
    return build.each(text.descriptors(build.n_pairs) for _ in build.names)


def adaptive_random_characters(build: Build) -> Prompts:
    """Random characters only, separate for each class."""
    text = build.random_text()
    return build.each(text.descriptors(build.n_pairs, words=False) for _ in build.names)


def waffle_and_gpt(build: Build) -> Prompts:
    """Equal numbers of shared random descriptors and of descriptors of the class; three quarters of them are used."""
    pairs = build.num_llm_pairs
    random = build.random_text().shared_descriptors(len(build.names), pairs)
    prompts = build.each([*random, *(build.one_own(name) for _ in range(2 * pairs))] for name in build.names)
    return {name: build.subset(prompts[name], 3 * pairs) for name in build.names}


def adaptive_randomness_and_gpt_descriptions(build: Build) -> Prompts:
    """Variant of ``waffle_and_gpt`` with separate random descriptors for each class."""
    pairs = build.num_llm_pairs
    text = build.random_text()

    def descriptors(name: str) -> list[str]:
        mixed = []
        for _ in range(pairs):
            mixed += [*text.descriptors(1), build.one_own(name), build.one_own(name)]
        return mixed

    prompts = build.each([descriptors(name) for name in build.names])
    return {name: build.subset(prompts[name], 3 * pairs) for name in build.names}


def random_descriptions(build: Build) -> Prompts:
    """Descriptors of any class, separate for each class."""
    return _pooled_per_class(build, build.pooled)


def shared_random_descriptions(build: Build) -> Prompts:
    """Descriptors of any class, shared by all classes."""
    return _pooled_shared(build, build.pooled)


def swapped_descriptions(build: Build) -> Prompts:
    """Descriptors of another class."""
    lists = list(build.own.values())
    return build.each([lists[i] for i in _shuffled_classes(build)])


def scrambled_descriptions(build: Build) -> Prompts:
    """Descriptors of the class with their words scrambled."""
    _shuffled_classes(build)  # advances the stream as the reference does; the result is not used

    def scramble(own: Sequence[str]) -> list[str]:
        split = [descriptor.replace(".", "").split(" ") for descriptor in own]
        words = [word for parts in split for word in parts]
        return [" ".join(words[i] for i in build.rs.choice(len(words), len(parts))) for parts in split]

    return build.each([scramble(own) for own in build.own.values()])


def random_description_words(build: Build) -> Prompts:
    """Random words of the data set's descriptors, separate for each class."""
    return _pooled_per_class(build, _random_word_sequences(build))


def shared_random_description_words(build: Build) -> Prompts:
    """Random words of the data set's descriptors, shared by all classes."""
    return _pooled_shared(build, _random_word_sequences(build))


def prompt_ensemble(build: Build) -> Prompts:
    """Random ImageNet templates, shared by all classes."""
    templates = build.random_templates(2 * build.n_pairs)
    return {name: [build.wording.plain(name, template) for template in templates] for name in build.names}


def context_prompt_ensemble(build: Build) -> Prompts:
    """Random ImageNet templates with the concept of the prefix: a ... of a <concept>: a <class>."""
    start, colon, _ = build.wording.prefix.partition(":")
    concept = start.removeprefix(PREFIX).strip()
    if not start.startswith(PREFIX) or not colon or not concept:
        raise ValueError(
            f"prefix must hold a concept with mode 'context_prompt_ensemble', '{PREFIX}<concept>: a ', "
            f"got {build.wording.prefix!r}; concept_prefix makes one"
        )
    templates = [fill_template(template, concept + ": a {}") for template in build.random_templates(2 * build.n_pairs)]
    return {name: [build.wording.plain(name, template) for template in templates] for name in build.names}


def gpt_descriptions_and_prompt_ensemble(build: Build) -> Prompts:
    """Random ImageNet templates, each followed by a descriptor of the class."""
    templates = build.random_templates(2 * build.n_pairs)

    def prompt(name: str, template: str) -> str:
        own = build.own[name]
        return build.wording.head(name, template) + build.wording.tail(own[build.rs.choice(len(own))])

    return {name: [prompt(name, template) for template in templates] for name in build.names}


def waffle_and_prompt_ensemble(build: Build) -> Prompts:
    """Random ImageNet templates, each followed by a random word and by a random character descriptor; shared."""
    templates = build.random_templates(build.n_pairs)
    random = build.random_text().shared_descriptors(len(build.names), build.n_pairs)
    tails = [build.wording.tail(descriptor) for descriptor in random]
    pairs = list(zip(templates, tails[::2], tails[1::2], strict=True))
    return {
        name: [
            build.wording.head(name, template) + tail for template, word, letters in pairs for tail in (word, letters)
        ]
        for name in build.names
    }


MODES: dict[str, Callable[[Build], Prompts]] = {
    mode.__name__: mode
    for mode in (
        clip,
        gpt_descriptions,
        waffle,
        waffle_characters,
        adaptive_randomness,
        adaptive_random_characters,
        waffle_and_gpt,
        adaptive_randomness_and_gpt_descriptions,
        random_descriptions,
        shared_random_descriptions,
        swapped_descriptions,
        scrambled_descriptions,
        random_description_words,
        shared_random_description_words,
        prompt_ensemble,
        context_prompt_ensemble,
        gpt_descriptions_and_prompt_ensemble,
        waffle_and_prompt_ensemble,
        sentences,
    )
}
"""Map from mode name to the function that builds its prompts."""


def _joined(head: str, tails: Iterable[str]) -> list[str]:
    return [head + tail for tail in tails]


def _shuffled_classes(build: Build) -> list[int]:
    order = np.arange(len(build.names))
    build.rs.shuffle(order)
    return order.tolist()


def _random_word_sequences(build: Build) -> list[str]:
    """Sequences of random words, as many as there are descriptors, each of the mean length of a descriptor."""
    split = [descriptor.split(" ") for descriptor in build.pooled]
    length = math.ceil(np.mean([len(parts) for parts in split]))
    # Punctuation is removed after duplicates, so "leaf" and "leaf," are both kept and count twice.
    words = [word.replace(",", "").replace(".", "") for word in sorted({word for parts in split for word in parts})]
    return [" ".join(words[i] for i in build.rs.choice(len(words), length)) for _ in build.pooled]


def _pooled_per_class(build: Build, pool: Sequence[str]) -> Prompts:
    count = min(len(pool), build.num_budgeted)
    return build.each([build.subset(pool, count) for _ in build.names])


def _pooled_shared(build: Build, pool: Sequence[str]) -> Prompts:
    count = build.num_budgeted
    return build.shared([pool[i] for i in build.rs.choice(len(pool), count, replace=count > len(pool))])
