"""Messages between the ingress and a model's replicas."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from serve.explanation import Explain
from serve.limits import RefusedError
from serve.regression import Regression
from serve.settings import ServedModel
from serve.vocabulary import Vocabulary
from tenfold.bundle import Bundle
from tenfold.types import OutsideFlag, Preprocessing, Task, TensorSchema

LABEL_TASKS = (Task.CLASSIFICATION, Task.MULTI_LABEL)
"""Tasks whose predictors return ``probs`` and ``logits``, one column per class."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Public description of one version of a model."""

    name: str
    version: str
    method: str
    task: Task
    classes: tuple[str, ...]
    """Class names; for a regression, the names of the target's channels."""
    preprocessing: Preprocessing | None
    """Image preprocessing; None for a model that takes ``inputs`` instead of images."""
    outputs: dict[str, tuple[int, ...]]
    """Output name to its shape without the batch axis, -1 where it depends on the inputs; all float32. Empty until a
    replica has run. Outputs that a request must ask for (maps, intervals) are not included."""
    inputs: tuple[TensorSchema, ...] = ()
    """Named inputs of a model that takes no images."""
    prompt_template: str | None = None
    """Prompt template of an open-vocabulary model, with ``{}`` for the class name; None for others, or before a replica
    has reported."""
    explains: bool = False
    """Whether requests may ask for attribution maps; False also before a replica has reported."""
    flag: OutsideFlag | None = None
    """Threshold of the output ``outside``; None without such an output, or before a replica has reported."""
    from_replica: bool = False
    """Whether a running replica reported this; False: it is read from the bundle."""

    @property
    def image_preprocessing(self) -> Preprocessing:
        """``preprocessing`` of a model that takes images.

        Raises:
            RefusedError: 422, if the model takes other inputs.
        """
        if self.preprocessing is None:
            names = ", ".join(schema.name for schema in self.inputs)
            raise RefusedError(422, f"model {self.name} does {self.task} and takes the inputs {names}", "task")
        return self.preprocessing


@dataclass(frozen=True)
class Answer:
    """Outputs for all images of one request, first axis N, in request order."""

    version: str
    outputs: dict[str, np.ndarray]
    description: Description | None = None
    """Set if the replica runs another version than the caller knew."""


@dataclass(frozen=True)
class Declined:
    """A request that the replica refuses while it accepts others: wrong image size, version or classes."""

    message: str
    description: Description
    reason: Literal["tensor", "version", "vocabulary", "explain", "unexplained", "task"] = "tensor"
    """Reason in logs and metrics; ``unexplained``: the model has no attribution maps; ``task``: it has another task."""


class ModelClient(Protocol):
    """A served model, as seen by the HTTP application."""

    async def infer(
        self,
        images: np.ndarray,
        known_version: str,
        required_version: str | None = None,
        vocabulary: Vocabulary | None = None,
        explain: Explain | None = None,
    ) -> Answer | Declined:
        """Predict uint8 ``(N, S, S, 3)`` over the classes of ``vocabulary``; None: the model's own classes.

        With ``explain``, the answer also has ``attributions`` float32 ``(N, S, S)`` and ``explained`` int64 ``(N,)``.
        Declines another S, a version other than the required one, classes that the model does not accept, and maps that
        it does not provide.
        """
        ...

    async def regress(
        self, asked: Regression, known_version: str, required_version: str | None = None
    ) -> Answer | Declined:
        """Predict ``mean`` and ``std``, and with a level the bounds of the interval.

        Declines inputs that the model does not accept, and a version other than the required one.
        """
        ...

    async def describe(self) -> Description:
        """Describe the running version; raises ``RefusedError`` if none is running."""
        ...


def describe_bundle(model: ServedModel, bundle: Bundle) -> Description:
    """Describe a model from its bundle, before any replica runs."""
    metadata = bundle.metadata
    num_classes = len(metadata.classes)
    return Description(
        name=model.name,
        version=model.version,
        method=metadata.method,
        task=metadata.task,
        classes=metadata.classes,
        preprocessing=metadata.preprocessing,
        inputs=metadata.inputs,
        outputs={"probs": (num_classes,), "logits": (num_classes,)} if metadata.task in LABEL_TASKS else {},
    )
