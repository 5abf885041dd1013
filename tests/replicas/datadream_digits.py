"""DataDream on 8x8 digits: the paper's three stages from printed to handwritten digits, in minutes on one core.

    python tests/replicas/datadream_digits.py --seeds 0 1 2 --shots 16 4 --out outputs/replica_datadream

Prints Markdown tables beside the pilot figures of the method's specification for the same protocol, and leaves in the
folder one JSON file and one sheet of samples for each run (what is there is not run again), ``summary.csv`` and
``accuracy.png``.

The source domain, in place of web images, is printed digits in matplotlib's fonts; the target domain is
scikit-learn's handwritten digits. A small conditional diffusion model and a small classifier, both trained on print
alone, are adapted by LoRA to a few handwritten shots. Networks and training loops are defined here; adapters, noise,
guidance, sampling, schedules, shots, losses and metrics are the platform's own.
"""

import argparse
import copy
import functools
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from tenfold.files import write_atomically
from tenfold.methods.datadream import (
    LoRALinear,
    add_noise,
    ddim_step,
    diffusion_loss,
    diffusion_warmup_cosine,
    guided,
    pool_repeats,
    real_synth_cross_entropy,
    sample_k_shot,
    topk_accuracy,
)

NUM_CLASSES, NO_CLASS, SIDE = 10, 10, 8
PIXELS = SIDE * SIDE
WIDTH, NUM_BLOCKS = 256, 3
NUM_NOISE_LEVELS, NUM_SAMPLING_STEPS, GUIDANCE_SCALE = 1000, 25, 2.0
NUM_GLYPHS, NUM_GENERATED = 300, 200
"""Printed images to learn from, and images to generate, of each class."""
CLASS_DROPOUT, REAL_WEIGHT = 0.1, 0.8
PRETRAINING_STEPS, ADAPTATION_STEPS, CLASSIFIER_STEPS = 2500, {"dset": 1500, "cls": 400}, 1500
BATCH_SIZE = 64
"""Batch size of adaptation and classification; that of pretraining is twice as large."""
VARIANTS = ("none", "dset", "cls")
"""Generators: without adapters, one adapter for all classes, one adapter for each."""

ROWS = {
    "glyphs": "glyph classifier, not adapted",
    "synth_none": "synthetic only, un-adapted generator",
    "synth_dset": "synthetic only, DataDream_dset",
    "synth_cls": "synthetic only, DataDream_cls",
    "real": "real shots only",
    "both_none": "real + synthetic, un-adapted generator",
    "both_dset": "real + synthetic, DataDream_dset",
    "both_cls": "real + synthetic, DataDream_cls",
    "distance_none": "distance of class means, un-adapted",
    "distance_dset": "distance of class means, dset",
    "distance_cls": "distance of class means, cls",
}
PILOT = {  # shots: row: figures of the specification's seeds 0 and 1
    16: dict(zip(ROWS, ("44.8 / 45.6", "42.9 / 46.2", "87.2 / 85.9", "89.6 / 89.5", "91.3 / 90.6", "91.9 / 90.2",
                        "91.4 / 90.2", "91.6 / 90.9", "4.78", "1.57 / 1.41", "0.99 / 1.02"), strict=True)),
    4: dict(zip(ROWS, ("48.8 / 45.3", "47.4 / 46.2", "70.9 / 79.4", "77.4 / 82.9", "73.1 / 82.5", "76.7 / 80.3",
                       "73.1 / 83.0", "73.0 / 82.7", "4.78", "2.09 / 1.85", "1.77 / 1.63"), strict=True)),
}  # fmt: skip

