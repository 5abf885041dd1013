"""Command line shared by all entry points: parsing, error messages, exit codes.

Exit codes: 0 done, 1 failed, 2 invalid settings (nothing was started), 130 stopped by Ctrl-C or SIGTERM.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from jobs.config import compose_container
from tenfold.config import ConfigError
from tenfold.engine.run import Interrupted

Settings = TypeVar("Settings")
MISTAKE, STOPPED = 2, 130


def main(
    description: str,
    config_name: str,
    check: Callable[[dict[str, Any]], Settings],
    work: Callable[[Settings], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Compose the settings, check them, and do the work.

    Args:
        description: Introduction of ``--help``.
        config_name: File of ``conf/`` with the defaults, or a name given to ``store_settings``.
        check: Converts composed plain values to settings; raises ``ConfigError``.
        work: Runs the job; None counts as 0.
        argv: Arguments; None: those of the command line.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    show = "--cfg" in words
    if show:
        at = words.index("--cfg")
        if words[at + 1 : at + 2] != ["job"]:
            print("error: --cfg must be followed by job; write --cfg job", file=sys.stderr)
            return MISTAKE
        del words[at : at + 2]
    wants_help = bool({"--help", "-h"} & set(words))
    words = [word for word in words if word not in ("--help", "-h")]
    try:
        flags = [word for word in words if word.startswith("-")]
        if flags:
            raise ConfigError(
                f"unknown option {flags[0]}; settings are key=value, --cfg job shows them, --help explains"
            )
        container = compose_container(config_name, words)
        if wants_help:
            print(_help(description, container))
            return 0
        settings = check(container)
        if show:
            print(yaml.safe_dump(container, sort_keys=False).rstrip())
            return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return run(lambda: work(settings), words)


def as_reference(words: Sequence[str], setting: str = "reference") -> list[str]:
    """Rename ``model=models:/...`` to the setting of a job: for Hydra, ``model`` is the group of networks."""
    return [f"{setting}={word.removeprefix('model=')}" if word.startswith("model=") else word for word in words]


def run(work: Callable[[], int | None], words: Sequence[str]) -> int:
    """Run the work; print how to resume after an interruption, and one line for an error in data or model."""
    command = shlex.join(["python", *sys.argv[:1], *words])
    try:
        return work() or 0
    except (Interrupted, KeyboardInterrupt):
        print(f"\nstopped; finished work is kept. To resume: {command}", file=sys.stderr)
        return STOPPED
    except (ValueError, FloatingPointError, RuntimeError) as error:
        if error.__cause__ is None and isinstance(error, RuntimeError):
            raise  # an unexpected error: show the traceback
        print(f"error: {error}", file=sys.stderr)
        return 1


def _help(description: str, container: Mapping[str, Any]) -> str:
    shown = yaml.safe_dump(dict(container), sort_keys=False)
    return (
        f"{description}\n\nSettings are key=value (run.seed=1) and group=choice (scale=local). "
        f"--cfg job prints the composed settings.\n\nDefaults:\n\n{shown}"
    ).rstrip()
