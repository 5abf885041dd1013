"""Concepts that another method's model predicts, in place of a base model of our own."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tenfold.data.concepts import ConceptData, PredictedConcepts
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.hashing import bytes_sha256


def predicted_by(run: Run, base: Any, data: ConceptData) -> ConceptData:
    """Return the data with the predictions of a model in place of the images.

    Args:
        run: Runtime of this worker.
        base: Predictor of labels, each the probability of a concept of the same name; it may know further labels.
        data: Data with images of its size.

    Raises:
        ValueError: The model lacks a concept, or takes images of another size.
    """
    labels = list(base.signature.columns)
    missing = [name for name in data.concepts if name not in labels]
    if missing:
        raise ValueError(
            f"base_model must predict every concept of {data.name}; it lacks {len(missing)} of {len(data.concepts)}: "
            f"{', '.join(missing[:4])} ..."
        )
    preprocessing = base.signature.preprocessing
    if preprocessing is None or preprocessing.image_size != data.image_size:
        size = None if preprocessing is None else preprocessing.image_size
        raise ValueError(f"image_size must be that of base_model, {size}, got {data.image_size}")
    columns = torch.tensor([labels.index(name) for name in data.concepts])

    def predict(images: Tensor) -> Tensor:
        return base(images)["probs"][:, columns]

    values = {part: predict_images(run, predict, split.images).numpy() for part, split in data.splits().items()}
    splits: dict[str, Any] = {
        part: replace(split, images=PredictedConcepts(values[part])) for part, split in data.splits().items()
    }
    seen = (data.fingerprint.encode(), *(array.tobytes() for array in values.values()))
    return replace(data, **splits, predicted=True, fingerprint=bytes_sha256(seen))
