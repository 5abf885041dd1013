"""Predictor of a trained regressor: mean, std and intervals."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from tenfold.bundle import Bundle
from tenfold.methods.posterior_annealing.settings import Config, Uncertainty
from tenfold.metrics.regression.moments import predictive_moments
from tenfold.metrics.regression.recalibration import IsotonicCalibrator
from tenfold.models.dropout import shared_dropout
from tenfold.models.members import Members
from tenfold.models.regressors.build import RegressorConfig, build_regressor
from tenfold.tasks import LOWER, UPPER, Slot, regression

TARGET_MEAN, TARGET_STD, SCALE = "target.mean", "target.std", "target.scale"
"""Bundle tensors besides the weights: standardisation of the targets, and the factor of every std."""
OBSERVED, EXPECTED = "isotonic.observed", "isotonic.expected"
MEMBER = "member{}."
PARTS = ("aleatoric", "epistemic")
"""Outputs that make up the std."""
_NOISE_SEED = 0
"""Seed of MC dropout and input noise. Every call draws the same numbers, one draw for all examples: a prediction
depends neither on earlier calls nor on the rest of the batch."""


class RegressionEnsemble:
    """One or several networks whose prediction is a Gaussian with the moments of their mixture, in target units.

    Args:
        networks: One network or the members of an ensemble; each returns mean and log-variance of standardised targets.
        inputs: Its inputs, in the order of the arguments of the networks.
        classes: Names of the target channels.
        mean, std: Mean and std of the training targets, ``(C,)``.
        uncertainty: Source of the variance.
        num_passes, input_noise: As in ``Config``.
        scale: Factor of every std (sigma scaling); for a network without a variance head the std itself, in units of
            the std of the targets.
        homoscedastic: Whether the std is ``scale`` everywhere.
        calibrator: Map from nominal to calibrated interval levels; None: the levels of the Gaussian.
        target_shape: Shape of one target, and None, as in ``tenfold.tasks.regression``.
        device: Device of the computation.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        *,
        inputs: tuple[Slot, ...],
        classes: tuple[str, ...],
        mean: Tensor,
        std: Tensor,
        uncertainty: Uncertainty = "head",
        num_passes: int = 30,
        input_noise: float = 0.05,
        scale: float = 1.0,
        homoscedastic: bool = False,
        calibrator: IsotonicCalibrator | None = None,
        target_shape: Sequence[int] | None = None,
        device: str = "cpu",
    ) -> None:
        self.networks = [network.to(device).eval() for network in networks]
        self.inputs, self.classes = inputs, classes
        self.signature = regression(classes, inputs, target_shape, PARTS)
        self.mean, self.std = mean.to(device), std.to(device)
        self.uncertainty, self.num_passes, self.input_noise = uncertainty, num_passes, input_noise
        self.scale, self.homoscedastic, self.calibrator = scale, homoscedastic, calibrator
        self._device = torch.device(device)
        self._members = Members.of(self.networks) if len(self.networks) > 1 else None

    def __call__(self, *, level: float | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Return ``mean``, ``std``, and the std due to noise (``aleatoric``) and to the model (``epistemic``).

        Args:
            level: Probability in (0, 1); adds ``lower`` and ``upper``, as in ``interval``.
            **inputs: Batch of each input by name.

        Returns:
            float32 ``(B, C, ...)`` on the CPU in target units; ``std``^2 = ``aleatoric``^2 + ``epistemic``^2.

        Raises:
            ValueError: An input is missing, unknown, or has the wrong dtype or shape, or a level outside (0, 1).
        """
        self.signature.check_inputs(inputs)
        tensors = [inputs[slot.name].to(self._device) for slot in self.inputs]
        with torch.inference_mode():
            means, variances = self._passes(tensors)
            moments = predictive_moments(means, variances)
            channels = (-1, *(1,) * (means.ndim - 3))
            unit = self.std.view(channels)
            answers = {"mean": moments.mean * unit + self.mean.view(channels)}
            for name, variance in (
                ("std", moments.total), ("aleatoric", moments.aleatoric), ("epistemic", moments.epistemic),
            ):  # fmt: skip
                answers[name] = variance.clamp_min(0).sqrt() * unit * self.scale
        outputs = {name: value.float().cpu() for name, value in answers.items()}
        if level is not None:
            outputs[LOWER], outputs[UPPER] = self.interval(outputs, level)
        return outputs

    def interval(self, outputs: Mapping[str, Tensor], level: float) -> tuple[Tensor, Tensor]:
        """Return the central interval that should contain the target with probability ``level``.

        Args:
            outputs: Result of a call.
            level: Probability in (0, 1).

        Returns:
            Lower and upper end, each with the shape of ``mean``.

        Raises:
            ValueError: A level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}")
        nominal = self.nominal(torch.tensor(level, dtype=torch.float64))
        # The lower tail: near 1, 0.5 + nominal / 2 would round to 1, and the interval be infinite.
        half_width = -torch.special.ndtri((1 - nominal) / 2).item() * outputs["std"]
        return outputs["mean"] - half_width, outputs["mean"] + half_width

    def nominal(self, levels: Tensor) -> Tensor:
        """Return the Gaussian levels whose intervals contain the target with the given probabilities; same shape."""
        if self.calibrator is None:
            return levels
        # Intervals stay finite where the calibrated level is 1.
        return self.calibrator.transform(levels).clamp(1e-6, 1 - 1e-6)

    def _passes(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return means and variances of standardised targets, each ``(passes, B, C, ...)``."""
        if self.uncertainty in ("head", "deep_ensemble"):
            if self._members is not None:
                means, log_variances = self._members(*inputs)
            else:
                mean, log_variance = self.networks[0](*inputs)
                means, log_variances = mean[None], log_variance[None]
        else:
            means, log_variances = self._random_passes(inputs)
        variances = torch.ones_like(means) if self.homoscedastic else log_variances.exp().expand_as(means)
        return means, variances

    def _random_passes(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        network, drops = self.networks[0], self.uncertainty == "mc_dropout"
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(_NOISE_SEED)
            with shared_dropout(network) if drops else nullcontext():
                answers = [network(*(inputs if drops else self._perturbed(inputs))) for _ in range(self.num_passes)]
        means, log_variances = zip(*answers, strict=True)
        return torch.stack(means), torch.stack(log_variances)

    def _perturbed(self, inputs: list[Tensor]) -> list[Tensor]:
        return [_perturbed(each, self.input_noise) if each.is_floating_point() else each for each in inputs]


def _perturbed(values: Tensor, fraction: float) -> Tensor:
    """Add noise scaled by the largest absolute value of each example; one draw for all examples."""
    largest = values.abs().reshape(len(values), -1).amax(1).view(-1, *(1,) * (values.ndim - 1))
    return values + fraction * largest * torch.randn_like(values[:1])


def load(bundle: Bundle, device: str = "cpu") -> RegressionEnsemble:
    """Load the networks of a bundle.

    Raises:
        ValueError: The weights do not fit the network named by the settings of the bundle.
    """
    settings = {name: value for name, value in bundle.config["method"].items() if name != "name"}
    config = Config(**settings)
    signature, tensors = bundle.metadata.signature, bundle.tensors()
    num_members = 1 + max(
        int(name.split(".")[0].removeprefix("member")) for name in tensors if name.startswith("member")
    )
    networks = []
    for member in range(num_members):
        prefix = MEMBER.format(member)
        network = build_regressor(RegressorConfig(**bundle.config["model"]), signature.inputs, len(signature.columns))
        try:
            network.load_state_dict(
                {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            )
        except RuntimeError as error:
            raise ValueError(
                f"weights in {bundle.folder} must fit the network {bundle.config['model']['name']!r}: {error}"
            ) from error
        networks.append(network)
    calibrator = None
    if OBSERVED in tensors:
        calibrator = IsotonicCalibrator().fit(tensors[EXPECTED].numpy(), tensors[OBSERVED].numpy())
    return RegressionEnsemble(
        networks,
        inputs=signature.inputs,
        classes=signature.columns,
        mean=tensors[TARGET_MEAN],
        std=tensors[TARGET_STD],
        uncertainty=config.uncertainty,
        num_passes=config.num_passes,
        input_noise=config.input_noise,
        scale=float(tensors[SCALE]),
        homoscedastic=config.objective == "mse",
        calibrator=calibrator,
        target_shape=next(slot.shape for slot in signature.outputs if slot.name == "mean"),
        device=device,
    )