Variant = Literal["none", "dset", "cls"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One run: all rows of the table."""

    seed: int
    num_shots: int

    @property
    def name(self) -> str:
        return f"shots{self.num_shots}-seed{self.seed}"


# --- data: both domains are float32 (N, 64) in [-1, 1], light on dark ---


@functools.cache
def handwriting() -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images / 8 - 1).float(), torch.from_numpy(labels).long()


@functools.cache
def glyphs(seed: int) -> tuple[Tensor, Tensor]:
    """Printed digits in the twelve faces of DejaVu, slightly rotated and shifted, box-averaged to 8x8."""
    rng = np.random.default_rng(seed)
    scale, canvas = 8, SIDE * 8
    fonts = [ImageFont.truetype(str(path), 64) for path in _faces()]
    images = np.empty((NUM_CLASSES * NUM_GLYPHS, PIXELS), np.float32)
    for row in range(len(images)):
        image = Image.new("L", (canvas, canvas))
        centre = canvas / 2 + rng.uniform(-0.5, 0.5, 2) * scale  # half a coarse pixel either way
        font = fonts[rng.integers(len(fonts))]
        ImageDraw.Draw(image).text(tuple(centre), str(row // NUM_GLYPHS), fill=255, font=font, anchor="mm")
        image = image.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
        images[row] = np.asarray(image.reduce(scale), np.float32).ravel() / 127.5 - 1
    return torch.from_numpy(images), torch.arange(len(images)) // NUM_GLYPHS


def _faces() -> list[Path]:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    faces = [
        folder / f"DejaVu{family}{style}.ttf"
        for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
        for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
    ]
    missing = [face.name for face in faces if not face.is_file()]
    if missing:
        raise FileNotFoundError(f"matplotlib's fonts are expected in {folder}; missing {missing}")
    return faces


# --- networks ---


class Denoiser(nn.Module):
    """Velocity of a noisy image, given its noise level and its class (10 for no class)."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(NUM_CLASSES + 1, WIDTH)
        self.time_embedding = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.first = nn.Linear(PIXELS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        self.last = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PIXELS))

    def forward(self, noisy: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(WIDTH // 2) * (-math.log(10_000) / (WIDTH // 2)))
        angles = steps[:, None] * frequencies  # (B, WIDTH / 2)
        condition = self.time_embedding(torch.cat([angles.sin(), angles.cos()], 1)) + self.class_embedding(labels)
        hidden = self.first(noisy)
        for block in self.blocks:
            hidden = block(hidden, functional.silu(condition))
        return self.last(hidden)


class Block(nn.Module):
    """A residual block with conditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.condition, self.down = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        inner = self.up(self.norm(hidden)) + self.condition(condition)
        return hidden + self.down(functional.silu(inner))


def make_classifier() -> nn.Sequential:
    """Build the classifier: logits of ten classes."""
    widths = (PIXELS, 128, 128, NUM_CLASSES)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def adapted(network: nn.Module, **options: Any) -> nn.Module:
    """Copy and freeze a network, with a ``LoRALinear`` for every linear layer except those of embeddings."""
    network = copy.deepcopy(network).requires_grad_(False)
    for path, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and "embedding" not in path:
            network.set_submodule(path, LoRALinear(layer, **options))
    return network


# --- loops ---

_BETAS = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), NUM_NOISE_LEVELS, dtype=torch.float64) ** 2
ALPHA_BAR = (1 - _BETAS).cumprod(0)


def optimise(network: nn.Module, loss_of_step: Any, rates: np.ndarray, weight_decay: float) -> None:
    """Train the trainable parameters with AdamW, one step for each learning rate."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay)
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss_of_step(step).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def train_denoiser(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    dropout: float,
    seed: int,
) -> None:
    """Train by velocity prediction; ``dropout`` is the probability of dropping the class."""
    generator = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=generator)
        levels = torch.randint(NUM_NOISE_LEVELS, (batch,), generator=generator)
        noise = torch.randn(batch, PIXELS, generator=generator)
        withheld = torch.rand(batch, generator=generator) < dropout
        clean, alpha_bar = images[rows], ALPHA_BAR[levels].float()
        noisy = add_noise(clean, noise, alpha_bar, validate=False)
        prediction = network(noisy, levels, torch.where(withheld, NO_CLASS, labels[rows]))
        return diffusion_loss(prediction, clean, noise, alpha_bar, "v_prediction", validate=False)

    optimise(network.train(), loss, diffusion_warmup_cosine(rate, 100, steps), weight_decay=1e-2)


@torch.no_grad()
def generate(network: nn.Module, labels: Tensor, seed: int) -> Tensor:
    """Sample one image for each label; estimates of the clean image are clamped to its range."""
    network.eval()
    images = torch.randn(len(labels), PIXELS, generator=torch.Generator().manual_seed(seed))
    stride = NUM_NOISE_LEVELS // NUM_SAMPLING_STEPS
    none = torch.full_like(labels, NO_CLASS)
    for level in range(NUM_NOISE_LEVELS - 1, -1, -stride):
        now = ALPHA_BAR[level]
        before = ALPHA_BAR[level - stride] if level >= stride else torch.tensor(1.0)
        # With and without the class in one pass.
        both = network(images.repeat(2, 1), torch.full((2 * len(labels),), level), torch.cat([none, labels]))
        speed = guided(*both.chunk(2), GUIDANCE_SCALE)
        clean = (now.sqrt() * images - (1 - now).sqrt() * speed).clamp(-1, 1)
        noise = (images - now.sqrt() * clean) / (1 - now).sqrt()
        images = ddim_step(images, noise.float(), now, before)
    return images.clamp(-1, 1)


def train_classifier(base: nn.Module, real: Any, synthetic: Any, seed: int) -> nn.Module:
    """Adapt a classifier to real shots, synthetic images or both, each ``(images, labels)`` or None."""
    torch.manual_seed(seed)
    network = adapted(base, rank=16, alpha=32, init="kaiming", dropout=0.1)
    repeats = pool_repeats(NUM_GENERATED, len(real[0]) // NUM_CLASSES) if real else 0
    parts = [(*[part.repeat((repeats,) + (1,) * (part.ndim - 1)) for part in real], True)] if real else []
    parts += [(*synthetic, False)] if synthetic else []
    images, labels = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    is_real = torch.cat([torch.full((len(part[0]),), part[2]) for part in parts])
    weight = REAL_WEIGHT if len(parts) == 2 else float(bool(real))
    batch, generator, order = BATCH_SIZE, torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)

    def loss(_: int) -> Tensor:
        nonlocal order
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        rows, order = order[:batch], order[batch:]
        parts = real_synth_cross_entropy(network(images[rows]), labels[rows], is_real[rows], weight, validate=False)
        return parts[0]

    optimise(network.train(), loss, diffusion_warmup_cosine(1e-3, 100, CLASSIFIER_STEPS), weight_decay=1e-4)
    return network.eval()


@functools.cache
def pretrained(seed: int) -> tuple[nn.Module, nn.Module]:
    """Pretrain generator and classifier on print only; shared by all numbers of shots."""
    torch.manual_seed(seed)
    images, labels = glyphs(seed)
    denoiser, classifier = Denoiser(), make_classifier()
    train_denoiser(
        denoiser, images, labels, steps=PRETRAINING_STEPS, batch=128, rate=1e-3, dropout=CLASS_DROPOUT, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        rows = torch.randint(len(images), (128,), generator=generator)
        return functional.cross_entropy(classifier(images[rows]), labels[rows])

    optimise(classifier, loss, diffusion_warmup_cosine(1e-3, 100, CLASSIFIER_STEPS), weight_decay=1e-2)
    return denoiser, classifier


def generated(
    base: nn.Module, variant: Variant, shots: Tensor, shot_labels: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Stages A and B: adapt the generator by the variant, and generate 200 images of every class."""
    labels = torch.arange(NUM_CLASSES).repeat_interleave(NUM_GENERATED)
    torch.manual_seed(seed)
    if variant == "none":
        return generate(base, labels, seed), labels
    groups = [torch.arange(NUM_CLASSES)] if variant == "dset" else list(torch.arange(NUM_CLASSES).split(1))
    images = []
    for place, classes in enumerate(groups):
        network = adapted(base, rank=16, alpha=16, init="gaussian")
        rows, wanted = torch.isin(shot_labels, classes), torch.isin(labels, classes)
        train_denoiser(
            network,
            shots[rows],
            shot_labels[rows],
            steps=ADAPTATION_STEPS[variant],
            batch=BATCH_SIZE,
            rate=2e-3,
            dropout=0.0,
            seed=1000 * seed + place,
        )
        images.append(generate(network, labels[wanted], 1000 * seed + place))
    return torch.cat(images), labels


def run(setting: Setting, folder: Path) -> dict[str, Any]:
    """Compute all rows for one draw of shots, or read them from the folder."""
    path = folder / f"{setting.name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    started = time.process_time()
    images, labels = handwriting()
    chosen = torch.tensor(sample_k_shot(labels.tolist(), setting.num_shots, setting.seed))
    held_out = torch.ones(len(labels), dtype=torch.bool).index_fill(0, chosen, False)
    shots, test, test_labels = (images[chosen], labels[chosen]), images[held_out], labels[held_out]
    denoiser, classifier = pretrained(setting.seed)

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            return topk_accuracy(network(test), test_labels, 1)

    def measured(real: Any, synthetic: Any) -> float:
        return accuracy(train_classifier(classifier, real, synthetic, setting.seed))

    rows = {"glyphs": accuracy(classifier), "real": measured(shots, None)}
    samples = {"print": glyphs(setting.seed), "shots": shots}
    for variant in VARIANTS:
        made = samples[variant] = generated(denoiser, variant, *shots, setting.seed)
        rows[f"synth_{variant}"] = measured(None, made)
        rows[f"both_{variant}"] = measured(shots, made)
        rows[f"distance_{variant}"] = class_mean_distance(made, (test, test_labels))
    folder.mkdir(parents=True, exist_ok=True)
    draw_samples(samples, setting.num_shots).savefig(folder / f"samples-{setting.name}.png", dpi=120)
    result = asdict(setting) | {name: rows[name] for name in ROWS} | {"cpu_s": time.process_time() - started}
    write_atomically(path, json.dumps(result, indent=2).encode())
    return result


def class_mean_distance(made: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor]) -> float:
    """Euclidean distance between the mean images of a class, averaged over classes."""
    means = [
        torch.stack([images[labels == label].mean(0) for label in range(NUM_CLASSES)])
        for images, labels in (made, real)
    ]
    return (means[0] - means[1]).norm(dim=1).mean().item()


# --- tables and figures ---


def draw_samples(samples: Mapping[str, tuple[Tensor, Tensor]], num_shots: int) -> Figure:
    """Draw eight images of each class: print, shots, and samples of each generator."""
    titles = {"print": "print (source)", "shots": f"{num_shots} shots (target)", "none": "un-adapted",
              "dset": "DataDream_dset", "cls": "DataDream_cls"}  # fmt: skip
    figure = Figure(figsize=(3 * len(samples), 4.2), layout="constrained")
    for axes, (name, (images, labels)) in zip(figure.subplots(1, len(samples)), samples.items(), strict=True):
        sheet = np.full((NUM_CLASSES * (SIDE + 1) - 1, 8 * (SIDE + 1) - 1), np.nan)
        for label in range(NUM_CLASSES):
            of_class = images[labels == label]
            for column, image in enumerate(of_class[:: max(1, len(of_class) // 8)][:8]):
                top, left = label * (SIDE + 1), column * (SIDE + 1)
                sheet[top : top + SIDE, left : left + SIDE] = image.view(SIDE, SIDE)
        axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
        axes.set(title=titles[name])
        axes.axis("off")
    return figure


def draw_accuracy(results: pd.DataFrame) -> Figure:
    """Draw the accuracy of every row, a bar for the mean over seeds and a dot for each seed."""
    names = [name for name in ROWS if not name.startswith("distance")]
    shots = sorted(results["num_shots"].unique(), reverse=True)
    figure = Figure(figsize=(5.5 * len(shots), 4.5), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(shots), sharey=True, squeeze=False)[0], shots, strict=True):
        runs = results[results["num_shots"] == count]
        for place, name in enumerate(names):
            axes.barh(place, runs[name].mean(), color="tab:blue" if "real" in name or "both" in name else "tab:orange")
            axes.plot(runs[name], [place] * len(runs), "k.", markersize=5)
        axes.set(title=f"{count} shots a class", xlabel="test accuracy (%)", xlim=(30, 100))
        axes.set_yticks(range(len(names)), [ROWS[name] for name in names])
    figure.axes[0].invert_yaxis()  # shared: once for all
    return figure


def table(results: Sequence[Mapping[str, Any]], num_shots: int) -> str:
    """Mean and standard deviation over seeds beside the pilot figures, as Markdown."""
    runs = pd.DataFrame([result for result in results if result["num_shots"] == num_shots])
    lines = [
        f"| {num_shots} shots, seeds {', '.join(map(str, runs['seed']))} | mean ± std | each | pilot |",
        "|---|---|---|---|",
    ]
    for name, title in ROWS.items():
        digits = 2 if name.startswith("distance") else 1
        each = " / ".join(f"{value:.{digits}f}" for value in runs[name])
        spread = f"{runs[name].mean():.{digits}f} ± {runs[name].std(ddof=0):.{digits}f}"
        lines.append(f"| {title} | {spread} | {each} | {PILOT.get(num_shots, {}).get(name, '')} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shots", type=int, nargs="+", default=[16, 4])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_datadream"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for num_shots in arguments.shots:
        for seed in arguments.seeds:
            results.append(run(Setting(seed=seed, num_shots=num_shots), arguments.out))
            print(f"{num_shots} shots, seed {seed}: {results[-1]['cpu_s']:.0f} CPU s", flush=True)
        print(f"\n{table(results, num_shots)}\n", flush=True)
    frame = pd.DataFrame(results)
    frame.to_csv(arguments.out / "summary.csv", index=False)
    draw_accuracy(frame).savefig(arguments.out / "accuracy.png", dpi=120)


if __name__ == "__main__":
    main()
