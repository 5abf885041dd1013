"""Concept predictions of a base model for every image, which realigners learn from and curves are drawn from.

They are computed once; a realigner never sees an image. Realigners learn from out-of-fold predictions: those for images
that the base model has fitted are cleaner than those for images it has not seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tenfold.data.concepts import ConceptSplit, Part
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.methods.concept_realignment.network import Bottleneck, ConceptModel


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for the N images of a part, on the CPU."""

    encoded: Tensor
    """Encodings, float32 ``(N, D)``."""
    concepts: Tensor
    """Predicted concepts, float32 ``(N, K)``; out of fold for training images."""
    truth: Tensor
    """True concepts, float32 ``(N, K)`` in {0, 1}; where annotators are unsure, what they hold more probable."""
    answers: Tensor
    """Values that corrections give, float32 ``(N, K)`` in [0, 1]: the truth, or the certainty of the annotator."""
    labels: Tensor
    """Classes, int64 ``(N,)``."""
    known: Tensor | None = None
    """1 where the image shows the concept, float32 ``(N, K)``: others are never answered, and count in no loss. None:
    everywhere."""

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, start: int, stop: int) -> "Predictions":
        """Return consecutive rows."""
        return Predictions(
            encoded=self.encoded[start:stop],
            concepts=self.concepts[start:stop],
            truth=self.truth[start:stop],
            answers=self.answers[start:stop],
            labels=self.labels[start:stop],
            known=None if self.known is None else self.known[start:stop],
        )


def predict_split(run: Run, model: ConceptModel, split: ConceptSplit) -> tuple[Tensor, Tensor]:
    """Return encodings ``(N, D)`` and concepts ``(N, K)`` of a part, in the order of its images, on the CPU."""
    encoded = predict_images(run, model.encode, split.images)
    return encoded, concepts_of(model, encoded)


def concepts_of(model: ConceptModel, encoded: Tensor, batch_size: int = 4096) -> Tensor:
    """Return the concepts ``(N, K)`` of encodings ``(N, D)``, on the CPU."""
    device = model.temperature.device
    with torch.inference_mode():
        parts = [model.bottleneck(part.to(device)).concepts.float().cpu() for part in encoded.split(batch_size)]
    return torch.cat(parts)


def bottleneck_of(model: ConceptModel, predictions: Predictions, device: torch.device) -> Bottleneck:
    """Return the bottleneck of some rows, with their stored concepts, on a device."""
    found = model.bottleneck(predictions.encoded.to(device))
    return found._replace(concepts=predictions.concepts.to(device))


def fold_rows(num_rows: int, num_folds: int, seed: int) -> list[np.ndarray]:
    """Divide rows into folds of nearly the same size at random, ascending within each.

    Raises:
        ValueError: There are fewer rows than folds.
    """
    if num_rows < num_folds:
        raise ValueError(f"crossfit must be at most the number of training images, {num_rows}, got {num_folds}")
    fold = np.random.default_rng((seed, num_rows)).permutation(num_rows) % num_folds
    return [np.flatnonzero(fold == number) for number in range(num_folds)]


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature, in [0.05, 20], that minimises the cross-entropy of concept logits ``(N, K)``.

    The cross-entropy is convex in the inverse temperature; the root of its derivative is found by bisection.
    """
    logits, targets = logits.double(), targets.double()
    low, high = 1 / 20, 1 / 0.05
    for _ in range(60):
        scale = (low + high) / 2
        slope = (((scale * logits).sigmoid() - targets) * logits).mean()
        low, high = (low, scale) if slope > 0 else (scale, high)
    return 1 / ((low + high) / 2)


def write_predictions(folder: Path, parts: Mapping[str, tuple[Tensor, Tensor]], temperature: float) -> None:
    """Store encodings and concepts of each part, and the temperature."""
    tensors = {"temperature": torch.tensor(temperature)}
    for part, (encoded, concepts) in parts.items():
        tensors |= {f"{part}.encoded": encoded, f"{part}.concepts": concepts}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "predictions.safetensors")


def read_predictions(folder: Path, splits: Mapping[Part, ConceptSplit]) -> tuple[dict[str, Predictions], float]:
    """Read what ``write_predictions`` wrote, with the truth and the labels of each part."""
    stored = load_file(folder / "predictions.safetensors")
    parts: dict[str, Predictions] = {
        part: of_split(split, stored[f"{part}.encoded"], stored[f"{part}.concepts"]) for part, split in splits.items()
    }
    return parts, float(stored["temperature"])


def of_split(split: ConceptSplit, encoded: Tensor, concepts: Tensor) -> Predictions:
    """Join predictions for a part with its truth, answers and labels."""
    return Predictions(
        encoded=encoded,
        concepts=concepts,
        truth=torch.from_numpy((split.values >= 0.5).astype(np.float32)),
        answers=torch.from_numpy(np.array(split.values)),
        labels=torch.from_numpy(np.array(split.labels)),
        known=None if split.known is None else torch.from_numpy(split.known.astype(np.float32)),
    )
