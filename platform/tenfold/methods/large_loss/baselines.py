"""Baseline losses: single-positive learning, entropy maximisation with pseudo-labels, and the asymmetric loss.

Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021 (AN-LS, WAN, EPR, ROLE, PR, IU, IUN); Zhou et
al., "Acknowledging the Unknown for Multi-label Learning with Single Positive Labels", ECCV 2022 (EM, APL); Ridnik et
al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021 (ASL).
Shapes: B images in a batch, N in the training set, K classes. Labels: +1 observed positive, 0 unobserved, -1 observed
negative.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_EPS = 1e-5
"""Added to probabilities before the logarithm, as in the published losses; bounds an entry at 11.5."""


def spml_loss(
    name: str,
    probs: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.1,
    true: Tensor | None = None,
    expected_num_pos: float | None = None,
    estimated: Tensor | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute a published baseline by name: the sum of its entries over B*K, plus its regulariser.

    Args:
        name: One of ``SPML_LOSSES``: bce, bce_ls (full labels, plain and smoothed); an, an_ls, wan (assume negative:
            plain, smoothed, down-weighted); iu, iun (ignore unobserved; iun is told the true negatives); pr (pairwise
            ranking); epr, role (expected number of positives; with estimated labels); em, em_apl (entropy
            maximisation; the same with pseudo-labelled negatives).
        probs: ``(B, K)`` in [0, 1].
        labels: ``(B, K)`` in {-1, 0, 1}. Full labels in {0, 1} for ``bce`` and ``bce_ls``; without -1 for an, an_ls,
            wan, epr, role, pr and em; for ``em_apl`` -s in (-1, 0) where a class is pseudo-labelled with probability s.
        label_smoothing: Smoothing s, the weight given to the opposite label, for ``an_ls`` and ``bce_ls``.
        true: Full labels ``(B, K)`` in {0, 1}, for ``iun``.
        expected_num_pos: Mean number of true positives per image, for ``epr`` and ``role``.
        estimated: Label estimates ``(B, K)`` in [0, 1], trained jointly with the network, for ``role``.
        alpha: Weight of the entropy term, for ``em`` and ``em_apl``.
        beta: Weight of the pseudo-labels, for ``em_apl``.
        validate: Check values, which synchronises with the device; a training loop that has checked its label matrix
            once passes False. This also skips the check that an ``iu`` batch has a positive and a negative, which
            concerns the whole label matrix rather than one batch. Settings that a loss does not use are ignored.

    Returns:
        Scalar loss, shape ``()``, in the dtype of ``probs``.

    Raises:
        ValueError: If the name is unknown, shapes differ, a setting that the loss needs is missing or out of range,
            ``probs`` is NaN or outside [0, 1], or a label is outside the coding of this loss.
    """
    if name not in _LOSSES:
        raise ValueError(f"loss must be one of {', '.join(SPML_LOSSES)}, got {name!r}")
    loss, needs = _LOSSES[name]
    given = {
        "label_smoothing": label_smoothing,
        "true": true,
        "expected_num_pos": expected_num_pos,
        "estimated": estimated,
        "alpha": alpha,
        "beta": beta,
    }
    settings = {key: given[key] for key in needs}
    missing = [key for key, value in settings.items() if value is None]
    if missing:
        raise ValueError(f"{name} also needs {' and '.join(missing)}")
    _check_shapes(probs, labels, *(value for value in settings.values() if isinstance(value, Tensor)))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if validate:
        _check_values(name, probs, labels, settings)
    return loss(probs, labels, **settings)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_neg: float = 4,
    gamma_pos: float = 1,
    clip: float = 0.05,
    detach_weight: bool = False,
    *,
    validate: bool = True,
) -> Tensor:
    """Compute the asymmetric loss: separate focusing for positives and negatives, easy negatives discarded.

    Args:
        logits: ``(B, K)``.
        targets: ``(B, K)`` in {0, 1}; for partial labels, 1 where observed positive and 0 elsewhere.
        gamma_neg: Focusing exponent of the negatives, at least 0.
        gamma_pos: Focusing exponent of the positives; equal exponents without a clip give the focal loss.
        clip: Probability margin c in [0, 1), below which a negative contributes nothing.
        detach_weight: Treat the focusing weight as a constant in the gradient.
        validate: Check the values of the targets, which synchronises with the device.

    Returns:
        The **sum** over all entries, shape ``()``, as published: published learning rates assume it.

    Raises:
        ValueError: If shapes differ, targets are outside {0, 1}, an exponent is negative or ``clip`` outside [0, 1).
    """
    _check_shapes(logits, targets)
    if min(gamma_neg, gamma_pos) < 0 or not 0 <= clip < 1:
        raise ValueError(
            f"gamma_neg and gamma_pos must be at least 0 and clip in [0, 1), got {gamma_neg}, {gamma_pos} and {clip}"
        )
    if validate and not ((targets == 0) | (targets == 1)).all():
        raise ValueError("targets must be 0 or 1; for partial labels pass (labels == 1)")
    probs, complements = torch.sigmoid(logits), torch.sigmoid(-logits)
    positive = targets == 1
    likelihood = torch.where(positive, probs, (complements + clip).clamp(max=1))
    # 1 - likelihood without cancellation. Clamped away from 0, where a power below 1 has no finite gradient; the
    # logarithm it multiplies is 0 there, so the value is unchanged.
    miss = torch.where(positive, complements, probs - clip).clamp(min=torch.finfo(logits.dtype).tiny)
    weight = torch.where(positive, miss**gamma_pos, miss**gamma_neg)
    if detach_weight:
        weight = weight.detach()
    return -(weight * likelihood.clamp(min=1e-8).log()).sum()


