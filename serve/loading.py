"""Image classifiers loaded for serving: verified, compared with training, warmed up. Independent of HTTP and Ray."""

import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from serve.contract import Declined, Description, describe_bundle
from serve.explanation import ATTRIBUTIONS, EXPLAINED, ClassIndex, Explain
from serve.settings import ServedModel
from serve.vocabulary import CLASSES, PROMPTS, Vocabulary
from tenfold.bundle import Bundle, BundleError, check_probe, load_bundle
from tenfold.types import ExplainingPredictor, OpenVocabularyPredictor, Predictor

P = TypeVar("P")
R = TypeVar("R")
Outputs = dict[str, np.ndarray]
_OPEN_METHODS = ("embed", "prototypes_of", "classify")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """All or part of the images of one request, with the classes to predict."""

    images: np.ndarray
    """uint8 ``(N, S, S, 3)``."""
    prototypes: Tensor | None = None
    """Prototypes ``(K', D)`` of the request's classes; None: the model's own classes."""
    explain: bool = False
    """Whether the request asks for maps; only for the model's own classes."""
    labels: np.ndarray | None = None
    """Class to explain for each image, int64 ``(N,)``; None: the class with the highest logit."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def weight(self) -> int:
        """Share of a batch: its number of images."""
        return len(self.images)


@dataclass(frozen=True)
class Failure:
    """Result of a piece for which the predictor raised."""

    message: str


Run = Callable[[Sequence[Piece]], list[Outputs]]


def import_loader(dotted: str) -> Callable[[Bundle, str], Predictor]:
    """Import the function named by ``module:function``; raises ValueError if there is none."""
    module_name, _, name = dotted.partition(":")
    module: Any = import_module(module_name)
    function = getattr(module, name, None)
    if function is None:
        raise ValueError(f"{module_name} has no function {name!r} that loads a predictor")
    loader: Callable[[Bundle, str], Predictor] = function
    return loader


def open_vocabulary(predictor: Predictor) -> OpenVocabularyPredictor | None:
    """Return the predictor if it has an open vocabulary (all of ``OpenVocabularyPredictor``), else None.

    A ``prompt_template`` of None means that the bundle at hand does not support it.

    Raises:
        ValueError: If its ``prompt_template`` does not have exactly one place for the name.
    """
    template = getattr(predictor, "prompt_template", None)
    if template is None or not all(callable(getattr(predictor, name, None)) for name in _OPEN_METHODS):
        return None
    if not isinstance(template, str) or template.count("{}") != 1:
        raise ValueError(f"prompt_template must be a string with one {{}} for the class name, got {template!r}")
    return cast(OpenVocabularyPredictor, predictor)


def explaining(predictor: Predictor) -> ExplainingPredictor | None:
    """Return the predictor if it provides attribution maps, else None."""
    return cast(ExplainingPredictor, predictor) if callable(getattr(predictor, "explain", None)) else None


class LoadedModel:
    """One version of an image classifier, ready to predict.

    Served equals trained: every checksum of the bundle is verified, then the predictor must reproduce the logits that
    training stored for the probe set, with and without attribution maps. The slow first call happens here.

    Raises:
        BundleError: If a file was modified, the logits differ from those of training, or the maps are invalid.
        ValueError: If the predictor's ``prompt_template`` is invalid.
    """

    def __init__(self, model: ServedModel) -> None:
        bundle = load_bundle(model.folder)
        self._predictor = import_loader(model.loader)(bundle, model.device)
        self._open = open_vocabulary(self._predictor)
        self._explaining = explaining(self._predictor)
        difference = check_probe(bundle, self._predictor, model.probe_tolerance)
        logger.info("%s version %s: probe logits within %.3g of training", model.name, model.version, difference)
        description = describe_bundle(model, bundle)
        size = description.image_preprocessing.image_size
        self._blank = np.zeros((1, size, size, 3), np.uint8)
        outputs = self.predict(self._blank)
        self._class_index = ClassIndex(model.name, description.classes)
        self.description: Description = replace(
            description,
            outputs={name: values.shape[1:] for name, values in outputs.items()},
            prompt_template=self._open.prompt_template if self._open else None,
            explains=self._explaining is not None,
            flag=getattr(self._predictor, "flag", None),
            from_replica=True,
        )
        if self._explaining is not None:
            _check_maps(bundle, self._explaining, model.probe_tolerance)
            self._explain_chosen(self._explaining, [Piece(self._blank, explain=True, labels=np.zeros(1, np.int64))])
        if self._open is not None:
            self._classify(self._open, [Piece(self._blank, self.prototypes(Vocabulary(description.classes[:1])))])

    def predict(self, images: np.ndarray) -> Outputs:
        """Call the predictor once: float32 outputs, first axis N, for uint8 ``(N, S, S, 3)``."""
        with torch.inference_mode():
            return as_arrays(self._predictor(_as_tensor(images)))

    def prototypes(self, vocabulary: Vocabulary) -> Tensor:
        """Compute prototypes ``(K', D)`` of a request's classes; may run concurrently with ``predict_each``.

        Raises:
            ValueError: If the predictor rejects these texts, or has no open vocabulary.
        """
        if self._open is None:
            raise ValueError(f"model {self.description.name} knows its own classes only")
        with torch.inference_mode():
            return self._open.prototypes_of(vocabulary.prompts_by_class(self._open.prompt_template))

    def pieces(
        self, images: np.ndarray, size: int, prototypes: Tensor | None = None, explain: Explain | None = None
    ) -> list[Piece]:
        """Split an accepted request into pieces of at most ``size`` images."""
        labels = self._class_index.labels(explain, len(images)) if explain is not None else None
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        return [
            Piece(images[part], prototypes, explain is not None, labels[part] if labels is not None else None)
            for part in parts
        ]

    def predict_each(self, pieces: Sequence[Piece]) -> list[Outputs | Failure]:
        """Predict each piece, in order; all images of one kind of request share one pass.

        The kinds are: the model's own classes, classes of the request, maps of the top class, maps of chosen classes.
        Every image passes the network once, and a request without maps is not affected by those with. If a pass raises,
        each of its pieces is retried alone, so that only the faulty one fails.
        """
        own = [position for position, piece in enumerate(pieces) if piece.prototypes is None and not piece.explain]
        if len(own) == len(pieces):
            return isolated(self._predict_own, pieces)
        results: dict[int, Outputs | Failure] = {}
        for positions, run in ((own, self._predict_own), *self._special_runs(pieces)):
            if positions:
                chosen = [pieces[position] for position in positions]
                results.update(zip(positions, isolated(run, chosen), strict=True))
        return [results[position] for position in range(len(pieces))]

    def _special_runs(self, pieces: Sequence[Piece]) -> list[tuple[list[int], Run]]:
        """Positions of the pieces with maps or their own classes, each with the function that runs them."""
        runs: list[tuple[list[int], Run]] = []
        if self._open is not None:
            brought = [position for position, piece in enumerate(pieces) if piece.prototypes is not None]
            runs.append((brought, partial(self._classify, self._open)))
        if self._explaining is not None:
            asking = [position for position, piece in enumerate(pieces) if piece.explain]
            top = [position for position in asking if pieces[position].labels is None]
            chosen = [position for position in asking if pieces[position].labels is not None]
            runs.append((top, partial(self._explain_top, self._explaining)))
            runs.append((chosen, partial(self._explain_chosen, self._explaining)))
        return runs

    def _predict_own(self, pieces: Sequence[Piece]) -> list[Outputs]:
        return divided(self.predict(_joined(pieces)), pieces)

    def _explain_top(self, model: ExplainingPredictor, pieces: Sequence[Piece]) -> list[Outputs]:
        with torch.inference_mode():
            return divided(_as_maps(model.explain(_as_tensor(_joined(pieces)))), pieces)

    def _explain_chosen(self, model: ExplainingPredictor, pieces: Sequence[Piece]) -> list[Outputs]:
        labels = np.concatenate([piece.labels for piece in pieces if piece.labels is not None])
        with torch.inference_mode():
            outputs = model.explain(_as_tensor(_joined(pieces)), torch.from_numpy(labels))
            return divided(_as_maps(outputs), pieces)

    def _classify(self, model: OpenVocabularyPredictor, pieces: Sequence[Piece]) -> list[Outputs]:
        with torch.inference_mode():
            embeddings = model.embed(_as_tensor(_joined(pieces))).split([len(piece) for piece in pieces])
            return [
                as_arrays(model.classify(rows, piece.prototypes))
                for rows, piece in zip(embeddings, pieces, strict=True)
                if piece.prototypes is not None
            ]

    def check(self) -> None:
        """Raise if the predictor no longer works, for example after a device error on a GPU."""
        self.predict(self._blank)

    def decline(
        self,
        images: np.ndarray,
        required_version: str | None,
        vocabulary: Vocabulary | None = None,
        explain: Explain | None = None,
    ) -> Declined | None:
        """Check a request against this version; None if it is accepted."""
        this = self.description
        if required_version is not None and required_version != this.version:
            return Declined(f"model {this.name} has no version {required_version!r}", this, "version")
        if explain is not None and self._explaining is None:
            return Declined(f"model {this.name} (method {this.method}) gives no attribution maps", this, "unexplained")
        if vocabulary is not None and self._open is None:
            message = f"model {this.name} knows its own classes only; leave out {CLASSES!r} and {PROMPTS!r}"
            return Declined(message, this, "vocabulary")
        expected = self._blank.shape[1:]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
            size = this.image_preprocessing.image_size
            return Declined(
                f"pictures must be uint8 [N,{size},{size},3], got {images.dtype} {list(images.shape)}", this
            )
        return self._decline_explain(explain, len(images), vocabulary) if explain is not None else None

    def _decline_explain(self, explain: Explain, num_images: int, vocabulary: Vocabulary | None) -> Declined | None:
        if vocabulary is not None:
            message = f"only the model's own classes can be explained; leave out {CLASSES!r} and {PROMPTS!r}"
            return Declined(message, self.description, "explain")
        try:
            self._class_index.labels(explain, num_images)
        except ValueError as error:
            return Declined(str(error), self.description, "explain")
        return None

    def decline_texts(self, error: ValueError) -> Declined:
        """Refuse classes for which ``prototypes`` raised ``error``."""
        return Declined(f"the classes can't be used: {error}", self.description, "vocabulary")


def isolated(run: Callable[[Sequence[P]], Sequence[R]], pieces: Sequence[P]) -> list[R | Failure]:
    """Apply ``run`` to all pieces at once; if it raises, to each alone, so that only the faulty one fails."""
    try:
        return [*run(pieces)]
    except (RuntimeError, ValueError) as error:
        if len(pieces) == 1:
            logger.exception("the predictor failed")
            return [Failure(f"{type(error).__name__}: {error}")]
        return [result for piece in pieces for result in isolated(run, [piece])]


def divided(outputs: Outputs, pieces: Sequence[Sized]) -> list[Outputs]:
    """Split the outputs of joined pieces."""
    ends = np.cumsum([len(piece) for piece in pieces])
    # Copies: serializing a view would include the whole batch.
    return [
        {name: values[end - len(piece) : end].copy() for name, values in outputs.items()}
        for piece, end in zip(pieces, ends, strict=True)
    ]


def _joined(pieces: Sequence[Piece]) -> np.ndarray:
    return np.concatenate([piece.images for piece in pieces]) if len(pieces) > 1 else pieces[0].images


def _as_tensor(images: np.ndarray) -> Tensor:
    # Arrays from a request's bytes or another process are read-only, which torch does not support.
    return torch.from_numpy(images if images.flags.writeable else images.copy())


def as_arrays(outputs: Mapping[str, Tensor]) -> Outputs:
    return {name: values.detach().float().cpu().numpy() for name, values in outputs.items()}


def _as_maps(outputs: Mapping[str, Tensor]) -> Outputs:
    """Convert the outputs of ``explain``; class indices stay integers."""
    return as_arrays(outputs) | {EXPLAINED: outputs[EXPLAINED].cpu().numpy()}


def _check_maps(bundle: Bundle, model: ExplainingPredictor, tolerance: float) -> None:
    """Raise ``BundleError`` unless ``explain`` reproduces the probe logits, with valid maps of the top classes."""
    outputs: dict[str, Tensor] = {}

    def explain(images: Tensor) -> Mapping[str, Tensor]:
        outputs.update(model.explain(images))
        return outputs

    check_probe(bundle, cast(Predictor, explain), tolerance)
    if missing := sorted({ATTRIBUTIONS, EXPLAINED} - outputs.keys()):
        raise BundleError(f"{bundle.folder}: explain must answer with {missing[0]}, got {sorted(outputs)}")
    maps, labels, logits = outputs[ATTRIBUTIONS], outputs[EXPLAINED], outputs["logits"]
    size = bundle.preprocessing.image_size
    wanted = (len(logits), size, size)
    if maps.dtype != torch.float32 or tuple(maps.shape) != wanted:
        raise BundleError(f"{bundle.folder}: maps must be float32 {wanted}, got {maps.dtype} {tuple(maps.shape)}")
    if not bool(((maps >= 0) & (maps <= 1)).all()):  # also where there is NaN
        raise BundleError(f"{bundle.folder}: maps must lie in [0, 1], got {maps.min():.3g} to {maps.max():.3g}")
    if labels.dtype != torch.int64 or not torch.equal(logits.gather(1, labels[:, None])[:, 0], logits.amax(1)):
        raise BundleError(f"{bundle.folder}: explain without labels must explain the classes with the highest logits")
