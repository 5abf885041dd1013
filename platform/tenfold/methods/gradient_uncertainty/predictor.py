"""Members of a posterior, ready to answer with probabilities and with what they don't know."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tenfold.bundle import Bundle
from tenfold.methods.gradient_uncertainty.settings import Config, Score
from tenfold.metrics.uncertainty import predictive_uncertainty
from tenfold.models.digit_cnn import DIGIT_SIZE, DigitCnnConfig, build_digit_cnn
from tenfold.models.dropout import shared_dropout
from tenfold.models.members import Members
from tenfold.types import OutsideFlag, Preprocessing, Task

MEMBER = "members."
THRESHOLD = "threshold"
_MASK_SEED = 0
"""Dropout draws the same masks at every call, one for all pictures of a pass: what a picture is answered depends
neither on when it is asked nor on what else is in the batch."""


def grey(images: Tensor) -> Tensor:
    """uint8 ``(B, H, W, 3)`` to the network's ``(B, 1, H, W)`` in [0, 1], the mean of the colours."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}")
    return images.float().mean(-1)[:, None] / 255


class PosteriorPredictor:
    """Mean probabilities of the members, how much they disagree, and whether a picture belongs.

    Args:
        network: Gives logits; with dropout for MC dropout.
        members: Parameters of K members, ``(K, ...)`` by name; one for MC dropout.
        classes: Names of the C classes.
        threshold: Of the score above which a picture is flagged.
        score: Which score.
        false_positive_rate: Of held-out known pictures, what the threshold was set to; None: it was set otherwise.
        num_passes: Passes with dropout; None: the members answer once each.
        device: Where it computes.
    """

    task = Task.CLASSIFICATION
    preprocessing = Preprocessing(image_size=DIGIT_SIZE)

    def __init__(
        self,
        network: nn.Module,
        members: Mapping[str, Tensor],
        classes: tuple[str, ...],
        *,
        threshold: float = math.inf,
        score: Score = "predictive_entropy",
        false_positive_rate: float | None = None,
        num_passes: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device).eval()
        self.members = {name: value.to(device) for name, value in members.items()}
        self.classes, self.threshold, self.score = classes, threshold, score
        self.flag = (
            OutsideFlag(score=score, threshold=threshold, false_positive_rate=false_positive_rate)
            if false_positive_rate is not None
            else None
        )
        self._num_passes, self._device = num_passes, torch.device(device)
        self._together = Members(self.network, self.members)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """For uint8 pictures ``(B, 28, 28, 3)``, float32 on the CPU.

        Returns:
            ``probs (B, C)``, the members' mean, and ``logits``, its logarithm; in nats ``predictive_entropy (B,)`` and
            ``mutual_information (B,)``, the part of it that is due to the members' disagreement; ``variation_ratio
            (B,)``; and ``outside (B,)``, 1 where the score exceeds the threshold, else 0.
        """
        probs = self.member_probs(images)
        scores = predictive_uncertainty(probs)
        mean = probs.mean(0)
        flagged = getattr(scores, self.score) > self.threshold
        answers = {
            "probs": mean,
            "logits": mean.clamp_min(torch.finfo(mean.dtype).tiny).log(),
            "predictive_entropy": scores.predictive_entropy,
            "mutual_information": scores.mutual_information,
            "variation_ratio": scores.variation_ratio,
            "outside": flagged.to(mean.dtype),
        }
        return {name: value.float().cpu() for name, value in answers.items()}

    def member_probs(self, images: Tensor) -> Tensor:
        """Class probabilities of every member (or pass), ``(K, B, C)`` on the predictor's device."""
        pixels = grey(images.to(self._device))
        if self._num_passes is None:
            return self._together(pixels).softmax(-1)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), shared_dropout(self.network):
            torch.manual_seed(_MASK_SEED)
            return torch.stack([self.network(pixels).softmax(1) for _ in range(self._num_passes)])


def predictor_of(
    config: Config, model: DigitCnnConfig, members: Mapping[str, Tensor], classes: tuple[str, ...], threshold: float,
    device: str = "cpu",
) -> PosteriorPredictor:  # fmt: skip
    """The predictor that settings and stacked members make.

    Raises:
        ValueError: The members are not of this network.
    """
    drops = config.scheme == "mc_dropout"
    network = build_digit_cnn(model, len(classes), config.dropout if drops else 0.0)
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    if {name: tuple(value.shape[1:]) for name, value in members.items()} != shapes:
        raise ValueError("the members don't fit the network that the settings name")
    if drops:
        network.load_state_dict({name: value[0] for name, value in members.items()})
    return PosteriorPredictor(
        network, members, classes, threshold=threshold, score=config.score,
        false_positive_rate=config.false_positive_rate,
        num_passes=config.num_members if drops else None, device=device,
    )  # fmt: skip


def load(bundle: Bundle, device: str = "cpu") -> PosteriorPredictor:
    """The members that a bundle holds, with their threshold.

    Raises:
        ValueError: The members don't fit the network that the bundle's settings name.
    """
    config = Config(**{name: value for name, value in bundle.config["method"].items() if name != "name"})
    model = DigitCnnConfig(**{**bundle.config["model"], "channels": tuple(bundle.config["model"]["channels"])})
    tensors = bundle.tensors()
    members = {name.removeprefix(MEMBER): value for name, value in tensors.items() if name.startswith(MEMBER)}
    return predictor_of(config, model, members, bundle.metadata.classes, float(tensors[THRESHOLD]), device)