def role_initial_logits(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return initial logits of ROLE's label estimator, one free logit per entry of the training labels.

    Args:
        labels: ``(N, K)`` in {-1, 0, 1}.
        generator: Source of the unobserved entries, on the device of ``labels``; the global one if None.

    Returns:
        float32 ``(N, K)``: logit(0.995) for observed positives, logit(0.005) for observed negatives, and uniform
        between logit(0.4) and logit(0.6) elsewhere.
    """
    spread, certain = math.log(0.6 / 0.4), math.log(0.995 / 0.005)
    uniform = torch.rand(labels.shape, generator=generator, device=labels.device) * 2 - 1
    return torch.where(labels == 0, spread * uniform, certain * labels.to(uniform.dtype))


def apl_update(
    labels: Tensor,
    probs: Tensor,
    num_unobserved: Tensor,
    *,
    warmup_epochs: int,
    num_epochs: int = 10,
    share: float = 0.9,
) -> int:
    """Pseudo-label the unobserved entries of each class that the network finds least likely, in place.

    Asymmetric pseudo-labelling (APL) runs at the end of every epoch from ``warmup_epochs`` on, over the whole training
    set in evaluation mode.

    Args:
        labels: The stored labels ``(N, K)``, floating: 1 positive, 0 unobserved, -s pseudo-labelled earlier; changed.
        probs: Current probabilities ``(N, K)`` in [0, 1].
        num_unobserved: Number of unobserved entries per class at the start of training, ``(K,)``.
        warmup_epochs: Epoch t_w at whose end the first update runs, in 0..num_epochs - 1.
        num_epochs: Number of epochs T over which the share is spread.
        share: Fraction of each class's unobserved entries to pseudo-label by the end, in [0, 1].

    Returns:
        Number of entries that received a pseudo-label.

    Raises:
        ValueError: If shapes do not fit, ``probs`` is outside [0, 1], or a setting is out of its range.
        TypeError: If ``labels`` is not floating-point and could not hold a probability.
    """
    _check_shapes(labels, probs)
    if num_unobserved.shape != labels.shape[1:]:
        raise ValueError(f"num_unobserved must be (K,) = {tuple(labels.shape[1:])}, got {tuple(num_unobserved.shape)}")
    if not labels.is_floating_point():
        raise TypeError(f"labels must be floating-point to hold the probability of a pseudo-label, got {labels.dtype}")
    if not 0 <= warmup_epochs < num_epochs or not 0 <= share <= 1:
        raise ValueError(
            "warmup_epochs must lie in 0..num_epochs - 1 and share in [0, 1], "
            f"got {warmup_epochs} of {num_epochs} and {share}"
        )
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("probs must lie in [0, 1]")
    # The tolerance keeps integer products exact: 0.9 * 10 / 3 may come out as 2.9999999999999996.
    counts = (share * num_unobserved.to(labels.device, torch.float64) / (num_epochs - warmup_epochs) + 1e-9).floor()
    most = min(int(counts.max()), len(labels))
    if most == 0:
        return 0
    probs = probs.to(labels.device, labels.dtype)
    candidates = torch.where(labels == 0, probs, torch.inf)
    lowest, rows = candidates.sort(dim=0, stable=True)  # stable: ties go to the earlier row, on every machine
    lowest, rows = lowest[:most], rows[:most]  # (most, K)
    chosen = (torch.arange(most, device=labels.device)[:, None] < counts) & lowest.isfinite()
    # A saturated probability would read as "unobserved" (0) or fall outside (0, 1): clamp it into the interval.
    limits = torch.finfo(labels.dtype)
    soft = lowest.clamp(limits.tiny, 1 - limits.eps)
    labels.scatter_(0, rows, torch.where(chosen, -soft, labels.gather(0, rows)))
    return int(chosen.sum())


def _nll(probs: Tensor) -> Tensor:
    return -(probs + _EPS).log()


def _cross_entropy(probs: Tensor, target: Tensor) -> Tensor:
    """``(B, K)`` against a hard or soft ``target (B, K)`` in [0, 1]."""
    return target * _nll(probs) + (1 - target) * _nll(1 - probs)


def _excess_positives(probs: Tensor, expected_num_pos: float) -> Tensor:
    """Squared distance of the batch's mean number of positives from the expected one, in units of K."""
    return ((probs.sum(1).mean() - expected_num_pos) / probs.shape[1]) ** 2


def _assume_negative(probs: Tensor, labels: Tensor) -> Tensor:
    return torch.where(labels == 1, _nll(probs), _nll(1 - probs)).mean()


def _smoothed(probs: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    # The opposite label gets the whole s, not s / 2 as in smoothing towards the uniform distribution.
    positive = (labels == 1).to(probs.dtype)
    return _cross_entropy(probs, label_smoothing + (1 - 2 * label_smoothing) * positive).mean()


def _weak_negatives(probs: Tensor, labels: Tensor) -> Tensor:
    num_classes = labels.shape[1]
    if num_classes < 2:
        raise ValueError(f"labels must have at least 2 classes for wan, got {num_classes}")
    return torch.where(labels == 1, _nll(probs), _nll(1 - probs) / (num_classes - 1)).mean()


def _ignore_unobserved(probs: Tensor, labels: Tensor) -> Tensor:
    return torch.where(labels == 1, _nll(probs), torch.where(labels == -1, _nll(1 - probs), 0)).mean()


def _ignore_unobserved_positives(probs: Tensor, labels: Tensor, *, true: Tensor) -> Tensor:
    return torch.where(labels == 1, _nll(probs), torch.where(true == 0, _nll(1 - probs), 0)).mean()


def _pairwise_ranking(probs: Tensor, labels: Tensor) -> Tensor:
    rows, columns = (labels == 1).nonzero(as_tuple=True)  # one index for each of the P observed positives
    margins = (1 - probs[rows, columns, None] + probs[rows]).relu()  # (P, K)
    return margins.masked_fill(labels[rows] != 0, 0).sum() / probs.numel()


def _expected_positives(probs: Tensor, labels: Tensor, *, expected_num_pos: float) -> Tensor:
    return torch.where(labels == 1, _nll(probs), 0).mean() + _excess_positives(probs, expected_num_pos)


def _online_estimation(probs: Tensor, labels: Tensor, *, estimated: Tensor, expected_num_pos: float) -> Tensor:
    observed = torch.where(labels == 1, _nll(probs) + _nll(estimated), 0)
    # Each is trained towards the other, held constant.
    mutual = _cross_entropy(probs, estimated.detach()) + _cross_entropy(estimated, probs.detach())
    regularizer = _excess_positives(probs, expected_num_pos) + _excess_positives(estimated, expected_num_pos)
    return 0.5 * ((observed + mutual).mean() + regularizer)


def _entropy_maximization(probs: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    return torch.where(labels == 1, _nll(probs), -alpha * _cross_entropy(probs, probs)).mean()


def _entropy_and_pseudo_labels(probs: Tensor, labels: Tensor, *, alpha: float, beta: float) -> Tensor:
    pseudo = beta * _cross_entropy(probs, -labels.to(probs.dtype))
    unobserved = torch.where(labels < 0, pseudo, -alpha * _cross_entropy(probs, probs))
    return torch.where(labels == 1, _nll(probs), unobserved).mean()


_LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "bce": (_assume_negative, ()),
    "bce_ls": (_smoothed, ("label_smoothing",)),
    "an": (_assume_negative, ()),
    "an_ls": (_smoothed, ("label_smoothing",)),
    "wan": (_weak_negatives, ()),
    "iu": (_ignore_unobserved, ()),
    "iun": (_ignore_unobserved_positives, ("true",)),
    "pr": (_pairwise_ranking, ()),
    "epr": (_expected_positives, ("expected_num_pos",)),
    "role": (_online_estimation, ("estimated", "expected_num_pos")),
    "em": (_entropy_maximization, ("alpha",)),
    "em_apl": (_entropy_and_pseudo_labels, ("alpha", "beta")),
}
SPML_LOSSES = tuple(_LOSSES)
"""Names that ``spml_loss`` accepts."""


def _check_shapes(*matrices: Tensor) -> None:
    shapes = [tuple(matrix.shape) for matrix in matrices]
    if len(shapes[0]) != 2 or 0 in shapes[0] or len(set(shapes)) != 1:
        raise ValueError(f"all matrices must have one non-empty shape (B, K), got {', '.join(map(str, shapes))}")


def _check_values(name: str, probs: Tensor, labels: Tensor, settings: Mapping[str, object]) -> None:
    for key, value in (("probs", probs), ("estimated", settings.get("estimated"))):
        if isinstance(value, Tensor) and not ((value >= 0) & (value <= 1)).all():  # also refuses NaN
            raise ValueError(f"{key} must lie in [0, 1]")
    true = settings.get("true")
    if isinstance(true, Tensor) and not ((true == 0) | (true == 1)).all():
        raise ValueError("true must be full labels, 0 or 1")
    allowed, coding = (labels == 1) | (labels == 0), "0 or 1"
    if name in ("iu", "iun"):
        allowed, coding = allowed | (labels == -1), "-1, 0 or 1"
    elif name == "em_apl":
        allowed, coding = allowed | ((labels < 0) & (labels > -1)), "0, 1, or -s with s in (0, 1)"
    if not allowed.all():
        raise ValueError(f"labels of {name} must be {coding}")
    if name == "iu" and not ((labels == 1).any() and (labels == -1).any()):
        raise ValueError("labels of iu must have both +1 and -1, got one of them; observe negatives too (num_neg)")
