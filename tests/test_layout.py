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
FLOORS = (
    ("types", "files", "hashing"),
    ("tasks", "metrics", "models"),
    ("figures", "data", "bundle"),
    ("engine", "tracking", "remote"),
    ("pretraining",),
    ("methods",),
    ("catalog",),
    ("config",),
    ("training",),
    ("studies", "client"),
    ("serve",),
    ("jobs",),
)
"""Rooms from the ground up. An import goes down, or stays in its room."""
SIDEWAYS: dict[str, tuple[str, ...]] = {}
"""Room to the rooms of its own floor that it may import all the same."""
ONLY = {"metrics": ("types",), "models": ("types", "files")}
"""Room to the only other rooms that it may import."""
DOORS = {
    "ray.train": ("tenfold.engine",),
    "ray.data": ("tenfold.engine",),
    "ray.tune": ("tenfold.studies.run",),
    "ray.serve": ("serve",),
    "ray": ("tenfold.engine", "tenfold.studies.run", "serve"),
    "mlflow": ("tenfold.tracking",),
    "hydra": ("jobs",),
    "omegaconf": ("jobs",),
}
"""Library to the modules, or folders of them, that may import it."""
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


def room(name: str) -> str | None:
    """The room of a module by its folder, ``types`` for the package itself; None for what is not ours."""
    parts = name.split(".")
    if parts[0] in ("jobs", "serve"):
        return parts[0]
    if parts[0] != "tenfold":
        return None
    return "types" if len(parts) == 1 or parts[1].startswith("__") else parts[1]


def floor(of_room: str) -> int:
    """How high a room lies.

    Raises:
        ValueError: The plan does not know it.
    """
    for number, rooms in enumerate(FLOORS):
        if of_room in rooms:
            return number
    raise ValueError(f"{of_room} must have a place in FLOORS")


def extends(method: str) -> str | None:
    """The method that another is declared to build on."""
    return METHODS[method].extends if method in METHODS else None


def offences(path: Path) -> Iterator[str]:
    name = module_name(path)
    here = room(name)
    assert here is not None
    for target in imports(path):
        there = room(target)
        if there is not None and there != here:
            if floor(there) > floor(here):
                yield f"{name} imports {target}, which is above it"
            elif floor(there) == floor(here) and there not in SIDEWAYS.get(here, ()):
                yield f"{name} imports {target}, which is beside it"
            if here in ONLY and there not in ONLY[here]:
                yield f"{name} imports {target}, but {here} may import {', '.join(ONLY[here])} alone"
        method, other = name.split(".")[2:3], target.split(".")[2:3]
        if here == there == "methods" and method and method != other and [extends(method[0])] != other:
            yield f"{name} imports another method's {target}"
        for library, doors in DOORS.items():
            opens = any(name == door or name.startswith(f"{door}.") for door in doors)
            if (target == library or target.startswith(f"{library}.")) and not opens:
                yield f"{name} imports {target}, the business of {', '.join(doors)}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_down_and_through_the_right_door(path):
    assert list(offences(path)) == []


@pytest.mark.parametrize(
    ("module", "line", "offence"),
    [
        ("metrics.one", "from tenfold.data.images import x", "above it"),
        ("models.one", "from tenfold.metrics.two import x", "beside it"),
        ("models.one", "from tenfold.hashing import x", "may import types, files alone"),
        ("metrics.one", "import tenfold.files", "may import types alone"),
        ("methods.one.loss", "from tenfold.catalog import method", "above it"),
        ("methods.one.loss", "from tenfold.methods.two.loss import x", "another method's"),
        ("methods.large_loss.loss", "from tenfold.methods.boostlu.boost import x", "another method's"),
        ("methods.boostlu.recipe", "from tenfold.methods.calm import recipe", "another method's"),
        ("methods.one.loss", "import mlflow", "the business of tenfold.tracking"),
        ("methods.one.loss", "def f():\n    from hydra import compose", "the business of jobs"),
        ("config", "import omegaconf", "the business of jobs"),
        ("studies.report", "from ray import tune", "the business of tenfold.studies.run"),
        ("training", "import ray", "the business of tenfold.engine, tenfold.studies.run, serve"),
        ("tracking.runs", "from ray.train import Checkpoint", "the business of tenfold.engine"),
        ("studies.run", "from ray import data", "the business of tenfold.engine"),
        ("studies.run", "from ray import serve", "the business of serve"),
        ("tracking.runs", "from tenfold.engine.run import Run", "beside it"),
    ],
)
def test_each_rule_can_be_broken(tmp_path, monkeypatch, module, line, offence):
    monkeypatch.setitem(globals(), "LIBRARY", tmp_path / "platform/tenfold")
    path = tmp_path / "platform/tenfold" / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert any(offence in found for found in offences(path)), list(offences(path))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("methods.boostlu.recipe", "from tenfold.methods.large_loss import recipe"),
        ("methods.boostlu.recipe", "from tenfold.methods.boostlu.head import x"),
        ("studies.run", "from ray import tune"),
        ("tracking.model", "import mlflow.pyfunc"),
    ],
)
def test_what_is_declared_is_allowed(tmp_path, monkeypatch, module, line):
    monkeypatch.setitem(globals(), "LIBRARY", tmp_path / "platform/tenfold")
    path = tmp_path / "platform/tenfold" / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert list(offences(path)) == []


def test_every_room_has_its_place_in_the_plan():
    rooms = {room(module_name(path)) for path in sources()}
    assert all(floor(each) >= 0 for each in rooms if each is not None)
    with pytest.raises(ValueError, match="attic must have a place in FLOORS"):
        floor("attic")


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


def test_rooms_import_torch_and_nothing_of_ray_mlflow_or_hydra():
    rooms = sorted(path.name for path in (LIBRARY / "methods").iterdir() if (path / "__init__.py").is_file())
    assert set(METHODS) <= set(rooms)
    # One process for all: what none of them imported, each alone does not import either.
    code = (
        "import sys, importlib\n"
        f"for room in {rooms!r}: importlib.import_module(f'tenfold.methods.{{room}}')\n"
        "assert 'torch' in sys.modules\n"
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
