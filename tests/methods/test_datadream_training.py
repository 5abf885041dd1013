"""The DataDream maths of losses, mixing and noise: published values, by hand, laws, gradients, refusals."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional

from tenfold.methods.datadream.losses import clip_logits, real_synth_cross_entropy, text_prototypes
from tenfold.methods.datadream.mixing import cutmix, cutmix_box, mix_by_domain, mixup
from tenfold.methods.datadream.noise import add_noise, ddim_step, diffusion_loss, guided, velocity

GOLDEN = np.load(Path(__file__).parents[1] / "golden/datadream.npz")
UNHURRIED = settings(deadline=None, max_examples=50)  # a busy machine is no failure
SEEDS = st.integers(0, 9999)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-9}
SINGLE = {"rtol": 1e-3, "atol": 1e-5}  # those computed in float32


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def random_tensor(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- losses and the head: values from outside ---


def golden_loss(targets, is_real=None):
    logits = golden("loss_logits").requires_grad_()
    is_real = golden("loss_is_real").bool() if is_real is None else is_real
    parts = real_synth_cross_entropy(logits, targets, is_real, float(GOLDEN["loss_lambda"]))
    (gradient,) = torch.autograd.grad(parts[0], logits)
    return torch.stack(parts).detach(), gradient


def test_loss_matches_golden():
    parts, gradient = golden_loss(golden("loss_labels"))
    torch.testing.assert_close(parts, golden("loss_parts"), **TOLERANCE)
    torch.testing.assert_close(gradient, golden("loss_grad"), **TOLERANCE)
    parts, _ = golden_loss(golden("loss_soft_labels"))
    torch.testing.assert_close(parts, golden("loss_soft_parts"), **TOLERANCE)


@pytest.mark.parametrize(("domain", "present"), [("real", 1), ("synth", 2)])
def test_loss_of_one_domain_matches_golden(domain, present):
    parts, gradient = golden_loss(golden("loss_labels"), torch.full((12,), domain == "real"))
    torch.testing.assert_close(parts[0], golden(f"loss_only_{domain}"), **TOLERANCE)
    assert parts[present].isfinite()
    assert parts[3 - present].isnan()
    assert gradient.isfinite().all()


def test_head_matches_golden():
    prototypes = text_prototypes(golden("head_text_features"))
    torch.testing.assert_close(prototypes, golden("head_text_out"), **TOLERANCE)
    logits = clip_logits(golden("head_image_features"), prototypes, golden("head_log_scale"))
    torch.testing.assert_close(logits, golden("head_logits"), **TOLERANCE)


# --- losses and the head: by hand, laws, gradients, refusals ---


def test_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [math.log(3), 0.0]])
    total, real, synth = real_synth_cross_entropy(
        logits, torch.tensor([0, 1, 0]), torch.tensor([True, True, False]), 0.75
    )
    assert real.item() == pytest.approx(math.log(2))
    assert synth.item() == pytest.approx(math.log(4 / 3))
    assert total.item() == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(4 / 3))


@given(seed=SEEDS, real_weight=st.floats(0, 1), num_real=st.integers(0, 6))
@UNHURRIED
def test_loss_is_the_weighted_mean_of_each_domains_own(seed, real_weight, num_real):
    logits = random_tensor(6, 4, seed=seed)
    labels = torch.randint(4, (6,), generator=torch.Generator().manual_seed(seed))
    is_real = torch.arange(6) < num_real
    total, *parts = real_synth_cross_entropy(logits, labels, is_real, real_weight)
    expected = logits.new_zeros(())
    for part, rows, weight in zip(
        parts, (slice(num_real), slice(num_real, 6)), (real_weight, 1 - real_weight), strict=True
    ):
        own = functional.cross_entropy(logits[rows], labels[rows])  # NaN for no rows
        torch.testing.assert_close(part, own, equal_nan=True)
        expected = expected + weight * own.nan_to_num()
    torch.testing.assert_close(total, expected)
    one_hot = functional.one_hot(labels, 4).double()
    torch.testing.assert_close(real_synth_cross_entropy(logits, one_hot, is_real, real_weight)[0], total)
    unchecked = real_synth_cross_entropy(logits, labels, is_real, real_weight, validate=False)
    assert torch.equal(unchecked[0], total)


def test_a_row_without_limits_in_one_domain_does_not_reach_the_other():
    logits = torch.tensor([[1.0, 2.0], [-math.inf, 0.0]])
    _, real, synth = real_synth_cross_entropy(logits, torch.tensor([0, 0]), torch.tensor([True, False]), 0.5)
    assert real.isfinite()
    assert synth.isinf()


def test_prototypes_do_not_depend_on_lengths():
    features = random_tensor(3, 4, 5)
    lengths = 0.1 + random_tensor(3, 4, 1, seed=1).abs()
    prototypes = text_prototypes(features)
    torch.testing.assert_close(text_prototypes(features * lengths), prototypes)
    torch.testing.assert_close(prototypes.norm(dim=-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(text_prototypes(features[:, :1]), functional.normalize(features[:, 0], dim=-1))


def test_logits_are_scaled_cosines():
    image = torch.tensor([[2.0, 0.0], [3.0, 4.0]])
    logits = clip_logits(image, torch.eye(2), torch.tensor(math.log(10)))
    torch.testing.assert_close(logits, torch.tensor([[10.0, 0.0], [6.0, 8.0]]))


def test_gradients_of_loss_and_head():
    labels, is_real = torch.tensor([0, 2, 1]), torch.tensor([True, False, True])
    soft = random_tensor(3, 4, seed=2).softmax(-1)
    for targets in (labels, soft):
        assert gradcheck(
            lambda x, targets=targets: real_synth_cross_entropy(x, targets, is_real, 0.8)[0],
            random_tensor(3, 4).requires_grad_(),
        )

    def head(image, text, log_scale):
        return clip_logits(image, text_prototypes(text), log_scale)

    inputs = (random_tensor(2, 5), random_tensor(3, 2, 5, seed=1), torch.tensor(0.3, dtype=torch.float64))
    assert gradcheck(head, tuple(part.requires_grad_() for part in inputs))


LOGITS, LABELS, REAL = torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([True, False])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real_weight": 1.5}, r"real_weight must lie in \[0, 1\], got 1.5"),
        ({"real_weight": math.nan}, r"real_weight must lie in \[0, 1\], got nan"),
        (
            {"logits": LOGITS[:0], "targets": LABELS[:0], "is_real": REAL[:0]},
            "logits must be floating and .* not empty",
        ),
        ({"logits": LOGITS[0]}, "logits must be floating"),
        ({"targets": LABELS[:1]}, r"targets must be integer \(2,\), got torch.int64 \(1,\)"),
        ({"targets": LABELS.bool()}, r"targets must be integer \(2,\), got torch.bool"),
        ({"targets": torch.zeros(2, 2)}, r"soft targets must be \(2, 3\), got \(2, 2\)"),
        ({"targets": torch.tensor([0, 3])}, r"labels must lie in 0\.\.2, got 0\.\.3"),
        ({"targets": torch.tensor([0, -100])}, r"labels must lie in 0\.\.2, got -100\.\.0"),
        ({"is_real": REAL[:1]}, r"is_real must be bool \(2,\), got torch.bool \(1,\)"),
        ({"is_real": LABELS}, r"is_real must be bool \(2,\), got torch.int64"),
    ],
)
def test_bad_losses_are_refused(change, message):
    good = {"logits": LOGITS, "targets": LABELS, "is_real": REAL, "real_weight": 0.8}
    with pytest.raises(ValueError, match=message):
        real_synth_cross_entropy(**(good | change))


def test_bad_heads_are_refused():
    with pytest.raises(ValueError, match=r"features must be \(C, P, D\) and not empty, got \(3, 5\)"):
        text_prototypes(torch.ones(3, 5))
    with pytest.raises(ValueError, match="not empty"):
        text_prototypes(torch.ones(3, 0, 5))
    with pytest.raises(ValueError, match="features must have no zero vector"):
        text_prototypes(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]))
    with pytest.raises(ValueError, match="the mean over a class's prompts must have no zero vector"):
        text_prototypes(torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]]))
    image, prototypes, log_scale = torch.ones(2, 4), torch.ones(3, 4), torch.tensor(0.0)
    for parts in ((image[0], prototypes, log_scale), (image[:, :3], prototypes, log_scale), (image, prototypes, image)):
        with pytest.raises(ValueError, match=r"image, prototypes and log_scale must be \(B, D\), \(C, D\) and \(\)"):
            clip_logits(*parts)
    with pytest.raises(ValueError, match="image must have no zero vector"):
        clip_logits(0 * image, prototypes, log_scale)
    with pytest.raises(ValueError, match="prototypes must have no zero vector"):
        clip_logits(image, 0 * prototypes, log_scale)
    assert clip_logits(image, 0 * prototypes, log_scale, validate=False).count_nonzero() == 0


# --- mixing ---


def one_hot(labels, num_classes):
    return functional.one_hot(labels, num_classes).double()


def test_mixing_matches_golden():
    images = golden("mix_images")
    targets = one_hot(golden("mix_labels"), golden("mixup_targets").shape[1])
    for name, got in (
        ("mixup", mixup(images, targets, float(GOLDEN["mixup_lam"]))),
        ("cutmix", cutmix(images, targets, tuple(GOLDEN["cutmix_box_xyxy"].tolist()))),
    ):
        torch.testing.assert_close(got[0], golden(f"{name}_images"), **TOLERANCE)
        torch.testing.assert_close(got[1], golden(f"{name}_targets"), **TOLERANCE)


def make_batch(seed=0, batch=6, size=5):
    return random_tensor(batch, 3, size, size, seed=seed), one_hot(torch.arange(batch) % 4, 4)


@given(seed=SEEDS, lam=st.floats(0, 1))
@UNHURRIED
def test_mixup_keeps_the_batch_mean_and_its_ends(seed, lam):
    images, targets = make_batch(seed)
    before = images.clone()
    mixed, mixed_targets = mixup(images, targets, lam)
    torch.testing.assert_close(mixed.mean(0), images.mean(0))
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(mixup(images, targets, 1.0)[0], images)
    torch.testing.assert_close(mixup(images, targets, 0.0)[0], images.roll(1, 0))
    assert torch.equal(images, before)


def test_cutmix_by_hand():
    images = torch.stack([torch.full((3, 2, 4), float(row)) for row in (1, 2)])
    mixed, targets = cutmix(images, torch.eye(2), (1, 0, 4, 1))  # 3 of 8 pixels, in the upper row
    assert mixed[0, 0].tolist() == [[1, 2, 2, 2], [1, 1, 1, 1]]
    assert mixed[1, 2].tolist() == [[2, 1, 1, 1], [2, 2, 2, 2]]
    assert targets.tolist() == [[5 / 8, 3 / 8], [3 / 8, 5 / 8]]
    assert images[0].unique().tolist() == [1.0]
    unchanged = cutmix(images, torch.eye(2), (2, 1, 2, 1))
    assert torch.equal(unchanged[0], images)
    assert torch.equal(unchanged[1], torch.eye(2))


def test_boxes_by_hand():
    assert cutmix_box(8, 4, lam=0.75, centre=(4, 2)) == (2, 1, 6, 3)  # half-sides of 0.25 * 8 and 0.25 * 4
    assert cutmix_box(8, 4, lam=0.75, centre=(0, 3)) == (0, 2, 2, 4)  # clipped at two sides
    assert cutmix_box(8, 4, lam=1.0, centre=(4, 2)) == (4, 2, 4, 2)
    assert cutmix_box(8, 4, lam=0.0, centre=(4, 2)) == (0, 0, 8, 4)


@given(seed=SEEDS, flags=st.lists(st.booleans(), min_size=1, max_size=7))
@UNHURRIED
def test_domains_are_never_mixed(seed, flags):
    is_real = torch.tensor(flags)
    sign = is_real.double() * 2 - 1
    images = sign.view(-1, 1, 1, 1) * (1 + random_tensor(len(flags), 3, 4, 4, seed=seed).abs())
    domains = one_hot(is_real.long(), 2)
    mixed, targets = mix_by_domain(images, domains, is_real, 1.0, np.random.default_rng(seed))
    torch.testing.assert_close(targets, domains)  # half a domain would show
    assert (mixed.sign() == sign.view(-1, 1, 1, 1)).all()


@given(seed=SEEDS)
@UNHURRIED
def test_each_row_is_mixed_with_the_one_before_it_in_its_domain(seed):
    is_real = torch.tensor([True, False, True, True, False])
    images, targets = random_tensor(5, 3, 4, 4, seed=seed), torch.eye(5, dtype=torch.float64)
    mixed, shares = mix_by_domain(images, targets, is_real, 1.0, np.random.default_rng(seed))
    partners = {0: 3, 2: 0, 3: 2, 1: 4, 4: 1}
    for row, partner in partners.items():
        kept, taken = shares[row, row].item(), shares[row, partner].item()
        assert kept + taken == pytest.approx(1)
        blended = torch.allclose(mixed[row], kept * images[row] + taken * images[partner])
        from_one = (mixed[row] == images[row]) | (mixed[row] == images[partner])
        pasted = from_one.all() and (mixed[row] == images[partner])[0].double().mean().item() == pytest.approx(taken)
        assert blended or pasted
    assert shares[0, 0] == pytest.approx(shares[2, 2].item())  # one share for a domain


def test_mixing_happens_as_often_as_asked_and_both_kinds_do():
    images, targets = make_batch()
    is_real = torch.arange(6) < 3
    rng = np.random.default_rng(0)
    mixed = [mix_by_domain(images, targets, is_real, 0.2, rng)[0] for _ in range(2000)]
    share = np.mean([not torch.equal(batch, images) for batch in mixed])
    assert share == pytest.approx(0.2, abs=0.03)  # over three standard errors
    changed = [batch for batch in mixed if not torch.equal(batch[:3], images[:3])]
    pasted = np.mean([((batch[0] == images[0]) | (batch[0] == images[2])).all().item() for batch in changed])
    assert 0.35 < pasted < 0.6  # a box of no pixels looks like no mixing
    kept, kept_targets = mix_by_domain(images, targets, is_real, 0.0, rng)
    assert torch.equal(kept, images)
    assert kept.data_ptr() != images.data_ptr()
    assert kept_targets.data_ptr() != targets.data_ptr()


def test_one_row_of_a_domain_stays_and_the_stream_does_not_depend_on_the_batch():
    images, targets = make_batch()
    states = []
    for is_real in (torch.arange(6) == 0, torch.ones(6, dtype=torch.bool)):
        rng = np.random.default_rng(3)
        mixed, mixed_targets = mix_by_domain(images, targets, is_real, 1.0, rng)
        states.append(rng.bit_generator.state)
        if is_real.sum() == 1:
            assert torch.equal(mixed[0], images[0])
            assert torch.equal(mixed_targets[0], targets[0])
    assert states[0] == states[1]


def test_bad_mixes_are_refused():
    images, targets = make_batch()
    is_real = torch.arange(6) < 3
    rng = np.random.default_rng(0)
    for lam in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"lam must lie in \[0, 1\]"):
            mixup(images, targets, lam)
    for box in ((0, 0, 6, 1), (-1, 0, 1, 1), (2, 0, 1, 1), (0, 3, 1, 2)):
        with pytest.raises(ValueError, match="box_xyxy must lie within 5x5 pixels"):
            cutmix(images, targets, box)
    with pytest.raises(ValueError, match="box_xyxy must be x1, y1, x2, y2"):
        cutmix(images, targets, (0, 0, 1))
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
            mix_by_domain(images, targets, is_real, p, rng)
    for flags in (is_real[:3], is_real.long()):
        with pytest.raises(ValueError, match=r"is_real must be bool \(6,\)"):
            mix_by_domain(images, targets, flags, 1.0, rng)
    for mix in (lambda *pair: mixup(*pair, 0.5), lambda *pair: cutmix(*pair, (0, 0, 1, 1))):
        with pytest.raises(ValueError, match=r"images and targets must be .* with one B"):
            mix(images, targets[:3])
        with pytest.raises(ValueError, match="must be floating"):
            mix(images, targets.long())
        with pytest.raises(ValueError, match="must be floating"):
            mix((255 * images).byte(), targets)
        with pytest.raises(ValueError, match="at least one row"):
            mix(images[:0], targets[:0])
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\)"):
        cutmix(images[:, :1], targets, (0, 0, 1, 1))


# --- noise ---


def golden_alpha_bar():
    """Schedule of ``alpha_bar`` in closed form, checked at the golden steps."""
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    torch.testing.assert_close(alphas[golden("alphas_cumprod_at")].float(), golden("alphas_cumprod"), **SINGLE)
    return alphas.float()


def test_noise_matches_golden():
    alpha_bar = golden_alpha_bar()[golden("diff_t")]
    inputs = (golden("diff_x0"), golden("diff_noise"), alpha_bar)
    torch.testing.assert_close(add_noise(*inputs), golden("diff_noisy"), **SINGLE)
    torch.testing.assert_close(velocity(*inputs), golden("diff_velocity"), **SINGLE)
    for kind, name in (("epsilon", "epsilon"), ("v_prediction", "v")):
        loss = diffusion_loss(golden("diff_pred"), *inputs, kind=kind)
        assert loss.item() == pytest.approx(float(GOLDEN[f"diff_loss_{name}"]), rel=1e-3)


def test_guidance_and_step_match_golden():
    got = guided(golden("cfg_uncond"), golden("cfg_cond"), float(GOLDEN["cfg_scale"]))
    torch.testing.assert_close(got, golden("cfg_out"), **SINGLE)
    alpha_bar, step = golden_alpha_bar(), int(GOLDEN["ddim_t"])
    assert step in GOLDEN["ddim_timesteps"]
    assert GOLDEN["ddim_timesteps"].tolist() == [20 * place + 1 for place in reversed(range(50))]
    for shares in (
        (alpha_bar[step], alpha_bar[step - 20]),
        (alpha_bar[step].item(), alpha_bar[step - 20].item()),
    ):
        torch.testing.assert_close(
            ddim_step(golden("ddim_x"), golden("ddim_eps"), *shares), golden("ddim_out"), **SINGLE
        )


def make_diffusion(seed=0, batch=4):
    alpha_bar = torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return random_tensor(batch, 2, 3, seed=seed), random_tensor(batch, 2, 3, seed=seed + 1), alpha_bar


@given(seed=SEEDS)
@UNHURRIED
def test_noisy_and_velocity_are_a_rotation(seed):
    x0, noise, alpha_bar = make_diffusion(seed)
    noisy, speed = add_noise(x0, noise, alpha_bar), velocity(x0, noise, alpha_bar)
    torch.testing.assert_close(noisy**2 + speed**2, x0**2 + noise**2)
    weights = alpha_bar.view(-1, 1, 1)
    torch.testing.assert_close(weights.sqrt() * noisy - (1 - weights).sqrt() * speed, x0)
    torch.testing.assert_close(weights.sqrt() * speed + (1 - weights).sqrt() * noisy, noise)


def test_ends_of_the_noise():
    x0, noise, _ = make_diffusion()
    ones, zeros = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    assert torch.equal(add_noise(x0, noise, ones), x0)
    assert torch.equal(add_noise(x0, noise, zeros), noise)
    assert torch.equal(velocity(x0, noise, ones), noise)
    assert torch.equal(velocity(x0, noise, zeros), -x0)


@given(seed=SEEDS)
@UNHURRIED
def test_a_perfect_network_has_no_loss_and_steps_to_the_image(seed):
    x0, noise, alpha_bar = make_diffusion(seed)
    assert diffusion_loss(noise, x0, noise, alpha_bar, "epsilon") == 0
    assert diffusion_loss(velocity(x0, noise, alpha_bar), x0, noise, alpha_bar, "v_prediction") == 0
    assert diffusion_loss(noise + 2, x0, noise, alpha_bar, "epsilon").item() == pytest.approx(4)
    now, before = 0.3, 0.8
    noisy = add_noise(x0, noise, torch.full((4,), now, dtype=torch.float64))
    expected = add_noise(x0, noise, torch.full((4,), before, dtype=torch.float64))
    torch.testing.assert_close(ddim_step(noisy, noise, now, before), expected)
    torch.testing.assert_close(ddim_step(noisy, noise, now, 1.0), x0)
    torch.testing.assert_close(ddim_step(noisy, noise, now, now), noisy)


def test_guidance_by_hand():
    uncond, cond = torch.tensor([1.0]), torch.tensor([3.0])
    assert [guided(uncond, cond, scale).item() for scale in (0.0, 1.0, 2.0)] == [1.0, 3.0, 5.0]


def test_dtypes_come_back():
    for dtype in (torch.float32, torch.float64):
        x0, noise, alpha_bar = (part.to(dtype) for part in make_diffusion())
        assert add_noise(x0, noise, alpha_bar).dtype == dtype
        assert velocity(x0, noise, alpha_bar.float()).dtype == dtype
        assert ddim_step(x0, noise, 0.3, torch.tensor(0.8)).dtype == dtype
        assert diffusion_loss(x0, x0, noise, alpha_bar, "epsilon").dtype == dtype
    half = tuple(part.bfloat16() for part in make_diffusion())
    assert diffusion_loss(half[0], *half, kind="v_prediction").dtype == torch.float32


def test_gradients_of_noise():
    x0, noise, alpha_bar = make_diffusion()
    for kind in ("epsilon", "v_prediction"):
        assert gradcheck(
            lambda x, kind=kind: diffusion_loss(x, x0, noise, alpha_bar, kind),
            random_tensor(4, 2, 3, seed=5).requires_grad_(),
        )
    assert gradcheck(lambda x, e: ddim_step(x, e, 0.3, 0.8), (x0.requires_grad_(), noise.requires_grad_()))


def test_bad_noise_is_refused():
    x0, noise, alpha_bar = make_diffusion()
    with pytest.raises(ValueError, match="kind must be one of epsilon, v_prediction, got 'sample'"):
        diffusion_loss(x0, x0, noise, alpha_bar, "sample")
    with pytest.raises(ValueError, match=r"prediction must be \(4, 2, 3\) as x0 is, got \(2, 2, 3\)"):
        diffusion_loss(x0[:2], x0, noise, alpha_bar, "epsilon")
    for use in (add_noise, velocity, lambda *parts: diffusion_loss(x0, *parts, kind="epsilon")):
        with pytest.raises(ValueError, match=r"x0 and noise must both be \(B, ...\)"):
            use(x0, noise[:2], alpha_bar)
        with pytest.raises(ValueError, match=r"alpha_bar must be \(B,\) = \(4,\), got \(2,\)"):
            use(x0, noise, alpha_bar[:2])
        for wrong in (1.5, -0.1, math.nan):
            with pytest.raises(ValueError, match=r"alpha_bar must lie in \[0, 1\]"):
                use(x0, noise, torch.full((4,), wrong, dtype=torch.float64))
    with pytest.raises(ValueError, match="uncond and cond must agree"):
        guided(x0, noise[:2], 2.0)
    with pytest.raises(ValueError, match="x_t and eps must agree"):
        ddim_step(x0, noise[:2], 0.3, 0.8)
    with pytest.raises(ValueError, match=r"alpha_bar_t must lie in \(0, 1\], got 0.0"):
        ddim_step(x0, noise, 0.0, 0.8)
    with pytest.raises(ValueError, match=r"alpha_bar_prev must lie in \[0, 1\], got 1.5"):
        ddim_step(x0, noise, 0.3, 1.5)
    with pytest.raises(ValueError, match=r"alpha_bar_t and alpha_bar_prev must be \(\)"):
        ddim_step(x0, noise, alpha_bar, 0.8)
