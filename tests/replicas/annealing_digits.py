"""Posterior annealing for super-resolution of scikit-learn's digits, 4x4 to 8x8 pixels, in a minute on one core.

    python -m tests.replicas.annealing_digits --seeds 0 1 --out outputs/replica_annealing_digits

A seed splits the 1,797 images, values in [0, 1], into 1,200 and 597; low-resolution images are means of 2x2 pixels. The
network corrects a bicubic upsampling with three layers of 32 channels.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from tenfold.methods.posterior_annealing.settings import Config
from tenfold.models.regressors.super_resolution import SmallSuperResolver
from tests.replicas.annealing import ANNEALED, NLL, Examples, Replica, main

NUM_TRAIN = 1200
SEEDS = (0, 1)


def draw(seed: int) -> tuple[Examples, Examples]:
    """Return 1,200 and 597 pairs of images."""
    images = torch.from_numpy(load_digits().images.astype(np.float32) / 16)[:, None]
    images = images[torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))]
    every = Examples((functional.avg_pool2d(images, 2),), images)
    rows = torch.arange(len(images))
    return every.rows(rows[:NUM_TRAIN]), every.rows(rows[NUM_TRAIN:])


def _build(dropout: float) -> nn.Module:
    return SmallSuperResolver(1, upscale=2, dropout=dropout)


REPLICA = Replica(
    name="digits",
    draw=draw,
    build=_build,
    num_epochs=15,
    batch_size=32,
    learning_rate=3e-3,
    schemes={
        NLL: Config(objective="gaussian_nll"),
        "annealed l2=0.1": Config(coupling_weight=0.1),
        ANNEALED: Config(),
        "annealed p=1 l2=0.1": Config(residual_power=1.0, coupling_weight=0.1),
        "beta_nll": Config(objective="beta_nll", beta=0.5),
        "mse": Config(objective="mse"),
    },
    specified={
        NLL: ".0362 / -2.02 / .0056",
        "annealed l2=0.1": ".0312 / -2.15 / .0038",
        ANNEALED: ".0347 / -2.09 / .0035",
        "annealed p=1 l2=0.1": ".0258 / -2.19 / .0042",
    },
)

if __name__ == "__main__":
    main(REPLICA, __doc__, SEEDS)
