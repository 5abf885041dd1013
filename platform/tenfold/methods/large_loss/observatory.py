"""The label-noise observatory: what every training label cost, epoch by epoch, and which labels were not believed.

A recorder takes down every step; curves and figures answer, from what it wrote (``noise_record``), whether the network
memorises wrong labels and whether treating large losses finds them.
Shapes: B images of a batch, N of the training set, K classes. Samples are numbered by rows of the training set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter
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
"""Steps kept as they are before one transfer to the host: a device is not made to wait in every step."""


class LabelNoiseRecorder:
    """Takes down the losses of one worker and writes them at the end of every epoch.

    Args:
        folder: Where the data set lies; every worker writes its own files there.
        rank: Of this worker; rank 0 also writes ``labels.parquet``.
        num_samples: N.
        classes: K names.
        observed: Labels at the start of training ``(N, K)`` in {-1, 0, 1}.
        true: The truth ``(N, K)`` in {0, 1}, -1 where nobody looked; None if unknown.
        scheme: LL-R, LL-Ct or LL-Cp; any other name belongs to a loss that treats nothing.
        mode: ``all`` keeps every loss (4 N K bytes an epoch before compression), ``treated`` only what was treated, for
            label matrices too large for that; ``off`` nothing.

    Raises:
        ValueError: If shapes do not fit or the mode is unknown.
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
            raise ValueError(f"the record numbers classes with int16: at most 32767, got {len(classes)}")
        self._folder, self._rank, self._mode = Path(folder), rank, mode
        self._classes, self._observed, self._true = tuple(classes), observed, true
        self._action = _ACTIONS.get(scheme or "")
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []  # index (B,), losses (B, K), mask (B, K), on the device
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []  # on the host: as above, or sample, class, loss (M,)

    def record(self, index: Tensor, losses: Tensor, mask: Tensor) -> None:
        """Take down a step. Costs a copy of the index; the other tensors are kept as they are, so leave them unchanged.

        Args:
            index: Rows of the training set ``(B,)``.
            losses: Unflipped loss of every entry ``(B, K)``.
            mask: Treated entries, bool ``(B, K)``.

        Raises:
            ValueError: If shapes do not fit.
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
        """Write this worker's files of ``epoch`` (from 1), each whole or not at all, and start afresh.

        Of a sample seen twice in an epoch the later step counts. A file of the same epoch is replaced, so that an epoch
        trained again after an interruption leaves one record.

        Raises:
            ValueError: If the epoch is below 1, a recorded index is outside 0..N-1, or a treated entry was observed.
        """
        if self._mode == "off":
            return
        if epoch < 1:
            raise ValueError(f"epoch counts from 1, got {epoch}")
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
            raise ValueError("an observed label was recorded as treated: the mask must be a part of labels == 0")
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
        """What was taken down since the last epoch ended: host tensors, for a checkpoint in mid-epoch."""
        self._fetch()
        return dict(zip(self._keys(), self._gathered(), strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint; what was taken down before is forgotten.

        Raises:
            ValueError: If the state belongs to a recorder of another mode or other classes.
        """
        if set(state) != set(self._keys()):
            raise ValueError(
                f"a recorder in mode {self._mode!r} needs {list(self._keys())}, got {sorted(state)}: "
                "resume with the mode that the run began with"
            )
        part = tuple(state[key].cpu() for key in self._keys())
        if self._mode == "all" and part[1].shape[1:] != (len(self._classes),):
            raise ValueError(f"the state has losses {tuple(part[1].shape)}, expected (n, {len(self._classes)})")
        self._steps.clear()
        self._parts = [(part[0], part[1], part[2])]

    def _keys(self) -> tuple[str, str, str]:
        return ("index", "losses", "mask") if self._mode == "all" else ("sample", "class", "loss")

    def _fetch(self) -> None:
        """Bring the steps of the device to the host, in one transfer each for indices, losses and masks."""
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
    """How well treating large losses finds false negatives (unobserved, in truth positive).

    Args:
        folder: The data set.
        observed: Labels at the start ``(N, K)`` in {-1, 0, 1}; those of the record if None.
        true: The truth ``(N, K)`` in {0, 1}, -1 where unknown; that of the record if None.

    Returns:
        One row for each epoch: ``epoch``; ``num_treated`` entries, of which ``rejected_fn`` (rejected or corrected) are
        false negatives; ``total_fn`` there are; ``precision`` (over entries whose truth is known; NaN if none was
        treated) and ``recall``. The same with ``ever_`` in front counts every entry treated up to that epoch once:
        what LL-Cp has corrected so far.

    Raises:
        ValueError: If the truth is unknown.
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
    """Mean loss of unobserved labels that are truly negative and of those that are not.

    A network fits true negatives first; the loss of false negatives rises at first and falls when they are memorised.
    The loss is that of the moment of the step, against the label of that moment: with LL-Cp, a corrected entry's is
    against its new label.

    Args:
        folder: The data set, recorded in mode ``all``.
        observed: Labels at the start ``(N, K)``; those of the record if None.
        true: The truth ``(N, K)``; that of the record if None.

    Returns:
        Columns epoch, true_negative_loss, false_negative_loss, observed_positive_loss, num_samples; NaN for an empty
        kind.

    Raises:
        ValueError: If the truth is unknown.
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


