"""Label-noise observatory: the loss of every training label in every epoch, and the labels that were treated.

A recorder logs every step; curves computed from its record (``noise_record``) show whether the network memorises wrong
labels and whether the treatment of large losses finds them.
Shapes: B images in a batch, N in the training set, K classes. A sample is a row of the training set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tenfold.methods.large_loss.noise_record import (
    epoch_losses,
    last_of_each,
    read_labels,
    read_treated,
    recorded_epochs,
    write_labels,
    write_losses,
    write_treated,
)

Mode = Literal["all", "treated", "off"]

_ACTIONS = {"LL-R": "rejected", "LL-Ct": "corrected", "LL-Cp": "permanently corrected"}
_STEPS_AT_ONCE = 128
"""Steps buffered on the device before one transfer to the host, to avoid synchronising in every step."""


class LabelNoiseRecorder:
    """Records the losses of one worker and writes them at the end of every epoch.

    Args:
        folder: Folder of the record; every worker writes its own files there.
        rank: Rank of this worker; rank 0 also writes ``labels.parquet``.
        num_samples: Number of training samples N.
        classes: K names.
        observed: Initial observed labels ``(N, K)`` in {-1, 0, 1}.
        true: True labels ``(N, K)`` in {0, 1}, -1 where not annotated; None if unknown.
        scheme: LL-R, LL-Ct or LL-Cp; any other name is a loss that treats nothing.
        mode: ``all`` keeps every loss (4 N K bytes per epoch before compression), ``treated`` only treated entries, for
            very large label matrices; ``off`` nothing.

    Raises:
        ValueError: If shapes do not match or the mode is unknown.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        rank: int,
        num_samples: int,
        classes: Sequence[str],
        observed: np.ndarray,
        true: np.ndarray | None,
        scheme: str | None,
        mode: Mode = "all",
    ) -> None:
        shape = (num_samples, len(classes))
        for name, matrix in (("observed", observed), ("true", true)):
            if matrix is not None and matrix.shape != shape:
                raise ValueError(f"{name} must be (N, K) = {shape}, got {matrix.shape}")
        if mode not in ("all", "treated", "off"):
            raise ValueError(f"mode must be all, treated or off, got {mode!r}")
        if len(classes) > np.iinfo(np.int16).max:
            raise ValueError(f"classes must be at most 32767, as the record stores them as int16, got {len(classes)}")
        self._folder, self._rank, self._mode = Path(folder), rank, mode
        self._classes, self._observed, self._true = tuple(classes), observed, true
        self._action = _ACTIONS.get(scheme or "")
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []  # index (B,), losses (B, K), mask (B, K), on the device
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []  # on the host: as above, or sample, class, loss (M,)

    def record(self, index: Tensor, losses: Tensor, mask: Tensor) -> None:
        """Record a step. The index is copied; the other tensors are kept by reference and must not be changed.

        Args:
            index: Rows of the training set ``(B,)``.
            losses: Uncorrected loss of every entry ``(B, K)``.
            mask: Treated entries, bool ``(B, K)``.

        Raises:
            ValueError: If shapes do not match.
        """
        if self._mode == "off":
            return
        expected = (len(index), len(self._classes))
        if losses.shape != expected or mask.shape != expected:
            raise ValueError(
                f"losses and mask must be (B, K) = {expected}, got {tuple(losses.shape)} and {tuple(mask.shape)}"
            )
        self._steps.append((index.clone(), losses.detach(), mask))
        if len(self._steps) >= _STEPS_AT_ONCE:
            self._fetch()

    def end_epoch(self, epoch: int) -> None:
        """Write this worker's files of ``epoch`` (from 1) atomically, and clear the buffers.

        If a sample was seen twice in an epoch, the later step counts. A file of the same epoch is replaced, so that an
        epoch trained again after an interruption leaves one record.

        Raises:
            ValueError: If the epoch is below 1, a recorded index is outside 0..N-1, or a treated entry was observed.
        """
        if self._mode == "off":
            return
        if epoch < 1:
            raise ValueError(f"epoch must be at least 1, got {epoch}")
        self._fetch()
        first, second, third = (tensor.numpy() for tensor in self._gathered())
        if first.size and not 0 <= first.min() <= first.max() < len(self._observed):
            raise ValueError(f"index must lie in 0..{len(self._observed) - 1}, got {first.min()} to {first.max()}")
        if self._mode == "all":
            rows = last_of_each(first)
            sample, losses = first[rows], second[rows]
            places, classes = np.nonzero(third[rows])
            treated, loss = sample[places], losses[places, classes]
        else:
            rows = last_of_each(first * len(self._classes) + second)
            treated, classes, loss = first[rows], second[rows], third[rows]
        if np.any(self._observed[treated, classes] != 0):
            raise ValueError("mask must select unobserved entries only, got an observed label recorded as treated")
        if self._rank == 0:
            write_labels(self._folder, self._classes, self._observed, self._true)
        if self._mode == "all":
            write_losses(self._folder, epoch, self._rank, self._classes, sample, losses)
        write_treated(
            self._folder,
            epoch,
            self._rank,
            self._classes,
            sample=treated,
            class_index=classes,
            loss=loss,
            action=self._action,
            true=np.full(len(treated), -1) if self._true is None else self._true[treated, classes],
        )
        self._parts.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what was recorded since the last epoch ended, as host tensors, for a checkpoint in mid-epoch."""
        self._fetch()
        return dict(zip(self._keys(), self._gathered(), strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore from a checkpoint, discarding what was recorded before.

        Raises:
            ValueError: If the state is of a recorder with another mode or other classes.
        """
        if set(state) != set(self._keys()):
            raise ValueError(
                f"state of a recorder in mode {self._mode!r} must have {list(self._keys())}, got {sorted(state)}; "
                "resume with the mode that the run began with"
            )
        part = tuple(state[key].cpu() for key in self._keys())
        if self._mode == "all" and part[1].shape[1:] != (len(self._classes),):
            raise ValueError(f"losses of the state must be (n, {len(self._classes)}), got {tuple(part[1].shape)}")
        self._steps.clear()
        self._parts = [(part[0], part[1], part[2])]

    def _keys(self) -> tuple[str, str, str]:
        return ("index", "losses", "mask") if self._mode == "all" else ("sample", "class", "loss")

    def _fetch(self) -> None:
        """Move the buffered steps to the host, in one transfer each for indices, losses and masks."""
        if not self._steps:
            return
        index, losses, mask = (torch.cat(column) for column in zip(*self._steps, strict=True))
        self._steps.clear()
        if self._mode == "all":
            self._parts.append((index.cpu().long(), losses.float().cpu(), mask.cpu()))
        else:
            rows, classes = mask.nonzero(as_tuple=True)
            sample = index.to(rows.device)[rows]
            self._parts.append((sample.cpu().long(), classes.cpu(), losses[rows, classes].float().cpu()))

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        if not self._parts:
            none = torch.zeros(0, dtype=torch.int64)
            if self._mode != "all":
                return none, none.clone(), torch.zeros(0)
            num_classes = len(self._classes)
            return none, torch.zeros(0, num_classes), torch.zeros(0, num_classes, dtype=torch.bool)
        first, second, third = (torch.cat(column) for column in zip(*self._parts, strict=True))
        self._parts = [(first, second, third)]
        return first, second, third


