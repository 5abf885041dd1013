"""Sources of attribution maps: functions of the output of one forward pass, by name."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tenfold.methods.calm.attribution import Mode, attribution_map
from tenfold.methods.calm.gradients import input_gradient, integrated_gradient, smooth_gradient, variance_gradient
from tenfold.methods.calm.network import calm_head
from tenfold.methods.calm.settings import Config, GradientBaseline
from tenfold.models.image_classifier import ImageClassifier


class View(NamedTuple):
    """Output of the forward pass of a batch, shared by all sources."""

    pixels: Tensor
    """Normalised images ``(B, 3, S, S)``."""
    f: Tensor
    """Class scores ``(B, C, h, w)``."""
    a: Tensor
    """Attention scores ``(B, 1, h, w)``."""
    labels: Tensor
    """Class to explain, int64 ``(B,)``."""
    seed: int
    """Seed of sources with random draws."""


Source = Callable[[View], Tensor]
"""Function to maps ``(B, h, w)`` of any size; higher is more important."""


def view(model: ImageClassifier, images: Tensor, labels: Tensor, seed: int = 0) -> View:
    """Run the forward pass on uint8 images ``(B, S, S, 3)``, without gradient."""
    with torch.no_grad():
        pixels = model.normalise(images)
        f, a = calm_head(model)(model.backbone(pixels))
    return View(pixels, f.float(), a.float(), labels, seed)


def head_source(
    model: ImageClassifier, mode: Mode, superclasses: Mapping[int, tuple[int, ...]] | None = None
) -> Source:
    """Return a source of maps of the network's own head, by the modes of ``attribution_map``."""
    prior = calm_head(model).prior
    return lambda seen: attribution_map(seen.f, seen.a, seen.labels, mode, superclasses, prior)


def gradient_source(model: ImageClassifier, name: GradientBaseline) -> Source:
    """Return a source of gradient maps of the network in evaluation mode; noise depends only on the view's seed."""

    def logits(pixels: Tensor) -> Tensor:
        return model.head(model.backbone(pixels))

    def maps(seen: View) -> Tensor:
        if name == "input_gradient":
            return input_gradient(logits, seen.pixels, seen.labels)
        if name == "integrated_gradient":
            return integrated_gradient(logits, seen.pixels, seen.labels)
        generator = torch.Generator().manual_seed(seen.seed)
        noisy = smooth_gradient if name == "smooth_gradient" else variance_gradient
        return noisy(logits, seen.pixels, seen.labels, generator=generator)

    return maps


def own_source(
    model: ImageClassifier, config: Config, superclasses: Mapping[int, tuple[int, ...]] | None
) -> dict[str, Source]:
    """Return the source of the map that explains an image, by the name of its mode."""
    return {config.map_mode: head_source(model, config.map_mode, superclasses)}


def further_sources(
    model: ImageClassifier, config: Config, superclasses: Mapping[int, tuple[int, ...]] | None
) -> dict[str, Source]:
    """Return sources of other maps of the same head, which show the whole object rather than its class evidence."""
    modes: list[Mode] = [] if config.mode == "cam" else ["saliency"]
    if superclasses is not None:
        modes.append("vanilla-superclass" if config.mode == "cam" else "jointll-superclass")
    return {mode: head_source(model, mode, superclasses) for mode in modes if mode != config.map_mode}
