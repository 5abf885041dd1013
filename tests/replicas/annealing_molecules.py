"""Posterior annealing for a property of simulated molecules, where only parity with the likelihood is required.

    python -m tests.replicas.annealing_molecules --seeds 0 1 --out outputs/replica_annealing_molecules

1,200 training and 600 test molecules of 3 to 6 atoms; the property is standardised by the training values. An EGNN with
three layers of width 32 and attention, 20 epochs: a few minutes on one core.
"""

from functools import cache

import torch
from torch import nn

from tenfold.data.embedded.physics.molecules import NUM_FEATURES, MoleculesConfig, molecule_inputs, simulate_molecules
from tenfold.data.regression import Part
from tenfold.methods.posterior_annealing.settings import Config
from tenfold.models.regressors.egnn import EgnnRegressor
from tests.replicas.annealing import ANNEALED, NLL, Examples, Replica, main

SEEDS = (0, 1)


@cache
def draw(seed: int) -> tuple[Examples, Examples]:
    """Return 1,200 and 600 molecules."""
    config = MoleculesConfig(seed=seed)

    def molecules(part: Part) -> Examples:
        simulated, values = simulate_molecules(config, part)
        inputs = molecule_inputs(simulated)
        names = ("features", "positions", "n_atoms")
        return Examples(tuple(torch.from_numpy(inputs[name]) for name in names), torch.from_numpy(values)[:, None])

    learnt, test = molecules("train"), molecules("test")
    mean, std = learnt.targets.mean(), learnt.targets.std(correction=0)
    return Examples(learnt.inputs, (learnt.targets - mean) / std), Examples(test.inputs, (test.targets - mean) / std)


def _build(dropout: float) -> nn.Module:
    return EgnnRegressor(NUM_FEATURES, 1, width=32, num_layers=3, attention=True, dropout=dropout)


REPLICA = Replica(
    name="molecules",
    draw=draw,
    build=_build,
    num_epochs=20,
    batch_size=50,
    learning_rate=3e-3,
    schemes={
        NLL: Config(objective="gaussian_nll"),
        ANNEALED: Config(),
        "annealed l2=0.1": Config(coupling_weight=0.1),
        "beta_nll": Config(objective="beta_nll", beta=0.5),
        "mse": Config(objective="mse"),
    },
    specified={
        NLL: ".0129 / -1.79 / .0049",
        ANNEALED: ".0119 / -1.77 / .0052",
        "annealed l2=0.1": ".0211 / -1.57 / .0106",
    },
)

if __name__ == "__main__":
    main(REPLICA, __doc__, SEEDS)
