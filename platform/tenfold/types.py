"""The few words that every floor of the house shares: tensors by name, tasks, what an image looks like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

Batch = dict[str, Tensor]
"""Tensors by name, the first axis of each is the example; always holds ``index (B,)``, the rows of the data set."""


class Task(StrEnum):
    """What a model does; fixes the schema of its inputs and outputs (``TASK_OUTPUTS``)."""

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi_label"
    CONCEPTS = "concepts"
    RETRIEVAL = "retrieval"
    REGRESSION = "regression"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a decoded picture becomes the network's input: resize, scale to [0, 1], normalise."""

    image_size: int
    """Height and width in pixels that the network takes."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Per RGB channel, subtracted after scaling to [0, 1]."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Per RGB channel, divided by after the mean is subtracted."""
    resize: Literal["stretch", "crop"] = "stretch"
    """How pictures of another size get there: ``stretch`` does not keep the aspect; ``crop`` brings the shorter side
    to ``image_size`` and cuts out the centre."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of the resizing; both with antialiasing."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std need 3 values, std positive; got {self.mean} and {self.std}")
        if self.resize not in ("stretch", "crop") or self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"resize must be stretch or crop and interpolation bilinear or bicubic, "
                f"got {self.resize!r} and {self.interpolation!r}"
            )


class ImageSource(Protocol):
    """Pictures by row, decoded and at one size."""

    in_memory: bool
    """True where reading is a gather (array or memory map), False where it decodes files: then it pays to prefetch."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray | Sequence[int]) -> Tensor:
        """uint8 ``(B, S, S, 3)`` RGB for the rows asked for, in their order."""
        ...

    def read_raw(self, indices: np.ndarray | Sequence[int]) -> list[np.ndarray]:
        """The same pictures before any resizing, uint8 ``(H, W, 3)`` RGB each."""
        ...


class Predictor(Protocol):
    """A bundle brought to life: the same numbers in training, in MLflow and behind an endpoint."""

    task: Task
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """Named outputs, first axis B, for ``images`` uint8 ``(B, S, S, 3)`` with S = ``preprocessing.image_size``.

        Multi-label and classification: ``probs (B, K)`` float32 and ``logits (B, K)`` float32.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TensorSchema:
    """One input of a model that takes something else than pictures; the batch axis is left out."""

    name: str
    dtype: Literal["uint8", "float32", "int64"]
    shape: tuple[int, ...]
    """-1 where any length will do."""
    max_value: float | None = None
    """Of a picture, ``(1 or 3, H, W)``: what is white, 0 being black. None: it is no picture."""

    def __post_init__(self) -> None:
        if not self.name or self.dtype not in ("uint8", "float32", "int64"):
            raise ValueError(f"an input needs a name and uint8, float32 or int64, got {self.name!r} and {self.dtype!r}")
        if any(length < 1 and length != -1 for length in self.shape):
            raise ValueError(f"lengths must be at least 1, or -1 for any, got {self.shape}")
        is_picture = self.dtype == "float32" and len(self.shape) == 3 and self.shape[0] in (1, 3)
        if self.max_value is not None and not (is_picture and self.max_value > 0):
            raise ValueError(
                f"a picture is float32 (1 or 3, H, W) with a positive max_value, "
                f"got {self.dtype} {self.shape} with {self.max_value}"
            )

    def check(self, tensor: Tensor) -> None:
        """Refuse a batch that is not what the model takes.

        Raises:
            ValueError: Another dtype, number of axes or length.
        """
        fits = tensor.ndim == len(self.shape) + 1 and all(
            wanted in (-1, length) for wanted, length in zip(self.shape, tensor.shape[1:], strict=True)
        )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not fits or dtype != self.dtype:
            shape = ", ".join(str(length) if length > 0 else "any" for length in self.shape)
            raise ValueError(f"{self.name} must be {self.dtype} (B, {shape}), got {dtype} {tuple(tensor.shape)}")


def output_shape(shape: Sequence[int], inputs: Sequence[TensorSchema]) -> tuple[int, ...]:
    """Of an output that came as ``shape``, the batch axis left out: -1 where another input might give another length.

    The first axis holds the target's channels and is always the same; the others may follow inputs of any length.
    """
    is_open = any(-1 in schema.shape for schema in inputs)
    return (*shape[:1], *(-1 if is_open else length for length in shape[1:]))


class RegressionPredictor(Protocol):
    """A bundle that answers with numbers and how sure it is of them."""

    task: Task
    classes: tuple[str, ...]
    """What the target's channels are called, with units."""
    inputs: tuple[TensorSchema, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """``mean`` and ``std`` float32 ``(B, ...)`` on the CPU, in the target's unit, for a batch of each input.

        Raises:
            ValueError: An input is missing, unknown, or of another dtype or shape.
        """
        ...

    def interval(self, outputs: Mapping[str, Tensor], level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper end, each like ``mean``, between which the target should be with probability ``level``.

        Args:
            outputs: What a call gave.
            level: In (0, 1).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class OutsideFlag:
    """When a classifier says of an input that it belongs to none of its classes: its output ``outside`` is then 1."""

    score: str
    """The output that is compared."""
    threshold: float
    """Above it an input is flagged."""
    false_positive_rate: float
    """Share of held-out inputs of the known classes that the threshold was set to flag."""


class OpenVocabularyPredictor(Predictor, Protocol):
    """A predictor that can also name classes which the caller brings along, by what is written about them."""

    prompt_template: str
    """One sentence with ``{}`` for the name: what a class is called when only its name is given."""

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors float32 ``(B, D)`` on the CPU for uint8 ``(B, S, S, 3)``."""
        ...

    def prototypes_of(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        """Class prototypes float32 ``(K, D)`` on the CPU, in the order of the mapping of name to at least one prompt.

        What was asked before is remembered.
        """
        ...

    def classify(self, embeddings: Tensor, prototypes: Tensor) -> Mapping[str, Tensor]:
        """``probs`` and ``logits``, float32 ``(B, K)``; with its own prototypes this is what a call gives."""
        ...


class ExplainingPredictor(Predictor, Protocol):
    """A predictor that can say where in a picture it saw what it answers."""

    def explain(self, images: Tensor, labels: Tensor | None = None) -> Mapping[str, Tensor]:
        """What a call gives, and where it comes from, in one forward pass.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            labels: Class to explain for each picture, int64 ``(B,)``; None: the one with the highest logit.

        Returns:
            The outputs of a call, and ``attributions`` float32 ``(B, S, S)`` in [0, 1] (each map by itself: 1 is its
            strongest place) and ``explained`` int64 ``(B,)``, all on the CPU.

        Raises:
            ValueError: A label that is no class.
        """
        ...


def load_name(name: str) -> Any:
    """The object at ``module:name``; only ever called with names of the tables of this project."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def check_label_range(labels: np.ndarray | Tensor, num_classes: int, name: str = "labels") -> None:
    """Refuse labels that are no class.

    Args:
        labels: Whole numbers, at least one, of any shape.
        num_classes: K.
        name: What the message calls them.

    Raises:
        ValueError: A label outside 0..K - 1.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} must lie in 0..{num_classes - 1}, got {low}..{high}")
