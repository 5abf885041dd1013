"""Gravitational N-body systems: trajectories of a symplectic integrator and noisy observations of them.

Kick-drift-kick leapfrog conserves momentum up to rounding, keeps the energy error bounded, and is time-reversible.
Units: the gravitational constant is 1.
"""

from dataclasses import dataclass

import numpy as np

from tenfold.data.regression import PARTS, ArraySource, GeneratedConfig, Part, RegressionData, digest_of
from tenfold.tasks import Slot

SUBSTEPS = 20
"""Integrator steps between two samples."""
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class NBodyConfig(GeneratedConfig):
    """Number, size and noise of the systems."""

    name: str = "nbody"
    """Fixed; selects this data set."""
    num_bodies: int = 3
    """Bodies of a system, at least 2, in three dimensions."""
    length: int = 64
    """Samples of a trajectory."""
    interval: float = 0.1
    """Time between two samples; two bodies of mass 1 at distance 1 orbit in 4.4."""
    softening: float = 0.2
    """Softening length that keeps the force finite at close encounters, positive."""
    noise_scale: float = 0.1
    """Scale of the noise: its std is this times (0.5 + 1.5 |coordinate|)."""
    num_train: int = 256
    """Systems for training."""
    num_val: int = 64
    """Systems for validation."""
    num_test: int = 128
    """Systems for the test."""
    seed: int = 0
    """Seed of systems and noise."""

    def __post_init__(self) -> None:
        if self.num_bodies < 2 or self.length < 1:
            raise ValueError(
                f"num_bodies must be at least 2 and length at least 1, got {self.num_bodies} and {self.length}"
            )
        for field in ("interval", "softening"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.noise_scale < 0:
            raise ValueError(f"noise_scale must not be negative, got {self.noise_scale}")
        super().__post_init__()


def accelerations(positions: np.ndarray, masses: np.ndarray, softening: float) -> np.ndarray:
    """Compute the gravitational acceleration of each body.

    Args:
        positions: ``(..., N, D)``.
        masses: ``(..., N)``, or broadcasting to it.
        softening: Softening length, added to distances in quadrature.

    Returns:
        ``(..., N, D)``.
    """
    apart = positions[..., None, :, :] - positions[..., :, None, :]  # from body i to body j: (..., N, N, D)
    cubed = (np.square(apart).sum(axis=-1) + softening**2) ** 1.5
    return (apart * (masses[..., None, :] / cubed)[..., None]).sum(axis=-2)


def energy(positions: np.ndarray, velocities: np.ndarray, masses: np.ndarray, softening: float) -> np.ndarray:
    """Compute the total energy, ``(...)``; arguments as in ``accelerations``, velocities shaped like positions."""
    apart = positions[..., None, :, :] - positions[..., :, None, :]
    distances = np.sqrt(np.square(apart).sum(axis=-1) + softening**2)
    upper = np.triu(np.ones(distances.shape[-2:]), 1)  # every pair once
    potential = (upper * masses[..., None, :] * masses[..., :, None] / distances).sum(axis=(-2, -1))
    return 0.5 * (masses * np.square(velocities).sum(axis=-1)).sum(axis=-1) - potential


def simulate_nbody(
    positions: np.ndarray,
    velocities: np.ndarray,
    masses: np.ndarray,
    *,
    num_samples: int,
    interval: float,
    softening: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate positions and velocities of a batch of systems at equally spaced times.

    Args:
        positions, velocities: At time 0, ``(..., N, D)``.
        masses: ``(..., N)``, positive.
        num_samples: T, at least 1.
        interval: Time between samples; negative integrates backwards.
        softening: See ``accelerations``.

    Returns:
        Both ``(T, ..., N, D)``; the first sample is the input.

    Raises:
        ValueError: Inconsistent shapes, fewer than one sample, masses or softening not positive, interval 0.
    """
    if positions.shape != velocities.shape or positions.ndim < 2 or masses.shape[-1:] != positions.shape[-2:-1]:
        raise ValueError(
            f"positions, velocities and masses must be (..., N, D), (..., N, D) and (..., N), got {positions.shape}, "
            f"{velocities.shape} and {masses.shape}"
        )
    if num_samples < 1 or interval == 0 or softening <= 0 or not (masses > 0).all():
        raise ValueError(
            f"num_samples must be at least 1, interval not 0, softening and masses positive; got {num_samples}, "
            f"{interval}, {softening} and masses from {masses.min()}"
        )
    step = interval / SUBSTEPS
    pull = accelerations(positions, masses, softening)
    samples = [(positions, velocities)]
    for _ in range(num_samples - 1):
        for _ in range(SUBSTEPS):
            half_kicked = velocities + 0.5 * step * pull
            positions = positions + step * half_kicked
            pull = accelerations(positions, masses, softening)
            velocities = half_kicked + 0.5 * step * pull
        samples.append((positions, velocities))
    places, speeds = zip(*samples, strict=True)
    return np.stack(places), np.stack(speeds)


def nbody_trajectories(config: NBodyConfig, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Simulate noisy and true positions of the systems of a part.

    Bodies have masses from 0.5 to 1.5 and normally distributed initial positions (std 0.7), the systems are bound, and
    the centre of mass rests at the origin.

    Returns:
        Both float32 ``(num, 3 num_bodies, length)``; the channels are x, y, z of the first body, then of the next.
    """
    random = np.random.default_rng([config.seed, PARTS.index(part)])
    num, bodies = config.counts[part], config.num_bodies
    masses = random.uniform(0.5, 1.5, (num, bodies))
    positions, velocities = 0.7 * random.standard_normal((2, num, bodies, 3))
    velocities = 0.5 * velocities
    share = (masses / masses.sum(axis=1, keepdims=True))[..., None]
    positions = positions - (share * positions).sum(axis=1, keepdims=True)
    velocities = velocities - (share * velocities).sum(axis=1, keepdims=True)
    # A system whose energy is not well below 0 may disperse; one that starts at rest is bound.
    loose = energy(positions, velocities, masses, config.softening) > -0.2
    velocities[loose] = 0
    states, _ = simulate_nbody(
        positions,
        velocities,
        masses,
        num_samples=config.length,
        interval=config.interval,
        softening=config.softening,
    )
    true = states.transpose(1, 2, 3, 0).reshape(num, 3 * bodies, config.length)
    spread = config.noise_scale * (0.5 + 1.5 * np.abs(true))
    return (true + spread * random.standard_normal(true.shape)).astype(np.float32), true.astype(np.float32)


def load_nbody(config: NBodyConfig) -> RegressionData:
    """Load pairs of noisy and true trajectories ``(3 num_bodies, length)``."""
    sources = {}
    for part in PARTS:
        noisy, true = nbody_trajectories(config, part)
        sources[part] = ArraySource({"input": noisy}, true)
    return RegressionData(
        name=config.name,
        network="cnn1d",
        inputs=(Slot(name="input", dtype="float32", shape=(3 * config.num_bodies, -1)),),
        targets=tuple(f"{axis}{body + 1}" for body in range(config.num_bodies) for axis in "xyz"),
        train=sources["train"],
        val=sources["val"],
        test=sources["test"],
        fingerprint=digest_of(_VERSION, config),
    )
