"""The plan of the house, enforced: imports go down, each library has one door, no module hides another."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.tasks.table import MODULES
from tenfold.catalog import METHODS

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "platform/tenfold"
FLOORS = (
    ("types", "files", "hashing"),
    ("tasks", "metrics", "models"),
    ("figures", "data", "bundle", "probes"),
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
SIDEWAYS: dict[str, tuple[str, ...]] = {"models": ("tasks",), "bundle": ("probes",)}
"""Room to the rooms of its own floor that it may import all the same."""
ONLY = {"tasks": ("types",), "metrics": ("types",), "models": ("types", "files", "tasks"), "probes": ("tasks",)}
"""Room to the only other rooms that it may import."""
DOORS = {
    "ray.train": ("tenfold.engine",),
    "ray.data": ("tenfold.engine",),
    "ray.tune": ("tenfold.studies.run",),
    "ray.serve": ("serve.deployment", "serve.clients.handle"),
    "ray": ("tenfold.engine", "tenfold.studies.run", "serve.deployment", "serve.clients.handle"),
    "mlflow": ("tenfold.tracking",),
    "hydra": ("jobs",),
    "omegaconf": ("jobs",),
}
"""Library to the modules, or folders of them, that may import it."""
WALLS = {
    "serve.contract": ("serve", "tenfold"),
    "serve.protocols": ("serve.tasks", "serve.clients", "serve.http", "serve.deployment"),
    "serve.tasks": ("serve.protocols", "serve.http", "serve.clients", "serve.deployment", "starlette", "fastapi"),
    "serve.http": ("serve.tasks", "serve.clients", "serve.deployment"),
    "serve.clients": ("serve.protocols", "serve.http", "serve.deployment"),
}
"""Module or folder to what none of it may import; Ray has its doors."""
GATES = {"serve.contract": ("tenfold.tasks",)}
"""Module to what it may import all the same."""
TABLE = "serve.tasks.table"
"""The one module that lists the kinds of answers."""
SWITCHES = ("tenfold.tasks", "serve.tasks")
"""Modules, or folders of them, that may compare a task with a certain one."""
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


def lies_in(name: str, *places: str) -> bool:
    """Return whether a module is one of some modules, or lies in one of some folders."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def kinds() -> dict[str, str]:
    """Kind of answer to its module, or to its folder where it has one."""
    shared = TABLE.rpartition(".")[0]
    return {
        name: module if module.rpartition(".")[0] == shared else module.rpartition(".")[0]
        for name, module in MODULES.items()
    }