def detection_curve(
    folder: Path | str, observed: np.ndarray | None = None, true: np.ndarray | None = None
) -> pd.DataFrame:
    """Compute how well the treatment of large losses detects false negatives (positive but unobserved).

    Args:
        folder: Folder of the record.
        observed: Initial observed labels ``(N, K)`` in {-1, 0, 1}; those of the record if None.
        true: True labels ``(N, K)`` in {0, 1}, -1 where unknown; those of the record if None.

    Returns:
        One row per epoch: ``epoch``; ``num_treated`` entries, of which ``rejected_fn`` (rejected or corrected) are
        false negatives; ``total_fn``, all false negatives; ``precision`` (over entries with a known label; NaN if none
        was treated) and ``recall``. Columns with the prefix ``ever_`` count every entry treated up to that epoch once:
        for LL-Cp, what has been corrected so far.

    Raises:
        ValueError: If the true labels are unknown.
        FileNotFoundError: If the folder holds no record.
    """
    observed, true = _labels(folder, observed, true)
    total = int(((observed == 0) & (true == 1)).sum())
    treated = read_treated(folder)
    ever = np.zeros(observed.shape, dtype=bool)
    rows = []
    for epoch in recorded_epochs(folder, "treated"):
        now = treated[treated["epoch"] == epoch]
        sample, classes = now["sample"].to_numpy(), now["class"].to_numpy()
        ever[sample, classes] = True
        found, ever_found = true[sample, classes], true[ever]
        rows.append({"epoch": epoch, "total_fn": total, **_hits(found, total, ""), **_hits(ever_found, total, "ever_")})
    names = ("num_treated", "rejected_fn", "precision", "recall")
    columns = ["epoch", *names[:2], "total_fn", *names[2:], *(f"ever_{name}" for name in names)]
    return pd.DataFrame(rows, columns=columns)


