"""Captions of printed characters, worded as freely as captions on the web, with the claims of each.

An image is a row of facts, a caption a row of claims: some of the facts in words, mixed with meaningless words. So it
is known exactly, for every image and every caption of a batch, whether the caption is true of the image.
"""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tenfold.data.embedded.handwriting.concepts import DIGIT_CONCEPT_MATRIX, DIGIT_CONCEPTS
from tenfold.data.embedded.handwriting.fonts import FONT_STYLES, FONTS
from tenfold.data.embedded.handwriting.vocabulary import COLOURS, DIGIT_WORDS, LETTERS, with_article

UNCLEAR = -2
"""Value of a fact that is ambiguous in the image: no claim about it is true."""
SILENT = -1
"""Value of a claim that is not made."""

INKS = (*COLOURS, "black")
"""Colours of strokes and backgrounds."""
FAMILIES = ("sans serif", "serif", "typewriter")

FACTS = ("character", "family", "bold", "slanted", "ink", "ground", "blurred", "noisy", *DIGIT_CONCEPTS)
"""Columns of facts and claims. ``character``: 0..9 digits, 10..19 letters A-J; ``ink`` and ``ground``: ``INKS``;
``family``: ``FAMILIES``; the others 0 or 1."""
COLUMN = {name: column for column, name in enumerate(FACTS)}
NUM_CHARACTERS = len(DIGIT_WORDS) + len(LETTERS)

_LETTERS_WITH = {"loop": "ABD", "two_loops": "B", "straight": "AEFHI"}
_SHAPES = {
    "segment_top": ("a stroke at the top", "a horizontal top"),
    "segment_bottom": ("a stroke at the bottom", "a closed bottom"),
    "segment_middle": ("a stroke in the middle", "a middle bar"),
    "segment_upper_left": ("a stroke at the upper left",),
    "segment_upper_right": ("a stroke at the upper right",),
    "segment_lower_left": ("a stroke at the lower left",),
    "segment_lower_right": ("a stroke at the lower right",),
    "loop": ("a closed loop", "a hole", "a round closed shape"),
    "two_loops": ("two loops", "two holes, one above the other"),
    "straight": ("straight strokes only", "straight lines", "sharp corners"),
    "even": ("an even value",),
    "prime": ("a prime value",),
    "above_four": ("a value above four",),
}
_ABSENT = {
    "loop": ("no closed loop", "an open shape", "no holes"),
    "straight": ("curved strokes", "a curve", "rounded lines"),
    "even": ("an odd value",),
    "above_four": ("a value below five",),
}
_LEADS = (
    "a photo of a {}",
    "A photo of a {}.",
    "a photo of the {}",
    "a photo of {}",
    "a picture of a {}",
    "a picture of the {}",
    "an image of a {}",
    "a scan of a {}",
    "a scan of the {}",
    "a drawing of a {}",
    "a close-up of a {}",
    "the {}",
    "a {}",
    "{}",
    "{}.",
)
_LINKS = (", which has {}", ", which has {}.", " with {}", " with {}.", ", {}", ", {}.", ", which is {}", " - {}")
_SIGNS = "!\"#$%&'()*+-/:;<=>?@[]_"


@dataclass(frozen=True)
class Caption:
    """Sentence and its claims."""

    text: str
    claims: tuple[int, ...]
    """One claim for each of ``FACTS``; ``SILENT`` where there is none."""


def font_facts(font: int, character: int) -> np.ndarray:
    """Return the facts of a character in a font, printed sharply in white on black: int64 ``(len(FACTS),)``."""
    style = FONT_STYLES[FONTS[font]]
    facts = np.zeros(len(FACTS), dtype=np.int64)
    facts[COLUMN["character"]] = character
    facts[COLUMN["family"]] = next(at for at, family in enumerate(FAMILIES) if style.endswith(family))
    facts[COLUMN["bold"]] = "bold" in style
    facts[COLUMN["slanted"]] = "slanted" in style
    facts[COLUMN["ink"]] = INKS.index("white")
    facts[COLUMN["ground"]] = INKS.index("black")
    for name, column in COLUMN.items():
        if name not in DIGIT_CONCEPTS:
            continue
        if character < len(DIGIT_WORDS):
            facts[column] = DIGIT_CONCEPT_MATRIX[character, DIGIT_CONCEPTS.index(name)]
        elif name in _LETTERS_WITH:
            facts[column] = LETTERS[character - len(DIGIT_WORDS)] in _LETTERS_WITH[name]
        else:
            facts[column] = UNCLEAR
    return facts


def truth(facts: np.ndarray, claims: np.ndarray) -> np.ndarray:
    """Return which captions are true of which images: bool ``(B, N)`` from facts ``(B, F)`` and claims ``(N, F)``."""
    return ((claims == SILENT) | (facts[:, None] == claims)).all(axis=-1)


