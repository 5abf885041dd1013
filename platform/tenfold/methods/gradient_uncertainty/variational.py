"""Bayes by backprop: a mean-field Gaussian posterior, trained by gradient descent on the evidence lower bound (ELBO).

Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight Uncertainty in Neural Networks", ICML 2015. Their prior is a
mixture of two Gaussians; here it is a single Gaussian, for which the divergence has a closed form.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

Params = dict[str, Tensor]


def gaussian_divergence(mean: Tensor, std: Tensor, prior_variance: float) -> Tensor:
    """Return ``KL(N(mean, std^2) || N(0, prior_variance))``, summed over all elements, in nats, shape ``()``.

    Args:
        mean: Means of any shape.
        std: Standard deviations of the same shape; values that are not positive give NaN or infinity.
        prior_variance: Variance of the zero-mean normal prior.

    Raises:
        ValueError: Different shapes, or a variance that is not positive.
    """
    if mean.shape != std.shape:
        # (P,) against (P, 1) would broadcast and count every weight P times.
        raise ValueError(f"mean and std must have one shape, got {tuple(mean.shape)} and {tuple(std.shape)}")
    if not (prior_variance > 0 and math.isfinite(prior_variance)):
        raise ValueError(f"prior_variance must be positive and finite, got {prior_variance}")
    squares = (mean.square() + std.square()) / prior_variance
    return ((squares - 1 + math.log(prior_variance)) / 2 - std.log()).sum()


class MeanFieldNetwork(nn.Module):
    """A network with a Gaussian over every parameter; each forward pass draws all parameters once.

    Args:
        network: Network whose parameters initialise the means.
        initial_std: Initial standard deviation of every Gaussian, positive.

    Raises:
        ValueError: ``initial_std`` is not positive, or the network has buffers, which have no distribution.
    """

    def __init__(self, network: nn.Module, initial_std: float) -> None:
        super().__init__()
        if not (initial_std > 0 and math.isfinite(initial_std)):
            raise ValueError(f"initial_std must be positive and finite, got {initial_std}")
        buffers = [name for name, _ in network.named_buffers()]
        if buffers:
            raise ValueError(f"network must have no buffers, got {buffers}")
        self.mean = copy.deepcopy(network)
        self.rho = copy.deepcopy(network)
        """Copy of the network whose parameters are rho; the standard deviation is softplus(rho)."""
        with torch.no_grad():
            for value in self.rho.parameters():
                value.fill_(math.log(math.expm1(initial_std)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the network for one draw of the parameters from torch's global generator."""
        drawn = {
            name: mean + std * torch.randn_like(mean)
            for (name, mean), std in zip(self.mean.named_parameters(), self.stds().values(), strict=True)
        }
        return functional_call(self.mean, drawn, (inputs,))

    def divergence(self, prior_variance: float) -> Tensor:
        """Return the KL divergence to the prior ``N(0, prior_variance)`` over all parameters, in nats, shape ``()``."""
        pairs = zip(self.mean.parameters(), self.stds().values(), strict=True)
        return torch.stack([gaussian_divergence(mean, std, prior_variance) for mean, std in pairs]).sum()

    def stds(self) -> Params:
        """Return the standard deviations by parameter name."""
        return {name: functional.softplus(rho) for name, rho in self.rho.named_parameters()}

    @torch.no_grad()
    def draws(self, num_members: int, seed: int) -> list[Params]:
        """Draw ``num_members`` sets of parameters by name; deterministic given the seed.

        Raises:
            ValueError: ``num_members`` below 1.
        """
        if num_members < 1:
            raise ValueError(f"num_members must be at least 1, got {num_members}")
        generator = torch.Generator().manual_seed(seed)
        stds = self.stds()
        return [
            {
                name: mean + stds[name] * torch.randn(mean.shape, generator=generator).to(mean)
                for name, mean in self.mean.named_parameters()
            }
            for _ in range(num_members)
        ]
