"""QM9: properties of small organic molecules, in the file format of the public EGNN code.

Ramakrishnan et al., "Quantum chemistry structures and properties of 134 kilo molecules", 2014.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.embedded.physics.molecules import NETWORK, molecule_inputs, molecule_schemas
from tenfold.data.regression import ArraySource, Part, RegressionData, digest_of_files

TARGETS = ("alpha", "gap", "homo", "lumo", "mu", "Cv", "G", "H", "r2", "U", "U0", "zpve")
FILES: dict[Part, str] = {"train": "train.npz", "val": "valid.npz", "test": "test.npz"}


@dataclass(frozen=True, kw_only=True)
class Qm9Config:
    """Location of the files and property to predict."""

    name: str = "qm9"
    """Fixed; selects this data set."""
    root: str
    """Folder with ``train.npz``, ``valid.npz`` and ``test.npz``, each with ``num_atoms (N,)``, ``charges (N, A)``,
    ``positions (N, A, 3)`` in Angstrom and an array ``(N,)`` for each property."""
    target: str = "alpha"
    """Property to predict; ``X_thermo``, where the files have it, is subtracted from X."""

    def __post_init__(self) -> None:
        if self.name != "qm9":
            raise ValueError(f"name must be 'qm9', got {self.name!r}")
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")


def load_qm9(config: Qm9Config) -> RegressionData:
    """Load features ``(A, 15)``, positions ``(A, 3)``, number of atoms and one property, in the unit of the files.

    Raises:
        ValueError: A file is missing, lacks an array or holds one of another shape, an unknown element, counts outside
            1..A, or values that are not finite; with its path.
    """
    paths = {part: Path(config.root) / name for part, name in FILES.items()}
    sources, sizes = {}, []
    for part, path in paths.items():
        inputs, values = _read(path, config.target)
        sizes.append(inputs["features"].shape[1])
        try:
            sources[part] = ArraySource(inputs, values[:, None])
        except ValueError as error:
            raise ValueError(f"{path}, {config.target}: {error}") from error
    return RegressionData(
        name=config.name,
        network=NETWORK,
        inputs=molecule_schemas(max(sizes)),
        targets=(config.target,),
        train=sources["train"],
        val=sources["val"],
        test=sources["test"],
        fingerprint=digest_of_files(list(paths.values()), config.target),
    )


def _read(path: Path, target: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is missing or not a .npz file: data.root must hold {', '.join(FILES.values())}")
    wanted = ["num_atoms", "charges", "positions", target]
    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in wanted if name not in file.files]:
            raise ValueError(f"{path} must hold the arrays {', '.join(wanted)}, but lacks {', '.join(missing)}")
        n_atoms, charges, positions, values = (file[name] for name in wanted)
        if f"{target}_thermo" in file.files:
            values = values - file[f"{target}_thermo"]
    num = len(charges)
    if charges.ndim != 2 or positions.shape != (*charges.shape, 3) or n_atoms.shape != (num,) or values.shape != (num,):
        raise ValueError(
            f"{path} must hold num_atoms (N,), charges (N, A), positions (N, A, 3) and {target} (N,), got "
            f"{n_atoms.shape}, {charges.shape}, {positions.shape} and {values.shape}"
        )
    if num and not ((n_atoms >= 1) & (n_atoms <= charges.shape[1])).all():
        raise ValueError(f"{path}: num_atoms must lie in 1..{charges.shape[1]}, got {n_atoms.min()} to {n_atoms.max()}")
    if not np.isfinite(positions).all():
        raise ValueError(f"{path}: positions must be finite")
    try:
        inputs = molecule_inputs({"charges": charges.astype(np.int64), "positions": positions, "n_atoms": n_atoms})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return inputs, values.astype(np.float32)