class Writer:
    """Generator of captions, reproducible by its seed."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def caption(self, facts: Sequence[int]) -> Caption:
        """Write a caption that is true of an image with these facts; it always names the character."""
        draw, told = self._random, _Told(facts)
        noun = self._noun(told.claim("character"))
        if draw.random() < 0.2:
            noun = f"{self._style(told)} {noun}".strip()
        if draw.random() < 0.15 and told.knows("ink"):
            noun = f"{INKS[told.claim('ink')]} {noun}"
        if draw.random() < 0.1 and told.knows("ground"):
            noun += f" on {draw.choice(('', 'a '))}{INKS[told.claim('ground')]} {draw.choice(('background', 'ground'))}"
        text = self._sentence(noun)
        tail = draw.random()
        if tail < 0.2:
            text = self._append(text, self._shape(told))
        elif tail < 0.45:
            text = self._append(text, self.nonsense())
        if draw.random() < 0.05:
            text = f"{self.nonsense()} {text}"
        return Caption(text, tuple(told.claims))

    def nonsense(self) -> str:
        """Return words or characters without meaning for the image."""
        draw = self._random
        if draw.random() < 0.6:
            return " ".join(draw.choice(common_words()) for _ in range(draw.randint(1, 3)))
        signs = string.ascii_letters + string.digits * (draw.random() < 0.2) + _SIGNS * (draw.random() < 0.5)
        return ", ".join("".join(draw.choices(signs, k=draw.randint(2, 7))) for _ in range(draw.randint(1, 2)))

    def _noun(self, character: int) -> str:
        draw = self._random
        if character >= len(DIGIT_WORDS):
            kind = draw.choice(("letter", "letter", "capital", "character", "letter: a"))
            return f"{kind} {LETTERS[character - len(DIGIT_WORDS)]}"
        word = DIGIT_WORDS[character]
        share = draw.random()
        if share < 0.55:
            return word
        if share < 0.9:
            return f"{draw.choice(('digit', 'digit', 'number', 'figure', 'digit: a', 'number: a'))} {word}"
        return f"{draw.choice(('', 'digit ', 'number '))}{character}"

    def _style(self, told: "_Told") -> str:
        draw = self._random
        words = [
            ("bold", ("", "bold")),
            ("slanted", ("upright", "slanted")),
            ("family", FAMILIES),
            ("blurred", ("sharp", "blurry")),
            ("noisy", ("clean", "noisy")),
        ]
        chosen = [name for name, _ in words if told.knows(name) and draw.random() < 0.4]
        return " ".join(filter(None, (dict(words)[name][told.claim(name)] for name in chosen)))

    def _shape(self, told: "_Told") -> str:
        names = [name for name in _SHAPES if told.knows(name) and (told.facts[COLUMN[name]] or name in _ABSENT)]
        name = self._random.choice(names)
        return self._random.choice((_SHAPES if told.claim(name) else _ABSENT)[name])

    def _sentence(self, noun: str) -> str:
        draw = self._random
        lead = draw.choice(_LEADS if draw.random() < 0.65 else web_leads())
        if draw.random() < 0.3:  # the subject in front: "a digit photo of a three"
            lead = lead.replace(
                "photo", draw.choice(("digit photo", "character photo", "glyph photo", "printed photo"))
            )
        if draw.random() < 0.5:
            lead = lead.replace("a {}", with_article(noun).replace(noun, "{}"))
        return lead.format(noun)

    def _append(self, text: str, words: str) -> str:
        return text.rstrip(".") + self._random.choice(_LINKS).format(words)


class _Told:
    """Facts of one image, and those of them that a caption claims."""

    def __init__(self, facts: Sequence[int]) -> None:
        self.facts = facts
        self.claims = [SILENT] * len(FACTS)

    def knows(self, name: str) -> bool:
        return self.facts[COLUMN[name]] != UNCLEAR

    def claim(self, name: str) -> int:
        self.claims[COLUMN[name]] = self.facts[COLUMN[name]]
        return self.facts[COLUMN[name]]


@lru_cache(maxsize=1)
def web_leads() -> tuple[str, ...]:
    """Return OpenAI's eighty ImageNet prompt templates, with ``{}`` for the name."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


@lru_cache(maxsize=1)
def common_words() -> tuple[str, ...]:
    """Return the lower-case words of three letters or more that are whole tokens of CLIP's vocabulary, sorted."""
    from open_clip import SimpleTokenizer

    names = {*DIGIT_WORDS, *COLOURS, "digit", "number", "letter", "bold", "serif"}
    ends = (token.removesuffix("</w>") for token in SimpleTokenizer().encoder if token.endswith("</w>"))
    return tuple(
        sorted(word for word in ends if len(word) > 2 and word.isascii() and word.isalpha() and word not in names)
    )
