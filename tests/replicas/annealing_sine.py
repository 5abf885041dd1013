"""Posterior annealing on a noisy sine: variants of the loss and the strongest baselines, in minutes on one core.

    python -m tests.replicas.annealing_sine --seeds 0 1 2 --out outputs/replica_annealing_sine

x ~ U(0, 10), y = 0.8 sin(pi x) + (0.02 + 0.008 x) N(0, 1); the network sees x / 5 - 1 and has two layers of 64 tanh
units. Its first layer is initialised with high frequencies; otherwise 150 epochs would not fit the five periods.
"""

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.methods.posterior_annealing.settings import Config
from tenfold.models.regressors.mlp import MlpRegressor
from tests.replicas.annealing import ANNEALED, NLL, Examples, Replica, main

NUM_TRAIN, NUM_TEST = 1000, 2000
FIRST_LAYER_RANGE = 8.0
SEEDS = (0, 1, 2)


def draw(seed: int) -> tuple[Examples, Examples]:
    """Return 1,000 training and 2,000 test points."""
    random = np.random.default_rng(seed)

    def points(num: int) -> Examples:
        x = random.uniform(0, 10, (num, 1))
        targets = 0.8 * np.sin(np.pi * x) + (0.02 + 0.008 * x) * random.standard_normal((num, 1))
        return Examples((_float32(x / 5 - 1),), _float32(targets))

    return points(NUM_TRAIN), points(NUM_TEST)


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _build(dropout: float) -> nn.Module:
    return MlpRegressor(1, 1, first_layer_range=FIRST_LAYER_RANGE, dropout=dropout)


REPLICA = Replica(
    name="sine",
    draw=draw,
    build=_build,
    num_epochs=150,
    batch_size=100,
    learning_rate=5e-3,
    schemes={
        NLL: Config(objective="gaussian_nll"),
        "annealed l2=0.1": Config(coupling_weight=0.1),
        ANNEALED: Config(),
        "annealed l2=0": Config(coupling_weight=0.0),
        "annealed l1=0": Config(residual_weight=0.0),
        "annealed end=0.6": Config(end=0.6),
        "annealed exponential": Config(schedule="exponential", rate=6.0),
        "beta_nll": Config(objective="beta_nll", beta=0.5),
        "mse": Config(objective="mse"),
    },
    specified={
        NLL: ".0705 / -1.858 / .0287",
        "annealed l2=0.1": ".0169 / -2.114 / .0076",
        ANNEALED: ".0290 / -2.057 / .0106",
        "annealed l2=0": ".0158 / -2.076 / .0055",
        "annealed l1=0": ".0667 / -1.899 / .0406",
        "annealed end=0.6": ".0447 / -2.040 / .0209",
        "annealed exponential": ".0587 / -1.909 / .0367",
        "beta_nll": ".0110 / -2.170 / .0027",
        "mse": ".0053",
    },
)

if __name__ == "__main__":
    main(REPLICA, __doc__, SEEDS)
