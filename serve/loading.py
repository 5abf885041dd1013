"""A bundle brought to life for serving: verified, compared with training, warmed up. No HTTP, no Ray."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from serve.contract import Declined, Description, describe_bundle
from serve.settings import ServedModel
from tenfold.bundle import Bundle, check_probe, load_bundle
from tenfold.types import Predictor

Outputs = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Stands in a batch's results for the request that the predictor raised on."""

    message: str


def import_loader(dotted: str) -> Callable[[Bundle, str], Predictor]:
    """The function named by ``module:function``; raises ValueError where there is none."""
    module_name, _, name = dotted.partition(":")
    module: Any = import_module(module_name)
    function = getattr(module, name, None)
    if function is None:
        raise ValueError(f"{module_name} has no function {name!r} that loads a predictor")
    loader: Callable[[Bundle, str], Predictor] = function
    return loader


class LoadedModel:
    """One version of a model, ready to run.

    What is served equals what was trained: every checksum of the bundle is verified, then the predictor must give
    the logits that training stored for the probe set. The first call, which is slow, happens here.

    Raises:
        BundleError: If a file was changed or the predictor's numbers are not those of training.
    """

    def __init__(self, model: ServedModel) -> None:
        bundle = load_bundle(model.folder)
        self._predictor = import_loader(model.loader)(bundle, model.device)
        difference = check_probe(bundle, self._predictor, model.probe_tolerance)
        logger.info("%s version %s: probe logits within %.3g of training", model.name, model.version, difference)
        description = describe_bundle(model, bundle)
        size = description.image_size
        self._blank = np.zeros((1, size, size, 3), np.uint8)
        outputs = self.predict(self._blank)
        self.description: Description = replace(
            description, outputs={name: values.shape[1:] for name, values in outputs.items()}
        )

    def predict(self, images: np.ndarray) -> Outputs:
        """Float32 outputs, first axis N, for uint8 ``(N, S, S, 3)``: one call of the predictor."""
        # What comes from a request's bytes or from another process is read-only, which torch can't express.
        writable = images if images.flags.writeable else images.copy()
        with torch.inference_mode():
            outputs = self._predictor(torch.from_numpy(writable))
            return {name: values.detach().float().cpu().numpy() for name, values in outputs.items()}

    def predict_each(self, requests: Sequence[np.ndarray]) -> list[Outputs | Failure]:
        """Outputs per request, in their order, from one call for all of them.

        If that call raises, each request runs alone, so that only the one at fault fails.
        """
        try:
            outputs = self.predict(np.concatenate(requests) if len(requests) > 1 else requests[0])
        except (RuntimeError, ValueError) as error:
            if len(requests) == 1:
                logger.exception("the predictor failed")
                return [Failure(f"{type(error).__name__}: {error}")]
            return [result for request in requests for result in self.predict_each([request])]
        ends = np.cumsum([len(request) for request in requests])
        # Copies: a view would drag the whole batch through serialization with each of its parts.
        return [
            {name: values[end - len(request) : end].copy() for name, values in outputs.items()}
            for request, end in zip(requests, ends, strict=True)
        ]

    def check(self) -> None:
        """Raise if the predictor no longer works, as on a GPU after a device error."""
        self.predict(self._blank)

    def decline(self, images: np.ndarray, required_version: str | None) -> Declined | None:
        """Why this version can't take a request; None where it can."""
        this = self.description
        if required_version is not None and required_version != this.version:
            return Declined(f"model {this.name} has no version {required_version!r}", this)
        expected = self._blank.shape[1:]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
            size = this.image_size
            return Declined(
                f"pictures must be uint8 [N,{size},{size},3], got {images.dtype} {list(images.shape)}", this
            )
        return None
