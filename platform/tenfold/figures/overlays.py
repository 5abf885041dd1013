"""Score maps overlaid on images."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tenfold.metrics.localisation.arrays import Array, to_numpy


def overlay(image: Array, score: Array, alpha: float = 0.5, colormap: str = "jet") -> np.ndarray:
    """Blend a colour-mapped score map over an image.

    Args:
        image: uint8 ``(H, W, 3)``.
        score: ``(H, W)`` in [0, 1]; see ``normalize_score_map`` and ``resize_score_map``.
        alpha: Opacity of the map, in [0, 1].
        colormap: Name of a matplotlib colour map.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        ValueError: Wrong dtype or shape, NaN or values outside [0, 1], unknown colour map.
    """
    pixels, values = to_numpy(image), to_numpy(score)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"image must be uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
    if values.shape != pixels.shape[:2]:
        raise ValueError(f"score must be {pixels.shape[:2]} like the image, got {values.shape}; see resize_score_map")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"score must lie in [0, 1] without NaN, got {values.min()} to {values.max()}; see normalize_score_map"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if colormap not in matplotlib.colormaps:
        raise ValueError(f"colormap must be a colour map of matplotlib, got {colormap!r}; try jet, viridis or magma")
    colours = matplotlib.colormaps[colormap](values.astype(np.float64))[..., :3] * 255
    return ((1 - alpha) * pixels + alpha * colours).round().astype(np.uint8)


def figure_overlays(
    images: Array | Sequence[Array],
    maps: Sequence[Array | Sequence[Array]],
    titles: Sequence[str],
    row_titles: Sequence[str] | None = None,
    truth: Array | Sequence[Array] | None = None,
    alpha: float = 0.5,
    colormap: str = "jet",
) -> Figure:
    """Show one row per image: the image, then one column per method with its map overlaid.

    Args:
        images: N images, uint8 ``(H, W, 3)`` each.
        maps: N maps ``(H, W)`` in [0, 1] for each of M methods.
        titles: Names of the M methods.
        row_titles: Labels of the N rows.
        truth: N masks ``(H, W)``; pixels equal to 1 are outlined in white.
        alpha, colormap: As in ``overlay``.

    Raises:
        ValueError: Mismatched lengths; also as in ``overlay``.
    """
    num_images, num_methods = len(images), len(maps)
    if not num_images or len(titles) != num_methods or any(len(of_method) != num_images for of_method in maps):
        raise ValueError(
            f"maps must hold, for each of {len(titles)} titles, a map of each of {num_images} images (at least one), "
            f"got {[len(of_method) for of_method in maps]}"
        )
    for name, given in (("row_titles", row_titles), ("truth", truth)):
        if given is not None and len(given) != num_images:
            raise ValueError(f"{name} must have one entry for each of {num_images} images, got {len(given)}")
    figure = Figure(figsize=(1.8 * (num_methods + 1), 1.8 * num_images + 0.4), layout="constrained")
    panels: Any = figure.subplots(num_images, num_methods + 1, squeeze=False)
    for row in range(num_images):
        image = to_numpy(images[row])
        shown = [image, *(overlay(image, of_method[row], alpha, colormap) for of_method in maps)]
        for panel, content in zip(panels[row], shown, strict=True):
            panel.imshow(content, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            inside = to_numpy(truth[row]) == 1 if truth is not None else np.zeros((1, 1), dtype=bool)
            if inside.any() and not inside.all():
                panel.contour(inside.astype(float), levels=[0.5], colors="white", linewidths=0.9)
        if row_titles is not None:
            panels[row, 0].set_ylabel(row_titles[row], fontsize=8)
    for panel, title in zip(panels[0], ["image", *titles], strict=True):
        panel.set_title(title, fontsize=9)
    return figure
