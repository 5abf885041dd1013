"""Baselines: SGHMC, SWAG and the last-layer Laplace approximation.

The two chains advance, stop and resume like ``GradientUncertaintySampler``.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tenfold.methods.gradient_uncertainty.batches import EpochBatches, ShuffledBatches, endless
from tenfold.methods.gradient_uncertainty.sampler import ChainError

Params = dict[str, Tensor]


class _Walk:
    """State shared by both chains: parameters, position in the data, random generator."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._model = model
        self._params: Params = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._step = 0
        self._position = (0, 0)
        self._generator = torch.Generator().manual_seed(seed)

    def advance(self, loader: EpochBatches, max_steps: int) -> Iterator[int]:
        """Take steps and yield the number of each, up to ``max_steps`` in total.

        Raises:
            RuntimeError: The parameters are no longer finite.
        """
        if self._step >= max_steps:
            return
        for epoch, number, (inputs, labels) in endless(loader, *self._position):
            self._position = (epoch, number + 1)
            self._update(inputs, labels, max_steps)
            self._step += 1
            if self._step % 50 == 0 or self._step == max_steps:
                self._check_finite()
            yield self._step
            if self._step >= max_steps:
                return

    def _update(self, inputs: Tensor, labels: Tensor, max_steps: int) -> None:
        raise TypeError(f"{type(self).__name__} must implement _update")

    def _loss(self, params: Params, inputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(self._model, params, (inputs,)), labels)

    def _check_finite(self) -> None:
        if not all(bool(value.isfinite().all()) for value in self._params.values()):
            raise ChainError(
                f"the parameters must be finite, got NaN or infinity at step {self._step}: the chain diverged; lower "
                f"learning_rate"
            )

    def _base_state(self) -> dict[str, Any]:
        return {
            "params": self._params,
            "step": self._step,
            "position": list(self._position),
            "generator": self._generator.get_state(),
        }

    def _load_base(self, state: Mapping[str, Any]) -> None:
        self._params = dict(state["params"])
        self._step = int(state["step"])
        epoch, number = state["position"]
        self._position = (int(epoch), int(number))
        self._generator.set_state(state["generator"])


