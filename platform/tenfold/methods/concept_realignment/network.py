"""Concept bottlenecks: from an image to concepts, and from concepts to the class.

What a bottleneck needs to know of an image, its encoding, is a short vector: the concept logits (Koh et al., "Concept
Bottleneck Models", ICML 2020), or the latent that concept embeddings read (Espinosa Zarlenga et al., "Concept Embedding
Models", NeurIPS 2022). Everything after it is cheap, so that corrections need no further pass of the backbone.
Shapes: B images, K concepts, C classes, E values of an embedding, D of an encoding, T corrections.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.methods.concept_realignment.embeddings import (
    ConceptEmbeddingHead,
    embedding_curve_logits,
    mix_concept_embeddings,
)
from tenfold.methods.concept_realignment.realigner import ConceptRealigner
from tenfold.methods.concept_realignment.settings import Config
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier
from tenfold.types import check_label_range


class Bottleneck(NamedTuple):
    """Concepts of a batch before any correction."""

    concepts: Tensor
    """Predicted probabilities ``(B, K)``."""
    pos: Tensor | None = None
    """Embeddings of present concepts ``(B, K, E)``; None for a bottleneck without embeddings."""
    neg: Tensor | None = None
    """Embeddings of absent concepts ``(B, K, E)``."""


class GridHead(nn.Module):
    """Linear layer on a feature map averaged in ``grid`` x ``grid`` cells: ``(B, D, h, w)`` to ``(B, N)``."""

    def __init__(self, feature_dim: int, num_outputs: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(feature_dim * grid * grid, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(functional.adaptive_avg_pool2d(features, self.grid).flatten(1))


class ConceptModel(nn.Module):
    """Base model: encoder of images, concepts of the encoding, class of the concepts.

    Args:
        image: Images to encodings ``(B, D)``; None for a model of stored predictions, whose encoding they are.
        num_concepts: K.
        num_classes: C.
        embedding: Concept embeddings and their class head; None: the encoding holds the concept logits, and the class
            head is linear in the concepts.
    """

    temperature: Tensor

    def __init__(
        self,
        image: ImageClassifier | None,
        num_concepts: int,
        num_classes: int,
        embedding: ConceptEmbeddingHead | None = None,
    ) -> None:
        super().__init__()
        self.image = image
        self.embedding = embedding
        self.linear = nn.Linear(num_concepts, num_classes) if embedding is None else None
        self.num_concepts, self.num_classes = num_concepts, num_classes
        self.register_buffer("temperature", torch.ones(()))

    @property
    def head(self) -> nn.Linear:
        """Class head: linear in the concepts, or in their mixed embeddings."""
        if self.embedding is not None:
            return self.embedding.head
        assert self.linear is not None
        return self.linear

    def encode(self, images: Tensor) -> Tensor:
        """Return encodings ``(B, D)`` of uint8 images ``(B, S, S, 3)``, or of predictions ``(B, K)``."""
        return images if self.image is None else self.image(images)

    def concept_logits(self, encoded: Tensor) -> Tensor:
        """Return concept logits ``(B, K)`` before the temperature."""
        if self.embedding is not None:
            return self.embedding.concept_logits(encoded)
        return torch.logit(encoded, eps=1e-6) if self.image is None else encoded

    def bottleneck(self, encoded: Tensor) -> Bottleneck:
        """Return the concepts, and the embeddings if there are any, of encodings ``(B, D)``."""
        if self.embedding is not None:
            concepts, pos, neg, _, _ = self.embedding(encoded)
            return Bottleneck(self._tempered(concepts), pos, neg)
        if self.image is None:
            return Bottleneck(self._tempered(encoded))
        return Bottleneck((encoded / self.temperature).sigmoid())

    def logits(self, concepts: Tensor, of: Bottleneck) -> Tensor:
        """Return class logits ``(B, C)`` for concepts ``(B, K)``, or ``(B, T, C)`` for ``(B, T, K)``."""
        if of.pos is None or of.neg is None:
            return self.head(concepts)
        if concepts.ndim == 3:
            return embedding_curve_logits(concepts, of.pos, of.neg, self.head)
        return self.head(mix_concept_embeddings(concepts, of.pos, of.neg).flatten(1))

    def _tempered(self, concepts: Tensor) -> Tensor:
        if self.temperature == 1:
            return concepts
        return (torch.logit(concepts, eps=1e-6) / self.temperature).sigmoid()


def build_model(config: Config, model: ModelConfig, num_concepts: int, num_classes: int) -> ConceptModel:
    """Build a base model, with randomly initialised heads.

    Args:
        config: Settings of the method.
        model: Settings of the backbone.
        num_concepts: K.
        num_classes: C.

    Raises:
        ValueError: As in ``build_classifier``.
    """
    width = config.latent_size if config.uses_embeddings else num_concepts
    if config.grid == 1:
        image = build_classifier(model, width, config.image_size, latent=config.uses_embeddings)
    else:
        image = build_classifier(model, width, config.image_size, lambda dim, num: GridHead(dim, num, config.grid))
    embedding = None
    if config.uses_embeddings:
        embedding = ConceptEmbeddingHead(width, num_concepts, num_classes, config.embedding_size)
    return ConceptModel(image, num_concepts, num_classes, embedding)


def rebuild_model(config: Config, model: ModelConfig | None, num_concepts: int, num_classes: int) -> ConceptModel:
    """Build the network of a bundle, into which weights are loaded; None for a model of stored predictions."""
    if model is None:
        return ConceptModel(None, num_concepts, num_classes)
    bare = dataclasses.replace(model, pretrained=False, checkpoint=None)
    return build_model(config, bare, num_concepts, num_classes)


def new_realigner(config: Config, num_concepts: int) -> ConceptRealigner:
    """Build the network of the settings, randomly initialised."""
    return ConceptRealigner(
        num_concepts,
        config.kind,
        hidden=config.hidden,
        layers=config.layers,
        dropout=config.dropout,
        input_format=config.input_format,
    )


def joint_realigner(num_concepts: int) -> ConceptRealigner:
    """Build the realigner that is trained with the network (section 2.5 of the method's specification)."""
    return ConceptRealigner(num_concepts, "mlp", hidden=num_concepts, layers=2, dropout=0.0, input_format="previous")


def concept_map(model: ConceptModel, images: Tensor, concepts: Tensor) -> Tensor:
    """Return where one concept logit of each image comes from: gradient times feature map, summed over channels.

    For a head that is linear in the map this is the class activation map, and its sum over places is the logit without
    its bias; for embeddings it is the first-order share of each place (Draelos and Carin, arXiv 2011.08891).

    Args:
        model: A model of images.
        images: uint8 ``(B, S, S, 3)``.
        concepts: Columns, int64 ``(B,)``.

    Returns:
        ``(B, h, w)``.

    Raises:
        ValueError: A column is not a concept, or the model takes no images.
    """
    if model.image is None:
        raise ValueError("a model of stored predictions has no images to explain")
    check_label_range(concepts, model.num_concepts, "concepts")
    with torch.inference_mode(mode=False), torch.enable_grad():  # callers may be in inference mode
        features = model.image.feature_map(images.clone()).detach().requires_grad_()
        encoded = model.image.head(features if model.image.reads_map else features.mean((2, 3)))
        logits = model.concept_logits(encoded)
        chosen = logits.gather(1, concepts[:, None].clone()).sum()
        (gradient,) = torch.autograd.grad(chosen, features)
    return (gradient * features).sum(1).detach()