def texts(path: Path) -> Iterator[str]:
    """Every text in a file: names of modules may stand in them, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def compared_tasks(path: Path) -> Iterator[str]:
    """Members of ``Task`` that a file compares something with, alone or in a list of them."""

    def members(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            for each in node.elts:
                yield from members(each)
        elif isinstance(node, ast.Attribute):
            owner = node.value
            if (owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", None)) == "Task":
                yield f"Task.{node.attr}"

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            for each in (node.left, *node.comparators):
                yield from members(each)
        elif isinstance(node, ast.MatchValue):
            yield from members(node.value)


def serving_offences(path: Path) -> Iterator[str]:
    """Offences against the floors of serving, where a kind of answer is one file and a protocol is one file."""
    name = module_name(path)
    for wall, beyond in WALLS.items():
        for target in imports(path):
            passes = lies_in(target, wall, *GATES.get(wall, ()))
            if lies_in(name, wall) and lies_in(target, *beyond) and not passes:
                yield f"{name} imports {target}, which {wall} must not know"
    for kind, home in kinds().items():
        if lies_in(name, "serve") and not lies_in(name, home, TABLE):
            for said in {*imports(path), *texts(path)}:
                if lies_in(said, home):
                    yield f"{name} names {said}, but only {TABLE} may know the kind {kind}"
    if not lies_in(name, *SWITCHES):
        for task in compared_tasks(path):
            yield f"{name} compares a task with {task}, the business of {', '.join(SWITCHES)}"


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
            if lies_in(target, library) and not lies_in(name, *doors):
                yield f"{name} imports {target}, the business of {', '.join(doors)}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_down_and_through_the_right_door(path):
    assert list(offences(path)) == []


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_the_floors_of_serving_know_only_what_they_may(path):
    assert list(serving_offences(path)) == []


@pytest.mark.parametrize(
    ("module", "line", "offence"),
    [
        ("metrics.one", "from tenfold.data.images import x", "above it"),
        ("models.one", "from tenfold.metrics.two import x", "beside it"),
        ("models.one", "from tenfold.hashing import x", "may import types, files, tasks alone"),
        ("tasks", "from tenfold.models.clip import Clip", "beside it"),
        ("tasks", "from tenfold.files import sync", "may import types alone"),
        ("metrics.one", "from tenfold.tasks import Slot", "beside it"),
        ("probes", "from tenfold.bundle import Bundle", "beside it"),
        ("probes", "from tenfold.types import Task", "may import tasks alone"),
        ("metrics.one", "import tenfold.files", "may import types alone"),
        ("methods.one.loss", "from tenfold.catalog import method", "above it"),
        ("methods.one.loss", "from tenfold.methods.two.loss import x", "another method's"),
        ("methods.large_loss.loss", "from tenfold.methods.boostlu.boost import x", "another method's"),
        ("methods.boostlu.recipe", "from tenfold.methods.calm import recipe", "another method's"),
        ("methods.one.loss", "import mlflow", "the business of tenfold.tracking"),
        ("methods.one.loss", "def f():\n    from hydra import compose", "the business of jobs"),
        ("config", "import omegaconf", "the business of jobs"),
        ("studies.report", "from ray import tune", "the business of tenfold.studies.run"),
        ("training", "import ray", "the business of tenfold.engine, tenfold.studies.run, serve.deployment"),
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
        ("models.one", "from tenfold.tasks import Slot"),
        ("tasks", "from tenfold.types import Task"),
        ("bundle", "from tenfold.probes import Inputs"),
    ],
)
def test_what_is_declared_is_allowed(tmp_path, monkeypatch, module, line):
    monkeypatch.setitem(globals(), "LIBRARY", tmp_path / "platform/tenfold")
    path = tmp_path / "platform/tenfold" / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert list(offences(path)) == []


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, line: str) -> Path:
    """A file of a module outside the library with one line, in a tree of its own."""
    monkeypatch.setitem(globals(), "ROOT", folder)
    monkeypatch.setitem(globals(), "LIBRARY", folder / "platform/tenfold")
    path = (folder / "platform" if module.startswith("tenfold") else folder) / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    return path


KIND, TASKS = "only serve.tasks.table may know the kind", "the business of tenfold.tasks, serve.tasks"


@pytest.mark.parametrize(
    ("module", "line", "offence"),
    [
        ("serve.protocols.v3", "from serve.tasks.slots import read", "which serve.protocols must not know"),
        ("serve.protocols.v3", "from serve.tasks.regression import load", KIND),
        ("serve.protocols.v3", "def f():\n    import ray", "the business of tenfold.engine"),
        ("serve.protocols.v3", "from serve.http.desk import Desk", "which serve.protocols must not know"),
        ("serve.tasks.concepts", "from serve.protocols.v2 import decode", "which serve.tasks must not know"),
        ("serve.tasks.labels.more", "from starlette.types import Scope", "which serve.tasks must not know"),
        ("serve.tasks.concepts", "import fastapi", "which serve.tasks must not know"),
        ("serve.tasks.concepts", "from serve.http.keys import Keys", "which serve.tasks must not know"),
        ("serve.tasks.concepts", "from ray import serve", "the business of serve.deployment, serve.clients.handle"),
        ("serve.http.extra", "from serve.tasks.table import kind_of", "which serve.http must not know"),
        ("serve.http.extra", "import ray.util", "the business of tenfold.engine"),
        ("serve.clients.v2_http", "from serve.protocols import v2", "which serve.clients must not know"),
        ("serve.clients.v2_http", "from serve.http.desk import Desk", "which serve.clients must not know"),
        ("serve.clients.local", "from ray.exceptions import RayError", "the business of tenfold.engine"),
        ("serve.settings", "from ray.serve import Application", "the business of serve.deployment"),
        ("serve.contract", "from tenfold.types import Task", "which serve.contract must not know"),
        ("serve.contract", "from serve.settings import ServedModel", "which serve.contract must not know"),
        ("serve.deployment.app", "from serve.tasks.labels.kind import load", f"{KIND} labels"),
        ("serve.clients.local", "from serve.tasks import regression", f"{KIND} regression"),
        ("serve.tasks.concepts", "from serve.tasks.labels import maps", f"{KIND} labels"),
        ("serve.tasks.regression", "from serve.tasks.labels.maps import x", f"{KIND} labels"),
        ("serve.http.app", "load('serve.tasks.regression')", f"{KIND} regression"),
        ("serve.http.app", "x = task is Task.REGRESSION", TASKS),
        ("jobs.deploy", "if Task.REGRESSION == task: pass", TASKS),
        (
            "jobs.deploy",
            "if task not in (Task.MULTI_LABEL, types.Task.RETRIEVAL): pass",
            "Task.RETRIEVAL, the business",
        ),
        ("tenfold.tracking.model", "match task:\n    case Task.REGRESSION: pass", TASKS),
        ("tenfold.tracking.model", "match task:\n    case Task.GENERATION | Task.RETRIEVAL: pass", "Task.RETRIEVAL, "),
    ],
)
def test_each_rule_of_serving_can_be_broken(tmp_path, monkeypatch, module, line, offence):
    path = written(tmp_path, monkeypatch, module, line)
    found = [*offences(path), *serving_offences(path)]
    assert any(offence in each for each in found), found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("serve.contract", "from tenfold.tasks import Signature"),
        ("serve.http.extra", "from serve.protocols import v2\nfrom serve.contract import Call"),
        ("serve.tasks.concepts", "from serve.tasks import slots\nfrom serve.contract import Call"),
        ("serve.tasks.labels.more", "from serve.tasks.labels.maps import x"),
        ("serve.tasks.table", "x = 'serve.tasks.labels.kind'"),
        ("serve.tasks.labels.more", "x = task is Task.MULTI_LABEL"),
        ("serve.clients.handle", "from ray.exceptions import RayActorError"),
        ("serve.clients.local", "from serve.tasks.table import kind_of"),
        ("serve.deployment.extra", "from ray import serve\nfrom serve.http.app import App"),
        ("tenfold.tracking.model", "x = {Task.REGRESSION: 1}[task]"),
    ],
)
def test_what_serving_may_do_is_allowed(tmp_path, monkeypatch, module, line):
    path = written(tmp_path, monkeypatch, module, line)
    assert [*offences(path), *serving_offences(path)] == []


def test_the_kinds_of_the_table_are_there_and_have_a_home():
    for name, home in kinds().items():
        assert lies_in(MODULES[name], home)
        assert (ROOT / home.replace(".", "/")).is_dir() or (ROOT / f"{home.replace('.', '/')}.py").is_file()


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
