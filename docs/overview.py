"""Draw ``docs/overview.png``: a column a method, each from a model trained here on embedded data.

python docs/overview.py    # some 15 minutes on two cores; trainings that are in outputs/ already are not repeated
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jobs.config import compose_job
from tenfold.catalog import load_predictor
from tenfold.data.catalog import load_classification, load_multilabel, load_regression, load_uncertainty
from tenfold.data.regression import TARGETS
from tenfold.engine.run import PlainRun
from tenfold.figures.overlays import overlay
from tenfold.methods.datadream.adapt import adapt
from tenfold.methods.datadream.few_shot import draw_few_shot
from tenfold.methods.datadream.generate import generate
from tenfold.methods.datadream.image_store import read_images
from tenfold.models.clip import load_clip
from tenfold.training import train

OUT = Path(__file__).parent / "overview.png"
MAX_BYTES = 200_000
Panels = list[tuple[np.ndarray, str]]
"""Images uint8 ``(H, W, 3)`` or float ``(H, W)``, each with what is written below it."""


def partial_labels() -> Panels:
    """A scene with the labels that were found, and where one of them was seen; trained on one label per image."""
    job = compose_job(["method=boostlu", "scale=local"])
    data, predictor = load_multilabel(job.data), load_predictor(train(job).bundle)
    row = int(np.flatnonzero(data.test.full.sum(1) == 4)[0])
    images = data.test.images.read([row])
    probs = predictor(images)["probs"][0]
    found = torch.nonzero(probs >= 0.5).flatten().tolist()
    label = max(found, key=lambda k: float(probs[k]))
    explained = predictor.explain(images, torch.tensor([label]))  # type: ignore[attr-defined]
    image = images[0].numpy()
    names = ", ".join(f"{data.classes[k]} {probs[k]:.2f}" for k in found)
    return [
        (image, f"{names}\n(truth: {', '.join(data.classes[k] for k in np.flatnonzero(data.test.full[row] == 1))})"),
        (overlay(image, explained["attributions"][0].numpy()), f"where it saw\n{data.classes[label]}"),
    ]


def generation() -> Panels:
    """A real digit beside one that was generated after sixteen shots."""
    job = compose_job(["method=datadream", "method.scheme=dset", "scale=local"])
    run = PlainRun(folder=Path(job.scale.storage) / "overview", shared=job.scale.storage, seed=job.run.seed)
    try:
        clip = load_clip(job.model)
        data = load_classification(job.data, clip.preprocessing)
        few_shot = draw_few_shot(data, job.method.num_shots, job.method.num_templates, run.seed)
        store = generate(job, run, few_shot, adapt(job, run, few_shot), count=8)
        label = 3
        generated = read_images(store.paths(label, 8))
        real = few_shot.images.read_raw(few_shot.rows(label)[:4])
    finally:
        run.close()
    return [
        (tiled([*real]), "four real shots"),
        (tiled(generated[:4]), "four generated\nafter 16 shots"),
    ]


def regression() -> Panels:
    """The mean of an image four times as large as its input, and the std beside it."""
    job = compose_job(["method=posterior_annealing", "data=photographs", "scale=local"])
    predictor = load_predictor(train(job).bundle)
    wide = compose_job([*("method=posterior_annealing", "data=photographs"), "data.crop=128", "data.num_test=8"])
    batch = load_regression(wide.data).test.read(np.array([1]))
    inputs = {name: value for name, value in batch.items() if name != TARGETS}
    outputs = predictor(inputs)  # type: ignore[arg-type]
    mean = (outputs["mean"][0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    return [(mean, "mean, from an input\nof 32 x 32 pixels"), (outputs["std"][0].mean(0).numpy(), "std")]


def outsiders() -> Panels:
    """A digit that is named, and a letter that is flagged."""
    job = compose_job(["method=gradient_uncertainty", "method.num_members=8", "run.num_epochs=30", "scale=local"])
    data, predictor = load_uncertainty(job.data), load_predictor(train(job).bundle)
    panels: Panels = []
    letters = next(iter(data.outside.values()))
    for images, wanted in ((data.inside.test.images, 0.0), (letters, 1.0)):
        shown = images.read(np.arange(40))
        answer = predictor(shown)
        row = int(torch.nonzero(answer["outside"].flatten() == wanted)[0])
        best = int(answer["probs"][row].argmax())
        entropy = float(answer["predictive_entropy"].flatten()[row])
        said = (
            f"flagged: no digit\nentropy {entropy:.2f}"
            if wanted
            else f"{data.inside.classes[best]}\nentropy {entropy:.2f}"
        )
        panels.append((shown[row].numpy(), said))
    return panels


def tiled(images: list[np.ndarray]) -> np.ndarray:
    """Four images as one, two by two."""
    top, bottom = np.concatenate(images[:2], axis=1), np.concatenate(images[2:4], axis=1)
    return np.concatenate([top, bottom], axis=0)


COLUMNS: dict[str, Callable[[], Panels]] = {
    "learn from one label per image\nLarge Loss + BoostLU": partial_labels,
    "learn from sixteen images per class\nDataDream": generation,
    "say how sure a number is\nposterior annealing": regression,
    "say what is none of the classes\ngradient uncertainty": outsiders,
}


def draw(columns: dict[str, Panels]) -> Figure:
    figure = Figure(figsize=(2.75 * len(columns), 4.4))
    parts: Any = figure.subfigures(1, len(columns))
    for part, (title, panels) in zip(parts, columns.items(), strict=True):
        part.suptitle(title, fontsize=9, fontweight="bold", y=0.98)
        axes: list[Axes] = list(part.subplots(2, 1, gridspec_kw={"hspace": 0.42, "top": 0.86, "bottom": 0.11}))
        for panel, (image, words) in zip(axes, panels, strict=True):
            panel.imshow(image, cmap="magma", interpolation="nearest")
            panel.set_title(words, fontsize=7.5, y=-0.34, linespacing=1.15)
            panel.axis("off")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette: an image in a README should load at once."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).quantize(192).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES} bytes, got {path.stat().st_size}")


def main() -> None:
    torch.set_num_threads(1)  # as in a job with one CPU per worker
    figure = draw({title: make() for title, make in COLUMNS.items()})
    figure.set_dpi(110)
    save(figure, OUT)
    print(OUT)


if __name__ == "__main__":
    main()
