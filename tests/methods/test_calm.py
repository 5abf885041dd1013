"""Maths of CALM's head: published values, values by hand, laws, gradients, refusals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

import tenfold.methods.calm as room
from tenfold.methods.calm.attribution import MODES, attribution_map, counterfactual_map
from tenfold.methods.calm.distributions import calm_distributions, log_class_likelihood, log_location_prior
from tenfold.methods.calm.head import CalmHead
from tenfold.methods.calm.losses import calm_em_loss, calm_ml_loss, cam_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden/calm.npz")
META = json.loads(str(GOLDEN["meta"]))
SUPERCLASSES = {int(label): members for label, members in META["superclasses"].items()}
SEEDS = st.integers(0, 2**32 - 1)
PRIORS = ("softplus", "relu")
LOSSES = {"em": calm_em_loss, "ml": calm_ml_loss}
MEMBERS = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def assert_matches(actual, name, tolerance):
    """Relative to the largest value. The reference adds 1e-10 and 1e-8 to probabilities: 1e-6 there."""
    expected = golden(name)
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), 1))


def make_scores(seed, *, batch=2, classes=4, size=(3, 2), scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    f = scale * torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)
    a = scale * torch.randn(batch, 1, *size, generator=generator, dtype=torch.float64)
    return f, a, torch.randint(classes, (batch,), generator=generator)


def gradients(loss, f, a, labels, *options):
    f, a = f.clone().requires_grad_(), a.clone().requires_grad_()
    return torch.autograd.grad(loss(f, a, labels, *options), (f, a))


@pytest.mark.parametrize("part", ["prior", "conditional", "joint", "likelihood", "posterior"])
def test_distributions_match_golden(part):
    distributions = calm_distributions(golden("head/f"), golden("head/a"), "relu")
    assert_matches(getattr(distributions, part), f"dist/{part}", 1e-6)


def test_softplus_prior_matches_golden():
    assert_matches(calm_distributions(golden("head/f"), golden("head/a")).prior, "dist/prior_softplus", 1e-9)


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_match_golden(name, detached):
    arguments = golden("head/f"), golden("head/a"), golden("head/labels")
    assert_matches(LOSSES[name](*arguments, "relu", detached), f"loss/{name}/value", 1e-6)
    grad_f, grad_a = gradients(LOSSES[name], *arguments, "relu", detached)
    assert_matches(grad_f, f"loss/{name}/grad_f", 1e-6)
    assert_matches(grad_a, f"loss/{name}/grad_a_{'detached' if detached else 'exact'}", 1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_every_class_matches_golden(name):
    f, a = golden("head/f"), golden("head/a")
    of_class = [
        [-LOSSES[name](f[[b]], a[[b]], torch.tensor([label]), "relu") for label in range(META["C"])]
        for b in range(META["B"])
    ]
    assert_matches(torch.tensor(of_class), f"loss/{name}/inputs", 1e-6)
    assert_matches(calm_distributions(f, a, "relu").likelihood, f"loss/{name}/probs", 1e-6)


def test_cam_matches_golden():
    f = golden("head/f").requires_grad_()
    loss = cam_loss(f, golden("head/labels"))
    assert_matches(loss, "loss/cam/value", 1e-9)
    assert_matches(torch.autograd.grad(loss, f)[0], "loss/cam/grad_f", 1e-9)
    assert_matches(f.mean((2, 3)).log_softmax(1), "loss/cam/inputs", 1e-9)
    assert_matches(f.mean((2, 3)).softmax(1), "loss/cam/probs", 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_maps_match_golden(mode):
    name = mode.replace("vanilla", "cam")
    maps = attribution_map(golden("head/f"), golden("head/a"), golden("head/labels"), mode, SUPERCLASSES, "relu")
    assert_matches(maps, f"map/{name}", 1e-6)


def test_counterfactual_matches_golden():
    labels, others = golden("head/labels"), golden("map/labels_counterfactual")
    difference = counterfactual_map(golden("head/f"), golden("head/a"), labels, others, prior="relu")
    assert_matches(difference, "map/counterfactual", 1e-6)


def test_two_places_by_hand():
    # Potentials 1 and 3; class 0 has odds 1 there and 3 here.
    a = torch.tensor([[[[1.0, 3.0]]]], dtype=torch.float64)
    f = torch.tensor([[[[0.0, math.log(3)]], [[0.0, 0.0]]]], dtype=torch.float64)
    result = calm_distributions(f, a, "relu", eps=0)
    torch.testing.assert_close(result.prior.flatten(), torch.tensor([0.25, 0.75], dtype=torch.float64))
    torch.testing.assert_close(result.joint[0, 0, 0], torch.tensor([0.125, 0.5625], dtype=torch.float64))
    torch.testing.assert_close(result.likelihood[0], torch.tensor([0.6875, 0.3125], dtype=torch.float64))
    torch.testing.assert_close(result.posterior[0, 0, 0], torch.tensor([2 / 11, 9 / 11], dtype=torch.float64))
    label = torch.tensor([0])
    assert calm_ml_loss(f, a, label, "relu").item() == pytest.approx(-math.log(0.6875))
    by_hand = -(2 / 11 * math.log(0.125) + 9 / 11 * math.log(0.5625))
    assert calm_em_loss(f, a, label, "relu").item() == pytest.approx(by_hand)


@given(seed=SEEDS, prior=st.sampled_from(PRIORS))
def test_everything_sums_to_one(seed, prior):
    f, a, _ = make_scores(seed)
    result = calm_distributions(f, a, prior, eps=0)
    for total in (
        result.prior.sum((1, 2, 3)),
        result.conditional.sum(1),
        result.joint.sum((1, 2, 3)),
        result.likelihood.sum(1),
        result.posterior.sum((2, 3)),
    ):
        torch.testing.assert_close(total, torch.ones_like(total))
    torch.testing.assert_close(result.joint, result.conditional * result.prior)
    torch.testing.assert_close(result.joint.sum((2, 3)), result.likelihood)
    torch.testing.assert_close(log_class_likelihood(f, a, prior).softmax(1), result.likelihood)


def test_eps_divides_the_posterior_as_published():
    f, a, _ = make_scores(0)
    result = calm_distributions(f, a, eps=0.5)
    torch.testing.assert_close(result.posterior, result.joint / (result.likelihood + 0.5)[..., None, None])


@given(seed=SEEDS, prior=st.sampled_from(PRIORS))
def test_saliency_is_the_sum_of_all_class_maps(seed, prior):
    f, a, labels = make_scores(seed)
    classes = range(f.shape[1])
    total = sum(attribution_map(f, a, torch.full_like(labels, c), "jointll", prior=prior) for c in classes)
    torch.testing.assert_close(attribution_map(f, a, labels, "saliency", prior=prior), total)


@given(seed=SEEDS, prior=st.sampled_from(PRIORS), detached=st.booleans())
def test_em_and_ml_have_one_gradient(seed, prior, detached):
    f, a, labels = make_scores(seed)
    for em, ml in zip(*(gradients(loss, f, a, labels, prior, detached) for loss in LOSSES.values()), strict=True):
        torch.testing.assert_close(em, ml)


@given(seed=SEEDS, prior=st.sampled_from(PRIORS))
def test_em_exceeds_ml_by_the_posterior_entropy(seed, prior):
    f, a, labels = make_scores(seed)
    q = attribution_map(f, a, labels, "gtcond", prior=prior)
    entropy = -torch.special.xlogy(q, q).sum((1, 2)).mean()
    torch.testing.assert_close(calm_em_loss(f, a, labels, prior), calm_ml_loss(f, a, labels, prior) + entropy)


@given(seed=SEEDS, prior=st.sampled_from(PRIORS))
def test_gradients_follow_their_closed_forms(seed, prior):
    f, a, labels = make_scores(seed)
    rows = torch.arange(len(f))
    result = calm_distributions(f, a, prior, eps=0)
    potential = torch.nn.functional.softplus(a) if prior == "softplus" else a.relu()
    if (potential.sum((2, 3)) == 0).any():
        return  # another law: the prior is uniform then
    slope = a.sigmoid() if prior == "softplus" else (a > 0).double()
    ratio = (result.conditional[rows, labels] / result.likelihood[rows, labels][:, None, None])[:, None]
    common = slope / potential.sum((2, 3), keepdim=True) / len(f)
    grad_f, exact = gradients(calm_ml_loss, f, a, labels, prior, False)
    _, detached = gradients(calm_ml_loss, f, a, labels, prior, True)
    torch.testing.assert_close(exact, common * (1 - ratio))
    torch.testing.assert_close(detached, -common * ratio)
    is_label = torch.zeros_like(f)
    is_label[rows, labels] = 1
    q = result.posterior[rows, labels][:, None]
    torch.testing.assert_close(grad_f, q * (result.conditional - is_label) / len(f))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("detached", [True, False])
def test_a_dead_relu_map_has_the_uniform_prior(loss, prior, detached):
    f, a, labels = make_scores(1)
    a[0] = -1.0
    if prior == "relu":
        torch.testing.assert_close(log_location_prior(a, "relu")[0], torch.full_like(a[0], -math.log(6)))
    assert torch.isfinite(loss(f, a, labels, prior, detached))
    for gradient in gradients(loss, f, a, labels, prior, detached):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_a_thousand_sharp_classes_stay_finite_in_float32(prior):
    f, a, labels = make_scores(2, classes=1000, scale=200.0)
    f, a = f.float(), a.float() + 300  # products of these probabilities are 0 in float32
    for loss in LOSSES.values():
        assert torch.isfinite(loss(f, a, labels, prior))
        assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, f, a, labels, prior))
    posterior = attribution_map(f, a, labels, "gtcond", prior=prior)
    torch.testing.assert_close(posterior.sum((1, 2)), torch.ones(2))


def test_log_softplus_does_not_underflow():
    a = torch.tensor([-1000.0, -200.0, -20.0, 0.0, 90.0]).view(1, 1, 1, 5)
    prior = log_location_prior(a)[0, 0, 0]
    assert torch.isfinite(prior).all()
    assert (prior[1] - prior[0]).item() == pytest.approx(800, rel=1e-6)
    beyond = torch.linspace(-45, 5, 31, dtype=torch.float64).view(1, 1, 1, -1).requires_grad_()
    assert gradcheck(log_location_prior, beyond)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("loss", [calm_ml_loss, cam_loss], ids=["ml", "cam"])
def test_gradient(loss, prior):
    f, a, labels = make_scores(3)
    if loss is cam_loss:
        assert gradcheck(lambda x: cam_loss(x, labels), f.requires_grad_())
    else:
        assert gradcheck(lambda x, z: loss(x, z, labels, prior), (f.requires_grad_(), a.requires_grad_()))


def test_superclass_modes_add_up_their_classes():
    f, a, labels = make_scores(4)
    maps = {
        c: [attribution_map(f, a, torch.full_like(labels, c), mode) for mode in ("jointll", "gtcond")] for c in MEMBERS
    }
    for row, label in enumerate(labels.tolist()):
        for k, mode in enumerate(("jointll", "gtcond")):
            total = sum(maps[c][k][row] for c in MEMBERS[label])
            actual = attribution_map(f, a, labels, f"{mode}-superclass", MEMBERS)[row]
            torch.testing.assert_close(actual, total)
            mean = attribution_map(f, a, labels, f"{mode}-superclass-mean", MEMBERS)[row]
            torch.testing.assert_close(mean, total / 2)


def test_vanilla_modes_need_no_attention_and_leave_the_scores_alone():
    f, _, labels = make_scores(5)
    before = f.clone()
    torch.testing.assert_close(attribution_map(f, None, labels, "vanilla"), f[torch.arange(2), labels])
    everything = attribution_map(f, None, labels, "vanilla-saliency")
    all_classes = {c: range(4) for c in range(4)}
    torch.testing.assert_close(everything, attribution_map(f, None, labels, "vanilla-superclass", all_classes))
    assert torch.equal(f, before)


def test_a_constant_class_map_adds_nothing():
    f, _, labels = make_scores(5)
    f[:, 1:] = 3.0
    low, high = f[:, 0].amin((1, 2), keepdim=True), f[:, 0].amax((1, 2), keepdim=True)
    torch.testing.assert_close(attribution_map(f, None, labels, "vanilla-saliency"), (f[:, 0] - low) / (high - low))


def test_counterfactual_changes_sign_with_its_classes():
    f, a, labels = make_scores(6)
    other = (labels + 1) % 4
    for mode in ("jointll", "vanilla"):
        there, back = counterfactual_map(f, a, labels, other, mode), counterfactual_map(f, a, other, labels, mode)
        torch.testing.assert_close(there, -back)
    assert not counterfactual_map(f, a, labels, labels).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    f, a, labels = make_scores(7)
    f, a = f.to(dtype), a.to(dtype)
    assert {part.dtype for part in calm_distributions(f, a)} == {dtype}
    assert attribution_map(f, a, labels, "jointll").dtype == dtype
    at_least_float32 = torch.promote_types(dtype, torch.float32)
    for loss in LOSSES.values():
        value = loss(f, a, labels)
        assert value.dtype == at_least_float32
        torch.testing.assert_close(value, loss(f.to(at_least_float32), a.to(at_least_float32), labels))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("mode", ["em", "ml", "cam"])
def test_head_computes_what_the_functions_do(mode, prior):
    torch.manual_seed(0)
    head = CalmHead(6, 4, mode, prior)
    features, labels = torch.randn(2, 6, 3, 2), torch.tensor([3, 0])
    f, a = head(features)
    assert f.shape == (2, 4, 3, 2)
    assert a.shape == (2, 1, 3, 2)
    functions = {"em": lambda: calm_em_loss(f, a, labels, prior), "ml": lambda: calm_ml_loss(f, a, labels, prior)}
    torch.testing.assert_close(head.loss(features, labels), functions.get(mode, lambda: cam_loss(f, labels))())
    probabilities = f.mean((2, 3)).softmax(1) if mode == "cam" else calm_distributions(f, a, prior).likelihood
    torch.testing.assert_close(head.probabilities(features), probabilities)
    torch.testing.assert_close(head.logits(features).softmax(1), probabilities)
    for way in ("jointll", "vanilla", "gtcond-superclass"):
        expected = attribution_map(f, a, labels, way, MEMBERS, prior)
        torch.testing.assert_close(head.maps(features, labels, way, MEMBERS), expected)


def test_every_weight_that_is_trained_gets_a_gradient():
    for mode in ("em", "ml", "cam"):
        head = CalmHead(6, 4, mode)
        assert not head.conv_last.bias.any()
        head.loss(torch.randn(2, 6, 3, 2), torch.tensor([3, 0])).backward()
        trained = [name for name, weight in head.named_parameters() if weight.grad is not None]
        assert trained == [name for name, weight in head.named_parameters() if weight.requires_grad]
        assert ("attention.weight" in trained) == (mode != "cam")


def test_head_passes_the_detached_normaliser_on():
    torch.manual_seed(0)
    features, labels = torch.randn(2, 6, 3, 2), torch.tensor([3, 0])
    exact, detached = CalmHead(6, 4), CalmHead(6, 4, detach_normalizer=True)
    detached.load_state_dict(exact.state_dict())
    losses = [head.loss(features, labels) for head in (exact, detached)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    assert not torch.allclose(exact.attention.weight.grad, detached.attention.weight.grad)
    torch.testing.assert_close(exact.conv_last.weight.grad, detached.conv_last.weight.grad)


def test_nothing_changes_its_inputs():
    f, a, labels = make_scores(8)
    before = f.clone(), a.clone(), labels.clone()
    calm_distributions(f, a)
    for mode in MODES:
        attribution_map(f, a, labels, mode, MEMBERS, "relu")
    for loss in LOSSES.values():
        loss(f, a, labels, "relu")
    for now, then in zip((f, a, labels), before, strict=True):
        assert torch.equal(now, then)


F, A, LABELS = make_scores(9)
REFUSALS = [
    (lambda: calm_distributions(F[0], A), r"f must be non-empty floating-point class scores \(B, C, H, W\)"),
    (lambda: calm_distributions(F, A[:, 0]), r"a must be floating-point \(B, 1, H, W\) = \(2, 1, 3, 2\)"),
    (lambda: calm_distributions(F, A.expand(2, 4, 3, 2)), r"\(2, 1, 3, 2\), got .* \(2, 4, 3, 2\)"),
    (lambda: calm_distributions(F.log(), A), "f must be finite"),
    (lambda: calm_distributions(F, A / 0), "a must be finite"),
    (lambda: calm_distributions(F, A, "exp"), "prior must be one of softplus, relu, got 'exp'"),
    (lambda: calm_distributions(F[:, :1], A), "at least 2 classes, got 1"),
    (lambda: calm_distributions(F, A, eps=-1.0), "eps must be at least 0"),
    (lambda: calm_em_loss(F, A, LABELS.int()), r"labels must be int64 \(2,\), got torch.int32"),
    (lambda: calm_ml_loss(F, A, LABELS[:1]), r"labels must be int64 \(2,\), got .* \(1,\)"),
    (lambda: calm_em_loss(F, A, LABELS - 9), r"labels must lie in 0\.\.3"),
    (lambda: calm_ml_loss(F, A, LABELS + 4), r"labels must lie in 0\.\.3"),
    (lambda: calm_ml_loss(F, A, LABELS, "none"), "prior must be one of"),
    (lambda: cam_loss(F, LABELS + 4), r"labels must lie in 0\.\.3"),
    (lambda: cam_loss(F[0], LABELS), "f must be non-empty floating-point class scores"),
    (lambda: attribution_map(F, A, LABELS, "joint"), "mode must be one of jointll"),
    (lambda: attribution_map(F, A, LABELS, "jointll-superclass"), "superclasses must be given"),
    (lambda: attribution_map(F, A, LABELS, "gtcond-superclass", {9: [9]}), "class . is missing"),
    (lambda: attribution_map(F, A, LABELS, "gtcond-superclass", {c: [3 - c] for c in range(4)}), "must include it"),
    (lambda: attribution_map(F, A, LABELS, "gtcond-superclass", {c: [c, 4] for c in range(4)}), r"lie in 0\.\.3"),
    (lambda: attribution_map(F, None, LABELS, "jointll"), "a must be given for mode"),
    (lambda: attribution_map(F, A, LABELS + 4, "vanilla"), r"labels must lie in 0\.\.3"),
    (lambda: attribution_map(F, A, LABELS, "jointll", prior="exp"), "prior must be one of"),
    (lambda: counterfactual_map(F, A, LABELS, LABELS, "gtcond"), "mode must be jointll or vanilla"),
    (lambda: counterfactual_map(F, A, LABELS, LABELS + 4), r"other must lie in 0\.\.3"),
    (lambda: counterfactual_map(F, A, LABELS.int(), LABELS), "label must be int64"),
    (lambda: counterfactual_map(F, None, LABELS, LABELS), "a must be given for mode"),
    (lambda: CalmHead(6, 1), "num_classes at least 2"),
    (lambda: CalmHead(6, 4, "vae"), "mode must be one of em, ml, cam, got 'vae'"),
    (lambda: CalmHead(6, 4, "em", "exp"), "prior must be one of"),
    (lambda: CalmHead(6, 4).loss(torch.zeros(2, 6, 3, 2), LABELS.float()), r"y must be int64 \(2,\)"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nameplate_has_the_public_functions():
    for name in room.__all__:
        assert callable(getattr(room, name))
    assert room.__all__ == sorted(room.__all__)
