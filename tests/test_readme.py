"""What the README tells people to type exists and means something."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jobs import config
from jobs.demo import STORIES
from jobs.deploy import DeploySettings
from jobs.sweep import SweepSettings
from tenfold.catalog import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("*/**/README.md") if ".venv" not in path.parts)]
CONFIGS = {"train": "config", "evaluate": "evaluate", "demo": "config"}


def commands() -> list[str]:
    """Every line of the README's bash blocks, continued lines joined, comments gone."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip()]


def test_the_two_first_commands_are_the_ones_that_ci_runs():
    assert commands()[:2] == ["make demo", "make test"]
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_make_targets_exist(line):
    subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("line", [line for line in commands() if "jobs/" in line])
def test_jobs_take_what_is_written(line):
    words = shlex.split(line)
    script = next(word for word in words if word.startswith("jobs/"))
    assert (ROOT / script).is_file()
    overrides = words[words.index(script) + 1 :]
    name = Path(script).stem
    if name == "deploy":
        config.compose_container(config.store_settings("deploy", DeploySettings), overrides)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_tree_names_what_is_there():
    tree = re.search(r"```text\n(.*?)```", README, flags=re.DOTALL)
    assert tree is not None
    for name in re.findall(r"^ {0,4}(\w[\w/]*)/ ", tree[1], flags=re.MULTILINE):
        assert (ROOT / name).is_dir() or (ROOT / "platform/tenfold" / name).is_dir(), name
    assert [name for name in METHODS if f"method={name}" not in README] == []
    assert [name for name in rooms() if f"](platform/tenfold/methods/{name})" not in README] == []


def rooms() -> list[str]:
    folder = ROOT / "platform/tenfold/methods"
    return [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "_"]
