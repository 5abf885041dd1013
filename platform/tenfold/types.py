"""Types that all packages share: batches, tasks, preprocessing, and the protocols of data sources and predictors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

Batch = dict[str, Tensor]
"""Tensors by name, with the example as first axis; always holds ``index (B,)``, the row numbers in the data set."""


class Task(StrEnum):
    """Task of a model; fixes the schema of its inputs and outputs."""

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi_label"
    CONCEPTS = "concepts"
    RETRIEVAL = "retrieval"
    REGRESSION = "regression"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Conversion of a decoded image to the network's input: resize, scale to [0, 1], normalise."""

    image_size: int
    """Height and width of the network's input, in pixels."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Mean of each RGB channel, subtracted after scaling to [0, 1]."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Standard deviation of each RGB channel, divided by after subtracting the mean."""
    resize: Literal["stretch", "crop"] = "stretch"
    """Resizing of images of another size: ``stretch`` ignores the aspect ratio; ``crop`` scales the shorter side to
    ``image_size`` and takes the centre crop."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of the resizing; both kinds with antialiasing."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std must be 3 numbers each, std positive, got {self.mean} and {self.std}")
        if self.resize not in ("stretch", "crop") or self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"resize must be stretch or crop and interpolation bilinear or bicubic, "
                f"got {self.resize!r} and {self.interpolation!r}"
            )


class ImageSource(Protocol):
    """Images by row, decoded and resized to one size."""

    in_memory: bool
    """True where reading is a gather (array or memory map); False where it decodes files, so that prefetching pays."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray | Sequence[int]) -> Tensor:
        """Return uint8 ``(B, S, S, 3)`` RGB for the requested rows, in their order."""
        ...

    def read_raw(self, indices: np.ndarray | Sequence[int]) -> list[np.ndarray]:
        """Return the same images before any resizing, uint8 ``(H, W, 3)`` RGB each."""
        ...


class Predictor(Protocol):
    """Model loaded from a bundle: the same numbers in training, in MLflow and behind an endpoint."""

    task: Task
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return named outputs, first axis B, for ``images`` uint8 ``(B, S, S, 3)``, S = ``preprocessing.image_size``.

        Multi-label and classification: ``probs (B, K)`` float32 and ``logits (B, K)`` float32.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TensorSchema:
    """Schema of one named input of a model without uint8 image input; the batch axis is left out."""

    name: str
    dtype: Literal["uint8", "float32", "int64"]
    shape: tuple[int, ...]
    """-1 for an axis of any length."""
    max_value: float | None = None
    """Value of white where the input is an image ``(1 or 3, H, W)``, with 0 as black; None: it is not an image."""

    def __post_init__(self) -> None:
        if not self.name or self.dtype not in ("uint8", "float32", "int64"):
            raise ValueError(
                f"name must not be empty, dtype must be uint8, float32 or int64, got {self.name!r} and {self.dtype!r}"
            )
        if any(length < 1 and length != -1 for length in self.shape):
            raise ValueError(f"shape must hold lengths of at least 1, or -1 for any, got {self.shape}")
        is_image = self.dtype == "float32" and len(self.shape) == 3 and self.shape[0] in (1, 3)
        if self.max_value is not None and not (is_image and self.max_value > 0):
            raise ValueError(
                f"max_value must be positive, and None unless the input is a float32 image (1 or 3, H, W), "
                f"got {self.max_value} for {self.dtype} {self.shape}"
            )

    def check(self, tensor: Tensor) -> None:
        """Raise if a batch does not match the schema.

        Raises:
            ValueError: The dtype, the number of axes or a length differs.
        """
        fits = tensor.ndim == len(self.shape) + 1 and all(
            wanted in (-1, length) for wanted, length in zip(self.shape, tensor.shape[1:], strict=True)
        )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not fits or dtype != self.dtype:
            shape = ", ".join(str(length) if length > 0 else "any" for length in self.shape)
            raise ValueError(f"{self.name} must be {self.dtype} (B, {shape}), got {dtype} {tuple(tensor.shape)}")


def output_shape(shape: Sequence[int], inputs: Sequence[TensorSchema]) -> tuple[int, ...]:
    """Return the shape of an output, without the batch axis, with -1 for each axis whose length may vary.

    The first axis holds the target's channels and is fixed; the others may follow inputs of any length.

    Args:
        shape: Shape of one observed output, without the batch axis.
        inputs: Schemas of the model's inputs.
    """
    is_open = any(-1 in schema.shape for schema in inputs)
    return (*shape[:1], *(-1 if is_open else length for length in shape[1:]))


class RegressionPredictor(Protocol):
    """Regression model loaded from a bundle: predictions with their uncertainty."""

    task: Task
    classes: tuple[str, ...]
    """Names of the target's channels, with units."""
    inputs: tuple[TensorSchema, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return ``mean`` and ``std`` float32 ``(B, ...)`` on the CPU, in the target's unit, for a batch of each input.

        Raises:
            ValueError: An input is missing or unknown, or does not match its schema.
        """
        ...

    def interval(self, outputs: Mapping[str, Tensor], level: float) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends, each shaped like ``mean``, of the prediction interval at ``level``.

        Args:
            outputs: Outputs of a call.
            level: Nominal coverage, in (0, 1).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class OutsideFlag:
    """Rule that flags an input as out-of-distribution: the classifier's output ``outside`` is then 1."""

    score: str
    """Name of the output that is compared with the threshold."""
    threshold: float
    """Inputs with a score above it are flagged."""
    false_positive_rate: float
    """Share of held-out in-distribution inputs that the threshold was chosen to flag."""


class OpenVocabularyPredictor(Predictor, Protocol):
    """Predictor that also classifies into classes given by the caller as text prompts (zero-shot)."""

    prompt_template: str
    """One sentence with ``{}`` for the class name: the prompt of a class given by name only."""

    def embed(self, images: Tensor) -> Tensor:
        """Return unit vectors float32 ``(B, D)`` on the CPU for uint8 ``(B, S, S, 3)``."""
        ...

    def prototypes_of(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        """Return class prototypes float32 ``(K, D)`` on the CPU, in the order of ``prompts``.

        Text embeddings are cached between calls.

        Args:
            prompts: At least one prompt for each class name.
        """
        ...

    def classify(self, embeddings: Tensor, prototypes: Tensor) -> Mapping[str, Tensor]:
        """Return ``probs`` and ``logits``, float32 ``(B, K)``; with the model's own prototypes the same as a call."""
        ...


class ExplainingPredictor(Predictor, Protocol):
    """Predictor that also returns attribution maps of its answers."""

    def explain(self, images: Tensor, labels: Tensor | None = None) -> Mapping[str, Tensor]:
        """Return the outputs of a call and their attributions, in one forward pass.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            labels: Class to explain for each image, int64 ``(B,)``; None: the one with the highest logit.

        Returns:
            The outputs of a call, ``attributions`` float32 ``(B, S, S)`` in [0, 1] (each map scaled by its own maximum)
            and ``explained``, the explained classes, int64 ``(B,)``, all on the CPU.

        Raises:
            ValueError: A label is not a class.
        """
        ...


def load_name(name: str) -> Any:
    """Return the object at ``module:name``; called only with names from the tables of this project."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def check_label_range(labels: np.ndarray | Tensor, num_classes: int, name: str = "labels") -> None:
    """Raise if a label is outside the K classes.

    Args:
        labels: Integers of any shape, at least one.
        num_classes: K.
        name: Name of the labels in the message.

    Raises:
        ValueError: A label is outside 0..K - 1.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} must lie in 0..{num_classes - 1}, got {low}..{high}")
