"""Stories of ``jobs/demo.py``, one a method. Imports nothing heavy, so that the first line comes at once."""

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
