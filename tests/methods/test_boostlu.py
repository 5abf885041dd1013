"""Maths of BoostLU: published values, values by hand, laws, gradients, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.autograd import gradcheck, gradgradcheck
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import tenfold.methods.boostlu as room
from tenfold.methods.boostlu.boost import boostlu, class_activation_maps
from tenfold.methods.boostlu.head import MODES, BoostedCAMHead
from tenfold.methods.boostlu.pooling import boosted_logits
from tenfold.methods.large_loss.loss import large_loss_bce, large_loss_rate
from tenfold.models.activation_maps import cam_logits
from tenfold.models.activation_maps import class_activation_maps as raw_maps
from tenfold.models.image_classifier import ModelConfig, build_classifier

GOLDEN = np.load(Path(__file__).parents[1] / "golden/boostlu.npz")
META = json.loads(str(GOLDEN["meta"]))
# Both sides are float64; the reference sums in another order.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
UNHURRIED = settings(deadline=None, max_examples=40)  # a busy machine is no failure
SEEDS = st.integers(0, 2**32 - 1)
ALPHAS = st.sampled_from([0.2, 1.0, 1.5, 5.0, 20.0])
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def make_case(seed, sizes=(2, 3, 4, 2, 3), dtype=torch.float64, zeros=False):
    """Return features, weight and bias for B, D, K, H, W; with zeros, many scores are exactly 0."""
    batch, channels, classes, height, width = sizes
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, height, width, generator=generator, dtype=dtype).relu()
    weight = torch.randn(classes, channels, generator=generator, dtype=dtype)
    bias = torch.randn(classes, generator=generator, dtype=dtype)
    if zeros:
        features, bias = features * (features > 0.8), torch.zeros_like(bias)
    return features, weight, bias


def make_head(weight, bias, alpha=5.0, mode="both"):
    head = BoostedCAMHead(weight.shape[1], len(weight), alpha, mode).to(weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def logits_and_gradients(function, upstream, *inputs):
    inputs = [each.clone().requires_grad_() for each in inputs]
    logits = function(*inputs)
    return logits.detach(), *torch.autograd.grad((upstream * logits).sum(), inputs)


def by_maps(alpha):
    """Compute the definition step by step."""
    return lambda features, weight, bias: cam_logits(class_activation_maps(features, weight, bias, alpha))


# -- published values


def test_boost_matches_golden():
    for i, alpha in enumerate(GOLDEN["blu_alpha"].tolist()):
        x = golden("blu_x").clone().requires_grad_()
        y = boostlu(x, alpha)
        torch.testing.assert_close(y, golden("blu_y")[i], **TOLERANCE)
        (gradient,) = torch.autograd.grad((golden("blu_upstream") * y).sum(), x)
        torch.testing.assert_close(gradient, golden("blu_grad")[i], **TOLERANCE)
    assert (GOLDEN["blu_x"] == 0).any()


@pytest.mark.parametrize("way", ["maps", "pooling", "head"])
@pytest.mark.parametrize("case", ["head", "one"])
def test_logits_and_gradients_match_golden(case, way):
    features, weight, bias = (golden(f"{case}_{name}") for name in ("features", "weight", "bias"))
    upstream = golden(f"{case}_upstream")
    for i, alpha in enumerate(GOLDEN[f"{case}_alphas"].tolist()):
        if way == "head":
            head, leaf = make_head(weight, bias, alpha), features.clone().requires_grad_()
            logits = head(leaf)
            found = (logits, *torch.autograd.grad((upstream * logits).sum(), (leaf, head.weight, head.bias)))
        else:
            function = by_maps(alpha) if way == "maps" else lambda *inputs, a=alpha: boosted_logits(*inputs, a)
            found = logits_and_gradients(function, upstream, features, weight, bias)
        for value, name in zip(found, ("logits", "grad_features", "grad_weight", "grad_bias"), strict=True):
            torch.testing.assert_close(value, golden(f"{case}_{name}")[i], **TOLERANCE)


@pytest.mark.parametrize("case", ["head", "one"])
def test_maps_match_golden(case):
    features, weight, bias = (golden(f"{case}_{name}") for name in ("features", "weight", "bias"))
    head = make_head(weight, bias)
    for name, given_bias in (("cam", bias), ("cam_nobias", None)):
        expected = golden(f"{case}_{name}")
        for matrix in (weight, weight[..., None, None]):
            torch.testing.assert_close(class_activation_maps(features, matrix, given_bias), expected, **TOLERANCE)
        found = head.cam(features, boosted=False, include_bias=given_bias is not None)
        torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize(("name", "scheme"), [("r", "LL-R"), ("ct", "LL-Ct"), ("cp", "LL-Cp")])
def test_training_steps_match_golden(name, scheme):
    assert META["schemes"] == ["LL-R", "LL-Ct", "LL-Cp"]
    features, weight, bias, labels = (golden(f"step_{part}") for part in ("features", "weight", "bias", "labels"))
    for i, alpha in enumerate(GOLDEN["step_alphas"].tolist()):
        for t, epoch in enumerate(GOLDEN["step_epochs"].tolist()):
            head = make_head(weight, bias, alpha)
            rate = large_loss_rate(epoch, float(GOLDEN["step_delta_rel"]), scheme)
            loss, mask = large_loss_bce(head(features), labels, scheme, rate)
            (gradient,) = torch.autograd.grad(loss, head.weight)
            torch.testing.assert_close(loss.detach(), golden(f"step_{name}_loss")[i, t], **TOLERANCE)
            torch.testing.assert_close(gradient, golden(f"step_{name}_grad_weight")[i, t], **TOLERANCE)
            assert torch.equal(mask, golden(f"step_{name}_mask")[i, t])


def test_every_golden_vector_is_used():
    prefixes = {name.split("_")[0] for name in GOLDEN.files}
    # cam and det: test_boostlu_analysis.py.
    assert prefixes == {"blu", "head", "one", "step", "cam", "det", "meta"}


# -- values by hand


def test_boost_by_hand():
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0], requires_grad=True)
    for alpha, expected in ((5.0, [-2, 0, 0, 15]), (0.5, [-2, 0, 0, 1.5]), (1.0, [-2, 0, 0, 3])):
        y = boostlu(x, alpha)
        assert y.tolist() == expected
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert slope.tolist() == [1, 1, 1, alpha]


def test_boost_of_extremes():
    x = torch.tensor([float("-inf"), float("inf"), float("nan")])
    y = boostlu(x, 3.0)
    assert y[:2].tolist() == [float("-inf"), float("inf")]
    assert y[2].isnan()


def test_logits_by_hand():
    features = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]], dtype=torch.float64)  # (1, 2, 1, 2)
    weight = torch.tensor([[1.0, -1.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    # Maps: [1, -2], [0, 1], [0, 0]. At alpha 5: [5, -2], [0, 5], [0, 0].
    head = make_head(weight, bias)
    assert head.cam(features).tolist() == [[[[5, -2]], [[0, 5]], [[0, 0]]]]
    assert head.cam(features, boosted=False).tolist() == [[[[1, -2]], [[0, 1]], [[0, 0]]]]
    assert head.cam(features, include_bias=False).tolist() == [[[[5, -2]], [[-1, 0]], [[0, 0]]]]
    assert head(features).tolist() == [[1.5, 2.5, 0]]
    head.set_boost(0.5, "both")
    assert head(features).tolist() == [[-0.75, 0.25, 0]]
    # Slopes of the places: 5 and 1; 1 (a score of exactly 0) and 5; 1 and 1. Each counts for a half.
    head.set_boost(5.0, "both")
    gradient = torch.autograd.grad(head(features).sum(), head.bias)[0]
    assert gradient.tolist() == [3, 3, 1]


# -- laws


@UNHURRIED
@given(SEEDS, SIZES, ALPHAS, st.booleans())
def test_pooling_is_the_mean_of_boosted_maps(seed, sizes, alpha, zeros):
    inputs = make_case(seed, sizes, zeros=zeros)
    upstream = torch.randn(sizes[0], sizes[2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fast = logits_and_gradients(lambda *given: boosted_logits(*given, alpha), upstream, *inputs)
    slow = logits_and_gradients(by_maps(alpha), upstream, *inputs)
    for found, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@UNHURRIED
@given(SEEDS, SIZES, st.sampled_from([1.5, 5.0, 20.0]))
def test_boosting_raises_logits_by_the_positive_evidence(seed, sizes, alpha):
    features, weight, bias = make_case(seed, sizes)
    plain = make_head(weight, bias, mode="none")(features)
    torch.testing.assert_close(plain, torch.nn.functional.linear(features.mean((2, 3)), weight, bias))
    boosted = make_head(weight, bias, alpha)(features)
    evidence = raw_maps(features, weight, bias).relu().mean((2, 3))
    torch.testing.assert_close(boosted, plain + (alpha - 1) * evidence)
    assert (boosted >= plain - 1e-12).all()


@UNHURRIED
@given(SEEDS, st.sampled_from([0.2, 5.0]), st.sampled_from([0.5, 3.0]))
def test_boost_keeps_scale_and_order(seed, alpha, scale):
    x = torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(boostlu(scale * x, alpha), scale * boostlu(x, alpha))
    assert torch.equal(boostlu(x, alpha).argsort(), x.argsort())
    torch.testing.assert_close(boostlu(boostlu(x, alpha), 1 / alpha), x)
    if alpha >= 1:
        assert torch.equal(boostlu(x, alpha), torch.maximum(x, alpha * x))
    else:
        assert torch.equal(boostlu(x, alpha), torch.minimum(x, alpha * x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_by_maps_and_at_least_float32_for_logits(dtype):
    features, weight, bias = make_case(0, dtype=dtype)
    assert boostlu(features, 5.0).dtype == dtype
    assert class_activation_maps(features, weight, bias, 5.0).dtype == dtype
    for mode in ("both", "none"):
        logits = make_head(weight, bias, mode=mode)(features)
        assert logits.dtype == torch.promote_types(dtype, torch.float32)


def test_pooling_in_half_precision_does_not_overflow():
    features = torch.full((1, 1, 14, 14), 200.0, dtype=torch.float16)
    weight, bias = torch.full((1, 1), 60.0, dtype=torch.float16), torch.zeros(1, dtype=torch.float16)
    # 12,000 fits into half precision; five times as much, or the sum of two places, would not.
    assert make_head(weight, bias, 10.0)(features).tolist() == [[120_000]]


@pytest.mark.parametrize("channels_last", [False, True])
def test_autocast_computes_scores_in_half_and_gradients_in_float32(channels_last):
    features, weight, bias = make_case(0, dtype=torch.float32)
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    head, leaf = make_head(weight, bias), features.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(leaf)
    assert logits.dtype == torch.float32
    exact = head(leaf)
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=0.1)
    inputs = (leaf, head.weight, head.bias)
    for found, expected in zip(
        torch.autograd.grad(logits.sum(), inputs), torch.autograd.grad(exact.sum(), inputs), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)


def test_nothing_given_is_changed():
    features, weight, bias = make_case(0)
    before = [each.clone() for each in (features, weight, bias)]
    boosted_logits(features, weight, bias, 5.0)
    class_activation_maps(features, weight, bias, 5.0)
    boostlu(features, 5.0)
    for now, then in zip((features, weight, bias), before, strict=True):
        assert torch.equal(now, then)


def test_a_batch_may_be_empty():
    _, weight, bias = make_case(0)
    head = make_head(weight, bias)
    for mode in MODES:
        head.set_boost(5.0, mode)
        assert head(torch.zeros(0, 3, 2, 2, dtype=torch.float64)).shape == (0, 4)


@pytest.mark.parametrize("alpha", [0.3, 5.0])
@pytest.mark.parametrize("sizes", [(2, 3, 4, 2, 3), (2, 3, 2, 1, 1)])
def test_gradients_are_right(alpha, sizes):
    inputs = [each.requires_grad_() for each in make_case(3, sizes)]

    def pooled(*given):
        return boosted_logits(*given, alpha)

    assert gradcheck(pooled, inputs)
    assert gradgradcheck(pooled, inputs)
    assert gradcheck(by_maps(alpha), inputs)


def test_only_what_is_asked_for_gets_a_gradient():
    features, weight, bias = make_case(0)
    boosted_logits(features, weight.requires_grad_(), bias, 5.0).sum().backward()
    assert weight.grad is not None
    assert features.grad is None
    assert bias.grad is None


def test_backward_keeps_one_byte_for_each_score():
    features, weight, bias = make_case(0, (4, 8, 16, 5, 5))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        boosted_logits(features.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), 5.0)
    of_maps = [each for each in kept if each.numel() == 4 * 16 * 25]
    assert [each.dtype for each in of_maps] == [torch.bool]


# -- the head


def test_the_head_starts_as_the_plain_one_does():
    torch.manual_seed(0)
    head = BoostedCAMHead(2048, 40)
    plain = torch.nn.Linear(2048, 40)
    for mine, other in ((head.weight, plain.weight), (head.bias, plain.bias)):
        assert mine.shape == other.shape
        assert mine.abs().max() <= 2048**-0.5
    assert head.weight.detach().std() == pytest.approx(float(plain.weight.detach().std()), rel=0.02)
    assert (head.alpha, head.mode) == (5.0, "both")


@pytest.mark.parametrize(
    ("mode", "in_training", "at_inference"),
    [("both", True, True), ("train", True, False), ("inference", False, True), ("none", False, False)],
)
def test_a_mode_says_when_scores_are_boosted(mode, in_training, at_inference):
    features, weight, bias = make_case(1)
    head = make_head(weight, bias, 5.0, mode)
    labels = torch.tensor([3, 1])
    for training, boosts in ((True, in_training), (False, at_inference)):
        head.train(training)
        alpha = 5.0 if boosts else 1.0
        assert head.effective_alpha == alpha
        maps = class_activation_maps(features, weight, bias, alpha)
        torch.testing.assert_close(head(features), cam_logits(maps))
        torch.testing.assert_close(head.cam(features), maps)
        torch.testing.assert_close(head.cam(features, boosted=False), raw_maps(features, weight, bias))
        torch.testing.assert_close(head.cam_at(features, labels), maps[torch.arange(2), labels])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["memory", "file", "average"])
def test_weights_carry_factor_and_mode(mode, way, tmp_path):
    features, weight, bias = make_case(2, dtype=torch.float32)
    head, other = make_head(weight, bias, 0.7, mode), BoostedCAMHead(3, 4, 2.0, "both")
    state = head.state_dict()
    if way == "file":
        save_file(state, tmp_path / "head.safetensors")
        state = load_file(tmp_path / "head.safetensors")
    if way == "average":
        averaged = AveragedModel(head, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        for _ in range(3):
            averaged.update_parameters(head)
        state = averaged.module.state_dict()
    other.load_state_dict(state)
    assert (other.alpha, other.mode) == (0.7, mode)
    for training in (True, False):
        torch.testing.assert_close(other.train(training)(features), head.train(training)(features))


def test_weights_of_a_plain_head_are_no_boosted_head():
    with pytest.raises(RuntimeError, match="_extra_state"):
        BoostedCAMHead(3, 4).load_state_dict(torch.nn.Linear(3, 4).state_dict())


@pytest.mark.parametrize(
    "state", [torch.tensor([5.0]), torch.tensor([5.0, 4.0]), torch.tensor([5.0, 0.5]), torch.tensor([0.0, 0.0]), "both"]
)
def test_a_damaged_factor_or_mode_is_refused(state):
    with pytest.raises(ValueError, match=r"state must be a tensor|alpha must be positive"):
        BoostedCAMHead(3, 4).set_extra_state(state)


def test_the_head_reads_the_map_of_a_classifier():
    def head(channels, classes):
        return BoostedCAMHead(channels, classes, 3.0, "inference")

    model = build_classifier(ModelConfig(), 4, 64, head).eval()
    images = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = model.head.cam(model.feature_map(images))
        torch.testing.assert_close(model(images), cam_logits(maps), rtol=1e-4, atol=1e-5)
    assert "head._extra_state" in model.state_dict()
    assert "alpha=3, mode=inference" in repr(model.head)


# -- refusals


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_out_of_range_is_refused(alpha):
    features, weight, bias = make_case(0)
    for call in (
        lambda: boostlu(features, alpha),
        lambda: class_activation_maps(features, weight, bias, alpha),
        lambda: BoostedCAMHead(3, 4, alpha),
    ):
        with pytest.raises(ValueError, match="alpha must be positive and finite"):
            call()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_scores_that_are_not_floating_are_refused(dtype):
    with pytest.raises(ValueError, match="x must be floating-point"):
        boostlu(torch.ones(3, dtype=dtype), 5.0)


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 4), (4, 3), (4,)),
        ((2, 3, 0, 4), (4, 3), (4,)),
        ((2, 3, 2, 2), (4, 2), (4,)),
        ((2, 3, 2, 2), (4, 3, 1), (4,)),
        ((2, 3, 2, 2), (4, 3, 2, 1), (4,)),
        ((2, 3, 2, 2), (4, 3), (3,)),
        ((2, 3, 2, 2), (4, 3), (4, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="must be"):
        class_activation_maps(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("mode", ["both", "none"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4, 2, 2), (2, 3, 2, 0), (3, 2, 2)])
def test_the_head_refuses_what_is_no_map(shape, mode):
    with pytest.raises(ValueError, match=r"features must be a map"):
        BoostedCAMHead(3, 4, mode=mode)(torch.zeros(shape))


def test_maps_without_places_have_no_logits():
    for shape in ((2, 3, 4), (2, 3, 0, 4)):
        with pytest.raises(ValueError, match="H and W at least 1"):
            cam_logits(torch.zeros(shape))


@pytest.mark.parametrize(("sizes", "mode"), [((0, 4), "both"), ((3, 0), "both"), ((3, 4), "always")])
def test_a_head_that_can_not_be_is_refused(sizes, mode):
    with pytest.raises(ValueError, match=r"must be (at least 1|one of both, train, inference, none)"):
        BoostedCAMHead(*sizes, mode=mode)


# -- the room


def test_nameplate_has_the_public_functions():
    wanted = {
        "boostlu", "class_activation_maps", "cam_logits", "BoostedCAMHead", "cam_rank_correlation", "centre_gaussian",
        "cam_extreme_means", "false_negative_detection",
    }  # fmt: skip
    assert wanted <= set(room.__all__)
    assert all(hasattr(room, name) for name in room.__all__)


def test_the_room_needs_torch_alone():
    code = "import sys, tenfold.methods.boostlu; print([m for m in ('ray', 'mlflow', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
