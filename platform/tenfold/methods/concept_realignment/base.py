"""Training of the base model: concept and class losses, and the class head of frozen concepts.

Shapes: B images, K concepts, G groups, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.engine.fit import Clock, Loss
from tenfold.methods.concept_realignment.augment import photo_augment
from tenfold.methods.concept_realignment.intcem import (
    FIRST_HORIZON,
    InterventionPolicy,
    draw_start,
    horizon_after,
    roll_out,
    whole_horizon,
)
from tenfold.methods.concept_realignment.losses import joint_realignment_concept_loss
from tenfold.methods.concept_realignment.network import ConceptModel, joint_realigner
from tenfold.methods.concept_realignment.realigner import ConceptRealigner
from tenfold.methods.concept_realignment.settings import Config
from tenfold.types import Batch

CONCEPTS, LABELS, KNOWN = "concepts", "labels", "known"


class BaseLearner(nn.Module):
    """Base model with what is trained beside it; calling it returns the loss of a batch.

    Args:
        config: Settings.
        model: The base model. The class head of frozen concepts is not trained here.
        groups: Concepts of each group, ``(G, K)`` in {0, 1}.
        weight: Factor of each concept's loss, ``(K,)``; None: 1.
    """

    groups: Tensor
    weight: Tensor | None
    horizon: Tensor

    def __init__(self, config: Config, model: ConceptModel, groups: Tensor, weight: Tensor | None) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.register_buffer("groups", groups, persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.policy: InterventionPolicy | None = None
        self.realigner: ConceptRealigner | None = None
        if config.base == "intcem":
            num_groups, num_concepts = groups.shape
            self.policy = InterventionPolicy(num_concepts, num_groups, config.embedding_size)
            if config.joint_realigner:
                self.realigner = joint_realigner(num_concepts)
            self.register_buffer("horizon", torch.tensor(FIRST_HORIZON))
        if config.base in ("independent", "sequential"):
            model.head.requires_grad_(False)

    def forward(self, images: Tensor, concepts: Tensor, labels: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the loss, shape ``()``.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            concepts: True concepts ``(B, K)``, in [0, 1] if the annotator was unsure.
            labels: int64 ``(B,)``.
            known: 1 where the image shows the concept, ``(B, K)``; others do not enter the concept loss. None: all.
        """
        encoded = self.model.encode(images).float()
        if self.model.embedding is not None:
            # Probabilities in bfloat16 round to 1, which ends their gradient.
            with torch.autocast(encoded.device.type, enabled=False):
                return self._embedding_loss(encoded, concepts, labels, known)
        loss = concept_loss(encoded.sigmoid(), concepts, self.weight, known, logits=encoded)
        if self.config.base != "joint":
            return loss
        logits = self.model.head(encoded.sigmoid())
        return self.config.concept_weight * loss + functional.cross_entropy(logits, labels)

    def _embedding_loss(self, encoded: Tensor, concepts: Tensor, labels: Tensor, known: Tensor | None) -> Tensor:
        head, config = self.model.embedding, self.config
        assert head is not None
        if self.policy is None:
            mask = (torch.rand(concepts.shape[1]) < config.intervention_probability).to(concepts)
            predicted, *_, logits = head(encoded, mask.expand_as(concepts), concepts)
            loss = concept_loss(predicted, concepts, self.weight, known)
            return config.concept_weight * loss + functional.cross_entropy(logits, labels)
        predicted, pos, neg, *_ = head(encoded)
        start = draw_start(
            self.groups, len(concepts), config.intervention_probability, whole_horizon(self.horizon), config.horizon
        )
        rolled = roll_out(
            head, self.policy, self.realigner, (predicted, pos, neg), concepts, labels, self.groups, start
        )
        if self.training:
            self.horizon = horizon_after(self.horizon, len(self.groups))
        base = concept_loss(predicted, concepts, self.weight, known)
        concept_term = base / 2
        if self.realigner is not None:
            initial, _ = self.realigner(predicted, torch.zeros_like(predicted), predicted)
            concept_term = joint_realignment_concept_loss(
                base,
                concept_loss(initial, concepts, self.weight, known),
                concept_loss(rolled.last_concepts, concepts, self.weight, known),
                config.discount,
                rolled.num_questions,
                compat=config.joint_loss == "compat",
            )
        last = config.discount**rolled.num_questions
        class_term = (
            functional.cross_entropy(rolled.first_logits, labels)
            + last * functional.cross_entropy(rolled.last_logits, labels)
        ) / (1 + last)
        return config.concept_weight * concept_term + config.policy_weight * rolled.policy_loss + class_term


def concept_loss(
    probs: Tensor, targets: Tensor, weight: Tensor | None, known: Tensor | None = None, logits: Tensor | None = None
) -> Tensor:
    """Return the binary cross-entropy averaged over images and concepts, shape ``()``.

    Args:
        probs: ``(B, K)``.
        targets: ``(B, K)`` in [0, 1].
        weight: Factor of each concept, on both terms, ``(K,)``; None: 1.
        known: 1 where a concept counts, ``(B, K)``; None: everywhere.
        logits: Of the probabilities, where they are known: stabler than their logarithms.
    """
    if logits is not None:
        losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        with torch.autocast(probs.device.type, enabled=False):  # which refuses it
            losses = functional.binary_cross_entropy(probs.float(), targets.float(), reduction="none")
    if weight is not None:
        losses = losses * weight
    return losses.mean() if known is None else (losses * known).sum() / known.sum().clamp_min(1)


def training_loss(config: Config, *, mirrorable: bool) -> Loss:
    """Return the loss of a ``BaseLearner`` on a batch."""

    def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        images = batch["images"]
        if config.augment == "photo":
            images = photo_augment(images, config.image_size, mirror=mirrorable)
        return model(images, batch[CONCEPTS], batch[LABELS], batch.get(KNOWN))

    return loss


def head_loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
    """Return the cross-entropy of a class head that reads concepts."""
    return functional.cross_entropy(model(batch[CONCEPTS]), batch[LABELS])
