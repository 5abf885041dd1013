"""The plan of the house, enforced: imports go down, each library has one door, no module hides another."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenfold.catalog import METHODS

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "platform/tenfold"
FLOORS = {
    "types": 0, "hashing": 0, "files": 0,
    "data": 1, "models": 1, "metrics": 1, "figures": 1, "pretraining": 1, "engine": 1, "bundle": 1, "tracking": 1,
    "methods": 2,
    "catalog": 3, "config": 3, "training": 3, "sweep": 3, "studies": 3,
    "serve": 4, "jobs": 5,
}  # fmt: skip
"""By the first word of a module's name (``studies.report`` is on the floor of ``study``); an import never goes up."""
DOORS = {
    "ray.train": ("tenfold/engine/",),
    "ray.data": ("tenfold/engine/",),
    "ray.tune": ("tenfold/studies/run",),
    "ray.serve": ("serve/",),
    "ray": ("tenfold/engine/", "tenfold/studies/run", "serve/"),
    "mlflow": ("tenfold/tracking",),
    "hydra": ("jobs/",),
    "omegaconf": ("jobs/",),
}
HIDING = ("platform", "ray", "mlflow", "torch", "hydra", "serve")


def sources() -> list[Path]:
    return sorted(path for folder in (LIBRARY, ROOT / "jobs", ROOT / "serve") for path in folder.rglob("*.py"))


def module_name(path: Path) -> str:
    base = LIBRARY.parent if path.is_relative_to(LIBRARY) else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(name: str) -> int | None:
    parts = name.split(".")
    if parts[0] in ("jobs", "serve"):
        return FLOORS[parts[0]]
    if parts[0] != "tenfold":
        return None
    if len(parts) == 1 or parts[1].startswith("__"):
        return 0
    return FLOORS[parts[1].split("_")[0]]


def offences(path: Path) -> Iterator[str]:
    name, here = module_name(path), floor(module_name(path))
    assert here is not None
    parts = name.split(".")
    shown = name.replace(".", "/")
    for target in imports(path):
        there = floor(target)
        if there is not None and there > here:
            yield f"{name} imports {target}, which is above it"
        other = target.split(".")
        if parts[:2] == other[:2] == ["tenfold", "methods"] and len(parts) > 2 and parts[2] != other[2]:
            declared = METHODS.get(parts[2])
            if declared is not None and declared.extends == other[2]:
                continue
            yield f"{name} imports another method's {target}"
        for library, doors in DOORS.items():
            if (target == library or target.startswith(f"{library}.")) and not shown.startswith(doors):
                yield f"{name} imports {target}, the business of {', '.join(doors)}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_down_and_through_the_right_door(path):
    assert list(offences(path)) == []


def test_the_rules_can_be_broken(tmp_path, monkeypatch):
    room = tmp_path / "platform/tenfold/methods/one"
    room.mkdir(parents=True)
    monkeypatch.setitem(globals(), "LIBRARY", tmp_path / "platform/tenfold")
    (room / "loss.py").write_text(
        "import mlflow\nfrom ray import train\n"
        "from tenfold.catalog import method\nfrom tenfold.methods.two.loss import x\n"
    )
    found = list(offences(room / "loss.py"))
    assert len(found) == 5, found  # mlflow, ray by two rules, upwards, another method


def test_no_import_circle():
    graph = {module_name(path): set(imports(path)) for path in sources()}
    names = set(graph)
    edges = {
        name: {part for target in targets for part in (target, target.rpartition(".")[0]) if part in names} - {name}
        for name, targets in graph.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in names:
        visit(name, ())


@pytest.mark.parametrize(
    "room", sorted(path.name for path in (LIBRARY / "methods").iterdir() if path.is_dir() and path.name[0] != "_")
)
def test_a_room_imports_torch_and_nothing_of_ray_mlflow_or_hydra(room):
    code = (
        f"import sys, tenfold.methods.{room}; "
        "assert 'torch' in sys.modules; "
        "print([name for name in ('ray', 'mlflow', 'hydra', 'omegaconf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=python_path())
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_source_root_hides_nothing():
    assert not (ROOT / "platform/__init__.py").exists()
    assert not (ROOT / "tests/platform").exists()
    for folder in ("jobs", "serve", "tests"):
        assert not [name for name in HIDING if (ROOT / folder / f"{name}.py").exists()]
    code = "import platform; assert platform.system(); import uuid"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=python_path("."))


def python_path(*more: str) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": ":".join((str(ROOT / "platform"), *more))}
