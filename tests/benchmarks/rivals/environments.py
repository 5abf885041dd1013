"""Virtual environments of the rivals: their own pinned packages, then those of this interpreter (torch, numpy)."""

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

_HERE = Path(__file__).parent


def python_of(rival: str, folder: Path) -> Path:
    """Make the environment of a rival in ``folder``, or reuse it, and return its interpreter.

    Its requirements are in ``<rival>.txt`` here. What they need besides and this interpreter has, is taken from there:
    a path file puts the packages of this interpreter behind those of the environment, so pip counts them as
    installed, and installs another version beside them where a rival needs one.

    Raises:
        RuntimeError: If pip fails, with what it said.
    """
    requirements = _HERE / f"{rival}.txt"
    packages = sysconfig.get_path("purelib")
    environment = folder.resolve() / rival
    python = environment / "bin" / "python"
    mark = environment / ".installed"
    state = hashlib.sha256(f"{sys.version}\n{packages}\n{requirements.read_text()}".encode()).hexdigest()
    if mark.is_file() and mark.read_text() == state:
        return python
    print(f"making the environment of {rival} in {environment}", file=sys.stderr, flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(environment))
    own = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    Path(own, "packages_of_the_project.pth").write_text(f"{packages}\n")
    quiet = ("-q", "--disable-pip-version-check", "--no-input")
    _run(str(python), "-m", "pip", "install", *quiet, "-r", str(requirements))
    mark.write_text(state)
    return python


def pins(rival: str) -> dict[str, str]:
    """Pinned versions of a rival's packages by name."""
    lines = (_HERE / f"{rival}.txt").read_text().split()
    return dict(line.split("==") for line in lines)


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with code {ran.returncode}:\n{ran.stderr.strip()[-3000:]}")
