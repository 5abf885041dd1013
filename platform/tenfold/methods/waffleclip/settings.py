"""Settings of WaffleCLIP and of the prompt modes that it is compared with."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal[
    "clip", "gpt_descriptions", "waffle", "waffle_characters", "adaptive_randomness", "adaptive_random_characters",
    "waffle_and_gpt", "adaptive_randomness_and_gpt_descriptions", "random_descriptions", "shared_random_descriptions",
    "swapped_descriptions", "scrambled_descriptions", "random_description_words", "shared_random_description_words",
    "prompt_ensemble", "context_prompt_ensemble", "gpt_descriptions_and_prompt_ensemble", "waffle_and_prompt_ensemble",
    "sentences",
]  # fmt: skip
Aggregate = Literal["mean", "max", "sum", "merged"]
FIXED_MODES = ("clip", "gpt_descriptions", "sentences")
"""Modes without randomness, whose repetitions are all the same."""
LISTS_NOT_NEEDED = (
    "clip", "waffle", "waffle_characters", "adaptive_randomness", "adaptive_random_characters", "prompt_ensemble",
    "context_prompt_ensemble", "waffle_and_prompt_ensemble",
)  # fmt: skip
"""Modes without class-specific descriptors; they use at most the alphabet of the descriptors."""
PAIRS_IN_THIRDS = ("waffle_and_gpt", "adaptive_randomness_and_gpt_descriptions")
"""Modes that use two thirds of the pairs, rounded down, hence need at least two."""
PAIRS_ALONE = ("waffle", "adaptive_randomness")
"""Modes whose prompts are pairs alone: words, characters, words, characters, ..."""
MAX_SEED = 2**32
"""Upper bound, exclusive, of the seeds of numpy's legacy generator."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one evaluation, checked on construction."""

    mode: Mode = "waffle"
    """Content of the prompts: ``clip`` for the class name alone, ``gpt_descriptions`` for descriptors from a language
    model, ``waffle`` for random words and characters; the other modes are described in ``prompt_modes``. ``sentences``
    uses the lists of the descriptor file as whole prompts."""
    compare: tuple[Mode, ...] = ()
    """Further modes evaluated on the same embeddings, for metrics and figures only."""
    num_pairs: int = 15
    """Pairs of random words and random characters, at least 1; each pair is two prompts for each class."""
    parts: Literal["both", "words", "characters"] = "both"
    """Half of each pair that is used, in the modes of pairs alone (``waffle``, ``adaptive_randomness``); one half is
    ``num_pairs`` prompts for each class."""
    budget: int = 1
    """Descriptors drawn for a class, as a multiple of the mean number of descriptors of a class, at least 1."""
    repetitions: int = 7
    """Independent draws; repetition r of a run has the seed ``run.seed * repetitions + r``."""
    aggregate: Aggregate = "mean"
    """Aggregation of the similarities to a class's prompts: their mean, maximum or sum, or ``merged``, the similarity
    to the normalised mean of the prompts' embeddings."""
    concept: str = "none"
    """Concept that all classes share, put before each name ("A photo of a bird: a ..."): a text, ``auto`` for that of
    the data set, ``none`` for none."""
    prefix: str | None = None
    """Text before the class name; null for "A photo of a ", with the concept if there is one."""
    suffix: str = "."
    """Text at the end of every prompt."""
    separator: str = ", "
    """Text between class name and descriptor."""
    phrase: bool = True
    """Whether descriptors are turned into relative clauses ("which has two wings")."""
    pre: str = ""
    """Text before prompts with a descriptor."""
    descriptors: str | None = None
    """JSON file that maps class to list of texts; null for the file that ships for the data set, if there is one."""
    empty_lists: Literal["refuse", "blank"] = "refuse"
    """Treatment of a class without descriptors: an error, or one empty descriptor, as in the published files of a few
    data sets."""
    vocabulary: str | None = None
    """Source of random words: a text file with one word a line, a JSON list, a folder of descriptor files, or ``clip``
    for the words that are one token to CLIP; null for the descriptor file of the data set, or ``clip`` if there is
    none."""

    def __post_init__(self) -> None:
        for name in ("num_pairs", "budget", "repetitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        in_thirds = [mode for mode in self.modes if mode in PAIRS_IN_THIRDS]
        if in_thirds and self.num_pairs < 2:
            raise ValueError(f"num_pairs must be at least 2 with {in_thirds[0]}, got {self.num_pairs}")
        if self.parts != "both" and self.mode not in PAIRS_ALONE:
            raise ValueError(
                f"parts must be both with {self.mode}, got {self.parts}; only {', '.join(PAIRS_ALONE)} are pairs alone"
            )
        if len(set(self.modes)) < len(self.modes):
            twice = next(mode for mode in self.modes if self.modes.count(mode) > 1)
            raise ValueError(f"compare must hold modes other than mode, each once, got {twice!r} twice")
        if not self.concept.strip():
            raise ValueError("concept must be auto, none or a text, got an empty text")
        if self.prefix is not None and self.concept != "none":
            raise ValueError(
                f"prefix must be null with a concept ({self.concept!r}), got {self.prefix!r}; set concept=none or "
                f"leave out prefix"
            )

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The mode and those compared with it."""
        return (self.mode, *self.compare)

    def seeds(self, run_seed: int) -> range:
        """Seeds of the repetitions, 0 to 6 with the defaults, as published; no two runs share one.

        Raises:
            ValueError: A seed exceeds the range of the generator.
        """
        first = run_seed * self.repetitions
        if first + self.repetitions > MAX_SEED:
            raise ValueError(
                f"run.seed * repetitions must stay below {MAX_SEED - self.repetitions}, got {run_seed} * "
                f"{self.repetitions}"
            )
        return range(first, first + self.repetitions)
