"""Pairs of arrays in folders: series or images, and slices of brain scans."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tenfold.data.regression import PARTS, Network, PairFiles, Part, RegressionData, digest_of_files
from tenfold.tasks import Pixels, Slot

_SLICE = re.compile(r"(?P<volume>.+)_dim_1_slice(?P<slice>\d+)")


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Settings of custom arrays."""

    name: str = "pairs"
    """Fixed; selects this data set."""
    root: str
    """Folder with ``{train,val,test}/{input,target}/<id>.npy``, float32 ``(channels, ...)``, one shape throughout."""
    kind: Literal["series", "pictures"] = "series"
    """``series`` are ``(C, T)``; ``pictures`` are ``(C, H, W)``."""
    max_value: float = 1.0
    """Largest possible pixel value, for PSNR and SSIM; unused for series."""

    def __post_init__(self) -> None:
        if self.name != "pairs" or self.kind not in ("series", "pictures"):
            raise ValueError(f"name must be 'pairs' and kind series or pictures, got {self.name!r} and {self.kind!r}")
        if self.max_value <= 0:
            raise ValueError(f"max_value must be positive, got {self.max_value}")


@dataclass(frozen=True, kw_only=True)
class SlicesConfig:
    """Settings of slices of scans in two contrasts, such as T1 and T2 of IXI."""

    name: str = "slices"
    """Fixed; selects this data set."""
    root: str
    """Folder with ``T1/`` and ``T2/``, each of slices ``<volume>_dim_1_slice<k>.npy`` by the same names."""
    source: str = "T1"
    """Folder of the input's contrast."""
    target: str = "T2"
    """Folder of the contrast to predict."""
    num_val: int = 20
    """Volumes for validation."""
    num_test: int = 30
    """Volumes for testing."""
    max_value: float = 1.0
    """Largest possible pixel value, for PSNR and SSIM."""
    seed: int = 0
    """Seed of the split by volume."""

    def __post_init__(self) -> None:
        if self.name != "slices" or self.seed < 0:
            raise ValueError(f"name must be 'slices' and seed at least 0, got {self.name!r} and {self.seed}")
        if self.num_val < 1 or self.num_test < 1 or self.max_value <= 0:
            raise ValueError(
                f"num_val and num_test must be at least 1 and max_value positive, got {self.num_val}, {self.num_test} "
                f"and {self.max_value}"
            )


def load_pairs(config: PairsConfig) -> RegressionData:
    """Load the three parts of ``root``.

    Raises:
        ValueError: A folder is missing or empty, an input has no target or vice versa, or an array has another number
            of axes; with the path.
    """
    folders = {part: Path(config.root) / part for part in PARTS}
    pairs = {part: (_arrays(folder / "input"), _arrays(folder / "target")) for part, folder in folders.items()}
    for part, (inputs, targets) in pairs.items():
        if unpaired := sorted(inputs.keys() ^ targets.keys()):
            raise ValueError(
                f"{folders[part]}: {unpaired[0]} is in only one of input/ and target/ ({len(unpaired)} such)"
            )
    return _data(config.name, pairs, config.kind, config.max_value, ("target",))


def load_slices(config: SlicesConfig) -> RegressionData:
    """Load slices, split by volume, so that no volume is in two parts.

    Raises:
        ValueError: A folder is missing, a file name is not that of a slice, a slice lacks its counterpart, or there are
            too few volumes; with the path.
    """
    root = Path(config.root)
    inputs, targets = (_arrays(root / folder) for folder in (config.source, config.target))
    if unpaired := sorted(inputs.keys() ^ targets.keys()):
        raise ValueError(
            f"{root}: {unpaired[0]} is in only one of {config.source}/ and {config.target}/ ({len(unpaired)} such)"
        )
    volumes: dict[str, list[str]] = {}
    for name in inputs:
        match = _SLICE.fullmatch(name)
        if match is None:
            raise ValueError(f"{inputs[name]} must be named <volume>_dim_1_slice<k>.npy")
        volumes.setdefault(match["volume"], []).append(name)
    order = [sorted(volumes)[row] for row in np.random.default_rng(config.seed).permutation(len(volumes))]
    kept_apart = config.num_val + config.num_test
    if len(order) <= kept_apart:
        raise ValueError(f"{root} must hold more than num_val + num_test = {kept_apart} volumes, got {len(order)}")
    of_part = {
        "val": order[: config.num_val],
        "test": order[config.num_val : kept_apart],
        "train": order[kept_apart:],
    }
    pairs = {}
    for part in PARTS:
        names = [name for volume in of_part[part] for name in volumes[volume]]
        pairs[part] = ({name: inputs[name] for name in names}, {name: targets[name] for name in names})
    return _data(config.name, pairs, "pictures", config.max_value, (config.target,))


def _data(
    name: str,
    pairs: Mapping[Part, tuple[Mapping[str, Path], Mapping[str, Path]]],
    kind: str,
    max_value: float,
    targets: Sequence[str],
) -> RegressionData:
    sources = {part: PairFiles(list(inputs.values()), list(of.values())) for part, (inputs, of) in pairs.items()}
    shapes = sources["train"].shapes
    axes = 2 if kind == "series" else 3
    for shape in shapes.values():
        if len(shape) != axes:
            wanted = "(channels, steps)" if kind == "series" else "(channels, height, width)"
            raise ValueError(f"{kind} must be {wanted}, got {shape} in the training part of {name}")
    for part, source in sources.items():
        if source.shapes != shapes:
            raise ValueError(f"{name}: the {part} part holds {source.shapes}, the training part {shapes}")
    upscale = shapes["targets"][-1] // shapes["input"][-1]
    if tuple(length * upscale for length in shapes["input"][1:]) != shapes["targets"][1:]:
        raise ValueError(
            f"{name}: targets must be an integer multiple of the input along each spatial axis, "
            f"got {shapes['targets']} for {shapes['input']}"
        )
    network: Network = "cnn1d" if kind == "series" else "unet2d" if upscale == 1 else "cnn2d_sr"
    channels, in_channels = shapes["targets"][0], shapes["input"][0]
    is_image = kind == "pictures" and in_channels in (1, 3)
    schema = Slot(
        name="input",
        dtype="float32",
        shape=(in_channels,) + (-1,) * (axes - 1),
        image=Pixels(max_value=max_value) if is_image else None,
    )
    every = [path for inputs, of in pairs.values() for path in (*inputs.values(), *of.values())]
    return RegressionData(
        name=name,
        network=network,
        inputs=(schema,),
        targets=tuple(targets) if len(targets) == channels else tuple(f"channel {index}" for index in range(channels)),
        train=sources["train"],
        val=sources["val"],
        test=sources["test"],
        fingerprint=digest_of_files(every),
        max_value=max_value if kind == "pictures" else None,
        upscale=upscale,
    )


def _arrays(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: expected a folder of .npy files")
    found = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    if not found:
        raise ValueError(f"{folder} holds no .npy file")
    return found
