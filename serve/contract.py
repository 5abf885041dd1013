"""What the ingress and a model's replicas say to each other."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve.settings import ServedModel
from tenfold.bundle import Bundle
from tenfold.types import Task

LABEL_TASKS = (Task.CLASSIFICATION, Task.MULTI_LABEL)
"""Tasks whose predictors answer with ``probs`` and ``logits``, one column per class."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a client has to know of one version of a model."""

    name: str
    version: str
    method: str
    task: Task
    classes: tuple[str, ...]
    image_size: int
    """Height and width S of the pictures that the predictor takes."""
    outputs: dict[str, tuple[int, ...]]
    """Output name to its shape without the batch axis; all float32. Empty: not known before a replica has run."""


@dataclass(frozen=True)
class Answer:
    """Outputs for all pictures of one request, first axis N, in their order."""

    version: str
    outputs: dict[str, np.ndarray]
    description: Description | None = None
    """Given where the replica is of another version than the caller knew."""


@dataclass(frozen=True)
class Declined:
    """The replica can't take this request, though another one it could: wrong picture size or version."""

    message: str
    description: Description


class ModelClient(Protocol):
    """A served model as the HTTP side sees it."""

    async def infer(
        self, images: np.ndarray, known_version: str, required_version: str | None = None
    ) -> Answer | Declined:
        """Run uint8 ``(N, S, S, 3)``; declines another S, or another version than the one required."""
        ...

    async def describe(self) -> Description:
        """Description of the version that runs; raises ``RefusedError`` where none does."""
        ...


def describe_bundle(model: ServedModel, bundle: Bundle) -> Description:
    """What is known of a model before any replica of it runs."""
    metadata = bundle.metadata
    num_classes = len(metadata.classes)
    return Description(
        name=model.name,
        version=model.version,
        method=metadata.method,
        task=metadata.task,
        classes=metadata.classes,
        image_size=metadata.preprocessing.image_size,
        outputs={"probs": (num_classes,), "logits": (num_classes,)} if metadata.task in LABEL_TASKS else {},
    )
