"""Two chains to compare with: Hamiltonian Monte Carlo with minibatches, and a Gaussian along gradient descent.

Both are advanced, stopped and continued as ``GradientUncertaintySampler`` is.
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
    """What the two share: parameters, a position in the data, a random stream of their own."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._model = model
        self._params: Params = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._step = 0
        self._position = (0, 0)
        self._generator = torch.Generator().manual_seed(seed)

    def advance(self, loader: EpochBatches, max_steps: int) -> Iterator[int]:
        """Number of each step taken, until ``max_steps`` are taken in all.

        Raises:
            RuntimeError: The parameters are not finite any more.
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
        raise TypeError(f"{type(self).__name__} must say how it steps")

    def _loss(self, params: Params, inputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(self._model, params, (inputs,)), labels)

    def _check_finite(self) -> None:
        if not all(bool(value.isfinite().all()) for value in self._params.values()):
            raise ChainError(
                f"the parameters are not finite at step {self._step}: the chain diverged; lower learning_rate"
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
    """Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox and Guestrin, 2014), steps by the library posteriors.

    Args:
        model: Gives logits.
        num_examples: N: the posterior's temperature is 1 / N on the mean loss.
        learning_rate: Steps move, in the long run, as far as those of gradient descent at this rate.
        friction: Share of the momentum that each step takes away.
        prior_variance: Of the normal prior.
        num_members, burn_in: As in the settings.
        seed: Of the noise.
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
        # In the library a step of length h moves by h m, adds h times the gradient to m and takes h alpha m away: in
        # the long run it moves by h / alpha times the gradient.
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
    """Gradient descent whose path after the burn-in is read as a Gaussian (Maddox et al., NeurIPS 2019).

    Args:
        model: Gives logits.
        learning_rate: Of gradient descent.
        num_members: Draws that are made at the end.
        rank: Columns of the low-rank part: the last deviations from the running mean.
        burn_in: Share of the steps before the first moment is taken.
        steps_between: Steps from one moment to the next.
        seed: Of the draws.
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
            self._take_moment()

    def _take_moment(self) -> None:
        self._count += 1
        for name, value in self._params.items():
            self._mean[name] = self._mean[name] + (value - self._mean[name]) / self._count
            self._squares[name] = self._squares[name] + (value.square() - self._squares[name]) / self._count
        self._deviations = [
            *self._deviations, {name: value - self._mean[name] for name, value in self._params.items()}
        ][-self._rank :]  # fmt: skip

    @property
    def members(self) -> list[Params]:
        """Draws from the Gaussian; the same at every call.

        Raises:
            RuntimeError: Fewer than two moments were taken.
        """
        columns = len(self._deviations)
        if columns < 2:
            raise ChainError(f"swag needs at least 2 moments after the burn-in, got {columns}: take more steps")
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
    """Draws from the Gaussian that fits the loss around a trained network, in its last layer (Daxberger et al., 2021).

    Args:
        model: Trained, gives logits; its last layer is linear.
        batches: What it was trained on.
        num_members: Draws K.
        seed: Of the draws.

    Raises:
        ValueError: The extra is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from laplace import Laplace
    except ModuleNotFoundError as error:
        raise ValueError("scheme laplace needs the extra: pip install 'tenfold[laplace]'") from error
    model = model.eval()
    fitted: Any = Laplace(model, "classification", subset_of_weights="last_layer", hessian_structure="kron")
    fitted.fit(batches)
    fitted.optimize_prior_precision(pred_type="glm", method="marglik")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draws = fitted.sample(num_members).detach()
    named = {name: value.detach().clone() for name, value in model.named_parameters()}
    # The library works on a copy, so that the last layer must be sought among the copy's parameters.
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
        warnings.simplefilter("ignore")  # its classes are noisy about the next version of a dependency
        from posteriors.sgmcmc import sghmc
    return sghmc
