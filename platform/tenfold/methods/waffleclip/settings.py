"""Settings of WaffleCLIP and of the ways to describe classes that it is compared with."""

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal[
    "clip", "gpt_descriptions", "waffle", "waffle_characters", "adaptive_randomness", "adaptive_random_characters",
    "waffle_and_gpt", "adaptive_randomness_and_gpt_descriptions", "random_descriptions", "shared_random_descriptions",
    "swapped_descriptions", "scrambled_descriptions", "random_description_words", "shared_random_description_words",
    "prompt_ensemble", "context_prompt_ensemble", "gpt_descriptions_and_prompt_ensemble", "waffle_and_prompt_ensemble",
    "sentences",
]  # fmt: skip
Aggregate = Literal["mean", "max", "sum", "merged"]
MODES: tuple[Mode, ...] = get_args(Mode)
FIXED_MODES = ("clip", "gpt_descriptions", "sentences")
"""Nothing in them is random: every repetition is the same."""
LISTS_NOT_NEEDED = (
    "clip", "waffle", "waffle_characters", "adaptive_randomness", "adaptive_random_characters", "prompt_ensemble",
    "context_prompt_ensemble", "waffle_and_prompt_ensemble",
)  # fmt: skip
"""Modes that say nothing about single classes; of descriptors they take the alphabet at most."""
PAIRS_IN_THIRDS = ("waffle_and_gpt", "adaptive_randomness_and_gpt_descriptions")
"""Modes that take two thirds of the pairs, rounded down: fewer than two pairs leave nothing."""
PAIRS_ALONE = ("waffle", "adaptive_randomness")
"""Modes whose prompts are pairs and nothing else: words, characters, words, characters, ..."""
MAX_SEED = 2**32


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one evaluation; a Config that exists is a valid one."""

    mode: Mode = "waffle"
    """What is said about a class: ``clip`` its name alone, ``gpt_descriptions`` what a language model wrote about it,
    ``waffle`` random words and characters; the others are the ways of section 2.5 by their names. ``sentences`` takes
    the lists of the descriptor file as whole sentences."""
    compare: tuple[Mode, ...] = ()
    """Further modes measured beside it on the same embeddings; for the record and the figures only."""
    num_pairs: int = 15
    """Pairs of random words and random characters, at least 1: twice as many prompts for each class."""
    parts: Literal["both", "words", "characters"] = "both"
    """Which half of each pair is used, by the modes that are made of pairs alone (``waffle``, ``adaptive_randomness``);
    one half leaves ``num_pairs`` prompts for each class."""
    budget: int = 1
    """Descriptors drawn for a class, as a multiple of the mean number that a class has, at least 1."""
    repetitions: int = 7
    """Independent draws; repetition r of a run has the random stream ``run.seed * repetitions + r``."""
    aggregate: Aggregate = "mean"
    """How the similarities to a class's prompts become one: their mean, maximum or sum, or ``merged``, the similarity
    to their normalised mean."""
    concept: str = "none"
    """What all classes have in common, said in front of each name ("A photo of a bird: a ..."): a text, ``auto`` for
    the one that belongs to the data set, ``none`` for none."""
    prefix: str | None = None
    """Text before the name of a class; null: "A photo of a ", with the concept where there is one."""
    suffix: str = "."
    """Text at the end of every prompt."""
    separator: str = ", "
    """Text between name and descriptor."""
    phrase: bool = True
    """Whether descriptors are made clauses ("which has two wings")."""
    pre: str = ""
    """Text before prompts that have a descriptor."""
    descriptors: str | None = None
    """JSON file, class to list of texts; null: the file that comes with the data set, where one does."""
    empty_lists: Literal["refuse", "blank"] = "refuse"
    """What a class without descriptors means: a mistake in the file, or one empty descriptor, as in the published
    files of a few data sets."""
    vocabulary: str | None = None
    """Where random words come from: a text file with a word a line, a JSON list, a folder of descriptor files, or
    ``clip`` for the words that CLIP reads as one token; null: the data's descriptor file, and
    ``clip`` where there is none."""

    def __post_init__(self) -> None:
        for name in ("num_pairs", "budget", "repetitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        in_thirds = [mode for mode in self.modes if mode in PAIRS_IN_THIRDS]
        if in_thirds and self.num_pairs < 2:
            raise ValueError(f"num_pairs must be at least 2 with {in_thirds[0]}, got {self.num_pairs}")
        if self.parts != "both" and self.mode not in PAIRS_ALONE:
            raise ValueError(
                f"parts must be both with {self.mode}: only {', '.join(PAIRS_ALONE)} are made of pairs alone"
            )
        if len(set(self.modes)) < len(self.modes):
            twice = next(mode for mode in self.modes if self.modes.count(mode) > 1)
            raise ValueError(f"compare names modes beside mode, each once, got {twice!r} twice")
        if not self.concept.strip():
            raise ValueError("concept must be auto, none or a text, got an empty text")
        if self.prefix is not None and self.concept != "none":
            raise ValueError(f"prefix must be null where there is a concept ({self.concept!r}): it is made from it")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The mode and those beside it."""
        return (self.mode, *self.compare)

    def seeds(self, run_seed: int) -> range:
        """Random streams of the repetitions, 0 to 6 with the defaults, as published; runs never share one.

        Raises:
            ValueError: A stream number is above what the generator takes.
        """
        first = run_seed * self.repetitions
        if first + self.repetitions > MAX_SEED:
            raise ValueError(
                f"run.seed * repetitions must stay below {MAX_SEED - self.repetitions}, got {run_seed} * "
                f"{self.repetitions}"
            )
        return range(first, first + self.repetitions)
