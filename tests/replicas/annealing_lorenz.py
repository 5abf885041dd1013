"""Posterior annealing on noisy windows of the Lorenz attractor, with the usual calibration baselines.

    python -m tests.replicas.annealing_lorenz --seeds 0 1 2 3 4 5 --out outputs/replica_annealing_lorenz

96 training and 48 test windows of 64 samples; the noise of a coordinate has std 1 + 3 |coordinate| / 20. States and
inputs are standardised by the training states. Three convolutions of 32 channels, 20 epochs: half a minute per seed for
all ten schemes on one core.
"""

from functools import cache

import torch
from torch import nn

from tenfold.data.embedded.physics.lorenz import LorenzConfig, lorenz_windows
from tenfold.methods.posterior_annealing.settings import Config
from tenfold.models.regressors.cnn1d import Cnn1dRegressor
from tests.replicas.annealing import ANNEALED, NLL, Examples, Replica, main

SEEDS = (0, 1, 2, 3, 4, 5)
FAST, FASTER = 0.05, 0.03
"""Test errors in units of the states' variance; the specification counts epochs until the first."""


@cache
def draw(seed: int) -> tuple[Examples, Examples]:
    """Return 96 and 48 windows ``(3, 64)``."""
    config = LorenzConfig(seed=seed)
    pairs = [[torch.from_numpy(each) for each in lorenz_windows(config, part)] for part in ("train", "test")]
    states = pairs[0][1]
    mean, std = states.mean((0, 2))[:, None], states.std((0, 2), correction=0)[:, None]
    learnt, test = (Examples(((noisy - mean) / std,), (true - mean) / std) for noisy, true in pairs)
    return learnt, test


def _build(dropout: float) -> nn.Module:
    return Cnn1dRegressor(3, 3, widths=(32, 32, 32), dropout=dropout)


REPLICA = Replica(
    name="lorenz",
    draw=draw,
    build=_build,
    num_epochs=20,
    batch_size=8,
    learning_rate=3e-3,
    schemes={
        NLL: Config(objective="gaussian_nll"),
        ANNEALED: Config(),
        "annealed l2=0.1": Config(coupling_weight=0.1),
        "sigma_scaling": Config(objective="gaussian_nll", recalibration="sigma_nll"),
        "mc_dropout": Config(objective="gaussian_nll", uncertainty="mc_dropout", num_passes=20),
        "deep_ensemble": Config(objective="gaussian_nll", uncertainty="deep_ensemble", num_members=3),
        "beta_nll": Config(objective="beta_nll", beta=0.5),
        "tta": Config(objective="gaussian_nll", uncertainty="tta", num_passes=50),
        "isotonic": Config(objective="gaussian_nll", recalibration="isotonic"),
        "mse": Config(objective="mse"),
    },
    thresholds=(FAST, FASTER),
    specified={
        NLL: ".0250 / -1.710 / .0035",
        ANNEALED: ".0188 / -1.726 / .0024",
        "annealed l2=0.1": ".0197 / / .0036",
        "sigma_scaling": "/ / .0049",
        "mc_dropout": ".0392 / -1.22 / .071",
        "deep_ensemble": ".0220 / -1.754 / .0077",
    },
)

if __name__ == "__main__":
    main(REPLICA, __doc__, SEEDS)
