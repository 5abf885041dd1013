"""Training objective: the label matrix and its loss, for every scheme of the paper and every baseline."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.data.images import shared_tensor
from tenfold.data.multilabel import MultiLabelSplit
from tenfold.engine.fit import Clock, Objective
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.methods.large_loss.baselines import apl_update, asymmetric_loss, role_initial_logits, spml_loss
from tenfold.methods.large_loss.loss import (
    apply_permanent_correction,
    assume_negative_losses,
    large_loss_mask,
    large_loss_rate,
    num_large_losses,
    treated_mean,
)
from tenfold.methods.large_loss.observatory import LabelNoiseRecorder
from tenfold.methods.large_loss.settings import LARGE_LOSS_SCHEMES, Config
from tenfold.types import Batch


class WithLabelEstimator(nn.Module):
    """ROLE's model: the classifier and a label estimator with one free logit per entry of the training labels."""

    def __init__(self, classifier: nn.Module, initial_logits: Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.label_logits = nn.Parameter(initial_logits)

    def forward(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the images and of their label estimates, both ``(B, K)``."""
        return self.classifier(images), self.label_logits[index]


class TrainingLabels:
    """Current observed labels of the training set, and the loss computed from them.

    Args:
        config: Scheme and its settings.
        split: Training images with observed and true labels.
        run: Execution context.
        mirror: Whether images may be flipped horizontally at random.
        recorder: Recorder of the label noise; None records nothing.
    """

    def __init__(
        self,
        config: Config,
        split: MultiLabelSplit,
        run: Run,
        *,
        mirror: bool,
        recorder: LabelNoiseRecorder | None,
    ) -> None:
        self._config, self._split, self._run = config, split, run
        self._mirror = mirror and config.horizontal_flip
        self._recorder = recorder
        self.labels = _stored_labels(config.scheme, split.observed)
        unobserved = (self.labels == 0).sum(0) if config.scheme == "em_apl" else None
        self._num_unobserved = unobserved
        self._expected_num_pos = config.expected_num_pos
        if self._expected_num_pos is None and config.scheme in ("epr", "role"):
            self._expected_num_pos = float((split.full == 1).sum(1).mean())
        self._treated: list[tuple[Tensor, Tensor]] = []  # index and mask of the current step
        self._flips: list[Tensor] = []  # (F, 2) rows and classes corrected permanently in this epoch

    def read(self, rows: np.ndarray) -> Batch:
        """Read a batch of images with its labels (``read_labels``)."""
        return {"images": self._split.images.read(rows), **self.read_labels(rows)}

    def read_labels(self, rows: np.ndarray) -> Batch:
        """Read the current labels and, for schemes that may use them, the true labels."""
        batch = {"labels": self.labels[torch.from_numpy(rows)]}
        if self._config.scheme in ("full", "bce", "bce_ls", "iun"):
            batch["true"] = torch.from_numpy(np.ascontiguousarray(self._split.full[rows]))
        return batch

    def objective(self) -> Objective:
        """Return the objective for the training loop."""
        return Objective(
            loss=self.loss,
            after_step=self.after_step,
            after_epoch=self.after_epoch,
            state_dict=self.state_dict,
            load_state_dict=self.load_state_dict,
        )

    def loss(self, model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        """Compute the scalar loss of a batch."""
        images = self._augment(batch["images"])
        scheme = self._config.scheme
        if scheme == "role":
            logits, label_logits = model(images, batch["index"])
            return self._baseline_loss(logits.float(), batch, estimated=label_logits.float().sigmoid())
        logits = model(images).float()
        if scheme in LARGE_LOSS_SCHEMES:
            return self._large_loss(logits, batch, clock)
        if scheme == "an":
            losses = assume_negative_losses(logits, batch["labels"])
            self._record(batch, losses, torch.zeros_like(losses, dtype=torch.bool))
            return losses.mean()
        if scheme == "full":
            return functional.binary_cross_entropy_with_logits(logits, batch["true"].to(logits.dtype))
        if scheme == "asl":
            return asymmetric_loss(
                logits,
                (batch["labels"] == 1).to(logits.dtype),
                self._config.gamma_neg,
                self._config.gamma_pos,
                self._config.clip,
                validate=False,
            )
        return self._baseline_loss(logits, batch)

    def after_step(self, batch: Batch, clock: Clock) -> None:
        """Store the permanent corrections of this step (LL-Cp)."""
        for index, mask in self._treated:
            mask = mask.cpu()
            apply_permanent_correction(self.labels, index, mask)
            rows, classes = mask.nonzero(as_tuple=True)
            self._flips.append(torch.stack((index[rows], classes), 1))
        self._treated.clear()

    def after_epoch(self, model: nn.Module, clock: Clock) -> Mapping[str, float]:
        """Merge the workers' label matrices, pseudo-label, and write the record of the epoch."""
        metrics: dict[str, float] = {}
        if self._config.scheme == "LL-Cp":
            mine = torch.cat(self._flips) if self._flips else torch.zeros(0, 2, dtype=torch.int64)
            for rows, classes in (part.T for part in self._run.share_all(mine)):
                self.labels[rows, classes] = 1
            self._flips.clear()
            metrics["train/corrected_labels"] = float((self.labels == 1).sum() - (self._split.observed == 1).sum())
        if self._config.scheme == "em_apl" and clock.epoch >= self._config.apl_warmup_epochs:
            self._pseudo_label(model, clock)
        if self._recorder is not None:
            self._recorder.end_epoch(clock.epoch)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        changed = self._config.scheme in ("LL-Cp", "em_apl")
        return {
            "labels": self.labels if changed else None,
            "flips": list(self._flips),
            "recorder": self._recorder.state_dict() if self._recorder is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["labels"] is not None:
            self.labels = state["labels"]
        self._flips = list(state["flips"])
        if self._recorder is not None and state["recorder"] is not None:
            self._recorder.load_state_dict(state["recorder"])

    def _augment(self, images: Tensor) -> Tensor:
        if not self._mirror:
            return images
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        return torch.where(mirrored, images.flip(2), images)

    def _large_loss(self, logits: Tensor, batch: Batch, clock: Clock) -> Tensor:
        # The label matrix was checked once, before training; checking every batch would synchronise with the GPU.
        config, labels = self._config, batch["labels"]
        rate = large_loss_rate(clock.epoch, config.delta_rel_percent / 100, config.scheme, config.warmup_epochs)
        losses = assume_negative_losses(logits, labels)
        count = num_large_losses(logits.numel(), rate)
        mask = large_loss_mask(losses, labels == 0, count, validate=False)
        self._record(batch, losses, mask)
        if count == 0:
            return losses.mean()
        if config.scheme == "LL-Cp":
            self._treated.append((batch["index"].cpu(), mask))
        return treated_mean(logits, losses, mask, config.scheme)

    def _baseline_loss(self, logits: Tensor, batch: Batch, estimated: Tensor | None = None) -> Tensor:
        config = self._config
        labels = batch["true"] if config.scheme in ("bce", "bce_ls") else batch["labels"]
        return spml_loss(
            config.scheme,
            logits.sigmoid(),
            labels,
            label_smoothing=config.label_smoothing,
            true=batch.get("true"),
            expected_num_pos=self._expected_num_pos,
            estimated=estimated,
            alpha=config.alpha,
            beta=config.beta,
            validate=False,
        )

    def _record(self, batch: Batch, losses: Tensor, mask: Tensor) -> None:
        if self._recorder is not None:
            self._recorder.record(batch["index"], losses.detach(), mask)

    def _pseudo_label(self, model: nn.Module, clock: Clock) -> None:
        was_training = model.training
        model.eval()
        logits = predict_images(self._run, model, self._split.images)
        model.train(was_training)
        assert self._num_unobserved is not None
        warmup, num_epochs = self._config.apl_warmup_epochs, clock.num_epochs
        apl_update(self.labels, logits.sigmoid(), self._num_unobserved, warmup_epochs=warmup, num_epochs=num_epochs)


def check_labels(config: Config, split: MultiLabelSplit) -> None:
    """Check before training that the scheme can learn from the labels.

    Raises:
        ValueError: If labels are outside the coding, none is positive, or the scheme needs negatives or full labels.
    """
    scheme = config.scheme
    lowest, highest = int(split.observed.min()), int(split.observed.max())
    if lowest < -1 or highest > 1:
        raise ValueError(f"observed labels must be -1, 0 or 1, got values from {lowest} to {highest}")
    if not (split.observed == 1).any():
        raise ValueError("observed labels must have a positive, got none; set data.num_pos=1")
    if scheme == "iu" and not (split.observed == -1).any():
        raise ValueError("observed labels must have negatives for scheme iu, got none; set data.num_neg")
    assumes = ("an_ls", "wan", "pr", "epr", "role", "em", "em_apl")
    if scheme in assumes and (split.observed == -1).any():
        raise ValueError(f"scheme {scheme} is not defined for observed negatives; set data.num_neg=0")
    if scheme in ("full", "bce", "bce_ls", "iun") and (split.full < 0).any():
        raise ValueError(f"scheme {scheme} needs full labels, but some entries are unannotated; choose another scheme")


def check_length(config: Config, num_epochs: int) -> None:
    """Check that the training is long enough for the scheme.

    Raises:
        ValueError: If em_apl would never pseudo-label.
    """
    if config.scheme == "em_apl" and config.apl_warmup_epochs >= num_epochs:
        raise ValueError(
            f"method.apl_warmup_epochs must be less than run.num_epochs = {num_epochs}, got {config.apl_warmup_epochs}"
        )


def role_model(classifier: nn.Module, split: MultiLabelSplit, seed: int) -> WithLabelEstimator:
    """Combine the classifier with ROLE's label estimator."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(np.array(split.observed))
    return WithLabelEstimator(classifier, role_initial_logits(labels, generator))


def _stored_labels(scheme: str, observed: np.ndarray) -> Tensor:
    """Copy the labels if the scheme changes them; otherwise share the matrix, which may be a large memory map."""
    if scheme == "em_apl":
        return torch.from_numpy(observed.astype(np.float32))
    return torch.from_numpy(np.array(observed)) if scheme == "LL-Cp" else shared_tensor(observed)
