"""What every README tells people to type exists and means something."""

import importlib.util
import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs import config
from jobs.rollout import as_settings, stored_config
from jobs.stories import STORIES
from jobs.sweep import SweepSettings
from tenfold.catalog import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WRITTEN = ("build", "dist", "outputs", "mlruns")
"""Folders that commands of the project write; copies of pages in them are not pages."""
CONFIGS = {"train": "config", "evaluate": "evaluate", "demo": "config"}
ROUTES = re.compile(
    r"(/v2(/models/\w+(/infer|/ready)?|/health/(live|ready))?|/predict/\w+|/models|/docs|/openapi\.json)?"
)
OTHER_TOOLS = ("docker", "export", "helm", "kubectl", "mlflow", "#")
"""First words of commands that other tools take; manifests have tests of their own."""


@dataclass(frozen=True)
class Command:
    """A command of a page."""

    page: Path
    line: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.line}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def pages(root: Path) -> list[Path]:
    """Every page of the project, but the change log."""
    folders = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in WRITTEN]
    found = [*root.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]
    return sorted(path for path in found if path.name != "CHANGELOG.md")


PAGES = pages(ROOT)


def commands_of(page: Path) -> list[Command]:
    """Every line of the bash blocks, continued lines joined and comments gone, and the Python commands in the text."""
    text = page.read_text()
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines()
    found = [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip()]
    without_blocks = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found += [" ".join(each.split()) for each in re.findall(r"`((?:python|make) [^`]+)`", without_blocks)]
    return [Command(page, line) for line in dict.fromkeys(found) if line]


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def check(command: Command) -> None:
    """Refuse what would not run: a target, job, setting, module, option or path that is not there."""
    words = command.words
    jobs = [word for word in words if re.fullmatch(r"jobs/\w+\.py", word)]
    if jobs:
        check_job(jobs[0], words)
    elif words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] in ("python", ".venv/bin/python"):
        check_program(words[1:])
    elif words[0] == "curl":
        check_curl(words)
    else:
        assert words[0] in OTHER_TOOLS, f"{command}: nothing here knows {words[0]}"


def check_job(script: str, words: list[str]) -> None:
    """The job composes the settings that follow its name."""
    assert (ROOT / script).is_file()
    overrides = [word for word in words[words.index(script) + 1 :] if word not in ("--cfg", "job", "--keep-serving")]
    name = Path(script).stem
    if name == "deploy":
        config.compose_container(stored_config(), as_settings(overrides))
    elif name == "sweep":
        settings = config.compose_container(config.store_settings("sweep", SweepSettings), overrides)
        assert (ROOT / f"tune_spaces/{settings['study']}.yaml").is_file()
    else:
        overrides = [re.sub("^model=models:", "reference=models:", word) for word in overrides]
        stories = [word.removeprefix("story=") for word in overrides if name == "demo" and word.startswith("story=")]
        assert set(stories) <= set(STORIES)
        overrides = [word for word in overrides if word.removeprefix("story=") not in stories]
        config.compose_container(CONFIGS[name], overrides)
    if "--runtime-env-json" in words:
        assert json.loads(words[words.index("--runtime-env-json") + 1])["env_vars"] == {"PYTHONPATH": "platform"}


def check_program(words: list[str]) -> None:
    """The script or module is there, and its source names every option."""
    if words[0] == "-m":
        if words[1] == "pytest":
            return
        own = ROOT / f"{words[1].replace('.', '/')}.py"
        spec = None if own.is_file() else importlib.util.find_spec(words[1])
        is_package = spec is not None and spec.submodule_search_locations is not None
        found = own if spec is None else Path(str(spec.origin))
        path = found.with_name("__main__.py") if is_package else found
    else:
        path = ROOT / words[0]
    assert path.is_file(), f"{' '.join(words)}: there is no {path}"
    source = path.read_text()
    for near in re.findall(
        r"^from tests\.replicas import (\w+)|^from tests\.replicas\.(\w+) import", source, re.MULTILINE
    ):
        source += (ROOT / f"tests/replicas/{near[0] or near[1]}.py").read_text()
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


def check_curl(words: list[str]) -> None:
    """One address, a path that the endpoint has."""
    (url,) = [word for word in words if word.startswith("http://127.0.0.1:8000")]
    path = url.removeprefix("http://127.0.0.1:8000").partition("?")[0]
    assert ROUTES.fullmatch(path), f"the endpoint has no {path}"


def test_copies_and_results_are_no_pages(tmp_path):
    for name in ("README.md", "docs/results.md", "build/wheel/tenfold/README.md", ".venv/a.md", "outputs/s/report.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in pages(tmp_path)] == ["README.md", "docs/results.md"]


def test_the_two_first_commands_are_the_ones_that_ci_runs():
    assert [command.line for command in commands_of(ROOT / "README.md")[:2]] == ["make demo", "make test"]
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_one_that_runs(command):
    check(command)


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "python jobs/nothing.py",
        "python jobs/train.py method=nothing",
        "python jobs/train.py run.nothing=1",
        "python jobs/sweep.py study=nothing",
        "python jobs/demo.py story=nothing",
        "python -m tests.replicas.nothing",
        "python -m tests.replicas.calm_cues --nothing",
        "curl http://127.0.0.1:8000/nothing/large_loss",
        "rm -rf outputs",
    ],
)
def test_a_command_that_would_not_run_is_found(line):
    with pytest.raises((AssertionError, ValueError, subprocess.CalledProcessError)):
        check(Command(ROOT / "README.md", line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in (*re.findall(r"\]\(([^)#]+)\)", text), *re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_face_fits_one_screen():
    assert len(README.encode()) <= 10_240
    assert [line for line in README.splitlines() if len(line) > 120] == []
    assert (ROOT / "docs/overview.png").stat().st_size <= 200_000


def test_the_tree_names_what_is_there():
    tree = re.search(r"```text\n(platform/.*?)```", README, flags=re.DOTALL)
    assert tree is not None
    for name in re.findall(r"^ {0,4}(\w[\w/]*)/ ", tree[1], flags=re.MULTILINE):
        assert (ROOT / name).is_dir() or (ROOT / "platform/tenfold" / name).is_dir(), name


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_in_the_table_and_has_a_page(name):
    room = f"platform/tenfold/methods/{name}"
    assert f"method={name}" in README
    assert f"]: {room}\n" in README
    page = (ROOT / room / "README.md").read_text()
    assert f"jobs/train.py method={name}" in page
    assert re.search("does not hold|doesn't hold", page, re.IGNORECASE)
    assert re.search(r"^\| -", page, re.MULTILINE), "a table"