class SghmcChain(_Walk):
    """Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox and Guestrin, 2014), with the steps of ``posteriors``.

    Args:
        model: Network with logits as output.
        num_examples: N; the temperature of the posterior on the mean loss is 1 / N.
        learning_rate: Learning rate of gradient descent with the same long-run drift.
        friction: Fraction of the momentum removed per step.
        prior_variance: Variance of the normal prior.
        num_members, burn_in: As in ``Config``.
        seed: Random seed of the noise.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_examples: int,
        learning_rate: float,
        friction: float,
        prior_variance: float,
        num_members: int,
        burn_in: float,
        seed: int,
    ) -> None:
        super().__init__(model, seed)
        self._momenta: Params = {name: torch.zeros_like(value) for name, value in self._params.items()}
        # In posteriors a step of size h moves by h m, adds h times the gradient to m and subtracts h alpha m: its
        # long-run drift is h / alpha times the gradient.
        self._h = math.sqrt(learning_rate * friction)
        self._alpha = friction / self._h
        self._size, self._prior = num_examples, prior_variance
        self._num_members, self._burn_in = num_members, burn_in
        self.members: list[Params] = []

    def _update(self, inputs: Tensor, labels: Tensor, max_steps: int) -> None:
        sghmc = _library()

        def log_posterior(params: Params, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            squares = sum((value.square().sum() for value in params.values()), torch.zeros(()))
            return -self._loss(params, *batch) - squares / (2 * self._prior * self._size), torch.zeros(())

        state = sghmc.SGHMCState(self._params, self._momenta, torch.zeros(()), torch.tensor(self._step))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=self._generator)))
            state, _ = sghmc.update(
                state, (inputs, labels), log_posterior, self._h, alpha=self._alpha, temperature=1 / self._size
            )
        self._params, self._momenta = dict(state.params), dict(state.momenta)
        begin = self._burn_in * max_steps
        due = {round(begin + i * (max_steps - begin) / self._num_members) for i in range(1, self._num_members + 1)}
        if self._step + 1 in due:
            self.members.append({name: value.clone() for name, value in self._params.items()})

    def state_dict(self) -> dict[str, Any]:
        return {**self._base_state(), "momenta": self._momenta, "members": self.members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._load_base(state)
        self._momenta = dict(state["momenta"])
        self.members = [dict(member) for member in state["members"]]


class SwagChain(_Walk):
    """SWAG: a Gaussian fitted to the trajectory of gradient descent after the burn-in (Maddox et al., NeurIPS 2019).

    Args:
        model: Network with logits as output.
        learning_rate: Learning rate of gradient descent.
        num_members: Number of draws at the end.
        rank: Columns of the low-rank covariance, the most recent deviations from the running mean.
        burn_in: Fraction of the steps before the first moment update.
        steps_between: Steps between moment updates.
        seed: Random seed of the draws.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        num_members: int,
        rank: int,
        burn_in: float,
        steps_between: int,
        seed: int,
    ) -> None:
        super().__init__(model, seed)
        self._rate, self._num_members, self._rank = learning_rate, num_members, rank
        self._burn_in, self._steps_between = burn_in, steps_between
        self._count = 0
        self._mean: Params = {name: torch.zeros_like(value) for name, value in self._params.items()}
        self._squares: Params = {name: torch.zeros_like(value) for name, value in self._params.items()}
        self._deviations: list[Params] = []

    def _update(self, inputs: Tensor, labels: Tensor, max_steps: int) -> None:
        gradients = torch.func.grad(self._loss)(self._params, inputs, labels)
        self._params = {name: value - self._rate * gradients[name] for name, value in self._params.items()}
        step = self._step + 1
        if step > self._burn_in * max_steps and (max_steps - step) % self._steps_between == 0:
            self._update_moments()

    def _update_moments(self) -> None:
        self._count += 1
        for name, value in self._params.items():
            self._mean[name] = self._mean[name] + (value - self._mean[name]) / self._count
            self._squares[name] = self._squares[name] + (value.square() - self._squares[name]) / self._count
        self._deviations = [
            *self._deviations, {name: value - self._mean[name] for name, value in self._params.items()}
        ][-self._rank :]  # fmt: skip

    @property
    def members(self) -> list[Params]:
        """Draws from the Gaussian; the same at every access.

        Raises:
            RuntimeError: Fewer than two moment updates.
        """
        columns = len(self._deviations)
        if columns < 2:
            raise ChainError(f"swag must take at least 2 moments after the burn-in, got {columns}; take more steps")
        generator = torch.Generator().manual_seed(self._generator.initial_seed())
        drawn = []
        for _ in range(self._num_members):
            weights = torch.randn(columns, generator=generator) / math.sqrt(2 * (columns - 1))
            member = {}
            for name, mean in self._mean.items():
                variance = (self._squares[name] - mean.square()).clamp_min(0)
                noise = torch.randn(mean.shape, generator=generator) * (variance / 2).sqrt()
                low_rank = sum(
                    (weight * each[name] for weight, each in zip(weights, self._deviations, strict=True)),
                    torch.zeros_like(mean),
                )
                member[name] = mean + noise + low_rank
            drawn.append(member)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._base_state(),
            "count": self._count,
            "mean": self._mean,
            "squares": self._squares,
            "deviations": self._deviations,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._load_base(state)
        self._count = int(state["count"])
        self._mean, self._squares = dict(state["mean"]), dict(state["squares"])
        self._deviations = [dict(each) for each in state["deviations"]]


def laplace_members(model: nn.Module, batches: ShuffledBatches, num_members: int, seed: int) -> list[Params]:
    """Draw members from the last-layer Laplace approximation of a trained network (Daxberger et al., 2021).

    Args:
        model: Trained network with logits as output; its last layer is linear.
        batches: Its training data.
        num_members: Number of draws K.
        seed: Random seed of the draws.

    Raises:
        ValueError: The optional dependency laplace-torch is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from laplace import Laplace
    except ModuleNotFoundError as error:
        raise ValueError("scheme laplace must have laplace-torch, got none; pip install 'tenfold[laplace]'") from error
    model = model.eval()
    fitted: Any = Laplace(model, "classification", subset_of_weights="last_layer", hessian_structure="kron")
    fitted.fit(batches)
    fitted.optimize_prior_precision(pred_type="glm", method="marglik")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draws = fitted.sample(num_members).detach()
    named = {name: value.detach().clone() for name, value in model.named_parameters()}
    # laplace-torch works on a copy of the model: look up the last layer among the parameters of the copy.
    drawn = {id(value) for value in fitted.model.last_layer.parameters()}
    last = [name for name, value in fitted.model.model.named_parameters() if id(value) in drawn]
    members = []
    for draw in draws:
        member, start = dict(named), 0
        for name in last:
            length = named[name].numel()
            member[name] = draw[start : start + length].view_as(named[name]).clone()
            start += length
        members.append(member)
    return members


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of its dependencies
        from posteriors.sgmcmc import sghmc
    return sghmc
