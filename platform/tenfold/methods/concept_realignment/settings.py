"""Settings of concept realignment: the base model, the realigner, the policy, and what is measured."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

Base = Literal["independent", "sequential", "joint", "cem", "intcem"]
Kind = Literal["mlp", "lstm", "gru", "rnn"]
RealignerName = Literal["none", "network", "patterns", "gaussian", "stochastic"]
TrainPolicy = Literal["ucp", "random", "ectp"]
Policy = Literal["ucp", "random", "ectp", "coop", "information", "fixed", "intcem", "skyline"]

BASE_FIELDS = (
    "base", "base_model", "joint_realigner", "joint_loss", "image_size", "train_size", "grid", "latent_size",
    "embedding_size",
    "intervention_probability", "concept_weight", "policy_weight", "discount", "horizon", "imbalance", "optimizer",
    "learning_rate", "weight_decay", "plateau_patience", "augment", "head_epochs",
)  # fmt: skip
"""Settings that the base model depends on; realigners that agree in them share one."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training, validated on construction."""

    base: Base = "independent"
    """Base model: concept bottlenecks whose class head is trained on true concepts (``independent``), on predicted ones
    (``sequential``), or with the network (``joint``); concept embeddings (``cem``); those with a policy that learns
    during training which concept to ask (``intcem``)."""
    base_model: str | None = None
    """Model of another method whose labels name the concepts, ``models:/name@alias`` or a bundle's folder: it is frozen
    and its predictions are realigned. None: a base model is trained."""
    joint_realigner: bool = False
    """For ``intcem``: train a realigner with the network; it stands for ``network`` among the realigners, whose own
    settings then have no effect."""
    joint_loss: Literal["paper", "compat"] = "paper"
    """Concept loss with a joint realigner: as in the paper, or as in the released code, which leaves a divisor out."""
    image_size: int = 64
    """Side of the network's input images, in pixels."""
    train_size: int | None = None
    """Side of the training images before they are augmented; None: ``image_size``."""
    grid: int = 1
    """Side of the grid of cells in which the feature map is averaged before the linear layer; 1 is the global average
    of the paper, which cannot tell left from right."""
    latent_size: int = 128
    """Values of the network that concept embeddings read; 1000, with a grid of 1, keeps the ImageNet classifier of a
    pre-trained network, as in the paper."""
    embedding_size: int = 16
    """Length E of each concept's two embeddings."""
    intervention_probability: float = 0.25
    """Probability with which a concept is replaced by its true value in a training batch of embeddings, in [0, 1]."""
    concept_weight: float = 1.0
    """Weight of the concept loss beside the class loss, positive."""
    policy_weight: float = 1.0
    """Weight of the loss of ``intcem``'s policy, at least 0."""
    discount: float = 1.1
    """Base gamma, at least 1, of the weight gamma^T of the loss after T questions in the training of ``intcem``."""
    horizon: int = 6
    """Maximum number of questions in a rollout of ``intcem``'s training."""
    imbalance: Literal["none", "images", "classes"] = "none"
    """Factor N / n - 1 of each concept in the concept loss, from the training images or from the class rows."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser of the base model; ``sgd`` has momentum 0.9."""
    learning_rate: float = 1e-3
    """Learning rate of the base model, positive."""
    weight_decay: float = 4e-6
    """L2 penalty of the base model, at least 0."""
    plateau_patience: int | None = 10
    """Epochs without a lower training loss after which the learning rate falls to a tenth; None: it stays."""
    augment: Literal["none", "photo"] = "none"
    """``photo``: random crops, colours and, where the data allow it, flips of training images."""
    head_epochs: int = 50
    """Passes in which the class head of ``independent`` and ``sequential`` is trained, by Adam at a rate of 0.02."""
    crossfit: int = 5
    """Folds of the training images; the realigner learns from each image as seen by a base model that was not trained
    on it. 1 is the published way: predictions for images that the base model has fitted."""
    calibrate: bool = False
    """Whether to divide the concept logits by a temperature fitted on the validation images; for ``independent``."""
    realigner: RealignerName | Literal["auto"] = "auto"
    """``network`` is the paper's; ``patterns``, the concept rows of the training set, ``gaussian`` and ``stochastic``,
    a covariance of concept logits, are rivals; ``none`` only pins what was corrected; ``auto`` takes the one with the
    smallest area under the validation curve of the concept loss."""
    rivals: tuple[RealignerName, ...] = ("none", "network", "patterns", "gaussian")
    """Realigners that are fitted and compared beside the chosen one."""
    kind: Kind = "mlp"
    """Architecture of the network."""
    input_format: Literal["original", "previous"] = "original"
    """What the network reads: the predictions with all corrections so far, or its own last output with the newest."""
    hidden: int | None = None
    """Width of its hidden layers; None: twice the number of concepts."""
    layers: int = 2
    """Number of its hidden layers, at least 1."""
    dropout: float = 0.2
    """Dropout of its hidden layers, in [0, 1)."""
    realigner_learning_rate: float = 0.01
    """Learning rate of Adam."""
    realigner_weight_decay: float = 1e-6
    """L2 penalty."""
    realigner_epochs: int = 60
    """Maximum passes over the predictions; the paper's is 500."""
    realigner_batch_size: int = 512
    """Rows of a step, over all workers together."""
    validate_every: int = 5
    """Passes between validations; the paper's is 10."""
    realigner_patience: int = 7
    """Validations without a lower loss after which training ends."""
    winners: dict[str, dict[str, float]] | None = None
    """Published settings of the realigner by base model, from which the settings of a paper choose; no effect here."""
    train_policy: TrainPolicy = "ucp"
    """Policy of the simulated corrections."""
    train_noise: float = 0.2
    """Factor of the uniform noise on the scores while training."""
    train_steps: int | None = None
    """Corrections simulated while training; None: all; 0 trains a corrector that no human helps."""
    adapter: bool = False
    """Whether a network trained without corrections goes first, also before any correction, whatever ``apply_from``
    says, and the realigner reads its output."""
    policy: Policy = "ucp"
    """Policy that chooses the next question: the most uncertain concept (``ucp``), chance, the largest expected change
    of the class (``ectp``; ``coop`` adds the uncertainty), the largest expected drop of its entropy under the realigner
    (``information``), the order of the data set (``fixed``), that of ``intcem``, or the largest true error
    (``skyline``, a bound that needs the truth)."""
    policies: tuple[Policy, ...] = ("ucp", "random", "ectp")
    """Policies that are compared."""
    reduce: Literal["mean", "max"] = "mean"
    """Score of a group from those of its concepts."""
    single: bool = False
    """Whether concepts are asked one by one, also where the data have groups."""
    coupled: bool = True
    """Whether the policy reads the realigned concepts; False: the predicted ones."""
    divergence: Literal["exact", "compat"] = "exact"
    """Divergence of ``ectp``: Kullback-Leibler, or the released code's, which feeds probabilities for logarithms."""
    steps: int | None = None
    """Number of questions T of the curves; None: all."""
    apply_from: int = 1
    """Number of corrections from which concepts are realigned; 0 also rewrites them before the first, as published."""
    stop_at: float | None = None
    """Probability of the class, in (0, 1), from which nothing more is asked; None: until all are asked."""
    repetitions: int = 10
    """Repetitions of the random policy."""
    expert_error: float = 0.1
    """Share of wrong answers, in [0, 1], in the curve of an expert that errs."""
    expert_unknown: float = 0.2
    """Share of questions without an answer, in [0, 1], in the curve of an expert that does not know."""
    expert_certainty: float = 0.8
    """Probability, in (0.5, 1], that an unsure expert gives to the truth."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "realigner_learning_rate", "concept_weight"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("weight_decay", "realigner_weight_decay", "policy_weight", "train_noise"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        for name in (
            "image_size", "grid", "latent_size", "embedding_size", "horizon", "head_epochs", "crossfit", "layers",
            "realigner_epochs", "realigner_batch_size", "validate_every", "realigner_patience", "repetitions",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("train_size", "plateau_patience", "hidden"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 or null, got {getattr(self, name)}")
        for name in ("train_steps", "steps"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0 or null, got {getattr(self, name)}")
        for name in ("intervention_probability", "expert_error", "expert_unknown"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not (self.discount >= 1 and math.isfinite(self.discount)):
            raise ValueError(f"discount must be at least 1 and finite, got {self.discount}")
        if self.apply_from not in (0, 1):
            raise ValueError(f"apply_from must be 0 or 1, got {self.apply_from}")
        if self.stop_at is not None and not 0 < self.stop_at < 1:
            raise ValueError(f"stop_at must lie in (0, 1) or be null, got {self.stop_at}")
        if not 0.5 < self.expert_certainty <= 1:
            raise ValueError(f"expert_certainty must lie in (0.5, 1], got {self.expert_certainty}")
        self._check_choices()

    def _check_choices(self) -> None:
        for name in ("policies", "rivals"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must be unique, got {', '.join(getattr(self, name))}")
        if self.realigner == "auto" and not self.rivals:
            raise ValueError("rivals must name a realigner to choose from where realigner is auto, got none")
        if self.joint_realigner and self.base != "intcem":
            raise ValueError(f"joint_realigner must be false for base {self.base}; only intcem trains one")
        if self.joint_realigner and "network" not in (self.realigner, *self.rivals):
            raise ValueError("joint_realigner needs network as realigner or among rivals, or it would not be used")
        if self.base_model is not None and self.base not in ("independent", "sequential"):
            raise ValueError(f"base must be independent or sequential with base_model, got {self.base}")
        if self.calibrate and self.base != "independent":
            raise ValueError(
                f"calibrate must be false for base {self.base}, whose class head has learnt from other probabilities"
            )
        if "intcem" in (self.policy, *self.policies) and self.base != "intcem":
            raise ValueError(f"policy intcem needs base intcem, which learns it, got base {self.base}")
        if self.policy == "skyline":
            raise ValueError(
                "policy must not be skyline, which needs the truth; name it among the policies that are compared"
            )

    @property
    def uses_embeddings(self) -> bool:
        """Whether the base model has concept embeddings."""
        return self.base in ("cem", "intcem")

    def of_base(self) -> "Config":
        """Return these settings with everything that the base model doesn't depend on at its default."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name in BASE_FIELDS}
        if self.base == "intcem":  # whose policy learns to choose among the questions
            kept["single"] = self.single
        return replace(Config(), **kept)
