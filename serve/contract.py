"""What the ingress and a model's replicas say to each other."""

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
"""Tasks whose predictors answer with ``probs`` and ``logits``, one column per class."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a client has to know of one version of a model."""

    name: str
    version: str
    method: str
    task: Task
    classes: tuple[str, ...]
    """Of a regression: what the target's channels are called."""
    preprocessing: Preprocessing | None
    """How a picture is brought to the size that the predictor takes; None where it takes none, but ``inputs``."""
    outputs: dict[str, tuple[int, ...]]
    """Output name to its shape without the batch axis, -1 where that depends on the inputs; all float32. Empty: not
    known before a replica has run. Those that only come where a request asks for maps or for an interval are not among
    them."""
    inputs: tuple[TensorSchema, ...] = ()
    """What a model takes that takes no pictures."""
    prompt_template: str | None = None
    """The sentence around a class's name, with ``{}`` for the name, where requests may bring classes along; None: they
    may not, or no replica has told."""
    explains: bool = False
    """Whether requests may ask where in a picture the answer was seen; False also where no replica has told."""
    flag: OutsideFlag | None = None
    """When the output ``outside`` is 1; None where there is no such output, or no replica has told."""
    from_replica: bool = False
    """Whether a replica that runs has told all this; else it is what the bundle says."""

    @property
    def image_preprocessing(self) -> Preprocessing:
        """``preprocessing`` of a model that takes pictures.

        Raises:
            RefusedError: 422, the model takes something else.
        """
        if self.preprocessing is None:
            names = ", ".join(schema.name for schema in self.inputs)
            raise RefusedError(422, f"model {self.name} does {self.task} and takes the inputs {names}", "task")
        return self.preprocessing


@dataclass(frozen=True)
class Answer:
    """Outputs for all pictures of one request, first axis N, in their order."""

    version: str
    outputs: dict[str, np.ndarray]
    description: Description | None = None
    """Given where the replica is of another version than the caller knew."""


@dataclass(frozen=True)
class Declined:
    """The replica can't take this request, though another one it could: wrong picture size, version or classes."""

    message: str
    description: Description
    reason: Literal["tensor", "version", "vocabulary", "explain", "unexplained", "task"] = "tensor"
    """What is wrong with it, as logs and metrics count it; ``unexplained``: the model has no maps to give; ``task``: it
    does something else."""


class ModelClient(Protocol):
    """A served model as the HTTP side sees it."""

    async def infer(
        self,
        images: np.ndarray,
        known_version: str,
        required_version: str | None = None,
        vocabulary: Vocabulary | None = None,
        explain: Explain | None = None,
    ) -> Answer | Declined:
        """Run uint8 ``(N, S, S, 3)`` over the classes of ``vocabulary``, or the model's own where it is None.

        With ``explain``, the answer also has ``attributions`` float32 ``(N, S, S)`` and ``explained`` int64 ``(N,)``.
        Declines another S, another version than the one required, classes that the model can't take, and maps that it
        can't make.
        """
        ...

    async def regress(
        self, asked: Regression, known_version: str, required_version: str | None = None
    ) -> Answer | Declined:
        """Run a regression: ``mean`` and ``std``, and with a level the ends of the interval too.

        Declines inputs that the model does not take, and another version than the one required.
        """
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
        preprocessing=metadata.preprocessing,
        inputs=metadata.inputs,
        outputs={"probs": (num_classes,), "logits": (num_classes,)} if metadata.task in LABEL_TASKS else {},
    )
