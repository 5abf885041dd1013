"""Image classifiers, ready to answer: own classes, classes of the caller, attribution maps."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from serve.contract import Call, Failure, Outputs, RefusedError, Start, invalid
from serve.tasks.batches import as_arrays, divided, isolated
from serve.tasks.labels.prototypes import PrototypeCache
from serve.tasks.labels.vocabulary import CHECKED, Vocabulary, vocabulary_of
from serve.tasks.maps import ClassIndex, check_explains
from tenfold.bundle import Bundle, BundleError, load_probes
from tenfold.tasks import (
    ATTRIBUTIONS,
    EXPLAIN,
    EXPLAIN_CLASS,
    EXPLAINED,
    IMAGES,
    ExplainingPredictor,
    OpenVocabularyPredictor,
    Predictor,
)

Run = Callable[[Sequence["ImagePiece"]], list[Outputs]]


@dataclass(frozen=True)
class ImagePiece:
    """All or part of the images of one call, with the classes to predict."""

    images: np.ndarray
    """uint8 ``(N, S, S, 3)``."""
    prototypes: Tensor | None = None
    """Prototypes ``(K', D)`` of the call's classes; None: the model's own classes."""
    explain: bool = False
    """Whether the call asks for maps; only for the model's own classes."""
    labels: np.ndarray | None = None
    """Class to explain for each image, int64 ``(N,)``; None: the class with the highest logit."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def weight(self) -> int:
        """Share of a batch: its number of images."""
        return len(self.images)


class Labels:
    """One version of an image classifier.

    Args:
        start: What to load from.

    Raises:
        BundleError: If its attribution maps are invalid.
    """

    def __init__(self, start: Start) -> None:
        self._description, self._meter = start.description, start.meter
        signature = start.description.signature
        self._predictor: Predictor = start.predictor
        is_open = "prompt_template" in signature.about
        self._open = cast(OpenVocabularyPredictor, start.predictor) if is_open else None
        self._explaining = cast(ExplainingPredictor, start.predictor) if signature.gives(ATTRIBUTIONS) else None
        self._max_batch_size = start.model.max_batch_size
        assert signature.preprocessing is not None
        size = signature.preprocessing.image_size
        self._blank = np.zeros((1, size, size, 3), np.uint8)
        self._class_index = ClassIndex(start.description.name, signature.columns)
        # A separate thread for texts, so that a long list of new classes does not delay the images of other requests.
        text_executor = ThreadPoolExecutor(1, "texts", torch.set_num_threads, (start.model.threads,))
        self._cache = PrototypeCache(self._encode, text_executor)
        self.try_out()
        if self._explaining is not None:
            _check_maps(start.bundle, self._explaining, start.model.probe_tolerance)
            self._explain_chosen(self._explaining, [ImagePiece(self._blank, None, True, np.zeros(1, np.int64))])
        if self._open is not None:
            first = self._prototypes(Vocabulary(signature.columns[:1]))
            self._classify(self._open, [ImagePiece(self._blank, first)])

    def check(self, call: Call) -> None:
        """Raise ``RefusedError`` for images of another size, and for classes and maps that the model does not have."""
        this = self._description
        explain = bool(call.params.get(EXPLAIN))
        if explain:
            check_explains(self._explaining is not None, this.name, this.method)
        has_classes = len(call.inputs) > 1
        if has_classes and self._open is None:
            raise own_classes_only(this.name)
        images, expected = call.inputs[IMAGES], self._blank.shape[1:]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
            size = expected[0]
            raise invalid(f"pictures must be uint8 [N,{size},{size},3], got {images.dtype} {list(images.shape)}")
        if explain:
            if has_classes:
                raise only_own_explained()
            self._class_index.labels(call.params.get(EXPLAIN_CLASS), len(images))

    async def pieces(self, call: Call) -> list[ImagePiece]:
        """Split a checked call into pieces of at most one batch; encodes its classes, if it brings some.

        Raises:
            RefusedError: 422, if the model's text tower rejects the texts.
        """
        images, explain = call.inputs[IMAGES], bool(call.params.get(EXPLAIN))
        prototypes = None
        if (vocabulary := vocabulary_of(call.inputs, CHECKED)) is not None:
            try:
                prototypes = await self._cache.get(vocabulary)
            except ValueError as error:
                raise invalid(f"the classes can't be used: {error}", "vocabulary") from error
        labels = self._class_index.labels(call.params.get(EXPLAIN_CLASS), len(images)) if explain else None
        parts = [slice(start, start + self._max_batch_size) for start in range(0, len(images), self._max_batch_size)]
        return [
            ImagePiece(images[part], prototypes, explain, labels[part] if labels is not None else None)
            for part in parts
        ]

    def run(self, pieces: Sequence[ImagePiece]) -> list[Outputs | RefusedError | Failure]:
        """Predict each piece, in order; all images of one kind of call share one pass.

        The kinds are: the model's own classes, classes of the call, maps of the top class, maps of chosen classes.
        Every image passes the network once, and a call without maps is not affected by those with. If a pass raises,
        each of its pieces is retried alone, so that only the faulty one fails.
        """
        own = [position for position, piece in enumerate(pieces) if piece.prototypes is None and not piece.explain]
        if len(own) == len(pieces):
            return [*isolated(self._predict_own, pieces)]
        results: dict[int, Outputs | Failure] = {}
        for positions, run in ((own, self._predict_own), *self._special_runs(pieces)):
            if positions:
                chosen = [pieces[position] for position in positions]
                results.update(zip(positions, isolated(run, chosen), strict=True))
        return [results[position] for position in range(len(pieces))]

    def try_out(self) -> None:
        """Raise if the predictor no longer works."""
        self._predict(self._blank)

    def _special_runs(self, pieces: Sequence[ImagePiece]) -> list[tuple[list[int], Run]]:
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

    def _predict(self, images: np.ndarray) -> Outputs:
        with torch.inference_mode():
            return as_arrays(self._predictor(images=_as_tensor(images)))

    def _encode(self, vocabulary: Vocabulary) -> Tensor:
        started = time.perf_counter()
        prototypes = self._prototypes(vocabulary)
        self._meter.texts((time.perf_counter() - started) * 1000)
        return prototypes

    def _prototypes(self, vocabulary: Vocabulary) -> Tensor:
        assert self._open is not None
        template = str(self._description.signature.about["prompt_template"])
        with torch.inference_mode():
            return self._open.prototypes_of(vocabulary.prompts_by_class(template))

    def _predict_own(self, pieces: Sequence[ImagePiece]) -> list[Outputs]:
        return divided(self._predict(_joined(pieces)), pieces)

    def _explain_top(self, model: ExplainingPredictor, pieces: Sequence[ImagePiece]) -> list[Outputs]:
        with torch.inference_mode():
            return divided(as_arrays(model.explain(_as_tensor(_joined(pieces)))), pieces)

    def _explain_chosen(self, model: ExplainingPredictor, pieces: Sequence[ImagePiece]) -> list[Outputs]:
        labels = np.concatenate([piece.labels for piece in pieces if piece.labels is not None])
        with torch.inference_mode():
            outputs = model.explain(_as_tensor(_joined(pieces)), torch.from_numpy(labels))
            return divided(as_arrays(outputs), pieces)

    def _classify(self, model: OpenVocabularyPredictor, pieces: Sequence[ImagePiece]) -> list[Outputs]:
        with torch.inference_mode():
            embeddings = model.embed(_as_tensor(_joined(pieces))).split([len(piece) for piece in pieces])
            return [
                as_arrays(model.classify(rows, piece.prototypes))
                for rows, piece in zip(embeddings, pieces, strict=True)
                if piece.prototypes is not None
            ]


def own_classes_only(name: str) -> RefusedError:
    return invalid(f"model {name} knows its own classes only; leave out 'classes' and 'prompts'", "vocabulary")


def only_own_explained() -> RefusedError:
    return invalid("only the model's own classes can be explained; leave out 'classes' and 'prompts'", "explain")


def _joined(pieces: Sequence[ImagePiece]) -> np.ndarray:
    return np.concatenate([piece.images for piece in pieces]) if len(pieces) > 1 else pieces[0].images


def _as_tensor(images: np.ndarray) -> Tensor:
    # Arrays from a request's bytes or another process are read-only, which torch does not support.
    return torch.from_numpy(images if images.flags.writeable else images.copy())


def _check_maps(bundle: Bundle, model: ExplainingPredictor, tolerance: float) -> None:
    """Raise ``BundleError`` unless ``explain`` gives valid maps of the top classes for the probes, and their logits."""
    images = load_probes(bundle)[0][IMAGES]
    assert isinstance(images, Tensor)
    with torch.inference_mode():
        outputs = model.explain(images)
        expected = model(images=images)["logits"]
    if missing := sorted({ATTRIBUTIONS, EXPLAINED} - outputs.keys()):
        raise BundleError(f"{bundle.folder}: explain must answer with {missing[0]}, got {sorted(outputs)}")
    maps, labels, logits = outputs[ATTRIBUTIONS], outputs[EXPLAINED], outputs["logits"]
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    if logits.shape != expected.shape or not float((logits - expected).abs().max()) <= allowed:
        raise BundleError(f"{bundle.folder}: explain must answer with the logits of a prediction, got others")
    size = bundle.preprocessing.image_size
    wanted = (len(logits), size, size)
    if maps.dtype != torch.float32 or tuple(maps.shape) != wanted:
        raise BundleError(f"{bundle.folder}: maps must be float32 {wanted}, got {maps.dtype} {tuple(maps.shape)}")
    if not bool(((maps >= 0) & (maps <= 1)).all()):  # also where there is NaN
        raise BundleError(f"{bundle.folder}: maps must lie in [0, 1], got {maps.min():.3g} to {maps.max():.3g}")
    if labels.dtype != torch.int64 or not torch.equal(logits.gather(1, labels[:, None])[:, 0], logits.amax(1)):
        raise BundleError(f"{bundle.folder}: explain without labels must explain the classes with the highest logits")
