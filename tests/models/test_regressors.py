"""Regressors with mean and log-variance: published values, sizes, invariances, refusals."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call, stack_module_state

from tenfold.models.regressors.base import Regressor
from tenfold.models.regressors.build import RegressorConfig, build_regressor
from tenfold.models.regressors.egnn import EGNN, EgnnRegressor
from tenfold.models.regressors.mlp import MlpRegressor
from tenfold.models.regressors.super_resolution import SmallSuperResolver, SuperResolver
from tenfold.models.regressors.unet import ResidualBlock, UNetRegressor
from tenfold.tasks import Slot

GOLDEN = np.load(Path(__file__).parents[1] / "golden/posterior_annealing.npz")
SMALL = {
    "mlp": {},
    "cnn1d": {"widths": (4, 4)},
    "cnn2d_sr": {"widths": (4,), "depth": 2, "upscale": 2},
    "cnn2d_sr_small": {"widths": (4,), "upscale": 2},
    "unet2d": {"widths": (4, 6, 6), "depth": 2},
    "egnn": {"widths": (6,), "depth": 2},
}
SHAPES = {"mlp": (3,), "cnn1d": (3, -1), "cnn2d_sr": (3, -1, -1), "cnn2d_sr_small": (3, -1, -1), "unet2d": (3, -1, -1)}
EXAMPLES = {"mlp": (3,), "cnn1d": (3, 9), "cnn2d_sr": (3, 4, 6), "cnn2d_sr_small": (3, 4, 6), "unet2d": (3, 8, 4)}
MOLECULES = (
    Slot(name="features", dtype="float32", shape=(-1, 5)),
    Slot(name="positions", dtype="float32", shape=(-1, 3)),
    Slot(name="n_atoms", dtype="int64", shape=()),
)


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def golden_state(prefix):
    return {name.removeprefix(prefix): golden(name) for name in GOLDEN.files if name.startswith(prefix)}


def schemas(name):
    return MOLECULES if name == "egnn" else (Slot(name="input", dtype="float32", shape=SHAPES[name]),)


def build(name, num_targets=3, **changes):
    torch.manual_seed(0)
    return build_regressor(RegressorConfig(name=name, **{**SMALL[name], **changes}), schemas(name), num_targets)


def example(name, batch=2):
    generator = torch.Generator().manual_seed(1)
    if name != "egnn":
        return (torch.randn(batch, *EXAMPLES[name], generator=generator),)
    features, positions = (torch.randn(batch, 4, size, generator=generator) for size in (5, 3))
    return features, positions, torch.tensor([4, 2, 3, 1][:batch])


def test_egnn_matches_golden():
    state = golden_state("egnn.param.")
    attention = any("att_mlp" in name for name in state)
    network = EGNN(6, width=5, n_layers=2, attention=attention, n_outputs=1).double()
    network.load_state_dict(state)
    output = network(golden("egnn.features"), golden("egnn.positions"), golden("egnn.n_atoms"))
    torch.testing.assert_close(output[:, 0], golden("egnn.output"), rtol=1e-9, atol=1e-9)


def test_residual_block_matches_golden():
    block = ResidualBlock(2, 3).double()
    missing = block.load_state_dict(golden_state("resconv.param."), strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)
    torch.testing.assert_close(block.eval()(golden("resconv.x")), golden("resconv.y"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_stages", [1, 2])
def test_unet_has_the_published_size(num_stages):
    with torch.device("meta"):
        network = UNetRegressor(1, 1, num_stages=num_stages)
    heads = 64 * 1 + 1 + 64 * 128 + 128 + 128 + 1
    trunk = 32_992_578 - heads
    extra = (num_stages - 1) * (trunk + 65)
    assert sum(parameter.numel() for parameter in network.parameters()) == 32_992_578 + extra


def test_super_resolver_is_srgans_generator_with_two_heads():
    with torch.device("meta"):
        network = SuperResolver(3, 3)
    body = 3 * 64 * 81 + 64 + 1 + 16 * (2 * 64 * 64 * 9 + 4 * 64 + 1) + 64 * 64 * 9 + 2 * 64
    enlarging = 2 * (64 * 256 * 9 + 256 + 1)
    heads = 64 * 3 * 81 + 3 + 2 * (64 * 64 * 81 + 64 + 1) + 64 * 81 + 1
    assert sum(parameter.numel() for parameter in network.parameters()) == body + enlarging + heads


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_limits(name):
    network = build(name).eval()
    inputs = example(name)
    with torch.no_grad():
        mean, log_variance = network(*inputs)
        scale = 2 if "sr" in name else 1
        space = () if name in ("mlp", "egnn") else tuple(scale * length for length in inputs[0].shape[2:])
        assert mean.shape == (2, 3, *space)
        one_for_all = name in ("cnn2d_sr", "unet2d")
        assert log_variance.shape == (2, 1 if one_for_all else 3, *space)
        torch.testing.assert_close(log_variance.expand_as(mean).shape, mean.shape)
        for limit in (10.0, 0.5):
            network = build(name, log_variance_limit=limit).eval()
            for sign in (1, -1):
                head = getattr(network, "log_variance_head", None)
                last = network.network.graph_dec[2] if head is None else head[-1] if len([*head.children()]) else head
                last.bias.fill_(1e4 * sign)
                assert bool((network(*inputs)[1] == sign * limit).all())


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    network = build(name)
    mean, log_variance = network(*example(name))
    (mean.square().mean() + (log_variance - 1).square().mean()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_the_same_weights_answer_the_same_and_dropout_adds_none(name):
    network, dropout_network = build(name).eval(), build(name, dropout=0.4)
    dropout_network.load_state_dict(network.state_dict())
    inputs = example(name)
    torch.testing.assert_close(dropout_network.eval()(*inputs), network(*inputs))
    for module in dropout_network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    assert not torch.equal(dropout_network(*inputs)[0], dropout_network(*inputs)[0])


@pytest.mark.parametrize("name", SMALL)
def test_members_can_be_vectorised(name):
    members = [build(name).eval() for _ in range(3)]
    for number, member in enumerate(members):
        torch.nn.utils.vector_to_parameters(
            (1 + 0.1 * number) * torch.nn.utils.parameters_to_vector(member.parameters()), member.parameters()
        )
    inputs = example(name)
    skeleton = copy.deepcopy(members[0]).to("meta")
    with torch.no_grad():
        parameters, buffers = stack_module_state(members)
        means, log_variances = torch.vmap(lambda *state: functional_call(skeleton, state, inputs))(parameters, buffers)
        for number, member in enumerate(members):
            torch.testing.assert_close((means[number], log_variances[number]), member(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "egnn"])
def test_input_statistics_travel_with_the_weights(name):
    network = build(name).eval()
    (inputs,) = example(name)
    plain = network(inputs)
    mean, std = torch.tensor([3.0, -1.0, 20.0]), torch.tensor([2.0, 0.1, 8.0])
    network.standardise_inputs(mean, std)
    channels = (1, 3, *(1,) * (inputs.ndim - 2))
    raw = inputs * std.view(channels) + mean.view(channels)
    torch.testing.assert_close(network(raw), plain, rtol=1e-3, atol=1e-4)
    loaded = build(name).eval()
    loaded.load_state_dict(network.state_dict())
    torch.testing.assert_close(loaded(raw), network(raw))


def test_log_variances_start_around_zero():
    for name in ("mlp", "cnn1d", "cnn2d_sr_small"):
        assert build(name).log_variance_head.bias.tolist() == [0, 0, 0]
    assert build("unet2d").log_variance_head[-1].bias.item() == 0
    assert build("egnn").network.graph_dec[2].bias[3:].tolist() == [0, 0, 0]


def test_small_super_resolver_starts_as_bicubic_upsampling():
    network = SmallSuperResolver(1, upscale=2, widths=(2,))
    torch.nn.init.zeros_(network.mean_head.weight)
    torch.nn.init.zeros_(network.mean_head.bias)
    image = torch.rand(1, 1, 5, 4)
    upsampled = torch.nn.functional.interpolate(image, (10, 8), mode="bicubic")
    torch.testing.assert_close(network(image)[0], upsampled)


def test_a_cascade_adds_its_input_to_each_answer():
    torch.manual_seed(0)
    network = UNetRegressor(1, 1, widths=(2, 2), num_stages=2).eval()
    image = torch.randn(1, 1, 4, 4)
    first = network.mean_heads[0](network.trunks[0](image))
    features = network.trunks[1](first + image)
    torch.testing.assert_close(network(image), (network.mean_heads[1](features), network.log_variance_head(features)))


def test_first_layer_of_the_mlp_can_start_wide():
    torch.manual_seed(0)
    network = MlpRegressor(1, 1, first_layer_range=8.0)
    for parameter in network.layers[0].parameters():
        assert 4 < parameter.abs().max() <= 8
    assert network.layers[1].weight.abs().max() < 1


def rotation():
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64)
    turn[0, 0] = turn[1, 1] = angle.cos()
    turn[0, 1], turn[1, 0] = -angle.sin(), angle.sin()
    return turn


@pytest.mark.parametrize("attention", [True, False])
def test_egnn_is_invariant_to_position_rotation_order_and_padding(attention):
    torch.manual_seed(0)
    network = EGNN(5, width=6, n_layers=2, attention=attention, n_outputs=2).double()
    assert any("att_mlp" in name for name in network.state_dict()) == attention
    features, positions = torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    n_atoms = torch.tensor([4, 3])
    answer = network(features, positions, n_atoms)
    torch.testing.assert_close(network(features, positions @ rotation() + 5, n_atoms), answer)
    torch.testing.assert_close(network(features, -positions, n_atoms), answer)
    order = [2, 0, 1, 3]
    torch.testing.assert_close(network(features[:, order], positions[:, order], n_atoms), answer)
    wider = [torch.cat([each, torch.full_like(each[:, :2], math.nan)], dim=1) for each in (features, positions)]
    torch.testing.assert_close(network(*wider, n_atoms), answer)
    alone = network(features[1:, :3], positions[1:, :3], n_atoms[1:])
    torch.testing.assert_close(alone, answer[1:])
    assert not torch.allclose(network(features, 1.1 * positions, n_atoms), answer)


def test_egnn_of_one_atom_receives_no_message():
    network = EGNN(2, width=3, n_layers=1, n_outputs=1)
    features = torch.randn(1, 1, 2)
    near, far = (network(features, torch.full((1, 1, 3), place), torch.tensor([1])) for place in (0.0, 9.0))
    torch.testing.assert_close(near, far)


@pytest.mark.parametrize(
    ("features", "positions", "n_atoms", "message"),
    [
        ((2, 4, 6), (2, 4, 3), torch.tensor([4, 4]), "must be (B, N, 5), (B, N, 3) and (B,), got (2, 4, 6)"),
        ((2, 4, 5), (2, 3, 3), torch.tensor([4, 4]), "must be (B, N, 5), (B, N, 3) and (B,)"),
        ((2, 4, 5), (2, 4, 3), torch.tensor([4]), "must be (B, N, 5), (B, N, 3) and (B,)"),
        ((2, 4, 5), (2, 4, 3), torch.tensor([4, 5]), "n_atoms must lie in 1..4, got 4 to 5"),
        ((2, 4, 5), (2, 4, 3), torch.tensor([0, 4]), "n_atoms must lie in 1..4, got 0 to 4"),
        ((2, 4, 5), (2, 4, 3), torch.tensor([1.0, 4.0]), "n_atoms must be integers, got torch.float32"),
    ],
)
def test_egnn_refuses(features, positions, n_atoms, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EGNN(5, width=3, n_layers=1)(torch.zeros(features), torch.zeros(positions), n_atoms)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet"}, "name must be one of mlp, cnn1d, cnn2d_sr, cnn2d_sr_small, unet2d, egnn, got 'resnet'"),
        ({"widths": ()}, "widths must be at least one number"),
        ({"widths": (4, 0)}, "each at least 1"),
        ({"name": "egnn", "widths": (4, 4)}, "widths must be one number for egnn"),
        ({"name": "unet2d", "widths": (4,)}, "widths must be at least two for unet2d"),
        ({"depth": 3}, "depth must be at least 1, and null for mlp"),
        ({"name": "egnn", "depth": 0}, "depth must be at least 1"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"name": "cnn2d_sr", "upscale": 3}, "a power of two for cnn2d_sr, got 3"),
        ({"first_layer_range": 0.0}, "first_layer_range must be positive"),
        ({"log_variance_limit": -1.0}, "log_variance_limit must be positive"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RegressorConfig(**settings)


@pytest.mark.parametrize("name", SMALL)
def test_inputs_of_another_network_are_refused(name):
    other = "mlp" if name == "egnn" else "egnn"
    with pytest.raises(ValueError, match=f"{name} takes"):
        build_regressor(RegressorConfig(name=name, **SMALL[name]), schemas(other), 1)
    with pytest.raises(ValueError, match="num_targets must be at least 1, got 0"):
        build(name, num_targets=0)


def test_channels_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="use cnn2d_sr"):
        build("cnn2d_sr_small", num_targets=1)
    with pytest.raises(ValueError, match="set num_stages=1"):
        build("unet2d", num_targets=1)
    with pytest.raises(ValueError, match=re.escape("multiples of 4, got (1, 3, 6, 8)")):
        build("unet2d")(torch.zeros(1, 3, 6, 8))
    with pytest.raises(ValueError, match=re.escape("input must be (B, 3, ...), got (1, 2, 8)")):
        build("cnn1d")(torch.zeros(1, 2, 8))
    for statistics in ((torch.zeros(2), torch.ones(3)), (torch.zeros(3), torch.tensor([1.0, math.nan, 1.0]))):
        with pytest.raises(ValueError, match="finite numbers, one per channel"):
            build("cnn1d").standardise_inputs(*statistics)
    with pytest.raises(ValueError, match="use 1 for constant channels"):
        build("cnn1d").standardise_inputs(torch.zeros(3), torch.zeros(3))
    assert issubclass(MlpRegressor, Regressor)
    assert not issubclass(EgnnRegressor, Regressor)
