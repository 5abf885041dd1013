"""Names of everything that an image can show; the arrays store indices into these tuples."""

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple("ABCDEFGHIJ")

COLOUR_RGB = {
    "red": (240, 62, 52),
    "orange": (250, 146, 30),
    "yellow": (250, 226, 60),
    "green": (64, 206, 84),
    "cyan": (64, 218, 230),
    "blue": (88, 136, 255),
    "purple": (184, 96, 246),
    "white": (246, 246, 246),
}
"""Stroke colours; bright, because backgrounds are dark."""
COLOURS = tuple(COLOUR_RGB)

TEXTURES = ("plain", "gradient", "stripes", "checks", "dots", "clouds")

PARTNERS = (6, 7, 3, 2, 9, 8, 0, 1, 5, 4)
"""Partner of each digit under ``HandwritingConfig.cooccurrence``: the pairs 0-6, 1-7, 2-3, 4-9 and 5-8."""


def with_article(noun: str) -> str:
    """Return ``noun`` after "a" or "an"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
