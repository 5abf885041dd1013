"""Attribution maps of an ImageNet network on the photographs that scikit-image ships.

    python -m tests.replicas.attribution_photographs --out outputs/attribution_photographs

EfficientNet-Lite0 with its packaged weights classifies each photograph; every method then explains the prediction.
CALM's maps are those of p(y|x,z) under a uniform prior over locations, as the network was not trained with CALM. Writes
``overlays.png``, ``counterfactual.png`` (why the first class and not the second) and ``erased.json``: the mean
probability of the prediction after erasing the highest pixels, or as many random ones. Half a minute on one core.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skimage import data as photographs
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn import functional

from tenfold.figures.overlays import figure_overlays
from tenfold.methods.calm.attribution import attribution_map, counterfactual_map
from tenfold.methods.calm.gradients import input_gradient, integrated_gradient, smooth_gradient, variance_gradient
from tenfold.metrics.localisation.erasure import random_erase_mask, topk_erase_mask
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map
from tenfold.models.activation_maps import class_activation_maps
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier

NAMES = ("chelsea", "coffee", "rocket", "motorcycle", "camera", "astronaut")
FRACTIONS = (0.1, 0.3, 0.5)
NUM_RANDOM = 8
SIZE, NUM_CLASSES = 224, 1000


@dataclass(frozen=True)
class Explained:
    """Photographs, their predictions, and the maps of each method."""

    images: Tensor
    """uint8 ``(N, S, S, 3)``."""
    probs: Tensor
    """``(N, 1000)``."""
    maps: dict[str, Tensor]
    """Maps ``(N, S, S)`` in [0, 1], by method."""
    counterfactual: Tensor
    """``(N, S, S)``: evidence for the first class against the second, in [0, 1], 0.5 where neutral."""

    @property
    def guesses(self) -> Tensor:
        """The two likeliest classes, ``(N, 2)``."""
        return self.probs.topk(2).indices


def load_network() -> ImageClassifier:
    """Load the packaged network with its ImageNet head, in evaluation mode."""
    config = ModelConfig(name="efficientnet_lite0", pretrained=True)
    return build_classifier(config, NUM_CLASSES, SIZE, latent=True).eval().requires_grad_(False)


def class_names() -> tuple[str, ...]:
    """Return the names of the ImageNet classes, in the order of the logits."""
    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(NUM_CLASSES))


def load_photographs() -> Tensor:
    """Load the centre crop of each photograph, uint8 ``(N, S, S, 3)``."""
    return torch.stack([_square(_photograph(name)) for name in NAMES])


def explain(model: ImageClassifier, images: Tensor) -> Explained:
    """Compute every method's map of the predicted class."""
    pixels = model.normalise(images)
    with torch.no_grad():
        features = model.backbone(pixels)
        scores = class_activation_maps(features, model.head.weight, model.head.bias)
        probs = scores.mean((2, 3)).softmax(1)
        first, second = probs.topk(2).indices.T
        no_preference = torch.zeros_like(scores[:, :1])
        coarse = {
            "CAM": attribution_map(scores, None, first, "vanilla"),
            "CALM, uniform prior": attribution_map(scores, no_preference, first, "jointll"),
        }
        difference = counterfactual_map(scores, no_preference, first, second)

    def logits(points: Tensor) -> Tensor:
        return model.head(model.backbone(points).mean((2, 3)))

    def noise() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    fine: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "input gradient": input_gradient,
        "integrated gradient": partial(integrated_gradient, steps=20),
        "smooth gradient": partial(smooth_gradient, n=20, generator=noise()),
        "variance gradient": partial(variance_gradient, n=20, generator=noise()),
    }
    gradients = {name: method(logits, pixels, first) for name, method in fine.items()}
    maps = {name: resize_score_map(each, SIZE) for name, each in coarse.items()} | gradients
    strongest = difference.abs().amax((1, 2), keepdim=True)
    return Explained(
        images=images,
        probs=probs,
        maps={name: normalize_score_map(each, "minmax") for name, each in maps.items()},
        counterfactual=resize_score_map(difference / strongest / 2 + 0.5, SIZE).clamp(0, 1),
    )


def probability_left(model: ImageClassifier, explained: Explained) -> dict[str, dict[str, float]]:
    """Compute the mean probability of the prediction with pixels erased to the mean colour, by method and share."""
    pixels = model.normalise(explained.images)
    first = explained.guesses[:, :1]
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def left(mask: Tensor) -> float:
        features = model.backbone(pixels * mask).mean((2, 3))
        return float(model.head(features).softmax(1).gather(1, first).mean())

    shape = torch.Size((len(pixels), 1, SIZE, SIZE))
    table: dict[str, dict[str, float]] = {"nothing erased": {"0": left(torch.ones(shape))}}
    for fraction in FRACTIONS:
        draws = [left(random_erase_mask(shape, fraction, generator)) for _ in range(NUM_RANDOM)]
        table.setdefault("random places", {})[str(fraction)] = float(np.mean(draws))
        for name, maps in explained.maps.items():
            table.setdefault(name, {})[str(fraction)] = left(topk_erase_mask(maps[:, None], fraction))
    return table


def draw(explained: Explained, out: Path) -> None:
    """Write the figures."""
    names = class_names()
    guesses, probs = explained.guesses, explained.probs
    said = [
        f"{names[int(a)].split(',')[0]} {probs[row, a]:.2f}\nthen {names[int(b)].split(',')[0]} {probs[row, b]:.2f}"
        for row, (a, b) in enumerate(guesses)
    ]
    images = explained.images.numpy()
    # A few pixels dominate a gradient map: clip at the 99th percentile.
    maps = [
        (each / each.flatten(1).quantile(0.99, 1)[:, None, None]).clamp(0, 1).numpy()
        for each in explained.maps.values()
    ]
    figure_overlays(images, maps, list(explained.maps), said).savefig(out / "overlays.png", dpi=110)
    why = [explained.counterfactual.numpy()]
    title = ["red: the first guess\nblue: the second"]
    figure_overlays(images, why, title, said, alpha=0.6, colormap="coolwarm").savefig(
        out / "counterfactual.png", dpi=110
    )


def _photograph(name: str) -> np.ndarray:
    if name == "motorcycle":
        return photographs.stereo_motorcycle()[0]
    image = getattr(photographs, name)()
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def _square(image: np.ndarray) -> Tensor:
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).byte()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = load_network()
    explained = explain(model, load_photographs())
    draw(explained, out)
    table = probability_left(model, explained)
    (out / "erased.json").write_text(json.dumps(table, indent=2))
    for name, row in table.items():
        print(f"{name:<24}" + "  ".join(f"{share}: {value:.3f}" for share, value in row.items()))


if __name__ == "__main__":
    main()
