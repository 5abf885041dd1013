"""Predictor of a concept bottleneck: class and concepts of an image, corrections, and what to ask next."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.bundle import Bundle
from tenfold.data.concepts import concept_group_matrix
from tenfold.methods.concept_realignment.gaussian import GaussianRealigner
from tenfold.methods.concept_realignment.intcem import InterventionPolicy
from tenfold.methods.concept_realignment.network import (
    ConceptModel,
    concept_map,
    joint_realigner,
    new_realigner,
    rebuild_model,
)
from tenfold.methods.concept_realignment.patterns import PatternRealigner
from tenfold.methods.concept_realignment.policy import BLOCKED
from tenfold.methods.concept_realignment.questions import Asker, Questions, best_question
from tenfold.methods.concept_realignment.settings import Config
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map
from tenfold.models.image_classifier import ModelConfig
from tenfold.tasks import concepts as concepts_signature
from tenfold.types import check_label_range

BOTTLENECK_FILE = "bottleneck.json"
"""Names and groups of the concepts, and which parts the model has."""
CHECKSUM_BYTES = 16
_REALIGNER, _ADAPTER, _LEARNED, _MODEL = "realigner.", "adapter.", "learned.", "model."


class ConceptPredictor:
    """Predicts concepts and class; realigns concepts after corrections; chooses the next question.

    Args:
        model: Base model.
        config: Settings of its training.
        classes: C names.
        names: K concept names.
        groups: Columns of each group; None: concepts are asked one by one.
        exclusive: Columns of each group of which at most one concept is true, also where concepts are asked one by one.
        weight: Factor of each concept's loss in training, by which its curves were measured; None: 1.
        costs: Cost of asking each question that does not cost 1.
        realigner: Follows corrections; None: they are only pinned.
        realigner_name: Its name.
        adapter: Rewrites the concepts before any correction; None: none.
        learned: Policy of ``intcem``.
        device: Device of the networks.
    """

    def __init__(
        self,
        model: ConceptModel,
        config: Config,
        classes: Sequence[str],
        names: Sequence[str],
        *,
        groups: Mapping[str, Sequence[int]] | None,
        exclusive: Mapping[str, Sequence[int]],
        costs: Mapping[str, float],
        weight: Sequence[float] | None = None,
        realigner: nn.Module | None,
        realigner_name: str,
        adapter: nn.Module | None = None,
        learned: InterventionPolicy | None = None,
        device: str = "cpu",
    ) -> None:
        self.config, self.classes, self.names = config, tuple(classes), tuple(names)
        self.groups, self.exclusive, self.costs = groups, dict(exclusive), dict(costs)
        self.weight = None if weight is None else tuple(weight)
        self.model = model.to(device).eval()
        self.realigner = None if realigner is None else realigner.to(device).eval()
        self.adapter = None if adapter is None else adapter.to(device).eval()
        self.learned = None if learned is None else learned.to(device).eval()
        self.realigner_name = realigner_name
        self.preprocessing = None if model.image is None else model.image.preprocessing
        self._device = device
        asked = tuple(names if groups is None else groups)
        self.questions = Questions(
            names=asked,
            groups=concept_group_matrix(groups, len(names)),
            costs=torch.tensor([float(self.costs.get(name, 1.0)) for name in asked]),
        )
        self.asker = Asker(
            name=config.policy, config=config, model=self.model, realigner=self.realigner, learned=self.learned,
            groups=self.questions.groups.to(device),
        )  # fmt: skip
        self._width = config.latent_size if model.embedding is not None else len(names)
        self.signature = concepts_signature(
            self.classes,
            self.names,
            self.preprocessing,
            state_size=4 * self._width + CHECKSUM_BYTES,
            groups=groups,
            exclusive=[name for name in exclusive if groups is not None],
            costs=self.costs,
            about={
                "policy": config.policy,
                "realigner": realigner_name,
                "base": config.base if model.image is not None else "predictions",
                "apply_from": config.apply_from,
                "stop_at": config.stop_at,
            },
        )
        self._digest = _digest(self.tensors(), [self.files()[BOTTLENECK_FILE], repr(self.signature.about).encode()])

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of all parts, by name, for a bundle."""
        parts = {_MODEL: self.model, _REALIGNER: self.realigner, _ADAPTER: self.adapter, _LEARNED: self.learned}
        return {
            f"{prefix}{name}": tensor
            for prefix, part in parts.items()
            if part is not None
            for name, tensor in part.state_dict().items()
        }

    def files(self) -> dict[str, bytes]:
        """Return what a bundle stores beside the weights: names, groups, and which realigner it is."""
        content = {
            "concepts": self.names,
            "groups": None if self.groups is None else {name: list(columns) for name, columns in self.groups.items()},
            "exclusive": {name: list(columns) for name, columns in self.exclusive.items()},
            "costs": self.costs,
            "weight": self.weight,
            "takes_images": self.model.image is not None,
            "realigner": self.realigner_name,
            "has_adapter": self.adapter is not None,
        }
        return {BOTTLENECK_FILE: json.dumps(content).encode()}

    def __call__(
        self,
        images: Tensor | None = None,
        *,
        predictions: Tensor | None = None,
        state: Tensor | None = None,
        concept_values: Tensor | None = None,
        concept_mask: Tensor | None = None,
        concept_unknown: Tensor | None = None,
        explain: bool = False,
        with_state: bool = False,
    ) -> dict[str, Tensor]:
        """Return the outputs of ``tenfold.tasks.concepts`` for images, predictions or states, on the CPU.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            predictions: In place of images, concepts of another model, float32 ``(B, K)``.
            state: In place of either, what an earlier answer gave, uint8 ``(B, M)``.
            concept_values: Corrections, float32 ``(B, K)`` in [0, 1].
            concept_mask: 1 where there is a correction, uint8 ``(B, K)``.
            concept_unknown: 1 where nobody knows, uint8 ``(B, K)``.
            explain: Whether to return the map of the concept that is asked next.
            with_state: Whether to return the state.

        Raises:
            ValueError: Not exactly one of the first three, corrections that are not valid, or a state that was changed.
        """
        seen = images if predictions is None else predictions
        if (seen is None) == (state is None) or (images is not None and predictions is not None):
            raise ValueError("a call must bring either images or a state, got both or neither")
        if seen is not None:
            encoded = self.encode(seen)
        else:
            assert state is not None
            encoded = self.unpack(state)
        outputs = dict(self.respond(encoded, concept_values, concept_mask, concept_unknown))
        if with_state:
            outputs["state"] = self.pack(encoded)
        if explain:
            if images is None:
                raise ValueError("explain needs images, a state has none")
            outputs["explained"] = self._asked(outputs, concept_mask, concept_unknown)
            outputs["attributions"] = self.explain(images, outputs["explained"])
        return outputs

    def encode(self, images: Tensor) -> Tensor:
        """Return encodings float32 ``(B, D)`` on the CPU, of uint8 images or of predictions in [0, 1].

        Raises:
            ValueError: Predictions outside [0, 1].
        """
        if self.model.image is None and not ((images >= 0) & (images <= 1)).all():
            raise ValueError("predictions must lie in [0, 1], got others or NaN")
        with torch.inference_mode():
            return self.model.encode(images.to(self._device)).float().cpu()

    def respond(
        self,
        encoded: Tensor,
        concept_values: Tensor | None = None,
        concept_mask: Tensor | None = None,
        concept_unknown: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the outputs of every answer for encodings ``(B, D)``; corrections as in a call."""
        values, mask, unknown = self._corrections(len(encoded), concept_values, concept_mask, concept_unknown)
        with torch.inference_mode():
            of = self.model.bottleneck(encoded.to(self._device))
            predicted = of.concepts
            if self.adapter is not None:
                predicted, _ = self.adapter(predicted, torch.zeros_like(predicted), predicted)
                of = of._replace(concepts=predicted)
            concepts = torch.where(mask == 1, values, predicted)
            if self.realigner is not None:
                realigned, _ = self.realigner(concepts, mask, predicted)
                untouched = (mask.sum(1, keepdim=True) == 0) & (self.config.apply_from > 0)
                concepts = torch.where(untouched, concepts, realigned)
            logits = self.model.logits(concepts, of)
            question, gain = self._next(of, concepts, values, mask, unknown, logits)
        outputs = {
            "probs": logits.softmax(1),
            "logits": logits,
            "concept_probs": predicted,
            "concepts": concepts,
            "next_concept": question,
            "next_gain": gain,
        }
        return {name: (value if name == "next_concept" else value.float()).cpu() for name, value in outputs.items()}

    def pack(self, encoded: Tensor) -> Tensor:
        """Return states uint8 ``(B, M)``: the encoding's bytes, and a checksum over them and the weights."""
        rows = encoded.contiguous().numpy().astype("<f4", copy=False)
        packed = [row.tobytes() + self._checksum(row.tobytes()) for row in rows]
        return torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8).view(len(rows), -1)

    def unpack(self, states: Tensor) -> Tensor:
        """Return the encodings float32 ``(B, D)`` of states.

        Raises:
            ValueError: A state was changed, or comes from another model.
        """
        rows = [row.numpy().tobytes() for row in states]
        for number, row in enumerate(rows):
            if (
                len(row) != 4 * self._width + CHECKSUM_BYTES
                or self._checksum(row[:-CHECKSUM_BYTES]) != row[-CHECKSUM_BYTES:]
            ):
                raise ValueError(
                    f"state {number} must come unchanged from an answer of this version of the model; send the image "
                    f"again"
                )
        body = bytearray(b"".join(row[:-CHECKSUM_BYTES] for row in rows))
        return torch.frombuffer(body, dtype=torch.float32).view(len(rows), self._width)

    def explain(self, images: Tensor, concepts: Tensor) -> Tensor:
        """Return where one concept of each image comes from, float32 ``(B, S, S)`` in [0, 1] on the CPU.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            concepts: Columns, int64 ``(B,)``.

        Raises:
            ValueError: A column is not a concept, or the model takes no images.
        """
        check_label_range(concepts, len(self.names), "concepts")
        maps = concept_map(self.model, images.to(self._device), concepts.to(self._device)).float().cpu()
        return normalize_score_map(resize_score_map(maps, images.shape[1]), "minmax")

    def _corrections(
        self, batch: int, values: Tensor | None, mask: Tensor | None, unknown: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Check the corrections and return them as float32 ``(B, K)``, zeros where there are none."""
        shape = (batch, len(self.names))
        given = []
        for name, part in (("concept_values", values), ("concept_mask", mask), ("concept_unknown", unknown)):
            part = torch.zeros(shape) if part is None else part
            if part.shape != shape:
                raise ValueError(f"{name} must be {shape}, got {tuple(part.shape)}")
            if name != "concept_values" and not ((part == 0) | (part == 1)).all():
                raise ValueError(f"{name} must be 0 or 1, got others")
            given.append(part.float())
        of_values, of_mask, of_unknown = given
        if values is None and of_mask.any():
            raise ValueError("concept_mask needs concept_values, got none")
        inside = (of_values >= 0) & (of_values <= 1)
        if not (inside | (of_mask == 0)).all():
            raise ValueError("concept_values must lie in [0, 1] where concept_mask is 1, got others or NaN")
        if (of_mask * of_unknown).any():
            raise ValueError("concept_unknown must be 0 where concept_mask is 1, got 1 for both")
        of_values = torch.where(of_mask == 1, of_values, 0.0)
        for name, columns in ((name, list(columns)) for name, columns in self.exclusive.items()):
            if (of_values[:, columns] > 0.5).sum(1).gt(1).any():
                members = ", ".join(self.names[column] for column in columns)
                raise ValueError(f"at most one concept of {name} ({members}) must be true, got two")
        return of_values.to(self._device), of_mask.to(self._device), of_unknown.to(self._device)

    def _next(
        self, of: Any, concepts: Tensor, values: Tensor, mask: Tensor, unknown: Tensor, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next question and its expected gain, ``(B,)`` each; -1 and 0 where there is none."""
        spent = torch.maximum(mask, unknown)
        current = concepts if self.config.coupled else torch.where(mask == 1, values, of.concepts)
        scores = self.asker.scores(of, current, mask, unknown)
        question = best_question(scores, spent, self.questions, self.config.reduce)
        if self.config.stop_at is not None:
            question = torch.where(logits.softmax(1).amax(1) >= self.config.stop_at, -1, question)
        asked = self.questions.groups.to(scores)[question.clamp_min(0)] * (1 - spent) * (question >= 0)[:, None]
        gains = self.asker.information(of, skip=1 - asked)(concepts, mask)
        return question, (gains * asked).sum(1) / asked.sum(1).clamp_min(1)

    def _asked(self, outputs: Mapping[str, Tensor], mask: Tensor | None, unknown: Tensor | None) -> Tensor:
        """Return the most uncertain concept of the next question, or of all where nothing is left, int64 ``(B,)``."""
        question = outputs["next_concept"]
        zeros = torch.zeros(len(question), len(self.names))
        blocked = torch.maximum(zeros if mask is None else mask.float(), zeros if unknown is None else unknown.float())
        free = self.questions.groups[question.clamp_min(0)] * (1 - blocked)
        free = torch.where((question >= 0)[:, None], free, 1.0)
        doubt = -(outputs["concepts"] - 0.5).abs()
        return torch.where(free > 0, doubt, BLOCKED).argmax(1)

    def _checksum(self, payload: bytes) -> bytes:
        return hashlib.sha256(self._digest + payload).digest()[:CHECKSUM_BYTES]


def _digest(tensors: Mapping[str, Tensor], settings: Sequence[bytes]) -> bytes:
    """Return a digest of weights, names and settings, which names the model in its states."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    for part in settings:
        found.update(part)
    return found.digest()


def load(bundle: Bundle, device: str = "cpu") -> ConceptPredictor:
    """Load the predictor of a bundle.

    Raises:
        ValueError: If the weights don't fit the network that the bundle's settings name.
    """
    config = config_of(bundle.config["method"])
    stored = json.loads(bundle.file(BOTTLENECK_FILE).read_text())
    names, classes = tuple(stored["concepts"]), bundle.metadata.classes
    settings = ModelConfig(**bundle.config["model"]) if stored["takes_images"] else None
    tensors = bundle.tensors()
    groups = None if stored["groups"] is None else {key: tuple(value) for key, value in stored["groups"].items()}
    parts: dict[str, nn.Module | None] = {
        _MODEL: rebuild_model(config, settings, len(names), len(classes)),
        _REALIGNER: _empty_realigner(config, stored, len(names), tensors),
        _ADAPTER: new_realigner(config, len(names)) if stored["has_adapter"] else None,
        _LEARNED: None,
    }
    if config.base == "intcem":
        num_groups = len(names) if groups is None else len(groups)
        parts[_LEARNED] = InterventionPolicy(len(names), num_groups, config.embedding_size)
    for prefix, part in parts.items():
        if part is None:
            continue
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        try:
            part.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"the weights in {bundle.folder} don't fit their {prefix[:-1]}: {error}") from error
    return ConceptPredictor(
        cast(ConceptModel, parts[_MODEL]),
        config,
        classes,
        names,
        groups=groups,
        exclusive=stored["exclusive"],
        costs=stored["costs"],
        weight=stored["weight"],
        realigner=parts[_REALIGNER],
        realigner_name=stored["realigner"],
        adapter=parts[_ADAPTER],
        learned=cast("InterventionPolicy | None", parts[_LEARNED]),
        device=device,
    )


def config_of(settings: Mapping[str, object]) -> Config:
    """Parse the settings of a bundle, in which tuples are stored as lists."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    values.pop("name", None)
    return Config(**cast(dict, values))


def _empty_realigner(
    config: Config, stored: Mapping[str, Any], num_concepts: int, tensors: Mapping[str, Tensor]
) -> nn.Module | None:
    """Build the realigner of a bundle, into which its weights are loaded."""
    name = stored["realigner"]
    if name == "none":
        return None
    if name == "network":
        return joint_realigner(num_concepts) if config.joint_realigner else new_realigner(config, num_concepts)
    if name == "patterns":
        num_patterns = len(tensors[f"{_REALIGNER}rows"])
        has_fallback = any(key.startswith(f"{_REALIGNER}fallback.") for key in tensors)
        if not has_fallback:
            fallback = None
        else:
            fallback = joint_realigner(num_concepts) if config.joint_realigner else new_realigner(config, num_concepts)
        return PatternRealigner.empty(num_patterns, num_concepts, fallback)
    return GaussianRealigner.empty(num_concepts)
