"""Baselines of Large Loss: published values, values by hand, laws, gradients, refusals."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional

from tenfold.methods.large_loss.baselines import (
    SPML_LOSSES,
    apl_update,
    asymmetric_loss,
    role_initial_logits,
    spml_loss,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden/large_loss.npz")
UNHURRIED = settings(deadline=None)  # a busy machine is no failure
# Both sides are float64; the reference sums in another order.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
SEEDS = st.integers(0, 2**32 - 1)
SINGLE_POSITIVE = ("an", "an_ls", "wan", "pr", "epr", "role", "em")


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def golden_call(name):
    """Labels and settings of the golden vector of a loss."""
    labels = {"iu": "bl_labels_pn", "bce": "bl_true", "bce_ls": "bl_true", "em_apl": "bl_labels_apl"}
    settings = {
        "true": golden("bl_true"),
        "estimated": golden("bl_estimated"),
        "expected_num_pos": float(GOLDEN["bl_expected_num_pos"]),
        "label_smoothing": float(GOLDEN["bl_label_smoothing"]),
        "alpha": float(GOLDEN["bl_em_alpha"]),
        "beta": float(GOLDEN["bl_em_beta"]),
    }
    return golden(labels.get(name, "bl_labels")), settings


def make_batch(seed, *, batch=4, classes=5):
    """Probabilities away from 0 and 1, and labels with both signs."""
    generator = torch.Generator().manual_seed(seed)
    probs = 0.02 + 0.96 * torch.rand(batch, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 2, (batch, classes), generator=generator)
    labels[0, :2] = torch.tensor([1, -1])
    return probs, labels


def settings_for(seed, shape=(4, 5)):
    generator = torch.Generator().manual_seed(seed + 1)
    return {
        "true": torch.randint(0, 2, shape, generator=generator),
        "estimated": 0.02 + 0.96 * torch.rand(shape, generator=generator, dtype=torch.float64),
        "expected_num_pos": 1.7,
        "alpha": 0.2,
        "beta": 0.4,
    }


def labels_for(name, labels):
    if name in ("iu", "iun"):
        return labels
    return torch.where(labels < 0, -0.3, labels.double()) if name == "em_apl" else labels.clamp(min=0)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("name", SPML_LOSSES)
def test_loss_matches_golden(name, validate):
    labels, settings = golden_call(name)
    probs = golden("bl_probs").requires_grad_()
    loss = spml_loss(name, probs, labels, **settings, validate=validate)
    (gradient,) = torch.autograd.grad(loss, probs)
    torch.testing.assert_close(loss.detach(), golden(f"bl_{name}_loss"), **TOLERANCE)
    torch.testing.assert_close(gradient, golden(f"bl_{name}_grad"), **TOLERANCE)


def test_role_gradient_of_the_estimates_matches_golden():
    labels, settings = golden_call("role")
    settings["estimated"].requires_grad_()
    loss = spml_loss("role", golden("bl_probs"), labels, **settings)
    (gradient,) = torch.autograd.grad(loss, settings["estimated"])
    torch.testing.assert_close(gradient, golden("bl_role_grad_estimated"), **TOLERANCE)


@pytest.mark.parametrize("case", ["asl", "asl0", "focal", "asl_detached"])
def test_asymmetric_loss_matches_golden(case):
    gamma_neg, gamma_pos, clip = GOLDEN[f"bl_{case.removesuffix('_detached')}_args"].tolist()
    logits = golden("bl_logits").requires_grad_()
    loss = asymmetric_loss(logits, golden("bl_labels"), gamma_neg, gamma_pos, clip, case == "asl_detached")
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss.detach(), golden(f"bl_{case}_loss"), **TOLERANCE)
    torch.testing.assert_close(gradient, golden(f"bl_{case}_grad"), **TOLERANCE)


def test_every_golden_loss_is_known():
    names = {key.removeprefix("bl_").removesuffix("_loss") for key in GOLDEN.files if key.endswith("_loss")}
    names = {name for name in names if f"bl_{name}_loss" in GOLDEN.files}
    assert names == {*SPML_LOSSES, "asl", "asl0", "asl_detached", "focal"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("an", (0.5 + 0.25 + 1.5) / 3),
        ("wan", (0.5 + (0.25 + 1.5) / 2) / 3),
        ("iun", (0.5 + 1.5) / 3),
        ("epr", 0.5 / 3 + (math.exp(-0.5) + 2 - math.exp(-0.25) - math.exp(-1.5) - 2) ** 2 / 9),
        # Over both unobserved: 1 - p of the positive + p.
        ("pr", (2 * (1 - math.exp(-0.5)) + (1 - math.exp(-0.25)) + (1 - math.exp(-1.5))) / 3),
    ],
)
def test_by_hand(name, expected):
    """-log p of the positive is 0.5, -log(1 - p) of the others 0.25 and 1.5; the last alone is truly negative."""
    probs = torch.tensor([[math.exp(-0.5), 1 - math.exp(-0.25), 1 - math.exp(-1.5)]], dtype=torch.float64)
    labels, true = torch.tensor([[1, 0, 0]]), torch.tensor([[1, 1, 0]])
    loss = spml_loss(name, probs, labels, true=true, expected_num_pos=2.0)
    assert loss.item() == pytest.approx(expected, abs=1e-4)  # eps = 1e-5 inside the logarithms


def test_ranking_does_not_loop_and_agrees_with_the_definition():
    probs, labels = make_batch(3)
    labels = labels.clamp(min=0)
    total = sum(
        max(0.0, 1 - probs[b, i].item() + probs[b, j].item())
        for b in range(4)
        for i in range(5)
        for j in range(5)
        if labels[b, i] == 1 and labels[b, j] == 0
    )
    assert spml_loss("pr", probs, labels).item() == pytest.approx(total / 20)


@UNHURRIED
@given(seed=SEEDS)
def test_no_smoothing_is_assume_negative_and_full_labels_agree(seed):
    probs, labels = make_batch(seed)
    labels = labels.clamp(min=0)
    plain = spml_loss("an", probs, labels)
    torch.testing.assert_close(spml_loss("an_ls", probs, labels, label_smoothing=0.0), plain)
    torch.testing.assert_close(spml_loss("bce", probs, labels), plain)
    torch.testing.assert_close(spml_loss("iun", probs, labels, true=labels), plain)
    torch.testing.assert_close(plain, functional.binary_cross_entropy(probs, labels.double()), rtol=0, atol=1e-3)


@UNHURRIED
@given(seed=SEEDS)
def test_em_without_pseudo_labels_is_em(seed):
    probs, labels = make_batch(seed)
    labels = labels.clamp(min=0)
    torch.testing.assert_close(
        spml_loss("em_apl", probs, labels, alpha=0.3, beta=0.9), spml_loss("em", probs, labels, alpha=0.3)
    )


@UNHURRIED
@given(seed=SEEDS, name=st.sampled_from(SPML_LOSSES))
def test_order_of_images_and_classes_does_not_matter(seed, name):
    probs, labels = make_batch(seed)
    labels, settings = labels_for(name, labels), settings_for(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(4, generator=generator), torch.randperm(5, generator=generator)
    shuffled = {key: value[rows][:, columns] if torch.is_tensor(value) else value for key, value in settings.items()}
    torch.testing.assert_close(
        spml_loss(name, probs[rows][:, columns], labels[rows][:, columns], **shuffled),
        spml_loss(name, probs, labels, **settings),
    )


@pytest.mark.parametrize("name", SPML_LOSSES)
def test_gradient(name):
    probs, labels = make_batch(seed=1)
    labels, settings = labels_for(name, labels), settings_for(1)
    if name == "role":  # one side is a constant teacher of the other, so finite differences see more than the gradient
        estimated = settings["estimated"]
        loss = spml_loss("role", probs.requires_grad_(), labels, **settings)
        (gradient,) = torch.autograd.grad(loss, probs)
        positive, eps = labels == 1, 1e-5
        by_hand = torch.where(positive, -1 / (probs + eps), 0) - estimated / (probs + eps)
        by_hand = 0.5 * (by_hand + (1 - estimated) / (1 - probs + eps)) / probs.numel()
        by_hand = by_hand + (probs.sum(1).mean() - 1.7) / 25 / 4
        torch.testing.assert_close(gradient, by_hand.detach())
        return
    assert gradcheck(lambda x: spml_loss(name, x, labels, **settings), probs.requires_grad_())


@pytest.mark.parametrize("name", SPML_LOSSES)
@pytest.mark.parametrize("saturated", [0.0, 1.0])
def test_saturated_probabilities_stay_finite(name, saturated):
    labels, settings = labels_for(name, make_batch(2)[1]), settings_for(2)
    settings["estimated"] = settings["estimated"].float()
    probs = torch.full((4, 5), saturated, requires_grad=True)
    loss = spml_loss(name, probs, labels, **settings)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert probs.grad is not None
    assert probs.grad.isfinite().all()


def test_missing_settings_are_named():
    probs, labels = make_batch(0)
    labels = labels.clamp(min=0)
    for name, message in [
        ("iun", "iun also needs true"),
        ("epr", "epr also needs expected_num_pos"),
        ("role", "role also needs estimated and expected_num_pos"),
        ("em", "em also needs alpha"),
        ("em_apl", "em_apl also needs alpha and beta"),
    ]:
        with pytest.raises(ValueError, match=message):
            spml_loss(name, probs, labels)


@pytest.mark.parametrize("name", SPML_LOSSES)
def test_refuses_wrong_shapes_and_probabilities(name):
    probs, labels = make_batch(0)
    labels, settings = labels_for(name, labels), settings_for(0)
    with pytest.raises(ValueError, match=r"one non-empty shape .* \(4, 5\), \(4, 4\)"):
        spml_loss(name, probs, labels[:, :4], **settings)
    with pytest.raises(ValueError, match="one non-empty shape"):
        spml_loss(name, probs[0], labels[0], **settings)
    for bad in (-0.01, 1.01, float("nan")):
        wrong = probs.clone()
        wrong[1, 1] = bad
        with pytest.raises(ValueError, match=r"probs must lie in \[0, 1\]"):
            spml_loss(name, wrong, labels, **settings)


@pytest.mark.parametrize("name", SPML_LOSSES)
@pytest.mark.parametrize("value", [2.0, -2.0, 0.5, float("nan")])
def test_refuses_labels_outside_the_coding(name, value):
    probs, labels = make_batch(0)
    wrong = labels_for(name, labels).double()
    wrong[2, 2] = value
    with pytest.raises(ValueError, match=f"labels of {name} must be"):
        spml_loss(name, probs, wrong, **settings_for(0))


@pytest.mark.parametrize("name", [*SINGLE_POSITIVE, "bce", "bce_ls", "em_apl"])
def test_refuses_observed_negatives_where_the_loss_has_none(name):
    probs, labels = make_batch(0)
    with pytest.raises(ValueError, match=f"labels of {name} must be"):
        spml_loss(name, probs, labels, **settings_for(0))


def test_refuses_the_rest():
    probs, labels = make_batch(0)
    with pytest.raises(ValueError, match=r"loss must be one of bce, .*, got 'asl'"):
        spml_loss("asl", probs, labels)
    for one_sided in (labels.clamp(min=0), labels.clamp(max=0)):
        with pytest.raises(ValueError, match="must have both"):
            spml_loss("iu", probs, one_sided)
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\], got 1.5"):
        spml_loss("an_ls", probs, labels.clamp(min=0), label_smoothing=1.5)
    with pytest.raises(ValueError, match="true must be full labels"):
        spml_loss("iun", probs, labels, true=labels)
    with pytest.raises(ValueError, match=r"estimated must lie in \[0, 1\]"):
        spml_loss("role", probs, labels.clamp(min=0), estimated=2 * probs + 1, expected_num_pos=1.0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        spml_loss("wan", probs[:, :1], torch.ones(4, 1))


@UNHURRIED
@given(seed=SEEDS)
def test_no_focus_and_no_clip_is_summed_cross_entropy(seed):
    logits = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = make_batch(seed)[1].clamp(min=0)
    expected = functional.binary_cross_entropy_with_logits(logits, targets.double(), reduction="sum")
    torch.testing.assert_close(asymmetric_loss(logits, targets, 0, 0, 0.0), expected)


@pytest.mark.parametrize("gammas", [(4, 1), (4, 0), (2, 2), (0.5, 0.5)])
def test_asymmetric_gradient(gammas):
    logits = 2 * torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = make_batch(0)[1].clamp(min=0)
    assert gradcheck(lambda x: asymmetric_loss(x, targets, *gammas), logits.requires_grad_())


@pytest.mark.parametrize("gammas", [(4, 1), (0, 0), (0.5, 0.5)])
@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_asymmetric_loss_of_confident_logits_is_finite(gammas, size):
    logits = torch.tensor([[size, -size, size, -size]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[0, 0, 1, 1]]), *gammas)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_an_easy_negative_costs_nothing_and_teaches_nothing():
    logits = torch.tensor([[math.log(0.04 / 0.96)]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.item() == 0


@pytest.mark.parametrize(
    ("logits", "targets", "arguments", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 2), (), r"\(2, 3\), \(2, 2\)"),
        (torch.zeros(2, 3), torch.full((2, 3), -1), (), "targets must be 0 or 1"),
        (torch.zeros(2, 3), torch.full((2, 3), 0.5), (), "targets must be 0 or 1"),
        (torch.zeros(2, 3), torch.zeros(2, 3), (-1, 1), "gamma_neg and gamma_pos must be at least 0"),
        (torch.zeros(2, 3), torch.zeros(2, 3), (4, 1, 1.0), r"clip in \[0, 1\)"),
    ],
)
def test_asymmetric_loss_refuses(logits, targets, arguments, message):
    with pytest.raises(ValueError, match=message):
        asymmetric_loss(logits, targets, *arguments)


def test_label_estimator_starts_as_published():
    labels = torch.zeros(400, 30, dtype=torch.int8)
    labels[:, 0], labels[:, 1] = 1, -1
    logits = role_initial_logits(labels, torch.Generator().manual_seed(0))
    probs = torch.sigmoid(logits)
    torch.testing.assert_close(probs[:, 0], torch.full((400,), 0.995))
    torch.testing.assert_close(probs[:, 1], torch.full((400,), 0.005))
    free = logits[:, 2:]
    bound = math.log(0.6 / 0.4)
    assert free.abs().max() <= bound
    assert free.abs().max() > 0.99 * bound
    assert abs(free.mean()) < 0.02 * bound  # standard error of 11,200 uniform draws: 0.0055 of the bound
    assert torch.equal(logits, role_initial_logits(labels, torch.Generator().manual_seed(0)))


def test_pseudo_labels_by_hand():
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -0.3], [0.0, 0.0], [0.0, 0.0]])
    probs = torch.tensor([[0.01, 0.5], [0.2, 0.6], [0.1, 0.01], [0.4, 0.7], [0.3, 0.1]])
    # Class 0: floor(0.9 * 4 / 2) = 1; class 1: floor(0.9 * 5 / 2) = 2.
    changed = apl_update(labels, probs, torch.tensor([4, 5]), warmup_epochs=8)
    assert changed == 3
    expected = torch.tensor([[1.0, -0.5], [0.0, 0.0], [-0.1, -0.3], [0.0, 0.0], [0.0, -0.1]])
    torch.testing.assert_close(labels, expected)


@UNHURRIED
@given(seed=SEEDS, warmup=st.integers(0, 9), num_epochs=st.integers(10, 12))
def test_pseudo_labels_reach_the_share_and_touch_nothing_else(seed, warmup, num_epochs):
    probs, labels = make_batch(seed, batch=40)
    labels = labels.clamp(min=0).double()
    before, num_unobserved = labels.clone(), (labels == 0).sum(0)
    for _ in range(warmup, num_epochs):
        settled = labels.clone()
        apl_update(labels, probs, num_unobserved, warmup_epochs=warmup, num_epochs=num_epochs)
        assert torch.equal(labels[settled != 0], settled[settled != 0])
    assert torch.equal(labels == 1, before == 1)
    pseudo = labels < 0
    updates = num_epochs - warmup
    expected = updates * ((9 * num_unobserved) // (10 * updates))
    assert torch.equal(pseudo.sum(0), expected)
    torch.testing.assert_close(-labels[pseudo], probs[pseudo])
    for column in range(5):  # within a class, the least likely ones
        left = labels[:, column] == 0
        if pseudo[:, column].any() and left.any():
            assert probs[pseudo[:, column], column].max() <= probs[left, column].min()


def test_saturated_pseudo_labels_stay_in_the_coding():
    labels = torch.zeros(4, 1)
    assert apl_update(labels, torch.tensor([[0.0], [1.0], [0.0], [1.0]]), torch.tensor([4]), warmup_epochs=9) == 3
    assert ((labels < 0) & (labels > -1)).sum() == 3
    spml_loss("em_apl", torch.full((4, 1), 0.5), labels, alpha=0.1, beta=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": 10}, "warmup_epochs must lie in"),
        ({"warmup_epochs": -1}, "warmup_epochs must lie in"),
        ({"share": 1.5}, r"share in \[0, 1\]"),
        ({"probs": torch.full((3, 2), 1.5)}, r"probs must lie in \[0, 1\]"),
        ({"probs": torch.zeros(3, 1)}, "one non-empty shape"),
        ({"num_unobserved": torch.tensor([1])}, r"\(K,\) = \(2,\), got \(1,\)"),
    ],
)
def test_pseudo_labels_refuse(changes, message):
    labels = torch.zeros(3, 2)
    arguments = {"probs": torch.full((3, 2), 0.1), "num_unobserved": torch.tensor([3, 3]), "warmup_epochs": 5}
    with pytest.raises(ValueError, match=message):
        apl_update(labels, **{**arguments, **changes})
    assert not labels.any()


def test_pseudo_labels_need_floating_labels():
    with pytest.raises(TypeError, match="floating"):
        apl_update(torch.zeros(3, 2, dtype=torch.int8), torch.zeros(3, 2), torch.tensor([3, 3]), warmup_epochs=5)
