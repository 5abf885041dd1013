"""Regressors loaded for serving: verified, compared with training, warmed up. Independent of HTTP and Ray."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from serve.contract import Declined, Description, describe_bundle
from serve.loading import Failure, Outputs, as_arrays, divided, import_loader, isolated
from serve.regression import LOWER, UPPER, Regression, misfit
from serve.settings import ServedModel
from tenfold.bundle import check_probe, load_bundle, load_probes
from tenfold.types import RegressionPredictor, output_shape

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegressionPiece:
    """All or part of the examples of one request."""

    inputs: Mapping[str, np.ndarray]
    level: float | None
    weight: int
    """Share of a batch: its number of examples, more if they are large."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def form(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of its inputs, which must agree within one call."""
        return tuple(values.shape[1:] for values in self.inputs.values())


class LoadedRegressor:
    """One version of a regression model, ready to predict.

    Served equals trained: every checksum of the bundle is verified, then the predictor must reproduce all outputs that
    training stored for the probe set. The slow first call happens here.

    Raises:
        BundleError: If a file was modified, or the outputs differ from those of training.
    """

    def __init__(self, model: ServedModel) -> None:
        bundle = load_bundle(model.folder)
        self._predictor = cast(RegressionPredictor, import_loader(model.loader)(bundle, model.device))
        self._max_batch_size, self._max_batch_values = model.max_batch_size, model.max_batch_values
        difference = check_probe(bundle, self._predictor, model.probe_tolerance)
        logger.info("%s version %s: probe outputs within %.3g of training", model.name, model.version, difference)
        probes = cast(dict[str, Tensor], load_probes(bundle))
        self._one = {name: values[:1].numpy() for name, values in probes.items()}
        outputs = self.predict(self._one)
        self._interval(outputs, 0.5)
        self.description: Description = replace(
            describe_bundle(model, bundle),
            outputs={name: output_shape(values.shape[1:], bundle.metadata.inputs) for name, values in outputs.items()},
            from_replica=True,
        )

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """Call the predictor once: float32 outputs, first axis N, for inputs by name."""
        with torch.inference_mode():
            return as_arrays(self._predictor({name: torch.tensor(values) for name, values in inputs.items()}))

    def decline(self, asked: Regression, required_version: str | None) -> Declined | None:
        """Check a request against this version; None if it is accepted."""
        this = self.description
        if required_version is not None and required_version != this.version:
            return Declined(f"model {this.name} has no version {required_version!r}", this, "version")
        message = misfit(asked.inputs, this.inputs)
        return Declined(message, this) if message else None

    def pieces(self, asked: Regression) -> list[RegressionPiece]:
        """Split an accepted request into pieces that fit into one call of the predictor."""
        values_of_one = asked.num_values / len(asked)
        # A batch is full at max_batch_size examples or max_batch_values numbers, whichever comes first.
        share = max(1.0, self._max_batch_size * values_of_one / self._max_batch_values)
        size = max(1, int(self._max_batch_size / share))
        parts = [slice(start, start + size) for start in range(0, len(asked), size)]
        pieces = []
        for part in parts:
            inputs = {name: values[part] for name, values in asked.inputs.items()}
            rows = min(size, len(asked) - part.start)
            pieces.append(RegressionPiece(inputs, asked.level, min(self._max_batch_size, math.ceil(rows * share))))
        return pieces

    def predict_each(self, pieces: Sequence[RegressionPiece]) -> list[Outputs | Declined | Failure]:
        """Predict each piece, in order; pieces whose examples have the same shapes share one pass."""
        positions: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for position, piece in enumerate(pieces):
            positions.setdefault(piece.form, []).append(position)
        results: dict[int, Outputs | Declined | Failure] = {}
        for alike in positions.values():
            chosen = [pieces[position] for position in alike]
            results.update(zip(alike, isolated(self._run, chosen), strict=True))
        return [results[position] for position in range(len(pieces))]

    def check(self) -> None:
        """Raise if the predictor no longer works, for example after a device error on a GPU."""
        self.predict(self._one)

    def _run(self, pieces: Sequence[RegressionPiece]) -> list[Outputs | Declined]:
        names = list(pieces[0].inputs)
        try:
            outputs = self.predict({name: np.concatenate([piece.inputs[name] for piece in pieces]) for name in names})
        except ValueError as error:
            if len(pieces) > 1:
                raise  # each piece is then retried alone
            # Sizes that the schema leaves open but the network rejects: the client must change them.
            return [Declined(str(error), self.description)]
        parts = divided(outputs, pieces)
        return [
            part if piece.level is None else part | self._interval(part, piece.level)
            for part, piece in zip(parts, pieces, strict=True)
        ]

    def _interval(self, outputs: Outputs, level: float) -> Outputs:
        ends = self._predictor.interval({name: torch.from_numpy(values) for name, values in outputs.items()}, level)
        return as_arrays(dict(zip((LOWER, UPPER), ends, strict=True)))
