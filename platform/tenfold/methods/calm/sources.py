"""Where attribution maps come from: named functions of what one forward pass gives."""

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
    """A batch as the network sees it; one forward pass serves every source."""

    pixels: Tensor
    """Normalised pictures ``(B, 3, S, S)``."""
    f: Tensor
    """Class scores ``(B, C, h, w)``."""
    a: Tensor
    """Attention scores ``(B, 1, h, w)``."""
    labels: Tensor
    """The class to explain, int64 ``(B,)``."""
    seed: int
    """Of a source that draws."""


Source = Callable[[View], Tensor]
"""Maps ``(B, h, w)`` of any size; higher is more important."""


def view(model: ImageClassifier, images: Tensor, labels: Tensor, seed: int = 0) -> View:
    """The forward pass, without gradient; uint8 pictures ``(B, S, S, 3)``."""
    with torch.no_grad():
        pixels = model.normalise(images)
        f, a = calm_head(model)(model.backbone(pixels))
    return View(pixels, f.float(), a.float(), labels, seed)


def head_source(
    model: ImageClassifier, mode: Mode, superclasses: Mapping[int, tuple[int, ...]] | None = None
) -> Source:
    """A map of the network's own head: the modes of ``attribution_map``."""
    prior = calm_head(model).prior
    return lambda seen: attribution_map(seen.f, seen.a, seen.labels, mode, superclasses, prior)


def gradient_source(model: ImageClassifier, name: GradientBaseline) -> Source:
    """A gradient map of the same network, which is in evaluation mode; noise depends on the view's seed alone."""

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
    """The map that explains a picture, by the name of its mode."""
    return {config.map_mode: head_source(model, config.map_mode, superclasses)}


def further_sources(
    model: ImageClassifier, config: Config, superclasses: Mapping[int, tuple[int, ...]] | None
) -> dict[str, Source]:
    """Maps of the same head that show the object rather than what tells its class apart."""
    modes: list[Mode] = [] if config.mode == "cam" else ["saliency"]
    if superclasses is not None:
        modes.append("vanilla-superclass" if config.mode == "cam" else "jointll-superclass")
    return {mode: head_source(model, mode, superclasses) for mode in modes if mode != config.map_mode}