_FOUND, _MISTAKEN, _INK = "#0b7a75", "#d1603d", "#333333"


def figure_detection(frame: pd.DataFrame) -> Figure:
    """Precision and recall of the detected false negatives, and how many they are, from ``detection_curve``."""
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    rates, counts = figure.subplots(1, 2)
    epoch = frame["epoch"]
    for name, colour in (("precision", _FOUND), ("recall", _MISTAKEN)):
        rates.plot(epoch, frame[name], color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
        rates.plot(epoch, frame[f"ever_{name}"], color=colour, linestyle=(0, (4, 2)), linewidth=1.2)
    rates.plot([], [], color=_INK, linestyle=(0, (4, 2)), linewidth=1.2, label="of all treated so far")
    rates.set(ylim=(-0.03, 1.18), xlabel="epoch", title="Precision and recall against the truth")
    rates.yaxis.set_major_locator(MultipleLocator(0.2))
    rates.yaxis.set_major_formatter(PercentFormatter(1.0))
    rates.legend(frameon=False, fontsize=8.5, loc="upper left", ncols=3)

    wrong = frame["num_treated"] - frame["rejected_fn"]
    counts.bar(epoch, frame["rejected_fn"], color=_FOUND, width=0.75, label="false negatives")
    counts.bar(epoch, wrong, bottom=frame["rejected_fn"], color=_MISTAKEN, width=0.75, label="others")
    counts.plot(
        epoch, frame["ever_rejected_fn"], color=_INK, linestyle=(0, (4, 2)), linewidth=1.2, label="found so far"
    )
    total = frame["total_fn"].max() if len(frame) else 0
    counts.axhline(total, color=_INK, linewidth=1, linestyle=":")
    counts.annotate(
        f"all false negatives: {total:,}", (0.01, total), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", fontsize=8.5, color=_INK,
    )  # fmt: skip
    counts.set(xlabel="epoch", title="Treated labels", ylim=(0, 1.32 * max([total, *frame["num_treated"], 1])))
    counts.legend(frameon=False, fontsize=8.5, loc="upper left", ncols=3)
    _tidy(rates, counts)
    return figure


def figure_memorisation(frame: pd.DataFrame) -> Figure:
    """Mean loss of true and of false negatives over the epochs, from ``memorisation_curve``."""
    figure = Figure(figsize=(6.0, 3.7), layout="constrained")
    axes = figure.subplots()
    epoch = frame["epoch"]
    for name, label, colour in (
        ("false_negative_loss", "false negatives", _MISTAKEN),
        ("true_negative_loss", "true negatives", _FOUND),
    ):
        axes.plot(epoch, frame[name], color=colour, marker="o", markersize=4, linewidth=1.8, label=label)
    peak = frame["false_negative_loss"].idxmax() if frame["false_negative_loss"].notna().any() else None
    if peak is not None:
        place = (frame.loc[peak, "epoch"], frame.loc[peak, "false_negative_loss"])
        axes.annotate(
            f"peak {place[1]:.3f} at epoch {place[0]}", place, xytext=(0, 8), textcoords="offset points",
            ha="center", fontsize=8.5, color=_INK,
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="mean loss at the step", title="Memorisation of wrong labels")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=8.5)
    _tidy(axes)
    return figure


def _tidy(*panels: Any) -> None:
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#dddddd", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.title.set_fontsize(10.5)


def _hits(found: np.ndarray, total: int, prefix: str) -> dict[str, float]:
    """Counts and rates of the treated entries whose truths are ``found``."""
    positives, known = int((found == 1).sum()), int((found >= 0).sum())
    return {
        f"{prefix}num_treated": len(found),
        f"{prefix}rejected_fn": positives,
        f"{prefix}precision": positives / known if known else np.nan,
        f"{prefix}recall": positives / total if total else np.nan,
    }


def _labels(folder: Path | str, observed: np.ndarray | None, true: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The given label matrices, or those of the record."""
    if observed is None or true is None:
        recorded, recorded_true = read_labels(folder)
        observed = recorded if observed is None else observed
        true = recorded_true if true is None else true
    if true is None:
        raise ValueError("the truth was unknown when these labels were recorded: pass true (N, K)")
    if observed.shape != true.shape:
        raise ValueError(f"observed and true must agree, got {observed.shape} and {true.shape}")
    return observed, true
