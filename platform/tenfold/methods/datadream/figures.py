"""Figures of a training: samples before and after adaptation, feature distances, learning curves, confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

from tenfold.data.classification import ClassificationData
from tenfold.data.images import shared_tensor
from tenfold.engine.recipe import Trained
from tenfold.engine.run import Run
from tenfold.engine.settings import JobConfig
from tenfold.figures.history import figure_history
from tenfold.figures.labels import figure_confusion
from tenfold.methods.datadream.adapt import Adapters
from tenfold.methods.datadream.evaluation import store_distances
from tenfold.methods.datadream.few_shot import FewShotData
from tenfold.methods.datadream.generate import PREVIEW_BLOCK, preview
from tenfold.methods.datadream.image_store import ImageStore, read_images
from tenfold.methods.datadream.settings import ADAPTED, Config
from tenfold.models.clip import Clip

SHOWN_CLASSES = 10
MOST_CONFUSED = 100
"""Number of classes above which a confusion matrix is unreadable and left out."""
BEFORE, AFTER = "generator as it is", "adapted"
COLUMNS = 8
"""Images of a class in a grid."""
THUMBNAIL = 96
"""Largest side of an image in a grid, in pixels."""


def log_figures(
    job: JobConfig,
    run: Run,
    data: ClassificationData,
    few_shot: FewShotData,
    clip: Clip,
    adapters: Adapters,
    store: ImageStore | None,
    trained: Trained,
) -> None:
    """Draw and log all figures; nothing is done without a recorder.

    Every worker must call it, since all of them compute features.

    Args:
        job: The settings.
        run: The machine.
        data: Source of the real images to compare with: its validation split, else its test split.
        few_shot: Classes and shots.
        clip: CLIP without adapters, for features.
        adapters: Result of stage A.
        store: Result of stage B; None without synthetic images.
        trained: Result of stage C.
    """
    config: Config = job.method
    if not config.figures or run.share(run.recorder is None):
        return
    results = trained.results
    if results["history"]:
        names = ["train/loss", "val/accuracy"]
        run.log_figure("curves.png", figure_history(results["history"], names, f"{config.scheme} on {data.name}"))
    if len(data.classes) <= MOST_CONFUSED:
        logits = load_file(trained.folder / "logits.safetensors")["test"]
        title = f"{config.scheme} on {data.name}, test {results['metrics']['test/accuracy']:.1f} %"
        run.log_figure("confusion.png", figure_confusion(logits, shared_tensor(data.test.labels), data.classes, title))
    if store is None:
        return
    labels = range(min(SHOWN_CLASSES, len(data.classes)))
    count = min(PREVIEW_BLOCK, config.images_per_class)
    stores = {AFTER if config.scheme in ADAPTED else config.scheme: store}
    if config.scheme in ADAPTED:
        stores = {BEFORE: preview(job, run, few_shot, labels), **stores}
    names_shown = [data.classes[label] for label in labels]
    if run.is_main:
        rows = sample_rows(few_shot, stores, labels, count)
        run.log_figure("samples.png", figure_samples(rows, names_shown, config.scheme))
    distances = store_distances(run, data, clip, stores, labels, count)
    title = f"CLIP features of {count} synthetic images a class, against real ones"
    run.log_figure("feature_distance.png", figure_distances(distances, names_shown, title))
    run.log_metrics({f"features/{_word(name)}": float(np.nanmean(each)) for name, each in distances.items()}, 0)


def sample_rows(
    few_shot: FewShotData, stores: Mapping[str, ImageStore], labels: Sequence[int], count: int
) -> dict[str, list[list[np.ndarray]]]:
    """Blocks for ``figure_samples``: the first ``count`` real shots of each class, then those of each store.

    Images in the same place of two stores come from the same noise.
    """
    rows = {"real shots": [few_shot.images.read_raw(few_shot.rows(label)[:count]) for label in labels]}
    for name, store in stores.items():
        rows[name] = [read_images(store.paths(label, count)) for label in labels]
    return rows


def figure_samples(rows: Mapping[str, Sequence[Sequence[np.ndarray]]], classes: Sequence[str], title: str) -> Figure:
    """Images class by class, one block beside the other.

    Args:
        rows: Name of a block (``real shots``, ``before``, ``after``) to images ``[class][image]``, uint8
            ``(H, W, 3)``.
        classes: Names at the left.
        title: Title of the figure.
    """
    figure = Figure(figsize=(0.6 + 3.4 * len(rows), 0.7 + 0.44 * len(classes)), layout="constrained")
    panels: Any = figure.subplots(1, len(rows), squeeze=False)[0]
    for panel, (name, images) in zip(panels, rows.items(), strict=True):
        side = min(THUMBNAIL, max(max(image.shape[:2]) for group in images for image in group))
        columns = min(COLUMNS, max(len(group) for group in images))
        sheet = np.full((len(images) * (side + 2), columns * (side + 2), 3), 255, np.uint8)
        for row, group in enumerate(images):
            for column, image in enumerate(group[:columns]):
                top, left = row * (side + 2), column * (side + 2)
                sheet[top : top + side, left : left + side] = _thumbnail(image, side)
        panel.imshow(sheet, interpolation="nearest")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(name, fontsize=9)
        if panel is panels[0]:
            panel.set_yticks([(row + 0.5) * (side + 2) for row in range(len(classes))], classes, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def figure_distances(distances: Mapping[str, np.ndarray], classes: Sequence[str], title: str) -> Figure:
    """Distance of class means to real images: a group of bars for each class, the mean over classes in the legend."""
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


def _thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image to a square, uint8 ``(side, side, 3)``, regardless of its aspect ratio."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _word(name: str) -> str:
    return name.replace(" ", "_")