def memorisation_curve(
    folder: Path | str, observed: np.ndarray | None = None, true: np.ndarray | None = None
) -> pd.DataFrame:
    """Compute the mean loss of true negatives and of false negatives among the unobserved labels.

    A network fits true negatives first; the loss of false negatives rises at first and falls when they are memorised.
    Each loss is that of its training step, against the label at that step: for an entry corrected by LL-Cp, against
    the corrected label.

    Args:
        folder: Folder of the record, written in mode ``all``.
        observed: Initial observed labels ``(N, K)``; those of the record if None.
        true: True labels ``(N, K)``; those of the record if None.

    Returns:
        Columns epoch, true_negative_loss, false_negative_loss, observed_positive_loss, num_samples; NaN for an empty
        group.

    Raises:
        ValueError: If the true labels are unknown.
        FileNotFoundError: If the folder holds no losses.
    """
    observed, true = _labels(folder, observed, true)
    rows = []
    for epoch, sample, losses in epoch_losses(folder):
        seen, truth = observed[sample], true[sample]
        kinds = {
            "true_negative_loss": (seen == 0) & (truth == 0),
            "false_negative_loss": (seen == 0) & (truth == 1),
            "observed_positive_loss": seen == 1,
        }
        means = {
            name: losses.mean(where=kind, dtype=np.float64) if kind.any() else np.nan for name, kind in kinds.items()
        }
        rows.append({"epoch": epoch, **means, "num_samples": len(sample)})
    return pd.DataFrame(rows)


def _hits(found: np.ndarray, total: int, prefix: str) -> dict[str, float]:
    """Return counts and rates of the treated entries with the true labels ``found``."""
    positives, known = int((found == 1).sum()), int((found >= 0).sum())
    return {
        f"{prefix}num_treated": len(found),
        f"{prefix}rejected_fn": positives,
        f"{prefix}precision": positives / known if known else np.nan,
        f"{prefix}recall": positives / total if total else np.nan,
    }


def _labels(folder: Path | str, observed: np.ndarray | None, true: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the given label matrices, or those of the record."""
    if observed is None or true is None:
        recorded, recorded_true = read_labels(folder)
        observed = recorded if observed is None else observed
        true = recorded_true if true is None else true
    if true is None:
        raise ValueError("true labels must be known, but the record has none; pass true (N, K)")
    if observed.shape != true.shape:
        raise ValueError(f"observed and true must have one shape, got {observed.shape} and {true.shape}")
    return observed, true
