"""Maths of Large Loss: published values, values by hand, laws, gradients, refusals."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional

import tenfold.methods.large_loss as room
from tenfold.methods.large_loss.loss import (
    SCHEMES,
    apply_permanent_correction,
    assume_negative_losses,
    large_loss_bce,
    large_loss_mask,
    large_loss_rate,
    num_large_losses,
    treated_mean,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden/large_loss.npz")
UNHURRIED = settings(deadline=None)  # a busy machine is no failure
# Both sides are float64; the reference sums in another order.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
BY_NAME = {"r": "LL-R", "ct": "LL-Ct", "cp": "LL-Cp"}
SEEDS = st.integers(0, 2**32 - 1)


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def make_batch(seed, *, batch=5, classes=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=generator, dtype=dtype)
    labels = torch.multinomial(torch.tensor([0.1, 0.7, 0.2]), batch * classes, replacement=True, generator=generator)
    return logits, (labels - 1).view(batch, classes)


def with_gradient(logits, labels, scheme, rate, **options):
    logits = logits.clone().requires_grad_()
    loss, mask = large_loss_bce(logits, labels, scheme, rate, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient, mask


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("scheme", BY_NAME)
def test_epochs_match_golden(scheme, validate):
    logits, labels = golden("ll_logits"), golden("ll_labels")
    for i, epoch in enumerate(GOLDEN["ll_epochs"].tolist()):
        rate = large_loss_rate(epoch, float(GOLDEN["ll_delta_rel"]), BY_NAME[scheme])
        count = num_large_losses(logits.numel(), rate)
        assert count == GOLDEN[f"ll_{scheme}_k"][i]
        loss, gradient, mask = with_gradient(logits, labels, BY_NAME[scheme], rate, validate=validate)
        torch.testing.assert_close(loss, golden(f"ll_{scheme}_loss")[i], **TOLERANCE)
        torch.testing.assert_close(gradient, golden(f"ll_{scheme}_grad")[i], **TOLERANCE)
        assert torch.equal(mask, golden(f"ll_{scheme}_mask")[i])
        losses = assume_negative_losses(logits, labels)
        assert torch.equal(large_loss_mask(losses, labels == 0, count), golden(f"ll_{scheme}_mask")[i])


@pytest.mark.parametrize("scheme", ["r", "ct"])
def test_ties_match_golden(scheme):
    logits, labels = golden("tie_logits"), golden("tie_labels")
    rate = large_loss_rate(int(GOLDEN["tie_epoch"]), float(GOLDEN["tie_delta_rel"]), BY_NAME[scheme])
    count = num_large_losses(logits.numel(), rate)
    assert count == GOLDEN["tie_k"]
    loss, gradient, mask = with_gradient(logits, labels, BY_NAME[scheme], rate)
    torch.testing.assert_close(loss, golden(f"tie_{scheme}_loss"), **TOLERANCE)
    torch.testing.assert_close(gradient, golden(f"tie_{scheme}_grad"), **TOLERANCE)
    assert torch.equal(mask, golden(f"tie_{scheme}_mask"))
    assert mask.sum() > count
    assert torch.equal(large_loss_mask(assume_negative_losses(logits, labels), labels == 0, count), mask)


@pytest.mark.parametrize("scheme", ["r", "ct"])
def test_fewer_unobserved_than_asked_match_golden(scheme):
    logits, labels, rate = golden("few_logits"), golden("few_labels"), float(GOLDEN["few_rate"])
    assert (labels == 0).sum() < num_large_losses(logits.numel(), rate)
    loss, gradient, mask = with_gradient(logits, labels, BY_NAME[scheme], rate)
    torch.testing.assert_close(loss, golden(f"few_{scheme}_loss"), **TOLERANCE)
    torch.testing.assert_close(gradient, golden(f"few_{scheme}_grad"), **TOLERANCE)
    assert torch.equal(mask, golden(f"few_{scheme}_mask"))
    assert torch.equal(mask, labels == 0)


def test_schedule_matches_golden():
    names = ("batch", "classes", "delta_rel", "scheme", "epoch", "rate", "k")
    columns = [GOLDEN[f"sched_{name}"].tolist() for name in names]
    assert len(columns[0]) > 500
    for batch, classes, delta_rel, scheme, epoch, expected_rate, expected_count in zip(*columns, strict=True):
        rate = large_loss_rate(epoch, delta_rel, SCHEMES[scheme])
        assert rate == pytest.approx(expected_rate, rel=1e-9, abs=1e-9)
        assert num_large_losses(batch * classes, rate) == expected_count


def test_permanent_correction_matches_golden():
    labels = golden("cp_labels_before").clone()
    rate = large_loss_rate(int(GOLDEN["cp_epoch"]), float(GOLDEN["cp_delta_rel"]), "LL-Cp")
    changed = 0
    for index, logits, expected in zip(golden("cp_batch_index"), golden("cp_logits"), golden("cp_losses"), strict=True):
        loss, mask = large_loss_bce(logits, labels[index], "LL-Cp", rate)
        torch.testing.assert_close(loss, expected, **TOLERANCE)
        changed += apply_permanent_correction(labels, index, mask)
    assert torch.equal(labels, golden("cp_labels_after"))
    assert changed == (golden("cp_labels_before") != golden("cp_labels_after")).sum()


def test_every_golden_vector_is_used():
    prefixes = {name.split("_")[0] for name in GOLDEN.files}
    # The rest are tested beside their modules: metrics, data, baselines.
    assert prefixes == {"ll", "tie", "few", "sched", "cp", "ap", "oi", "obs", "split", "bl", "meta"}


def test_loss_by_hand():
    # p = 1/4, 3/4, 1/2: losses of a negative log(4/3), log 4, log 2; of the positive in the third class log 2.
    logits = torch.tensor([[-math.log(3), math.log(3), 0.0]], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1]])
    rate = 1 / 3
    plain, _ = large_loss_bce(logits, labels, None, rate)
    rejected, mask = large_loss_bce(logits, labels, "LL-R", rate)
    corrected, _ = large_loss_bce(logits, labels, "LL-Ct", rate)
    assert mask.tolist() == [[False, True, False]]
    assert plain.item() == pytest.approx((math.log(4 / 3) + math.log(4) + math.log(2)) / 3)
    assert rejected.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 3)
    assert corrected.item() == pytest.approx((math.log(4 / 3) + math.log(4 / 3) + math.log(2)) / 3)


def test_schedule_by_hand():
    assert [large_loss_rate(epoch, 0.25, "LL-R") for epoch in range(1, 7)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [large_loss_rate(epoch, 0.25, "LL-Cp") for epoch in range(1, 4)] == [0, 0.25, 0.25]
    assert [large_loss_rate(epoch, 0.25, "LL-Ct", 3) for epoch in range(1, 6)] == [0, 0, 0, 0.25, 0.5]
    assert large_loss_rate(1, 0.25, "LL-Ct", 0) == 0.25
    # 16 x 20 entries at 0.2 % an epoch, as at the size of PASCAL VOC.
    counts = [num_large_losses(320, large_loss_rate(epoch, 0.002, "LL-R")) for epoch in range(2, 11)]
    assert counts == [1, 2, 2, 3, 4, 4, 5, 6, 6]


@UNHURRIED
@given(batch=st.integers(1, 64), per_mille=st.integers(1, 100), epoch=st.integers(2, 10))
def test_whole_products_are_not_pushed_up(batch, per_mille, epoch):
    num_entries = 1000 * batch
    rate = large_loss_rate(epoch, per_mille / 1000, "LL-R")
    assert num_large_losses(num_entries, rate) == min(num_entries, batch * per_mille * (epoch - 1))


def test_a_rate_too_small_to_matter_treats_nothing():
    assert num_large_losses(1, 1e-12) == 0
    assert num_large_losses(1, 1e-3) == 1


@UNHURRIED
@given(
    scheme=st.sampled_from(SCHEMES),
    delta_rel=st.floats(0, 1, exclude_max=True),
    warmup=st.integers(0, 5),
    num_entries=st.integers(1, 10**6),
)
def test_rate_and_count_grow_with_the_epoch(scheme, delta_rel, warmup, num_entries):
    rates = [large_loss_rate(epoch, delta_rel, scheme, warmup) for epoch in range(1, 20)]
    assert rates == sorted(rates)
    assert set(rates[:warmup]) <= {0.0}
    assert all(0 <= rate <= 1 for rate in rates)
    counts = [num_large_losses(num_entries, rate) for rate in rates]
    assert counts == sorted(counts)
    assert all(0 <= count <= num_entries for count in counts)


@UNHURRIED
@given(seed=SEEDS, scheme=st.sampled_from([None, *SCHEMES]))
def test_without_treatment_it_is_cross_entropy_on_assumed_negatives(seed, scheme):
    logits, labels = make_batch(seed)
    rate = large_loss_rate(7, 0.0, "LL-R") if scheme else 0.4
    loss, mask = large_loss_bce(logits, labels, scheme, rate)
    expected = functional.binary_cross_entropy(torch.sigmoid(logits), (labels == 1).double())
    torch.testing.assert_close(loss, expected)
    assert not mask.any()


@UNHURRIED
@given(seed=SEEDS, scheme=st.sampled_from(SCHEMES), rate=st.floats(0, 1))
def test_observed_labels_are_never_treated(seed, scheme, rate):
    logits, labels = make_batch(seed)
    _, mask = large_loss_bce(logits, labels, scheme, rate)
    assert not mask[labels != 0].any()
    count = num_large_losses(logits.numel(), rate)
    assert mask.sum() == min(count, int((labels == 0).sum()))  # continuous logits: no ties


@UNHURRIED
@given(seed=SEEDS, scheme=st.sampled_from(SCHEMES), rate=st.floats(0, 1))
def test_order_of_images_and_classes_does_not_matter(seed, scheme, rate):
    logits, labels = make_batch(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(5, generator=generator), torch.randperm(6, generator=generator)
    loss, mask = large_loss_bce(logits, labels, scheme, rate)
    shuffled_loss, shuffled_mask = large_loss_bce(logits[rows][:, columns], labels[rows][:, columns], scheme, rate)
    torch.testing.assert_close(shuffled_loss, loss)
    assert torch.equal(shuffled_mask, mask[rows][:, columns])


@UNHURRIED
@given(seed=SEEDS, k=st.integers(0, 30))
def test_what_is_treated_loses_more_than_what_is_not(seed, k):
    losses = torch.rand(5, 6, generator=torch.Generator().manual_seed(seed))
    unobserved = make_batch(seed)[1] == 0
    mask = large_loss_mask(losses, unobserved, k)
    left = unobserved & ~mask
    if mask.any() and left.any():
        assert losses[mask].min() > losses[left].max()
    fewer = large_loss_mask(losses, unobserved, max(k - 1, 0))
    assert torch.equal(mask & fewer, fewer)


@UNHURRIED
@given(seed=SEEDS, rate=st.floats(0.01, 0.99))
def test_rejecting_and_correcting_choose_the_same_and_reduce_the_loss(seed, rate):
    logits, labels = make_batch(seed)
    plain, _ = large_loss_bce(logits, labels, None, 0.0)
    rejected, chosen = large_loss_bce(logits, labels, "LL-R", rate)
    temporary, chosen_ct = large_loss_bce(logits, labels, "LL-Ct", rate)
    permanent, chosen_cp = large_loss_bce(logits, labels, "LL-Cp", rate)
    assert torch.equal(chosen, chosen_ct)
    assert torch.equal(chosen, chosen_cp)
    assert temporary == permanent
    assert rejected <= plain
    # The denominator stays B*K: what was rejected is exactly what is missing.
    missing = assume_negative_losses(logits, labels)[chosen].sum() / logits.numel()
    torch.testing.assert_close(plain - rejected, missing)


def test_all_ties_at_the_threshold_are_treated():
    losses = torch.tensor([[1.0, 2.0, 2.0], [2.0, 3.0, 9.0]])
    unobserved = torch.tensor([[True, True, True], [True, True, False]])
    assert large_loss_mask(losses, unobserved, 2).tolist() == [[False, True, True], [True, True, False]]
    assert large_loss_mask(losses, unobserved, 1).tolist() == [[False, False, False], [False, True, False]]


def test_a_batch_without_unobserved_labels_is_left_alone():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -1, 1, -1]] * 3)
    loss, mask = large_loss_bce(logits, labels, "LL-R", 1.0)
    assert not mask.any()
    torch.testing.assert_close(loss, large_loss_bce(logits, labels, None, 0.0)[0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient(scheme):
    logits, labels = make_batch(seed=1)
    assert gradcheck(lambda x: large_loss_bce(x, labels, scheme, 0.2)[0], logits.requires_grad_())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [30.0, 300.0, 30000.0])
def test_confident_logits_stay_finite_and_exact(scheme, size):
    logits = torch.tensor([[size, -size, size, -size]], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1, 1]])
    loss, gradient, mask = with_gradient(logits, labels, scheme, 0.25)
    assert mask.tolist() == [[True, False, False, False]]
    small = math.log1p(math.exp(-size))  # a flipped or right entry; the last, wrong one costs its logit
    flipped = 0.0 if scheme == "LL-R" else small
    assert loss.item() == pytest.approx((flipped + 2 * small + size) / 4, rel=1e-14)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_loss_keeps_the_dtype_of_the_logits(dtype, scheme):
    logits, labels = make_batch(2, dtype=torch.float32)
    loss, gradient, mask = with_gradient(logits.to(dtype), labels, scheme, 0.2)
    assert loss.dtype == gradient.dtype == dtype
    assert mask.dtype == torch.bool
    expected = large_loss_bce(logits.to(dtype).double(), labels, scheme, 0.2)[0]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.float32])
def test_labels_of_any_dtype(dtype):
    logits, labels = make_batch(3)
    loss, mask = large_loss_bce(logits, labels.to(dtype), "LL-R", 0.3)
    expected_loss, expected_mask = large_loss_bce(logits, labels, "LL-R", 0.3)
    assert loss == expected_loss
    assert torch.equal(mask, expected_mask)


def test_inputs_are_left_alone():
    logits, labels = make_batch(4)
    copies = logits.clone(), labels.clone()
    for scheme in SCHEMES:
        large_loss_bce(logits, labels, scheme, 0.5)
    assert torch.equal(logits, copies[0])
    assert torch.equal(labels, copies[1])


def test_the_pieces_compose_to_the_whole():
    logits, labels = make_batch(5)
    losses = assume_negative_losses(logits, labels)
    for scheme in SCHEMES:
        loss, mask = large_loss_bce(logits, labels, scheme, 0.3)
        assert treated_mean(logits, losses, mask, scheme) == loss


def test_correction_by_hand():
    labels = torch.tensor([[0, 0, 1], [-1, 0, 0], [0, 0, 0]], dtype=torch.int8)
    mask = torch.tensor([[True, False, True], [True, False, False]])
    assert apply_permanent_correction(labels, torch.tensor([2, 0]), mask) == 3
    assert labels.tolist() == [[1, 0, 1], [-1, 0, 0], [1, 0, 1]]
    assert apply_permanent_correction(labels, torch.tensor([1]), torch.zeros(1, 3, dtype=torch.bool)) == 0
    assert apply_permanent_correction(labels, torch.tensor([], dtype=torch.int64), mask[:0]) == 0


@UNHURRIED
@given(seed=SEEDS)
def test_corrected_entries_are_never_chosen_again(seed):
    logits, labels = make_batch(seed)
    index = torch.arange(5)
    seen = torch.zeros(5, 6, dtype=torch.bool)
    for _ in range(10):
        _, mask = large_loss_bce(logits, labels[index], "LL-Cp", 0.1)
        assert not (seen & mask).any()
        seen |= mask
        apply_permanent_correction(labels, index, mask)
    assert (labels[seen] == 1).all()


@pytest.mark.parametrize(
    ("index", "mask", "message"),
    [
        ([0, 3], [[True, False], [False, False]], r"lie in 0\.\.2, got 0 to 3"),
        ([-1, 0], [[False, False], [False, False]], r"lie in 0\.\.2, got -1 to 0"),
        ([1, 1], [[True, False], [False, True]], "must be unique"),
        ([0, 1], [[True, False], [True, False]], "already observed"),  # -1
        ([0, 2], [[True, False], [False, True]], "already observed"),  # +1
        ([0], [[True, False], [False, True]], r"\(1,\) and \(2, 2\)"),
        ([0, 1], [[True], [False]], r"\(2, 1\)"),
    ],
)
def test_correction_refuses_before_it_changes_anything(index, mask, message):
    labels = torch.tensor([[0, 0], [-1, 0], [0, 1]])
    before = labels.clone()
    with pytest.raises(ValueError, match=message):
        apply_permanent_correction(labels, torch.tensor(index), torch.tensor(mask))
    assert torch.equal(labels, before)


def test_correction_refuses_wrong_dtypes():
    labels = torch.zeros(2, 2)
    with pytest.raises(TypeError, match="integer"):
        apply_permanent_correction(labels, torch.tensor([0.0]), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match="boolean"):
        apply_permanent_correction(labels, torch.tensor([0]), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.1, "LL-R"), "epoch must be at least 1, got 0"),
        ((1, -0.1, "LL-R"), r"fraction in \[0, 1\), got -0.1"),
        ((1, 1.0, "LL-R"), "divide percent by 100"),
        ((1, float("nan"), "LL-R"), "delta_rel"),
        ((1, 0.1, "LL-R", -1), "warmup_epochs must be at least 0, got -1"),
        ((1, 0.1, "LL-X"), "LL-R, LL-Ct, LL-Cp, got 'LL-X'"),
        ((1, 0.1, "ll-r"), "got 'll-r'"),
    ],
)
def test_rate_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        large_loss_rate(*arguments)


@pytest.mark.parametrize(("num_entries", "rate"), [(0, 0.1), (-1, 0.0), (5, -0.1), (5, 1.1), (5, float("nan"))])
def test_count_refuses(num_entries, rate):
    with pytest.raises(ValueError, match=r"num_entries must be at least 1|rate must lie in \[0, 1\]"):
        num_large_losses(num_entries, rate)


def test_mask_refuses():
    losses, unobserved = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for k in (-1, 7):
        with pytest.raises(ValueError, match=rf"k must lie in 0\.\.6, .* got {k}"):
            large_loss_mask(losses, unobserved, k)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        large_loss_mask(losses, unobserved.T, 1)
    with pytest.raises(TypeError, match="boolean"):
        large_loss_mask(losses, torch.ones(2, 3), 1)
    for bad in (torch.nan, torch.inf):
        for k in (0, 1):
            with pytest.raises(ValueError, match="finite"):
                large_loss_mask(torch.full((2, 3), bad), unobserved, k)


@pytest.mark.parametrize(
    ("logits", "labels", "scheme", "rate", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "LL-R", 0.1, r"\(B, K\), got \(3,\)"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), "LL-R", 0.1, r"\(B, K\), got \(1, 2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 1), "LL-R", 0.1, r"\(2, 3\) and \(2, 1\)"),
        (torch.zeros(2, 3), torch.full((2, 3), 2), "LL-R", 0.1, "labels must be -1"),
        (torch.zeros(2, 3), torch.full((2, 3), 0.5), None, 0.0, "labels must be -1"),
        (torch.zeros(2, 3), torch.full((2, 3), torch.nan), "LL-Ct", 0.1, "labels must be -1"),
        (torch.zeros(2, 3), torch.full((2, 3), -128, dtype=torch.int8), "LL-Ct", 0.1, "labels must be -1"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "LL", 0.1, "scheme must be one of"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "", 0.0, "scheme must be one of"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "LL-R", 1.5, "rate must lie in"),
        (torch.zeros(2, 3), torch.zeros(2, 3), None, -0.5, "rate must lie in"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "LL-R", 0.5, "at least 1, got 0"),
        (torch.full((2, 3), torch.nan), torch.zeros(2, 3), "LL-R", 0.5, "logits hold NaN"),
    ],
)
def test_loss_refuses(logits, labels, scheme, rate, message):
    with pytest.raises(ValueError, match=message):
        large_loss_bce(logits, labels, scheme, rate)


def test_the_nameplate_lists_the_public_functions():
    names = """
        large_loss_rate num_large_losses large_loss_mask large_loss_bce apply_permanent_correction observe_labels
        train_val_split average_precision mean_average_precision group_mean_ap spml_loss asymmetric_loss
    """
    assert set(room.__all__) == set(names.split())
    assert all(callable(getattr(room, name)) for name in room.__all__)


def test_the_room_opens_without_the_platform():
    script = (
        "import sys, tenfold.methods.large_loss;"
        "print(sorted({'ray', 'mlflow', 'hydra', 'pandas', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
