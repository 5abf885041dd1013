"""Pictures of DataDream at work: what the generator drew before and after, and how near that comes to real pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tenfold.data.images import FileImages
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.models.clip import Clip
from tenfold.types import ImageSource

COLUMNS = 8
"""Pictures of a class in a grid."""
THUMBNAIL = 96
"""Pixels that a picture takes at most in a grid."""


def figure_samples(rows: Mapping[str, Sequence[Sequence[np.ndarray]]], classes: Sequence[str], title: str) -> Figure:
    """Pictures class by class, one block beside the other.

    Args:
        rows: Name of a block (``real shots``, ``before``, ``after``) to pictures ``[class][picture]``, uint8
            ``(H, W, 3)``.
        classes: Names at the left.
        title: Above.
    """
    figure = Figure(figsize=(0.6 + 3.4 * len(rows), 0.7 + 0.44 * len(classes)), layout="constrained")
    panels: Any = figure.subplots(1, len(rows), squeeze=False)[0]
    for panel, (name, pictures) in zip(panels, rows.items(), strict=True):
        side = min(THUMBNAIL, max(max(picture.shape[:2]) for group in pictures for picture in group))
        columns = min(COLUMNS, max(len(group) for group in pictures))
        sheet = np.full((len(pictures) * (side + 2), columns * (side + 2), 3), 255, np.uint8)
        for row, group in enumerate(pictures):
            for column, picture in enumerate(group[:columns]):
                top, left = row * (side + 2), column * (side + 2)
                sheet[top : top + side, left : left + side] = thumbnail(picture, side)
        panel.imshow(sheet, interpolation="nearest")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(name, fontsize=9)
        if panel is panels[0]:
            panel.set_yticks([(row + 0.5) * (side + 2) for row in range(len(classes))], classes, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def thumbnail(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture made to fit a square, uint8 ``(side, side, 3)``; its aspect is not kept."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def read_pictures(paths: Sequence[Path]) -> list[np.ndarray]:
    """Picture files, uint8 ``(H, W, 3)`` each."""
    return FileImages(paths, 1).read_raw(np.arange(len(paths))) if paths else []


def class_means(run: Run, clip: Clip, images: ImageSource, labels: np.ndarray, num_classes: int) -> Tensor:
    """Mean feature of each class ``(C, D)``, of CLIP as it is; NaN where there is no picture. Every worker calls it."""
    features = predict_images(run, clip.embed_images, images)
    index = torch.from_numpy(labels)
    sums = torch.zeros(num_classes, features.shape[1]).index_add_(0, index, features)
    return sums / torch.bincount(index, minlength=num_classes)[:, None]


def feature_distances(synthetic: Tensor, real: Tensor) -> np.ndarray:
    """Euclidean distance of each class's mean feature to that of real pictures ``(C,)``."""
    return (synthetic - real).norm(dim=1).numpy()


def file_source(clip: Clip, paths: Sequence[Path]) -> FileImages:
    """Picture files as CLIP wants them."""
    way = clip.preprocessing
    return FileImages(paths, way.image_size, resize=way.resize, interpolation=way.interpolation)


def figure_distances(distances: Mapping[str, np.ndarray], classes: Sequence[str], title: str) -> Figure:
    """Distance of class means to real pictures: one group of bars a class, and the mean over classes in the legend."""
    figure = Figure(figsize=(max(4.5, 0.55 * len(classes) + 2), 3.4), layout="constrained")
    panel: Any = figure.subplots()
    width = 0.8 / len(distances)
    for number, (name, values) in enumerate(distances.items()):
        places = np.arange(len(values)) + (number - (len(distances) - 1) / 2) * width
        panel.bar(places, values, 0.92 * width, label=f"{name}: {np.nanmean(values):.3f}")
    panel.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
    panel.set_ylabel("distance of class means")
    panel.legend(fontsize=8, title="mean over classes", title_fontsize=8)
    panel.set_title(title, fontsize=10)
    return figure
