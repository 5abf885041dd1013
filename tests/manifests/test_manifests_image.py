"""Dockerfile checks: copied files exist, and KubeRay's and Pod Security's requirements are met."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "k8s" / "image"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Instructions with their arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (IMAGE / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def copied(instructions: list[tuple[str, str]]) -> list[str]:
    """Sources of COPY that come from the repository."""
    found = []
    for name, arguments in instructions:
        if name == "COPY" and "--from=" not in arguments:
            found += arguments.split()[:-1]
    return found


def test_everything_copied_exists_and_is_let_in(instructions: list[tuple[str, str]]):
    let_in = [line[1:] for line in (IMAGE / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [each.rstrip("/") for each in copied(instructions)]
    assert sorted(sources) == sorted(let_in)
    assert [each for each in sources if not (ROOT / each).exists()] == []


def test_nothing_of_the_repository_is_let_in_unnamed():
    lines = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"


def test_the_last_user_is_a_number_other_than_root(instructions: list[tuple[str, str]]):
    (user,) = [arguments for name, arguments in instructions if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert instructions[-2][0] == "USER"  # only the command follows


def test_probes_find_their_programs(instructions: list[tuple[str, str]]):
    (install,) = [arguments for name, arguments in instructions if name == "RUN" and "apt-get install" in arguments]
    assert {"bash", "wget"} <= set(install.split())


def test_the_operator_decides_about_health_and_start(instructions: list[tuple[str, str]]):
    assert not {"HEALTHCHECK", "ENTRYPOINT"} & {name for name, _ in instructions}


def test_versions_are_the_tested_ones(instructions: list[tuple[str, str]]):
    (pip,) = [arguments for name, arguments in instructions if name == "RUN" and "pip install" in arguments]
    assert "-c constraints.txt" in pip
    bases = {arguments.split()[0] for name, arguments in instructions if name == "FROM"}
    assert bases == {"python:3.11-slim"}
    constraints = (ROOT / "constraints.txt").read_text()
    for package in ("ray", "mlflow", "boto3"):
        assert re.search(rf"^{package}(\[[^]]*\])?==", constraints, re.MULTILINE), f"{package} is not pinned"


def test_work_happens_where_the_manifests_expect_it(instructions: list[tuple[str, str]]):
    assert [arguments for name, arguments in instructions if name == "WORKDIR"][-1] == "/app"
    environment = " ".join(arguments for name, arguments in instructions if name == "ENV")
    assert "PYTHONPATH=/app" in environment
