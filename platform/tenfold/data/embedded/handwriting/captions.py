"""Captions that state exactly what an image shows."""

import numpy as np

from tenfold.data.embedded.handwriting.fonts import FONT_STYLES, FONTS
from tenfold.data.embedded.handwriting.vocabulary import COLOURS, DIGIT_WORDS, LETTERS, with_article

_TEMPLATES = ("a photo of the {}", "a photo of {}", "a picture of {}", "{}", "a picture of the {}", "a scan of {}")
NUM_WORDINGS = 2 * len(_TEMPLATES)


def digit_captions(labels: np.ndarray) -> list[str]:
    """Return "a photo of the digit three" for each label."""
    return [f"a photo of the digit {DIGIT_WORDS[label]}" for label in labels]


def glyph_captions(labels: np.ndarray, fonts: np.ndarray, wordings: np.ndarray, letters: bool) -> list[str]:
    """Compose the captions of printed characters.

    Args:
        labels: Class 0..9, ``(N,)``.
        fonts: Index into ``FONTS``, ``(N,)``.
        wordings: Index of the wording, 0..``NUM_WORDINGS`` - 1, ``(N,)``; the upper half names the style of the font.
        letters: Whether class 0 is the letter A instead of the digit zero.
    """
    kind, names = ("letter", LETTERS) if letters else ("digit", DIGIT_WORDS)
    sentences = []
    for label, font, wording in zip(labels.tolist(), fonts.tolist(), wordings.tolist(), strict=True):
        template = _TEMPLATES[wording % len(_TEMPLATES)]
        noun = f"{kind} {names[label]}"
        if wording >= len(_TEMPLATES):
            noun = f"{FONT_STYLES[FONTS[font]]} {noun}"
        sentences.append(template.format(noun if "the {}" in template else with_article(noun)))
    return sentences


def scene_captions(digits: np.ndarray, colours: np.ndarray, boxes: np.ndarray) -> list[str]:
    """Compose the captions of scenes: pairs of objects with their spatial relation, in slot order.

    Args:
        digits: Class in each slot, -1 for empty, ``(N, K)``.
        colours: Index into ``COLOURS``, ``(N, K)``.
        boxes: ``x0, y0, x1, y1``, ``(N, K, 4)``.

    Returns:
        For example "a red three above a green seven, a blue one left of a white two and an orange four".
    """
    centres = boxes[..., :2].astype(int) + boxes[..., 2:]  # twice the centre, (N, K, 2)
    sentences = []
    for classes, tints, places in zip(digits.tolist(), colours.tolist(), centres.tolist(), strict=True):
        objects = [
            (with_article(f"{COLOURS[tint]} {DIGIT_WORDS[digit]}"), place)
            for digit, tint, place in zip(classes, tints, places, strict=True)
            if digit >= 0
        ]
        phrases = []
        for (first, place), (second, other) in zip(objects[::2], objects[1::2], strict=False):
            phrases.append(f"{first} {_relation(place, other)} {second}")
        if len(objects) % 2:
            phrases.append(objects[-1][0])
        sentences.append(_join(phrases) if phrases else "an empty canvas")
    return sentences


def _relation(place: list[int], other: list[int]) -> str:
    right, down = other[0] - place[0], other[1] - place[1]
    if abs(right) > abs(down):
        return "left of" if right > 0 else "right of"
    return "above" if down > 0 else "below"


def _join(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
