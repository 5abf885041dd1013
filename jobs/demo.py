"""Data to a served prediction on a fresh machine: train, compare, register, serve, ask.

python jobs/demo.py                    # partial labels: assume negative, Large Loss, Large Loss + BoostLU
python jobs/demo.py story=datadream    # sixteen handwritten digits per class, and a generator that knows print only
python jobs/demo.py story=waffleclip   # zero-shot: class names, descriptors, random words
python jobs/demo.py --keep-serving     # leave the endpoint up until Ctrl-C
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Story:
    """Trainings that differ in one thing, and a test image to ask the best of them about."""

    opening: str
    settings: tuple[str, ...]
    """Settings of all trainings, as on a command line."""
    contenders: dict[str, tuple[str, ...]]
    """Title to the settings in which a training differs."""
    metrics: tuple[str, ...]
    """Columns of the table."""
    shows: Literal["scene", "digit"]
    """Kind of the example: a multi-label scene, or a digit that is also asked about with classes of the caller's."""


STORIES = {
    "large_loss": Story(
        opening="scenes of handwritten digits, with one positive label per image",
        settings=(),
        contenders={
            "assume negative": ("method=large_loss", "method.scheme=an"),
            "Large Loss": ("method=large_loss", "method.scheme=LL-R"),
            "Large Loss + BoostLU": ("method=boostlu", "method.scheme=LL-R"),
        },
        metrics=("test/mAP", "val/mAP"),
        shows="scene",
    ),
    "datadream": Story(
        opening="sixteen handwritten digits of each class, beside CLIP and a generator that have only seen print",
        settings=("method=datadream",),
        contenders={
            "zero-shot CLIP": ("method.scheme=zero_shot",),
            "real shots only": ("method.scheme=real",),
            "DataDream": ("method.scheme=cls",),
        },
        metrics=("test/accuracy", "val/accuracy"),
        shows="digit",
    ),
    "waffleclip": Story(
        opening="handwritten digits, named without any training by a CLIP that has only seen print",
        settings=("method=waffleclip",),
        contenders={
            "CLIP": ("method.mode=clip", "method.repetitions=1"),
            "descriptors": ("method.mode=gpt_descriptions", "method.repetitions=1"),
            "WaffleCLIP": ("method.mode=waffle",),
        },
        metrics=("test/accuracy", "val/accuracy"),
        shows="digit",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return 0
    keep = "--keep-serving" in words
    settings = [word for word in words if word != "--keep-serving" and not word.startswith("story=")]
    named = [word.removeprefix("story=") for word in words if word.startswith("story=")]
    name = named[-1] if named else next(iter(STORIES))
    if name in STORIES:
        print(f"== {STORIES[name].opening}", flush=True)

    # Only now: PyTorch, Ray and MLflow take seconds to import, and the first line should not wait for them.
    from jobs.cli import MISTAKE, run
    from jobs.storytelling import compose_jobs, tell
    from tenfold.config import ConfigError

    try:
        if name not in STORIES:
            raise ConfigError(f"story must be one of {', '.join(STORIES)}, got {name!r}")
        jobs = compose_jobs(STORIES[name], settings)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return run(lambda: tell(STORIES[name], jobs, keep), words)


if __name__ == "__main__":
    sys.exit(main())
