"""Training images of the small CLIP: printed characters, strongly augmented anew for every batch.

There are only fifteen training fonts; the network generalises to unseen fonts and to handwriting because no two images
are alike.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tenfold.data.embedded.handwriting.fonts import GLYPH_SIZE, SPLIT_FONTS, glyphs
from tenfold.data.embedded.handwriting.splits import IMAGE_SIDE
from tenfold.data.embedded.handwriting.vocabulary import COLOUR_RGB
from tenfold.pretraining.tiny.captions import COLUMN, INKS, NUM_CHARACTERS, UNCLEAR, font_facts

_RGB = torch.tensor([*COLOUR_RGB.values(), (8, 8, 8)], dtype=torch.float32) / 255  # in the order of INKS


@dataclass(frozen=True)
class Drawn:
    """Images and their facts."""

    images: Tensor
    """float32 ``(B, 3, 32, 32)`` in [0, 1]."""
    facts: np.ndarray
    """int64 ``(B, len(FACTS))``."""


class Artist:
    """Generator of character images in the training fonts, reproducible by the seed of each call."""

    def __init__(self) -> None:
        self._generator = torch.Generator()
        fonts = SPLIT_FONTS["train"]
        self._glyphs = torch.from_numpy(glyphs()[fonts.start : fonts.stop].astype(np.float32)) / 255
        self._facts = np.stack([[font_facts(font, at) for at in range(NUM_CHARACTERS)] for font in fonts])

    def draw(self, num: int, seed: int) -> Drawn:
        """Generate ``num`` images of digits and letters, digits twice as often."""
        self._generator.manual_seed(seed)
        letters = self._uniform(num) < 1 / 3
        characters = self._integers(10, num) + 10 * letters
        fonts, others = self._integers(len(self._glyphs), num), self._integers(len(self._glyphs), num)
        facts = self._facts[fonts.numpy(), characters.numpy()].copy()
        ink = self._glyphs[fonts, characters][:, None]  # (B, 1, 64, 64)
        mixed = self._uniform(num) < 0.3
        ink = torch.where(_column(mixed), _between(ink, self._glyphs[others, characters][:, None]), ink)
        _mark_unclear(facts, mixed & (fonts != others), "family", "bold", "slanted")
        ink = self._thicken(ink, facts)
        ink = functional.avg_pool2d(self._bend(ink, facts), GLYPH_SIZE // IMAGE_SIDE)
        ink = self._blur(ink, facts)
        return Drawn(self._disturb(self._colour(ink, facts), facts), facts)

    def _thicken(self, ink: Tensor, facts: np.ndarray) -> Tensor:
        """Change the stroke width: dilate or erode by 1 or 2 pixels, blended with the original."""
        choice, share = self._integers(6, len(ink)), _column(self._uniform(len(ink)))
        for at, (radius, sign, most) in enumerate(((1, 1, 1.0), (2, 1, 1.0), (1, -1, 1.0), (2, -1, 0.4))):
            rows = choice == at
            if rows.any():
                moved = sign * functional.max_pool2d(sign * ink[rows], 2 * radius + 1, 1, radius)
                ink[rows] = torch.lerp(ink[rows], moved, most * share[rows])
        _mark_unclear(facts, choice < 4, "bold")
        return ink

    def _bend(self, ink: Tensor, facts: np.ndarray) -> Tensor:
        num = len(ink)
        turn, shear = 0.35 * self._signed(num), 0.35 * self._signed(num)
        right, down = 0.2 * self._signed(num), 0.2 * self._signed(num)
        wide, tall = (
            torch.exp(0.12 + 0.25 * self._signed(num)),
            torch.exp(0.12 + 0.2 * self._signed(num)),
        )  # > 1 shrinks
        cos, sin = torch.cos(turn), torch.sin(turn)
        first = torch.stack([wide * cos, wide * (shear * cos - sin), right], dim=1)
        second = torch.stack([tall * sin, tall * (shear * sin + cos), down], dim=1)
        grid = functional.affine_grid(torch.stack([first, second], dim=1), list(ink.shape), align_corners=False)
        coarse = torch.randn((num, 2, 5, 5), generator=self._generator)
        amount = 0.1 * self._uniform(num).view(-1, 1, 1, 1)
        waves = functional.interpolate(amount * coarse, size=(GLYPH_SIZE, GLYPH_SIZE), mode="bicubic")
        _mark_unclear(facts, (turn.abs() + shear.abs()) > 0.15, "slanted")
        return functional.grid_sample(ink, grid + waves.permute(0, 2, 3, 1), align_corners=False)

    def _blur(self, ink: Tensor, facts: np.ndarray) -> Tensor:
        blurred = functional.avg_pool2d(ink, 3, 1, 1)
        amount = self._uniform(len(ink))
        strong = amount > 0.8
        share = _column(torch.where(amount > 0.5, amount, 0.0))
        twice = torch.where(_column(strong), functional.avg_pool2d(blurred, 3, 1, 1), blurred)
        facts[strong.numpy(), COLUMN["blurred"]] = 1
        _mark_unclear(facts, (amount > 0.5) & ~strong, "blurred")
        return torch.lerp(ink, twice, share)

    def _colour(self, ink: Tensor, facts: np.ndarray) -> Tensor:
        """Colour strokes and background: half white on black, the others dark on light or of any two colours."""
        num = len(ink)
        kind = self._uniform(num)
        black, white = INKS.index("black"), INKS.index("white")
        strokes, grounds = self._integers(len(INKS), num), self._integers(len(INKS) - 1, num)
        grounds = (strokes + 1 + grounds) % len(INKS)  # any other colour
        coloured, inverted = kind > 0.7, (kind > 0.55) & (kind <= 0.7)
        dark = coloured & (self._uniform(num) < 0.6)  # coloured strokes on black, as on a display
        strokes = torch.where(coloured, torch.where(dark, strokes % (len(INKS) - 1), strokes), white)
        grounds = torch.where(coloured & ~dark, grounds, black)
        strokes, grounds = torch.where(inverted, black, strokes), torch.where(inverted, white, grounds)
        facts[:, COLUMN["ink"]], facts[:, COLUMN["ground"]] = strokes.numpy(), grounds.numpy()
        grey = _column(~coloured & ~inverted)
        front = torch.where(grey, 1.0, self._tinted(strokes))
        back = torch.where(grey, 0.0, self._tinted(grounds))
        textured = _column(self._uniform(num) < 0.25)
        return torch.where(textured, (back + self._texture(num)).clamp(0, 1), back).lerp(front, ink)

    def _tinted(self, colours: Tensor) -> Tensor:
        tint = 0.08 * torch.randn((len(colours), 3), generator=self._generator)
        return (_RGB[colours] + tint).clamp(0, 1)[:, :, None, None]

    def _texture(self, num: int) -> Tensor:
        """Generate smooth random textures, ``(num, 1, 32, 32)``."""
        cells = 3 + int(self._integers(6, 1))
        coarse = torch.randn((num, 1, cells, cells), generator=self._generator)
        amount = 0.2 * self._uniform(num).view(-1, 1, 1, 1)
        return functional.interpolate(amount * coarse, size=(IMAGE_SIDE, IMAGE_SIDE), mode="bilinear")

    def _disturb(self, images: Tensor, facts: np.ndarray) -> Tensor:
        num = len(images)
        contrast, light = 1 - 0.4 * self._uniform(num) * (self._uniform(num) < 0.5), 0.1 * self._signed(num)
        images = (images - 0.5) * _column(contrast) + 0.5 + _column(light * (self._uniform(num) < 0.3))
        amount = self._uniform(num)
        strong = amount > 0.8
        noise = torch.randn(images.shape, generator=self._generator)
        images = images + noise * _column(torch.where(amount > 0.5, 0.12 * amount, 0.0) + 0.08 * strong)
        facts[strong.numpy(), COLUMN["noisy"]] = 1
        _mark_unclear(facts, (amount > 0.5) & ~strong, "noisy")
        return images.clamp(0, 1)

    def _uniform(self, num: int) -> Tensor:
        return torch.rand(num, generator=self._generator)

    def _signed(self, num: int) -> Tensor:
        return 2 * self._uniform(num) - 1

    def _integers(self, below: int, num: int) -> Tensor:
        return torch.randint(below, (num,), generator=self._generator)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _between(first: Tensor, second: Tensor) -> Tensor:
    """Interpolate between two shapes: average them blurred, then sharpen."""
    mean = (functional.avg_pool2d(first, 5, 1, 2) + functional.avg_pool2d(second, 5, 1, 2)) / 2
    return (6 * (mean - 0.42)).clamp(0, 1)


def _mark_unclear(facts: np.ndarray, rows: Tensor, *names: str) -> None:
    for name in names:
        facts[rows.numpy(), COLUMN[name]] = UNCLEAR
