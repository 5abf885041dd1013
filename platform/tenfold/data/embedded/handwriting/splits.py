"""Arrays of each task: a dataclass is the schema on disk, the type in code and the documentation.

``N`` images, ``K`` = ``HandwritingConfig.max_digits`` slots in a scene. All arrays are numeric but ``captions``, which
are fixed-width unicode, so indexing returns a string. Empty slots hold -1.
"""

import math
from dataclasses import dataclass
from typing import Annotated, get_type_hints

import numpy as np

from tenfold.data.embedded.handwriting.concepts import DIGIT_CONCEPTS, PAIR_CONCEPTS, SCENE_CONCEPTS
from tenfold.data.embedded.handwriting.config import HandwritingConfig

IMAGE_SIDE = 32
"""Side of single-character images in pixels."""
CANVAS = 64
"""Side of scenes in pixels."""


class Row:
    """Dtype and shape of one row of an array; a letter stands for a size that depends on the settings, "<U" for a width
    that does (``schema``)."""

    def __init__(self, dtype: str, *shape: int | str) -> None:
        self.dtype = dtype
        self.shape = shape


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Handwritten digits (target domain): all 3000 / 750 / 1250 source digits of the split, in a seeded order."""

    images: Annotated[np.ndarray, Row("|u1", IMAGE_SIDE, IMAGE_SIDE, 3)]
    """uint8 ``(N, 32, 32, 3)``: grey as RGB, white on black, the 28x28 digit in the middle."""
    labels: Annotated[np.ndarray, Row("<i8")]
    """int64 ``(N,)``: class 0..9."""
    sources: Annotated[np.ndarray, Row("<i2")]
    """int16 ``(N,)``: row of the source digit, 0..4999."""
    concepts: Annotated[np.ndarray, Row("|i1", len(DIGIT_CONCEPTS))]
    """int8 ``(N, 13)`` in {0, 1}: ``concepts.DIGIT_CONCEPTS`` of the class."""
    captions: Annotated[np.ndarray, Row("<U40")]
    """unicode ``(N,)``: "a photo of the digit three"."""


@dataclass(frozen=True, kw_only=True)
class _Printed:
    """Printed characters, slightly turned, sheared, scaled and moved; each split has fonts of its own."""

    images: Annotated[np.ndarray, Row("|u1", IMAGE_SIDE, IMAGE_SIDE, 3)]
    """uint8 ``(N, 32, 32, 3)``: grey as RGB, white on black."""
    labels: Annotated[np.ndarray, Row("<i8")]
    """int64 ``(N,)``: class 0..9."""
    fonts: Annotated[np.ndarray, Row("|u1")]
    """uint8 ``(N,)``: index into ``fonts.FONTS``."""
    parameters: Annotated[np.ndarray, Row("<f4", 5)]
    """float32 ``(N, 5)``: the jitter, columns ``affine.WARP_PARAMETERS``; scale 1 is 22 pixels of ink."""


@dataclass(frozen=True, kw_only=True)
class Glyphs(_Printed):
    """Printed digits (source domain)."""

    concepts: Annotated[np.ndarray, Row("|i1", len(DIGIT_CONCEPTS))]
    """int8 ``(N, 13)`` in {0, 1}: ``concepts.DIGIT_CONCEPTS`` of the class."""
    captions: Annotated[np.ndarray, Row("<U64")]
    """unicode ``(N,)``: "a photo of the digit three" or another wording, half of them with the style of the font."""


@dataclass(frozen=True, kw_only=True)
class Letters(_Printed):
    """Printed letters A-J, out of distribution for a model of digits; labels 0..9 are A..J, not the digits."""

    captions: Annotated[np.ndarray, Row("<U64")]
    """unicode ``(N,)``: "a photo of the letter B" or another wording."""


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """One to K handwritten digits on a textured 64x64 canvas, with complete ground truth.

    Object k of a scene fills slot k (slots beyond the count are empty); later objects cover earlier ones. The fields
    from ``sources`` on specify the image: ``removal.remove_object`` renders it again from them.
    """

    images: Annotated[np.ndarray, Row("|u1", CANVAS, CANVAS, 3)]
    """uint8 ``(N, 64, 64, 3)`` RGB."""
    labels: Annotated[np.ndarray, Row("|i1", 10)]
    """int8 ``(N, 10)`` in {0, 1}: which digits are present."""
    counts: Annotated[np.ndarray, Row("|u1")]
    """uint8 ``(N,)``: number of objects."""
    digits: Annotated[np.ndarray, Row("|i1", "K")]
    """int8 ``(N, K)``: class of each object, -1 in an empty slot."""
    boxes: Annotated[np.ndarray, Row("<i2", "K", 4)]
    """int16 ``(N, K, 4)``: ``x0, y0, x1, y1`` in pixels, the end exclusive: the tight box of the object's visible mask;
    -1 in an empty slot."""
    instances: Annotated[np.ndarray, Row("|u1", CANVAS, CANVAS)]
    """uint8 ``(N, 64, 64)``: 0 background, k + 1 where object k is visible (at least a quarter covered by its ink)."""
    colours: Annotated[np.ndarray, Row("|i1", "K")]
    """int8 ``(N, K)``: index into ``vocabulary.COLOURS``, -1 in an empty slot."""
    concepts: Annotated[np.ndarray, Row("|i1", len(SCENE_CONCEPTS))]
    """int8 ``(N, 37)`` in {0, 1}: ``concepts.SCENE_CONCEPTS``."""
    captions: Annotated[np.ndarray, Row("<U")]
    """unicode ``(N,)``: "a red three above a green seven and a blue one"; every object once, in the order of slots."""
    sources: Annotated[np.ndarray, Row("<i2", "K")]
    """int16 ``(N, K)``: row of the source digit, -1 in an empty slot."""
    sizes: Annotated[np.ndarray, Row("|i1", "K")]
    """int8 ``(N, K)``: side in pixels to which the 28x28 source is resized, -1 in an empty slot."""
    offsets: Annotated[np.ndarray, Row("<i2", "K", 2)]
    """int16 ``(N, K, 2)``: x and y of the upper left corner of the resized source (may lie off the canvas)."""
    textures: Annotated[np.ndarray, Row("|u1")]
    """uint8 ``(N,)``: index into ``vocabulary.TEXTURES``."""
    texture_colours: Annotated[np.ndarray, Row("|u1", 2, 3)]
    """uint8 ``(N, 2, 3)``: the two RGB colours that the texture mixes."""
    texture_parameters: Annotated[np.ndarray, Row("|u1", 4)]
    """uint8 ``(N, 4)``: period and phase x, y in pixels, direction 0..7."""
    lattices: Annotated[np.ndarray, Row("|u1", 9, 9)]
    """uint8 ``(N, 9, 9)``: the grid that the texture "clouds" interpolates."""


@dataclass(frozen=True, kw_only=True)
class Warps:
    """Handwritten digits under a known rotation, translation, scale and shear."""

    images: Annotated[np.ndarray, Row("|u1", IMAGE_SIDE, IMAGE_SIDE, 3)]
    """uint8 ``(N, 32, 32, 3)``: the warped digit, grey as RGB."""
    originals: Annotated[np.ndarray, Row("|u1", IMAGE_SIDE, IMAGE_SIDE, 3)]
    """uint8 ``(N, 32, 32, 3)``: the digit before the warp, as in ``Digits``."""
    labels: Annotated[np.ndarray, Row("<i8")]
    """int64 ``(N,)``: class 0..9."""
    sources: Annotated[np.ndarray, Row("<i2")]
    """int16 ``(N,)``: row of the source digit."""
    parameters: Annotated[np.ndarray, Row("<f4", 5)]
    """float32 ``(N, 5)``: the true parameters, columns ``affine.WARP_PARAMETERS``."""
    matrices: Annotated[np.ndarray, Row("<i4", 2, 3)]
    """int32 ``(N, 2, 3)``: the map used, from indices ``(x, y, 1)`` of a warped pixel to the original, in 1/65536."""


@dataclass(frozen=True, kw_only=True)
class Ambiguous:
    """Blends of two handwritten digits of classes that are easily confused, chosen close to each other."""

    images: Annotated[np.ndarray, Row("|u1", IMAGE_SIDE, IMAGE_SIDE, 3)]
    """uint8 ``(N, 32, 32, 3)``: grey as RGB."""
    labels: Annotated[np.ndarray, Row("<i8", 2)]
    """int64 ``(N, 2)``: both classes, different."""
    weights: Annotated[np.ndarray, Row("<f4", 2)]
    """float32 ``(N, 2)``: share of each class in the blend, 0.375..0.625, summing to 1."""
    targets: Annotated[np.ndarray, Row("<f4", 10)]
    """float32 ``(N, 10)``: the weights as a distribution over the classes."""
    sources: Annotated[np.ndarray, Row("<i2", 2)]
    """int16 ``(N, 2)``: rows of the two source digits."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two handwritten digits side by side, with Gaussian noise of ``HandwritingConfig.noise``."""

    images: Annotated[np.ndarray, Row("|u1", IMAGE_SIDE, 2 * IMAGE_SIDE, 3)]
    """uint8 ``(N, 32, 64, 3)``: grey as RGB; without noise each half is the image of a digit as in ``Digits``."""
    labels: Annotated[np.ndarray, Row("<i8")]
    """int64 ``(N,)``: 10 * left + right, 0..99."""
    digits: Annotated[np.ndarray, Row("|i1", 2)]
    """int8 ``(N, 2)``: class of the left and of the right digit."""
    concepts: Annotated[np.ndarray, Row("|i1", len(PAIR_CONCEPTS))]
    """int8 ``(N, 26)`` in {0, 1}: ``concepts.PAIR_CONCEPTS``."""
    sources: Annotated[np.ndarray, Row("<i2", 2)]
    """int16 ``(N, 2)``: rows of the two source digits."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Several handwritten digits in a grid, row by row (``cell_grid``), with Gaussian noise, labelled with their sum.

    Operand i is a digit below ``HandwritingConfig.operands[i]``. Shapes are those of the default settings: D = 12
    operands in 3 rows of 4, 72 one-hot concepts.
    """

    images: Annotated[np.ndarray, Row("|u1", "H", "W", 3)]
    """uint8 ``(N, 96, 128, 3)``: grey as RGB; without noise each cell is the image of a digit as in ``Digits``."""
    labels: Annotated[np.ndarray, Row("<i8")]
    """int64 ``(N,)``: the sum of the operands."""
    digits: Annotated[np.ndarray, Row("|i1", "D")]
    """int8 ``(N, 12)``: class of each operand."""
    concepts: Annotated[np.ndarray, Row("|i1", "C")]
    """int8 ``(N, 72)`` in {0, 1}: ``concepts.sum_concepts`` of the operands, one-hot for each."""
    sources: Annotated[np.ndarray, Row("<i2", "D")]
    """int16 ``(N, 12)``: row of each source digit."""


def cell_grid(num_cells: int) -> tuple[int, int]:
    """Return the rows and columns of a nearly square grid, at least as wide as high: 1x2 for 2 cells, 3x4 for 12."""
    columns = math.isqrt(num_cells - 1) + 1
    return -(-num_cells // columns), columns


def schema(kind: type, config: HandwritingConfig) -> dict[str, np.dtype]:
    """Return dtype and shape of one row of every array of a task, as a numpy sub-array dtype, for these settings.

    K is the number of slots in a scene; of a sum, D is the number of operands, C that of their concepts, and H and W
    are the height and width of its picture.
    """
    height, width = (IMAGE_SIDE * cells for cells in cell_grid(len(config.operands)))
    sizes = {"K": config.max_digits, "D": len(config.operands), "C": sum(config.operands), "H": height, "W": width}
    rows = {}
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        row: Row = annotation.__metadata__[0]
        if row.dtype == "<U":
            rows[name] = np.dtype(f"<U{48 * ((config.max_digits + 1) // 2)}")  # 48 characters for two objects
        else:
            rows[name] = np.dtype((row.dtype, tuple(sizes[n] if isinstance(n, str) else n for n in row.shape)))
    return rows
