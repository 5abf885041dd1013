"""Training images of the small diffusion pipeline: strongly deformed characters for its VAE, mild ones for its UNet.

Only fonts of the training split are used, never handwriting. Shapes: B images of side S = 32 from glyphs of side 64.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tenfold.data.embedded.handwriting.fonts import FONT_STYLES, FONTS, SPLIT_FONTS, glyphs
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS, LETTERS, with_article

_FONTS = SPLIT_FONTS["train"]
_LETTER_SHARE = 0.15
_WORDINGS = (
    "a photo of {a}",
    "a photo of the {}",
    "a picture of {a}",
    "an image of {a}",
    "a scan of {a}",
    "a drawing of {a}",
    "the {}",
    "{a}",
    "{}",
)


class Printer:
    """Generator of character images, reproducible by its seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._glyphs = torch.from_numpy(np.array(glyphs()[_FONTS.start : _FONTS.stop])).float() / 255  # (F, K, 64, 64)

    def characters(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Generate characters slightly rotated, shifted and sheared, half of them also lighter, bolder or warped.

        Returns:
            Images float32 ``(num, 1, 32, 32)`` in [0, 1], characters (0..9 digits, 10..19 letters A-J) and fonts
            (``fonts.FONTS``), both int64 ``(num,)``.
        """
        letter = self._uniform(num) < _LETTER_SHARE
        characters = self._integers(10, num) + 10 * letter.long()
        fonts = self._integers(len(_FONTS), num)
        ink = self._glyphs[fonts, characters][:, None]
        free = (self._uniform(num) < 0.5).float()[:, None, None, None]
        ink = free * self._weight(ink, 1) + (1 - free) * ink
        images = self._bend(ink, degrees=12, shear=0.12, scale=(0.8, 1.1), shift=0.07, bend=0.03 * free)
        return images, characters, fonts + _FONTS.start

    def shapes(self, num: int) -> Tensor:
        """Generate strokes of all kinds: rotated, sheared, warped, thin, thick, cut, blurred, overlaid, faint.

        Returns:
            float32 ``(num, 1, 32, 32)`` in [0, 1].
        """
        kinds = self._integers(self._glyphs.shape[1], num)
        ink = self._weight(self._glyphs[self._integers(len(_FONTS), num), kinds][:, None], 2)
        bend = 0.16 * self._uniform(num)[:, None, None, None]
        images = self._bend(ink, degrees=60, shear=0.5, scale=(0.5, 1.25), shift=0.2, bend=bend)
        other = images.roll(1, dims=0)
        images = torch.where(self._uniform(num, 1, 1, 1) < 0.15, torch.maximum(images, other), images)
        images = images * self._window(num)
        soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1)), 3, stride=1)
        share = self._uniform(num, 1, 1, 1) * (self._uniform(num, 1, 1, 1) < 0.4)
        images = (1 - share) * images + share * soft
        return images * torch.where(self._uniform(num, 1, 1, 1) < 0.3, self._uniform(num, 1, 1, 1), 1.0)

    def _weight(self, ink: Tensor, most: int) -> Tensor:
        """Make strokes up to 2 * ``most`` samples lighter or bolder, at the glyphs' resolution."""
        weights = [ink]
        for _ in range(most):
            weights.insert(0, -functional.max_pool2d(-weights[0], 3, stride=1, padding=1))
            weights.append(functional.max_pool2d(weights[-1], 3, stride=1, padding=1))
        choice = self._integers(len(weights), len(ink))
        drawn = torch.stack(weights)[choice, torch.arange(len(ink))]
        # A stroke so thin that it vanished is kept unchanged.
        return torch.where(drawn.sum(dim=(1, 2, 3), keepdim=True) > 60, drawn, ink)

    def _bend(
        self, ink: Tensor, degrees: float, shear: float, scale: tuple[float, float], shift: float, bend: Tensor
    ) -> Tensor:
        """Apply an affine map and a smooth random displacement, then average from 64 to 32 pixels."""
        num = len(ink)
        angle = self._spread(num) * torch.pi * degrees / 180
        size = scale[0] + (scale[1] - scale[0]) * self._uniform(num)
        lean = self._spread(num) * shear
        cos, sin = angle.cos() / size, angle.sin() / size
        matrices = torch.stack(
            [
                torch.stack([cos, sin + lean * cos, self._spread(num) * shift], dim=1),
                torch.stack([-sin, cos - lean * sin, self._spread(num) * shift], dim=1),
            ],
            dim=1,
        )
        grid = functional.affine_grid(matrices, [num, 1, 64, 64], align_corners=False)
        lattice = torch.randn(num, 2, 5, 5, generator=self._generator)
        field = functional.interpolate(lattice, size=64, mode="bicubic", align_corners=True)
        grid = grid + (bend * field).permute(0, 2, 3, 1)
        return functional.avg_pool2d(functional.grid_sample(ink, grid, align_corners=False), 2)

    def _window(self, num: int) -> Tensor:
        """Return masks of ones, in a quarter of the images only on one side of a random edge."""
        axis = torch.arange(32.0)
        angle = self._uniform(num, 1, 1) * 2 * torch.pi
        height = (axis - 15.5) * angle.cos() + (axis[:, None] - 15.5) * angle.sin()  # (B, 32, 32)
        edge = self._spread(num)[:, None, None] * 8
        whole = self._uniform(num, 1, 1) < 0.75
        return ((height > edge) | whole).float()[:, None]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator)

    def _spread(self, num: int) -> Tensor:
        return 2 * self._uniform(num) - 1

    def _integers(self, high: int, num: int) -> Tensor:
        return torch.randint(high, (num,), generator=self._generator)


def captions_of(character: int, font: int) -> list[str]:
    """Return all captions of a character in a font; half of them name the style of the font."""
    names = (
        [DIGIT_WORDS[character], f"digit {DIGIT_WORDS[character]}", f"number {DIGIT_WORDS[character]}"]
        if character < 10
        else [f"letter {LETTERS[character - 10]}"]
    )
    style = FONT_STYLES[FONTS[font]]
    sentences = []
    for name in names:
        for noun in (name, f"{style} {name}"):
            sentences += [wording.format(noun, a=with_article(noun)) for wording in _WORDINGS]
    if character < 10:
        word = DIGIT_WORDS[character]
        sentences += [f"a digit {kind} of {with_article(word)}" for kind in ("photo", "picture", "image")] * 4
        sentences += [f"a photo of {with_article(word)}", f"a photo of the digit {word}"] * 4
    return sentences
