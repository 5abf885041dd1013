"""Random molecules with a property that depends on their elements and interatomic distances.

They replace QM9 where it is not available: same elements, same features, same input format.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tenfold.data.regression import PARTS, ArraySource, GeneratedConfig, Network, Part, RegressionData, digest_of
from tenfold.tasks import Slot

ELEMENTS = (1, 6, 7, 8, 9)
"""Atomic numbers of hydrogen, carbon, nitrogen, oxygen and fluorine."""
_ELECTRONEGATIVITY = np.array([2.2, 2.55, 3.04, 3.44, 3.98])
_POWERS = 3
NUM_FEATURES = len(ELEMENTS) * _POWERS
_NEAR, _FAR, _APART = 1.0, 1.6, 0.9
"""Range of a new atom's distance from the one it bonds to, and its smallest distance from every other."""
_VERSION = 1
NETWORK: Network = "egnn"


@dataclass(frozen=True, kw_only=True)
class MoleculesConfig(GeneratedConfig):
    """Number and size of the molecules."""

    name: str = "molecules"
    """Fixed; selects this data set."""
    min_atoms: int = 3
    """Smallest number of atoms, at least 2."""
    max_atoms: int = 6
    """Largest number of atoms."""
    num_train: int = 1200
    """Molecules for training."""
    num_val: int = 300
    """Molecules for validation."""
    num_test: int = 600
    """Molecules for the test."""
    seed: int = 0
    """Seed of molecules and noise."""

    def __post_init__(self) -> None:
        if not 2 <= self.min_atoms < self.max_atoms <= 12:
            raise ValueError(
                f"min_atoms and max_atoms must satisfy 2 <= min_atoms < max_atoms <= 12, got {self.min_atoms} and "
                f"{self.max_atoms}"
            )
        super().__post_init__()


def atom_features(charges: np.ndarray) -> np.ndarray:
    """Return one-hot elements times the powers 0, 1, 2 of a ninth of the charge.

    Args:
        charges: Integers ``(...)`` of ``ELEMENTS``; 0 is padding.

    Returns:
        float32 ``(..., 15)``; three features for each element, 0 for padding.

    Raises:
        ValueError: A charge of another element.
    """
    if not np.isin(charges, (0, *ELEMENTS)).all():
        wrong = np.setdiff1d(charges, (0, *ELEMENTS))
        raise ValueError(f"charges must be those of H, C, N, O, F {ELEMENTS}, or 0 for padding; got {wrong.tolist()}")
    which = charges[..., None] == np.array(ELEMENTS)  # (..., 5)
    powers = (charges[..., None] / max(ELEMENTS)) ** np.arange(_POWERS)  # (..., 3)
    return (which[..., :, None] * powers[..., None, :]).reshape(*charges.shape, NUM_FEATURES).astype(np.float32)


def simulate_molecules(config: MoleculesConfig, part: Part) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Simulate charges, positions and property of the molecules of a part.

    The property is the sum over pairs of (chi_i - chi_j)^2 / max(d_ij, 0.5), minus 0.3 for each atom, with noise whose
    std grows from 0.05 for the smallest molecules to 0.3 for the largest; chi is Pauling's electronegativity.

    Returns:
        ``charges`` int64 ``(N, max_atoms)`` and ``positions`` float32 ``(N, max_atoms, 3)``, both 0 beyond a molecule's
        atoms, ``n_atoms`` int64 ``(N,)``; and the property, float32 ``(N,)``.
    """
    random = np.random.default_rng([config.seed, PARTS.index(part)])
    num, most = config.counts[part], config.max_atoms
    n_atoms = random.integers(config.min_atoms, most + 1, num)
    real = np.arange(most) < n_atoms[:, None]
    elements = random.integers(0, len(ELEMENTS), (num, most))
    positions = _grow(random, num, most)
    distances = np.sqrt(np.square(positions[:, :, None] - positions[:, None]).sum(axis=-1))
    chi = _ELECTRONEGATIVITY[elements]
    pairs = np.square(chi[:, :, None] - chi[:, None]) / np.maximum(distances, 0.5)
    both = real[:, :, None] & real[:, None]
    clean = 0.5 * (pairs * both).sum(axis=(1, 2)) - 0.3 * n_atoms
    std = 0.05 + 0.25 * (n_atoms - config.min_atoms) / (most - config.min_atoms)
    values = clean + std * random.standard_normal(num)
    molecules = {
        "charges": np.where(real, np.array(ELEMENTS)[elements], 0),
        "positions": np.where(real[..., None], positions, 0).astype(np.float32),
        "n_atoms": n_atoms,
    }
    return molecules, values.astype(np.float32)


def load_molecules(config: MoleculesConfig) -> RegressionData:
    """Load features ``(N, 15)``, positions ``(N, 3)`` and number of atoms, with one target."""
    sources = {}
    for part in PARTS:
        molecules, values = simulate_molecules(config, part)
        sources[part] = ArraySource(molecule_inputs(molecules), values[:, None])
    return RegressionData(
        name=config.name,
        network=NETWORK,
        inputs=molecule_schemas(config.max_atoms),
        targets=("property",),
        train=sources["train"],
        val=sources["val"],
        test=sources["test"],
        fingerprint=digest_of(_VERSION, config),
    )


def molecule_inputs(molecules: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert ``charges``, ``positions`` and ``n_atoms`` to the inputs of the network."""
    return {
        "features": atom_features(molecules["charges"]),
        "positions": molecules["positions"].astype(np.float32),
        "n_atoms": molecules["n_atoms"].astype(np.int64),
    }


def molecule_schemas(max_atoms: int) -> tuple[Slot, ...]:
    """Return the input schemas of a network of molecules; it accepts any padding."""
    if max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1, got {max_atoms}")
    return (
        Slot(name="features", dtype="float32", shape=(-1, NUM_FEATURES)),
        Slot(name="positions", dtype="float32", shape=(-1, 3)),
        Slot(name="n_atoms", dtype="int64", shape=()),
    )


def _grow(random: np.random.Generator, num: int, most: int) -> np.ndarray:
    """Place atoms one by one in all molecules, redrawing those too close to another; float64 ``(num, most, 3)``."""
    positions = np.zeros((num, most, 3))
    for atom in range(1, most):
        pending = np.arange(num)
        while len(pending):
            joined = positions[pending, random.integers(0, atom, len(pending))]
            direction = random.standard_normal((len(pending), 3))
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            place = joined + direction * random.uniform(_NEAR, _FAR, (len(pending), 1))
            nearest = np.linalg.norm(positions[pending, :atom] - place[:, None], axis=-1).min(axis=1)
            fits = nearest > _APART
            positions[pending[fits], atom] = place[fits]
            pending = pending[~fits]
    return positions
