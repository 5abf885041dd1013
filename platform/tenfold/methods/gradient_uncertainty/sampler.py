"""The sampler: a chain that keeps a member whenever minibatch gradients cancel, and two Langevin samplers.

``triggered`` is the published rule: gradient descent; when the gradient uncertainty exceeds a threshold, the parameters
are kept and then kicked. Its members lie near modes visited by one chain and are equally weighted; they are not exact
posterior samples. ``plain`` and ``corrected`` are Langevin dynamics, whose samples are, in the limit of small steps.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from tenfold.methods.gradient_uncertainty.batches import EpochBatches, Pair, endless
from tenfold.methods.gradient_uncertainty.ghost_norms import BatchGradient, BatchGradients
from tenfold.methods.gradient_uncertainty.steps import (
    check_positive,
    draw_noise,
    hotter_share,
    langevin_step,
    triggered_langevin_step,
    variance_factor,
)

Mode = Literal["triggered", "plain", "corrected"]


class ChainError(RuntimeError):
    """Raised by a chain that diverged or kept too few members; the message names the setting to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """Settings of one chain, validated on construction."""

    mode: Mode = "triggered"
    """``triggered``; ``plain``: stochastic gradient Langevin dynamics; ``corrected``: the same, with the injected noise
    reduced by the minibatch noise."""
    lr: float = 0.01
    """Learning rate on the mean loss."""
    num_members: int = 60
    """Number K of members to keep."""
    noise_power: float = -0.25
    """Triggered: a kick displaces every parameter with a standard deviation of ``lr ** (1 + noise_power)``."""
    threshold: float = 1 / 3
    """Triggered: gradient uncertainty above which a member is kept; never exceeded from 1 on."""
    warmup: int = 300
    """Triggered: last step at which no member is kept."""
    step_size: float | None = None
    """Plain, corrected: eps; None: ``2 lr / N``, which has the drift of gradient descent at rate ``lr``."""
    temperature: float = 1.0
    """Plain, corrected: temperature; 1 is the posterior, lower is colder."""
    prior_variance: float = 1.0
    """Plain, corrected: variance of the normal prior on every parameter."""
    dataset_size: int | None = None
    """Size N of the data set; None: ``len(loader.dataset)``."""
    burn_in: float = 0.2
    """Plain, corrected: fraction of the steps, in [0, 1), before the first member can be kept."""
    seed: int = 0
    """Random seed of the noise."""
    chunk_size: int | None = None
    """Chunk size for layers that need explicit per-example gradients; None: chosen by their size."""
    random_kicks: float | None = None
    """Triggered: probability per step after the warm-up with which members are kept and kicked at random, regardless of
    the uncertainty: the ablation of the trigger. None: by uncertainty."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        for name in ("lr", "prior_variance"):
            check_positive(name, getattr(self, name))
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        if self.num_members < 1:
            raise ValueError(f"num_members must be at least 1, got {self.num_members}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0 steps, got {self.warmup}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 <= self.burn_in < 1:
            raise ValueError(f"burn_in must lie in [0, 1), got {self.burn_in}")
        if not (math.isfinite(self.noise_power) and math.isfinite(self.threshold)):
            raise ValueError(f"noise_power and threshold must be finite, got {self.noise_power} and {self.threshold}")
        for name in ("dataset_size", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.random_kicks is not None:
            if self.mode != "triggered":
                raise ValueError(
                    f"random_kicks must be None in mode {self.mode}, got {self.random_kicks}; use mode triggered"
                )
            if not 0 < self.random_kicks <= 1:
                raise ValueError(f"random_kicks must lie in (0, 1], got {self.random_kicks}")


class PosteriorSamples(NamedTuple):
    """Members kept by a chain, and its trace."""

    members: list[dict[str, Tensor]]
    """Parameters by name (those that require a gradient) of each member."""
    steps: list[int]
    """Number of updates before each member."""
    uncertainty_trace: Tensor
    """Gradient uncertainty of every step taken, float64 ``(T,)``."""


class ChainStep(NamedTuple):
    """Record of one step."""

    step: int
    """t, counted from 0."""
    loss: float
    """Mean loss of the batch before the update."""
    uncertainty: float
    kept: bool
    """Whether this step kept a member."""
    hotter: float
    """Corrected: fraction of parameters whose minibatch noise alone exceeds that of the temperature; otherwise 0."""


class GradientUncertaintySampler:
    """Runs one chain from the current parameters of a network; the network itself is left unchanged.

    Calling ``run`` or ``advance`` again continues the chain, also in another process after
    ``load_state_dict(state_dict())``. An interrupted chain equals an uninterrupted one bit for bit if the order of the
    loader is a function of the epoch (``batches.EpochBatches``, or ``set_epoch``).

    Args:
        model: Network without batch normalisation or active dropout.
        config: Settings.

    Raises:
        ValueError: The network has batch normalisation, active dropout or no parameter that requires a gradient.
    """

    def __init__(self, model: nn.Module, config: SamplerConfig) -> None:
        self.config = config
        self._model = copy.deepcopy(model)
        self._gradients = BatchGradients(self._model, chunk_size=config.chunk_size)
        self._params = {name: value for name, value in self._model.named_parameters() if value.requires_grad}
        self._generator = torch.Generator().manual_seed(config.seed)
        self._members: list[dict[str, Tensor]] = []
        self._steps: list[int] = []
        self._trace: list[float] = []
        self._position = (0, 0)  # epoch, next batch in it
        self._max_steps: int | None = None

    def run(self, loader: Iterable[Pair] | EpochBatches, max_steps: int) -> PosteriorSamples:
        """Take steps until all members are kept or ``max_steps`` are taken, including those of earlier calls.

        The loss is the mean cross-entropy.

        Args:
            loader: Iterable of (inputs ``(B, ...)``, labels int64 ``(B,)``); restarted when it ends.
            max_steps: T. Langevin modes keep the members of the steps ``round(b + i (T - b) / K)``, i = 1..K, where b
                is ``burn_in * T``.

        Returns:
            The members; fewer than requested raise a UserWarning.

        Raises:
            ValueError: As in ``advance``.
            RuntimeError: No member was kept, or the loss is not finite.
        """
        for _ in self.advance(loader, max_steps):
            pass
        wanted = self.config.num_members
        if not self._members:
            after = self._trace[self.config.warmup + 1 :]
            reached = f"reached {max(after):.3f}" if after else "was not evaluated"
            raise ChainError(
                f"no member was kept in {len(self._trace)} steps: after the warm-up of {self.config.warmup} steps the "
                f"gradient uncertainty {reached}, the threshold is {self.config.threshold:.3f}; lower threshold or "
                f"warmup, or take more steps"
            )
        if len(self._members) < wanted:
            warnings.warn(
                f"{len(self._members)} of {wanted} members were kept in {len(self._trace)} steps; take more steps or "
                f"lower the threshold",
                UserWarning,
                stacklevel=2,
            )
        return self.samples()

    def samples(self) -> PosteriorSamples:
        """Return the members and the trace so far."""
        return PosteriorSamples(list(self._members), list(self._steps), torch.tensor(self._trace, dtype=torch.float64))

    def parameters(self) -> dict[str, Tensor]:
        """Return a copy of the current parameters."""
        return {name: value.detach().clone() for name, value in self._params.items()}

    def advance(self, loader: Iterable[Pair] | EpochBatches, max_steps: int) -> Iterator[ChainStep]:
        """Take the steps of ``run`` one by one; leaving the loop pauses the chain after the yielded step.

        Raises:
            ValueError: ``max_steps`` below 1; for the Langevin modes: too few steps for the members, a data set of
                unknown size, a batch larger than it, or another ``max_steps`` than the chain started with.
            RuntimeError: The loss or its gradient is not finite: the chain diverged.
        """
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        langevin = self.config.mode != "triggered"
        kept_at = self._kept_steps(max_steps) if langevin else frozenset()
        if langevin:
            size = self._dataset_size(loader)
        if langevin and self._max_steps not in (None, max_steps):
            raise ValueError(
                f"max_steps must be {self._max_steps}, with which this chain started, got {max_steps}; the members of "
                f"mode {self.config.mode} depend on it"
            )
        self._max_steps = max_steps
        if self._done(max_steps):
            return
        device = next(iter(self._params.values())).device
        for epoch, number, (inputs, labels) in endless(loader, *self._position):
            self._position = (epoch, number + 1)
            step = len(self._trace)
            batch = self._gradients(
                inputs.to(device), labels.to(device), squares=self.config.mode == "corrected" and len(inputs) > 1
            )
            loss, value = float(batch.loss), float(batch.uncertainty.value)
            if not (math.isfinite(loss) and math.isfinite(float(batch.uncertainty.denominator))):
                raise ChainError(
                    f"the loss and its gradient must be finite, got loss {loss} at step {step}: the chain diverged; "
                    f"lower lr, step_size or the kick"
                )
            if langevin:
                hotter = self._langevin(batch, size)
                kept = step + 1 in kept_at
                if kept:
                    self._keep(step + 1, self.parameters())
            else:
                kept, hotter = self._triggered(batch, step, value), 0.0
            self._trace.append(value)
            yield ChainStep(step, loss, value, kept, hotter)
            if self._done(max_steps):
                return

    def _done(self, max_steps: int) -> bool:
        return len(self._trace) >= max_steps or len(self._members) >= self.config.num_members

    def _triggered(self, batch: BatchGradient, step: int, value: float) -> bool:
        config = self.config
        if config.random_kicks is not None:
            drawn = float(torch.rand((), generator=self._generator))
            value = math.inf if drawn < config.random_kicks else -math.inf
        before = self.parameters() if step > config.warmup and value > config.threshold else None
        moved, triggered = triggered_langevin_step(
            self._detached(), batch.mean, uncertainty=value, step=step, lr=config.lr, noise_power=config.noise_power,
            threshold=config.threshold, warmup=config.warmup, generator=self._generator,
        )  # fmt: skip
        if triggered and before is not None:
            self._keep(step, before)
        self._set(cast(Mapping[str, Tensor], moved))
        return triggered

    def _langevin(self, batch: BatchGradient, size: int) -> float:
        """Update the parameters; return the fraction of them with too much minibatch noise."""
        config, params = self.config, self._detached()
        eps = config.step_size if config.step_size is not None else 2 * config.lr / size
        gradient = {name: theta / config.prior_variance + size * batch.mean[name] for name, theta in params.items()}
        variance = None
        if config.mode == "corrected":
            variance = self._gradient_variance(batch, size)
        moved = langevin_step(
            params, gradient, step_size=eps, temperature=config.temperature, grad_variance=variance,
            noise=draw_noise(params, self._generator),
        )  # fmt: skip
        self._set(cast(Mapping[str, Tensor], moved))
        return hotter_share(variance, eps, config.temperature) if variance is not None else 0.0

    def _gradient_variance(self, batch: BatchGradient, size: int) -> dict[str, Tensor]:
        """Compute ``potential_gradient_variance`` from the sums of squares."""
        count = len(batch.squared_norms)
        factor = variance_factor(count, size)
        assert batch.squares is not None
        return {
            name: (factor / (count - 1) * (squares - count * batch.mean[name].double().square()).clamp(min=0)).to(
                batch.mean[name].dtype
            )
            for name, squares in batch.squares.items()
        }

    def _keep(self, step: int, member: dict[str, Tensor]) -> None:
        self._members.append(member)
        self._steps.append(step)

    def _detached(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._params.items()}

    def _set(self, params: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._params.items():
                value.copy_(params[name])

    def _kept_steps(self, max_steps: int) -> frozenset[int]:
        burnt, count = self.config.burn_in * max_steps, self.config.num_members
        if max_steps - burnt < count:
            raise ValueError(
                f"max_steps must leave at least {count} steps after the burn-in for {count} members, got {max_steps}, "
                f"of which {burnt:g} are burn-in"
            )
        return frozenset(round(burnt + i * (max_steps - burnt) / count) for i in range(1, count + 1))

    def _dataset_size(self, loader: Any) -> int:
        if self.config.dataset_size is not None:
            return self.config.dataset_size
        dataset = getattr(loader, "dataset", None)
        if dataset is None:
            raise ValueError(
                f"loader must have a dataset in mode {self.config.mode}, got none; set dataset_size instead"
            )
        return len(dataset)

    def state_dict(self) -> dict[str, Any]:
        """Return the full state of the chain as tensors, numbers, and lists and mappings of them."""
        return {
            "params": self.parameters(),
            "members": [dict(member) for member in self._members],
            "steps": list(self._steps),
            "uncertainty_trace": torch.tensor(self._trace, dtype=torch.float64),
            "position": list(self._position),
            "generator": self._generator.get_state(),
            "max_steps": self._max_steps,
            "fast": None if self._gradients.fast is None else sorted(self._gradients.fast),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a chain with the same network and settings.

        Raises:
            ValueError: Parameters with other names or shapes.
        """
        shapes = {name: tuple(value.shape) for name, value in self._params.items()}
        given = {name: tuple(value.shape) for name, value in state["params"].items()}
        if shapes != given:
            differing = sorted({*shapes.items()} ^ {*given.items()})
            raise ValueError(f"the state must have the parameters of the network, got a difference in {differing}")
        self._set(state["params"])
        self._members = [dict(member) for member in state["members"]]
        self._steps = [int(step) for step in state["steps"]]
        self._trace = [float(value) for value in state["uncertainty_trace"]]
        epoch, number = state["position"]
        self._position = (int(epoch), int(number))
        self._generator.set_state(state["generator"])
        self._max_steps = state["max_steps"]
        self._gradients.fast = None if state["fast"] is None else frozenset(state["fast"])
