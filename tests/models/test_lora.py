"""Low-rank adapters: values from loralib, peft and the reference's attention, values by hand, laws, refusals."""

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional

from tenfold.models.lora import LoRALinear, LoRAMultiheadAttention, LoRAQKV

GOLDEN = np.load(Path(__file__).parents[1] / "golden/datadream.npz")
UNHURRIED = settings(deadline=None, max_examples=25)  # a busy machine must not fail the tests
# Both sides are float64 but for the summation order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-12}
WIDTH, HEADS = 8, 2
CHOICES = [parts for parts in itertools.product([False, True], repeat=3) if any(parts)]


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def fill(module, seed=0):
    """Give the update a value, as it is initialised to 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def make_qkv(seed=0, *, rank=3, alpha=5.0, dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3 * WIDTH, WIDTH, generator=generator, dtype=dtype)
    bias = torch.randn(3 * WIDTH, generator=generator, dtype=dtype)
    return fill(LoRAQKV(weight, bias, rank, alpha, **options), seed)


def make_attention(seed=0, *, dtype=torch.float64, dropout=0.0, **options):
    torch.manual_seed(seed)
    plain = nn.MultiheadAttention(WIDTH, HEADS, dtype=dtype, **options)
    nn.init.normal_(plain.in_proj_weight)
    if plain.in_proj_bias is not None:
        nn.init.normal_(plain.in_proj_bias)
    adapted = LoRAMultiheadAttention.from_torch(plain, 3, 5.0, dropout)
    return plain, adapted


def random_input(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trainable(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


# --- values from outside ---


def test_linear_matches_peft():
    base = nn.Linear(6, 4, dtype=torch.float64)
    rank, alpha = GOLDEN["lin_rank_alpha"].tolist()
    layer = LoRALinear(base, rank, alpha)
    with torch.no_grad():
        for parameter, name in (
            (base.weight, "weight"),
            (base.bias, "bias"),
            (layer.lora_A, "lora_a"),
            (layer.lora_B, "lora_b"),
        ):
            parameter.copy_(golden(f"lin_{name}"))
    torch.testing.assert_close(layer(golden("lin_x")), golden("lin_out"), **TOLERANCE)
    merged = functional.linear(golden("lin_x"), base.weight + layer.delta_weight(), base.bias)
    torch.testing.assert_close(merged, golden("lin_out"), **TOLERANCE)


def test_packed_projection_matches_loralib():
    rank, alpha = GOLDEN["qkv_rank_alpha"].tolist()
    layer = LoRAQKV(golden("qkv_weight"), golden("qkv_bias"), rank, alpha)
    with torch.no_grad():
        layer.lora_A.copy_(golden("qkv_lora_a"))
        layer.lora_B.copy_(golden("qkv_lora_b"))
    torch.testing.assert_close(layer(golden("qkv_x")), golden("qkv_out"), **TOLERANCE)
    torch.testing.assert_close(layer.delta_weight(), golden("qkv_delta"), **TOLERANCE)


@pytest.mark.parametrize("case", ["nomask", "causal"])
def test_attention_matches_the_reference(case):
    heads, rank, alpha = GOLDEN["mha_heads_rank_alpha"].tolist()
    parts = {
        name: golden(f"mha_{case}_{name}")
        for name in ("x", "in_weight", "in_bias", "lora_a", "lora_b", "out_weight", "out_bias", "out")
    }
    plain = nn.MultiheadAttention(WIDTH, heads, dtype=torch.float64)
    with torch.no_grad():
        plain.in_proj_weight.copy_(parts["in_weight"])
        plain.in_proj_bias.copy_(parts["in_bias"])
        plain.out_proj.weight.copy_(parts["out_weight"])
        plain.out_proj.bias.copy_(parts["out_bias"])
    layer = LoRAMultiheadAttention.from_torch(plain, rank, alpha)
    with torch.no_grad():
        layer.qkv.lora_A.copy_(parts["lora_a"])
        layer.qkv.lora_B.copy_(parts["lora_b"])
    length = len(parts["x"])
    mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1) if case == "causal" else None
    torch.testing.assert_close(layer(parts["x"], mask), parts["out"], **TOLERANCE)
    if case == "causal":
        torch.testing.assert_close(
            layer.attend(parts["x"], batch_first=False, is_causal=True), parts["out"], **TOLERANCE
        )


# --- values by hand ---


def test_linear_by_hand():
    base = nn.Linear(2, 1)
    layer = LoRALinear(base, rank=1, alpha=3)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[1.0, 2.0]]))
        base.bias.copy_(torch.tensor([10.0]))
        layer.lora_A.copy_(torch.tensor([[1.0, -1.0]]))
        layer.lora_B.copy_(torch.tensor([[2.0]]))
    # 1*1 + 2*1 + 10, plus 3 * 2 * (1 - 1); then 1*1 + 10, plus 3 * 2 * 1.
    assert layer(torch.tensor([[1.0, 1.0], [1.0, 0.0]])).tolist() == [[13.0], [17.0]]
    assert layer.delta_weight().tolist() == [[6.0, -6.0]]


def test_trainable_parameters_of_clip_vit_b_16():
    vision = LoRAQKV(torch.zeros(3 * 768, 768), torch.zeros(3 * 768), 16, 32)
    text = LoRAQKV(torch.zeros(3 * 512, 512), torch.zeros(3 * 512), 16, 32)
    count = sum(part.numel() for layer in (vision, text) for part in layer.parameters() if part.requires_grad)
    assert 12 * count == 983_040  # the number that the specification computes


# --- laws ---


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_linear_starts_as_its_base(init):
    base = nn.Linear(5, 7)
    x = random_input(3, 5, dtype=torch.float32)
    assert torch.equal(LoRALinear(base, 4, 8, init)(x), base(x))


def test_starting_values():
    torch.manual_seed(0)
    gaussian = LoRALinear(nn.Linear(4096, 2), 8, 1).lora_A
    assert gaussian.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert abs(gaussian.mean().item()) < 0.002
    bound = 1 / math.sqrt(4096)
    for uniform in (
        LoRALinear(nn.Linear(4096, 2), 8, 1, "kaiming").lora_A,
        LoRAQKV(torch.zeros(3 * 256, 256), None, 8, 1).lora_A * 256**0.5 * bound,
    ):
        assert uniform.abs().max().item() <= bound
        assert uniform.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["none", "added", "boolean", "per_head"])
def test_attention_starts_as_pytorchs(kind, bias, batch_first):
    plain, adapted = make_attention(bias=bias)
    x = random_input(5, 3, WIDTH)
    mask = {
        "none": None,
        "added": torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1),
        "boolean": torch.ones(5, 5, dtype=torch.bool).triu(1),
        "per_head": random_input(3 * HEADS, 5, 5, seed=1),
    }[kind]
    expected = plain(x, x, x, need_weights=False, attn_mask=mask)[0]
    swapped = x.transpose(0, 1)
    got = adapted.attend(swapped, mask, batch_first=True).transpose(0, 1) if batch_first else adapted(x, mask)
    torch.testing.assert_close(got, expected)


@given(
    seed=st.integers(0, 999),
    adapt=st.sampled_from([part for part in itertools.product([False, True], repeat=3) if any(part)]),
)
@UNHURRIED
def test_parts_that_are_not_adapted_stay_exactly_as_they_were(seed, adapt):
    layer = make_qkv(seed, adapt=adapt)
    x = random_input(4, WIDTH, seed=seed)
    base = functional.linear(x, layer.weight, layer.bias)
    blocks = zip(adapt, layer(x).chunk(3, -1), base.chunk(3, -1), layer.delta_weight().chunk(3), strict=True)
    for adapted, output, unadapted, delta in blocks:
        assert torch.equal(output, unadapted) != adapted
        assert (delta == 0).all().item() != adapted
    assert layer.lora_A.shape == (sum(adapt) * 3, WIDTH)
    assert layer.lora_B.shape == (sum(adapt) * WIDTH, 3)


@given(seed=st.integers(0, 999))
@UNHURRIED
def test_k_gets_no_gradient_and_the_blocks_do_not_mix(seed):
    layer = make_qkv(seed)
    _, keys, values = layer(random_input(4, WIDTH, seed=seed)).chunk(3, -1)
    assert torch.autograd.grad(keys.sum(), layer.lora_A, retain_graph=True)[0].count_nonzero() == 0
    rows = torch.autograd.grad(values.sum(), layer.lora_A)[0]
    assert rows[:3].count_nonzero() == 0  # those of q
    assert rows[3:].count_nonzero() > 0


@given(seed=st.integers(0, 999), rank=st.integers(1, 9), alpha=st.floats(0.1, 64))
@UNHURRIED
def test_the_update_is_linear_in_its_weights_and_merging_changes_nothing(seed, rank, alpha):
    layer = make_qkv(seed, rank=rank, alpha=alpha)
    x = random_input(4, WIDTH, seed=seed)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight + layer.delta_weight(), layer.bias))
    linear = fill(LoRALinear(nn.Linear(WIDTH, 5, dtype=torch.float64), rank, alpha), seed)
    torch.testing.assert_close(linear(x) - linear.base(x), functional.linear(x, linear.delta_weight()))


@pytest.mark.parametrize("bias", [True, False])
def test_merged_state_makes_a_plain_attention_equal(bias):
    plain, adapted = make_attention(bias=bias)
    before = copy.deepcopy(plain.state_dict())
    fill(adapted)
    x = random_input(5, 3, WIDTH)
    merged = nn.MultiheadAttention(WIDTH, HEADS, bias=bias, dtype=torch.float64)
    merged.load_state_dict(adapted.merged_state())
    torch.testing.assert_close(merged(x, x, x, need_weights=False)[0], adapted(x))
    assert not torch.allclose(adapted(x), plain(x, x, x)[0])
    with torch.no_grad():  # the copy is a copy
        for tensor in adapted.merged_state().values():
            tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())


def test_only_the_update_trains_and_the_base_never_changes():
    plain, attention = make_attention()
    base = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    model = nn.Sequential(LoRALinear(base, 2, 4), attention)
    assert trainable(model) == {"0.lora_A", "0.lora_B", "1.qkv.lora_A", "1.qkv.lora_B"}
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for mode in (True, False, True, False):
        model.train(mode)
        model(random_input(5, 3, WIDTH)).square().sum().backward()
        optimizer.step()
        attention.merged_state(), attention.delta_weight(), model[0].delta_weight()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trainable(model)
    assert plain.in_proj_weight.requires_grad  # the adapted layer is unchanged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_update_has_the_dtype_of_the_base(dtype):
    _, attention = make_attention(dtype=dtype)
    for module in (LoRALinear(nn.Linear(3, 4, dtype=dtype), 2, 4), make_qkv(dtype=dtype), attention):
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}


def test_dropout_thins_the_update_only_and_only_in_training():
    layer = fill(LoRALinear(nn.Linear(6, 6, dtype=torch.float64), 6, 6, dropout=0.5))
    x = random_input(1, 6)
    still = layer.eval()(x)
    assert torch.equal(layer(x), still)
    torch.manual_seed(0)
    updates = torch.stack([layer.train()(x) - layer.base(x) for _ in range(4000)])
    assert len({tuple(row.flatten().tolist()) for row in updates.round(decimals=9)}) <= 2**6  # masks of 6 entries
    # Its expectation is the update itself: within four standard errors.
    error = updates.std(0) / math.sqrt(len(updates))
    assert ((updates.mean(0) - (still - layer.base(x))).abs() < 4 * error).all()


def test_q_and_v_share_one_dropout_mask():
    layer = make_qkv(dropout=0.5).train()
    with torch.no_grad():  # same update for q and v: with one mask they must agree
        layer.lora_A[3:].copy_(layer.lora_A[:3])
        layer.lora_B[WIDTH:].copy_(layer.lora_B[:WIDTH])
    torch.manual_seed(0)
    x = random_input(50, WIDTH)
    update = layer(x) - functional.linear(x, layer.weight, layer.bias)
    query, key, value = update.chunk(3, -1)
    torch.testing.assert_close(query, value, rtol=0, atol=1e-12)
    assert (key == 0).all()
    assert not torch.allclose(query, functional.linear(x, layer.delta_weight()[:WIDTH]))  # something was dropped


def test_state_of_a_trained_layer_loads_into_a_new_one():
    _, trained = make_attention(0)
    _, other = make_attention(1)
    fill(trained)
    other.load_state_dict(trained.state_dict())
    x = random_input(5, 3, WIDTH)
    assert torch.equal(trained(x), other(x))


# --- gradients ---


def test_gradients():
    _, attention = make_attention()
    linear = fill(LoRALinear(nn.Linear(WIDTH, 3, dtype=torch.float64), 2, 4))
    for module, x in ((linear, random_input(2, WIDTH)), (fill(attention), random_input(3, 2, WIDTH))):
        names = sorted(trainable(module))
        values = [module.get_parameter(name).detach().clone().requires_grad_() for name in names]

        def output(x, *values, module=module, names=names):
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

        assert gradcheck(output, (x.requires_grad_(), *values))


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be positive, got 0"),
        ({"alpha": math.nan}, "alpha must be positive, got nan"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_everywhere(change, message):
    options = {"rank": 2, "alpha": 4.0} | change
    with pytest.raises(ValueError, match=message):
        LoRALinear(nn.Linear(4, 4), **options)
    with pytest.raises(ValueError, match=message):
        LoRAQKV(torch.zeros(12, 4), torch.zeros(12), **options)
    with pytest.raises(ValueError, match=message):
        LoRAMultiheadAttention.from_torch(nn.MultiheadAttention(4, 2), **options)


def test_unknown_init_is_refused():
    with pytest.raises(ValueError, match="init must be 'gaussian' or 'kaiming', got 'uniform'"):
        LoRALinear(nn.Linear(4, 4), 2, 4, "uniform")


def test_wrong_projections_are_refused():
    with pytest.raises(ValueError, match=r"weight must be \(3E, E\).*got \(8, 4\)"):
        LoRAQKV(torch.zeros(8, 4), torch.zeros(8), 2, 4)
    with pytest.raises(ValueError, match=r"weight must be \(3E, E\)"):
        LoRAQKV(torch.zeros(12), torch.zeros(12), 2, 4)
    with pytest.raises(ValueError, match=r"bias must be \(3E,\) = \(12,\), got \(4,\)"):
        LoRAQKV(torch.zeros(12, 4), torch.zeros(4), 2, 4)
    for adapt in ((False, False, False), (True, True)):
        with pytest.raises(ValueError, match="adapt must be three flags for q, k and v, at least one of them true"):
            LoRAQKV(torch.zeros(12, 4), torch.zeros(12), 2, 4, adapt=adapt)
    with pytest.raises(ValueError, match="output projection must be"):
        LoRAMultiheadAttention(torch.zeros(12, 4), None, torch.zeros(3, 4), None, 2, 2, 4)


def test_attentions_that_do_not_match_are_refused():
    for heads in (3, 0):
        with pytest.raises(ValueError, match=f"num_heads must divide the width 4, got {heads}"):
            LoRAMultiheadAttention(torch.zeros(12, 4), torch.zeros(12), torch.zeros(4, 4), torch.zeros(4), heads, 2, 4)
    with pytest.raises(ValueError, match="kdim and vdim must equal embed_dim 8"):
        LoRAMultiheadAttention.from_torch(nn.MultiheadAttention(8, 2, kdim=4), 2, 4)
    with pytest.raises(ValueError, match="add_bias_kv"):
        LoRAMultiheadAttention.from_torch(nn.MultiheadAttention(8, 2, add_bias_kv=True), 2, 4)
    with pytest.raises(ValueError, match="add_zero_attn"):
        LoRAMultiheadAttention.from_torch(nn.MultiheadAttention(8, 2, add_zero_attn=True), 2, 4)


def test_inputs_that_do_not_match_are_refused():
    _, attention = make_attention()
    with pytest.raises(ValueError, match=r"x must have three axes and width 8, got \(5, 3, 4\)"):
        attention(torch.zeros(5, 3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"attn_mask must be .* = \(5, 5\).*got \(4, 5\)"):
        attention(random_input(5, 3, WIDTH), torch.zeros(4, 5))
