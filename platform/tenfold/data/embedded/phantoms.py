"""Synthetic brain scans in two contrasts: ellipses of tissue with the intensities of T1 and T2."""

from dataclasses import dataclass

import numpy as np

from tenfold.data.regression import PARTS, ArraySource, GeneratedConfig, Part, RegressionData, digest_of
from tenfold.tasks import Pixels, Slot

_VERSION = 1
_TISSUES = {
    "background": (0.0, 0.0),
    "skull": (0.25, 0.15),
    "white": (0.80, 0.35),
    "grey": (0.55, 0.55),
    "fluid": (0.15, 0.95),
    "lesion": (0.45, 0.80),
}
"""Intensity in the input's contrast and in the target's."""
_T1, _T2 = (np.array([pair[contrast] for pair in _TISSUES.values()], dtype=np.float32) for contrast in (0, 1))
_NAMES = tuple(_TISSUES)


@dataclass(frozen=True, kw_only=True)
class PhantomsConfig(GeneratedConfig):
    """Number, size and noise of the heads."""

    name: str = "phantoms"
    """Fixed; selects this data set."""
    size: int = 64
    """Side in pixels, a multiple of 16."""
    noise: float = 0.04
    """Standard deviation of the noise of each receiver channel; the magnitude image has Rician noise."""
    num_train: int = 400
    """Heads for training."""
    num_val: int = 60
    """Heads for validation."""
    num_test: int = 150
    """Heads for the test."""
    seed: int = 0
    """Seed of anatomy and noise."""

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16 or self.noise < 0:
            raise ValueError(f"size must be a multiple of 16 and noise not negative, got {self.size} and {self.noise}")
        super().__post_init__()


def load_phantoms(config: PhantomsConfig) -> RegressionData:
    """Load pairs ``(1, S, S)`` of the two contrasts; every head is a subject of its own."""
    sources = {part: ArraySource(*draw_pairs(config, part)) for part in PARTS}
    settings = (_VERSION, config.size, config.noise, config.seed, config.counts)
    return RegressionData(
        name=config.name,
        network="unet2d",
        inputs=(Slot(name="input", dtype="float32", shape=(1, -1, -1), image=Pixels(max_value=1.0)),),
        targets=("T2",),
        train=sources["train"],
        val=sources["val"],
        test=sources["test"],
        fingerprint=digest_of(*settings),
        max_value=1.0,
    )


def draw_pairs(config: PhantomsConfig, part: Part) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draw input and target of all heads of a part, float32 ``(N, 1, S, S)``.

    Each head has a skull, grey and white matter, ventricles and up to three lesions, all ellipses of random position
    and shape, and a receive field that brightens one side. The target intensity of white matter varies from head to
    head and cannot be predicted from the input, so aleatoric uncertainty differs between tissues.
    """
    random = np.random.default_rng([config.seed, PARTS.index(part)])
    num, size = config.counts[part], config.size
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) * (2 / size) - 1
    tissue = np.zeros((num, size, size), dtype=np.int64)

    def paint(
        name: str, centre: np.ndarray, radii: np.ndarray, angle: np.ndarray, where: np.ndarray | None = None
    ) -> None:
        cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
        u, v = (cos * dx + sin * dy) / radii[:, 0, None, None], (cos * dy - sin * dx) / radii[:, 1, None, None]
        inside = u * u + v * v <= 1
        if where is not None:
            inside &= where[:, None, None]
        tissue[inside & ((tissue > 0) | (name == "skull"))] = _NAMES.index(name)

    def around(low: float, high: float, *shape: int) -> np.ndarray:
        return random.uniform(low, high, (num, *shape))

    centre, tilt = around(-0.06, 0.06, 2), around(-0.3, 0.3)
    outer = np.stack([around(0.70, 0.82), around(0.82, 0.92)], axis=1)
    paint("skull", centre, outer, tilt)
    paint("grey", centre, outer - 0.09, tilt)
    paint("white", centre + around(-0.02, 0.02, 2), outer * around(0.68, 0.78, 1), tilt)
    for side in (-1, 1):
        ventricle = np.stack([side * around(0.10, 0.20), around(-0.15, 0.10)], axis=1)
        paint(
            "fluid", centre + ventricle, np.stack([around(0.05, 0.10), around(0.15, 0.30)], axis=1), tilt + side * 0.3
        )
        deep = np.stack([side * around(0.28, 0.36), around(-0.05, 0.20)], axis=1)
        paint("grey", centre + deep, np.stack([around(0.06, 0.12), around(0.08, 0.16)], axis=1), around(-1, 1))
    for _ in range(3):
        paint("lesion", centre + around(-0.4, 0.4, 2), around(0.03, 0.09, 2), around(-3, 3), random.random(num) < 0.4)
    slope = around(-0.12, 0.12, 2)
    field = 1 + slope[:, 0, None, None] * x + slope[:, 1, None, None] * y
    clean = _T1[tissue] * field
    real, imaginary = (config.noise * random.standard_normal(clean.shape) for _ in range(2))
    source = np.hypot(clean + real, imaginary)
    own = np.where(tissue == _NAMES.index("white"), around(-0.10, 0.10)[:, None, None], 0.0)
    target = _T2[tissue] + own + 0.25 * config.noise * random.standard_normal(clean.shape)
    source, target = (np.clip(each, 0, 1).astype(np.float32)[:, None] for each in (source, target))
    return {"input": source}, target
