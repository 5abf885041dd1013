"""Predictor of posterior members: class probabilities, uncertainty scores and an out-of-distribution flag."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tenfold.bundle import Bundle
from tenfold.methods.gradient_uncertainty.settings import Config, Score
from tenfold.metrics.uncertainty import SCORES, predictive_uncertainty
from tenfold.models.digit_cnn import DIGIT_SIZE, DigitCnnConfig, build_digit_cnn
from tenfold.models.dropout import shared_dropout
from tenfold.models.members import Members
from tenfold.tasks import OUTSIDE, OutsideFlag, classification
from tenfold.types import Preprocessing

MEMBER = "members."
THRESHOLD = "threshold"
_MASK_SEED = 0
"""Seed of MC dropout. Every call draws the same masks, one per pass for all images: a prediction depends neither on
earlier calls nor on the rest of the batch."""


def grey(images: Tensor) -> Tensor:
    """Convert uint8 ``(B, H, W, 3)`` to the network input ``(B, 1, H, W)`` in [0, 1], the mean over colours."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}")
    return images.float().mean(-1)[:, None] / 255


class PosteriorPredictor:
    """Mean class probabilities of the members, their disagreement, and an out-of-distribution flag.

    Args:
        network: Network with logits as output; with dropout layers for MC dropout.
        members: Parameters of K members, ``(K, ...)`` by name; one for MC dropout.
        classes: Names of the C classes.
        threshold: Score above which an image is flagged.
        score: Out-of-distribution score.
        false_positive_rate: Rate on held-out images to which the threshold was set; None: set otherwise.
        num_passes: Number of MC dropout passes; None: one pass per member.
        device: Device of the computation.
    """

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
        flag = (
            OutsideFlag(score=score, threshold=threshold, false_positive_rate=false_positive_rate)
            if false_positive_rate is not None
            else None
        )
        self.signature = classification(classes, self.preprocessing, scores=(*SCORES, OUTSIDE), flag=flag)
        self._num_passes, self._device = num_passes, torch.device(device)
        self._together = Members(self.network, self.members)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Predict uint8 images ``(B, 28, 28, 3)``.

        Returns:
            float32 on the CPU: ``probs (B, C)``, the mean of the members, and ``logits``, its logarithm; in nats
            ``predictive_entropy (B,)`` and ``mutual_information (B,)``, the part of it due to disagreement of the
            members; ``variation_ratio (B,)``; and ``outside (B,)``, 1 where the score exceeds the threshold, else 0.
        """
        probs = self.member_probs(images)
        scores = predictive_uncertainty(probs)
        mean = probs.mean(0)
        flagged = getattr(scores, self.score) > self.threshold
        answers = {
            "probs": mean,
            "logits": mean.clamp_min(torch.finfo(mean.dtype).tiny).log(),
            **{name: getattr(scores, name) for name in SCORES},
            OUTSIDE: flagged.to(mean.dtype),
        }
        return {name: value.float().cpu() for name, value in answers.items()}

    def member_probs(self, images: Tensor) -> Tensor:
        """Return the class probabilities of every member (or pass), ``(K, B, C)`` on the device of the predictor."""
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
    """Build the predictor from settings and stacked members.

    Raises:
        ValueError: The members do not fit the network.
    """
    drops = config.scheme == "mc_dropout"
    network = build_digit_cnn(model, len(classes), config.dropout if drops else 0.0)
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    given = {name: tuple(value.shape[1:]) for name, value in members.items()}
    if given != shapes:
        differing = sorted({name for name, _ in {*given.items()} ^ {*shapes.items()}})
        raise ValueError(f"members must have the parameters of the configured network, got a difference in {differing}")
    if drops:
        network.load_state_dict({name: value[0] for name, value in members.items()})
    return PosteriorPredictor(
        network, members, classes, threshold=threshold, score=config.score,
        false_positive_rate=config.false_positive_rate,
        num_passes=config.num_members if drops else None, device=device,
    )  # fmt: skip


def load(bundle: Bundle, device: str = "cpu") -> PosteriorPredictor:
    """Load the members of a bundle, with their threshold.

    Raises:
        ValueError: The members do not fit the network named by the settings of the bundle.
    """
    config = Config(**{name: value for name, value in bundle.config["method"].items() if name != "name"})
    model = DigitCnnConfig(**{**bundle.config["model"], "channels": tuple(bundle.config["model"]["channels"])})
    tensors = bundle.tensors()
    members = {name.removeprefix(MEMBER): value for name, value in tensors.items() if name.startswith(MEMBER)}
    return predictor_of(config, model, members, bundle.metadata.classes, float(tensors[THRESHOLD]), device)
