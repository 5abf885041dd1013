"""Gradient uncertainty: golden values, invariances, the fast path against loops, rejected inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import tenfold.methods.gradient_uncertainty as room
from tenfold.methods.gradient_uncertainty import ghost_norms
from tenfold.methods.gradient_uncertainty.ghost_norms import BatchGradients
from tenfold.methods.gradient_uncertainty.per_example import per_example_gradients
from tenfold.methods.gradient_uncertainty.uncertainty import gradient_uncertainty
from tenfold.models.digit_cnn import DigitCNN
from tests.methods.gradient_uncertainty_golden import META, assert_matches, golden, golden_network

SEEDS = st.integers(0, 2**32 - 1)
CASES = ("random", "biased", "identical", "orthogonal", "cancelling", "single")


def make_grads(seed, batch, size=6, *, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(batch, size, generator=generator, dtype=torch.float64)


def flatten_examples(grads):
    """``(B, P)``: the gradients of all parameters, concatenated."""
    return torch.cat([value.flatten(1) for value in grads.values()], dim=1)


def loop_gradients(network, loss_fn, inputs, targets):
    """Return reference gradients from one backward pass per example."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    rows = [
        torch.autograd.grad(loss_fn(network(inputs[[i]]), targets[[i]]), parameters, allow_unused=True)
        for i in range(len(inputs))
    ]
    return {
        name: torch.stack([torch.zeros_like(p) if row[k] is None else row[k] for row in rows])
        for k, (name, p) in enumerate(zip(names, parameters, strict=True))
    }


@pytest.mark.parametrize("case", CASES)
def test_uncertainty_matches_golden(case):
    result = gradient_uncertainty(golden(f"gu.{case}.grads"))
    denominator = float(golden(f"gu.{case}.denominator"))
    assert float(result.value) == pytest.approx(float(golden(f"gu.{case}.uncertainty")), abs=1e-9)
    assert float(result.numerator) == pytest.approx(float(golden(f"gu.{case}.numerator")), abs=1e-9 * denominator)
    assert float(result.denominator) == pytest.approx(denominator, rel=1e-9)


def test_network_and_its_gradients_match_golden():
    network = golden_network()
    assert [name for name, _ in network.named_parameters()] == META["param_names"]
    assert_matches(network(golden("cnn.x")), "cnn.logits")
    grads = per_example_gradients(network, functional.cross_entropy, golden("cnn.x"), golden("cnn.y"), chunk_size=2)
    assert list(grads) == META["param_names"]
    assert_matches(flatten_examples(grads), "cnn.per_example_grads")
    assert_matches(gradient_uncertainty(grads).value, "cnn.uncertainty")
    fast = BatchGradients(network)(golden("cnn.x"), golden("cnn.y"))
    assert_matches(fast.uncertainty.value, "cnn.uncertainty")
    mean = torch.cat([value.flatten() for value in fast.mean.values()])
    torch.testing.assert_close(mean, golden("cnn.per_example_grads").mean(0), rtol=1e-9, atol=1e-12)


def test_two_examples_by_hand():
    # |(1, 0) + (1, 2)|^2 = 8 over 1 + 5
    result = gradient_uncertainty(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    assert [float(part) for part in result] == pytest.approx([-1 / 3, 2.0, 6.0])


@settings(max_examples=25)
@given(seed=SEEDS, batch=st.integers(1, 9), mean=st.floats(-3, 3))
def test_bounds_and_signal_to_noise(seed, batch, mean):
    grads = make_grads(seed, batch, mean=mean)
    value = float(gradient_uncertainty(grads).value)
    assert 1 - batch <= value <= 1
    signal = float(grads.mean(0).square().sum())
    noise = float((grads - grads.mean(0)).square().sum() / batch)
    assert value == pytest.approx((noise - (batch - 1) * signal) / (noise + signal), abs=1e-9)
    diversity = float(grads.square().sum() / grads.sum(0).square().sum())
    assert value == pytest.approx(1 - 1 / diversity, rel=1e-9, abs=1e-9)


@settings(max_examples=25)
@given(seed=SEEDS, batch=st.integers(1, 8), exponent=st.integers(-200, 200))
def test_a_common_factor_and_a_rotation_change_nothing(seed, batch, exponent):
    grads = make_grads(seed, batch, mean=0.3)
    value = gradient_uncertainty(grads).value
    rotation = torch.linalg.qr(make_grads(seed + 1, 6)).Q
    torch.testing.assert_close(gradient_uncertainty(grads @ rotation).value, value, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient_uncertainty(grads * 10.0**exponent).value, value, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient_uncertainty(-grads).value, value, rtol=0, atol=0)


@settings(max_examples=25)
@given(seed=SEEDS, batch=st.integers(2, 8))
def test_extremes(seed, batch):
    one = make_grads(seed, 1)
    assert float(gradient_uncertainty(one.expand(batch, 6)).value) == pytest.approx(1 - batch, abs=1e-12 * batch)
    assert float(gradient_uncertainty(one).value) == pytest.approx(0, abs=1e-12)
    grads = make_grads(seed, batch)
    cancelling = torch.cat([grads, -grads.sum(0, keepdim=True)])
    assert float(gradient_uncertainty(cancelling).value) == pytest.approx(1, abs=1e-12)
    orthogonal = torch.diag(grads[:, 0])
    assert float(gradient_uncertainty(orthogonal).value) == pytest.approx(0, abs=1e-12)


def test_zero_gradients_have_no_uncertainty_even_in_float32():
    result = gradient_uncertainty({"a": torch.zeros(4, 3), "b": torch.zeros(4, 2, 2)})
    assert [float(part) for part in result] == [0, 0, 0]
    tiny = torch.full((4, 3), 1e-30)  # squares vanish in float32
    assert float(gradient_uncertainty(tiny).value) == pytest.approx(-3)


def test_at_a_stationary_point_it_is_zero_on_average():
    """E|sum g|^2 = E sum |g|^2 for independent zero-mean gradients."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(1000, 20, 50, generator=generator, dtype=torch.float64)
    numerators = torch.stack([gradient_uncertainty(grads).numerator for grads in draws])
    assert abs(float(numerators.mean())) < 4 * float(numerators.std()) / len(draws) ** 0.5


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        (torch.zeros(0, 3), r"B of at least 1, got \[\(0, 3\)\]"),
        (torch.tensor(1.0), r"B of at least 1, got \[\(\)\]"),
        ({}, "at least one tensor"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)}, r"one B of at least 1, got \[\(2, 3\), \(3, 3\)\]"),
        (torch.tensor([[1.0, float("nan")]]), "finite"),
        (torch.tensor([[1.0], [float("inf")]]), "finite"),
    ],
)
def test_rejected_gradients(grads, message):
    with pytest.raises(ValueError, match=message):
        gradient_uncertainty(grads)


class TwoUses(nn.Module):
    """A network with a layer that is called twice and a weight that is also used outside its layer."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.outside = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, inputs):
        features = self.twice(self.twice(inputs).tanh()) * self.scale
        return self.outside(features) + functional.linear(features, self.outside.weight)


class Sequences(nn.Module):
    """A network with linear layers over positions, layer normalisation and tied weights."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(3, 11)
        self.norm = nn.LayerNorm(11)
        self.narrow = nn.Linear(11, 4, bias=False)
        self.tied = nn.Linear(11, 4, bias=False)
        self.tied.weight = self.narrow.weight
        self.head = nn.Linear(4, 6)
        self.head.weight.requires_grad_(False)

    def forward(self, inputs):
        features = self.norm(self.wide(inputs.unflatten(1, (2, 3))).relu())
        return self.head((self.narrow(features) + self.tied(features)).mean(1))


class Convolutions(nn.Sequential):
    """A network with groups, strides, dilation, in-place activations, group normalisation and all kinds of padding."""

    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, 3, 2)),
            nn.Upsample(scale_factor=4),
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, (3, 1), stride=2, groups=2, bias=False),
            nn.ReLU(inplace=True),
            nn.GroupNorm(2, 6),
            nn.Conv2d(6, 4, 3, dilation=2, padding="same"),
            nn.SiLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
            nn.Flatten(),
            nn.LazyLinear(6),
        )
        self(torch.zeros(1, 6))


NETWORKS = {"twice": TwoUses, "sequences": Sequences, "convolutions": Convolutions}


def example_batch(num=5):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num, 6, generator=generator, dtype=torch.float64), torch.arange(num) % 6


def smooth_loss(outputs, targets):
    return functional.cross_entropy(outputs, targets, label_smoothing=0.1) + outputs.square().mean()


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 2**20])
@pytest.mark.parametrize("loss_fn", [functional.cross_entropy, smooth_loss])
@pytest.mark.parametrize("name", NETWORKS)
def test_fast_path_equals_the_vectorised_one_and_the_loop(name, loss_fn, chunk_bytes, monkeypatch):
    monkeypatch.setattr(ghost_norms, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    inputs, targets = example_batch()
    trained = [key for key, value in network.named_parameters() if value.requires_grad]
    for value in network.parameters():
        value.requires_grad_()
    expected = loop_gradients(network, loss_fn, inputs, targets)
    for key, value in network.named_parameters():
        value.requires_grad_(key in trained)
    exact = per_example_gradients(network, loss_fn, inputs, targets)
    assert list(exact) == trained
    for key in trained:
        torch.testing.assert_close(exact[key], expected[key], rtol=1e-9, atol=1e-12)
    gradients = BatchGradients(network, loss_fn)
    for squares in (True, False):
        fast = gradients(inputs, targets, squares=squares)
        torch.testing.assert_close(fast.loss, loss_fn(network(inputs), targets).detach())
        wanted = gradient_uncertainty(exact)
        for got, want in zip(fast.uncertainty, wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        norms = flatten_examples(exact).square().sum(1)
        torch.testing.assert_close(fast.squared_norms, norms, rtol=1e-9, atol=1e-12)
        for key in trained:
            torch.testing.assert_close(fast.mean[key], exact[key].mean(0), rtol=1e-9, atol=1e-12)
            if squares:
                torch.testing.assert_close(fast.squares[key], exact[key].square().sum(0), rtol=1e-9, atol=1e-12)
        assert (fast.squares is None) == (not squares)


@pytest.mark.parametrize("write_cost", [0, 1e9])
def test_both_formulas_of_a_convolutions_norm_agree(write_cost, monkeypatch):
    monkeypatch.setattr(ghost_norms, "_WRITE_COST", write_cost)
    network = golden_network()
    fast = BatchGradients(network)(golden("cnn.x"), golden("cnn.y"))
    norms = golden("cnn.per_example_grads").square().sum(1)
    torch.testing.assert_close(fast.squared_norms, norms, rtol=1e-9, atol=0)


def test_float32_is_as_good_as_float32():
    torch.manual_seed(0)
    network = DigitCNN(channels=(4, 4, 4), hidden=16)
    inputs, targets = torch.rand(12, 1, 28, 28), torch.arange(12) % 10
    fast = BatchGradients(network)(inputs, targets)
    exact = per_example_gradients(network.double(), functional.cross_entropy, inputs.double(), targets)
    assert float(fast.uncertainty.value) == pytest.approx(float(gradient_uncertainty(exact).value), abs=1e-4)


def test_hooks_do_not_stay():
    network = golden_network()
    BatchGradients(network)(golden("cnn.x"), golden("cnn.y"))
    assert not any(layer._forward_hooks for layer in network.modules())
    assert all(value.grad is None for value in network.parameters())


class Dropping(nn.Sequential):
    def __init__(self, layer):
        super().__init__(nn.Linear(6, 6), layer, nn.Linear(6, 6))


@pytest.mark.parametrize(
    "make", [lambda n: BatchGradients(n), lambda n: per_example_gradients(n, smooth_loss, *example_batch())]
)
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(6), r"1 \(BatchNorm1d\) normalises over the batch"),
        (nn.SyncBatchNorm(6), "normalises over the batch"),
        (nn.Dropout(0.1), r"1 \(Dropout\) is active dropout"),
        (nn.MultiheadAttention(6, 1, dropout=0.2), "is active dropout"),
    ],
)
def test_networks_that_are_rejected(make, layer, message):
    with pytest.raises(ValueError, match=message):
        make(Dropping(layer).double())


def test_inactive_dropout_is_allowed():
    inputs, targets = example_batch()
    network = Dropping(nn.Dropout(0.5)).double()
    grads = per_example_gradients(network.eval(), functional.cross_entropy, inputs, targets)
    fast = BatchGradients(network)(inputs, targets)
    torch.testing.assert_close(fast.uncertainty.value, gradient_uncertainty(grads).value)
    assert BatchGradients(Dropping(nn.Dropout(0.0)).double().train())(inputs, targets)


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)), (torch.zeros(2, 6), torch.tensor([1]))],
)
def test_batches_that_are_rejected(inputs, targets):
    network = nn.Linear(6, 6)
    with pytest.raises(ValueError, match="one B of at least 1"):
        per_example_gradients(network, functional.cross_entropy, inputs, targets)
    with pytest.raises(ValueError, match="one B of at least 1"):
        BatchGradients(network)(inputs, targets)


def test_a_network_without_trainable_parameters_is_rejected():
    with pytest.raises(ValueError, match="requires a gradient"):
        per_example_gradients(nn.Linear(6, 6).requires_grad_(False), functional.cross_entropy, *example_batch())


@settings(max_examples=10)
@given(seed=SEEDS, batch=st.integers(1, 6))
def test_fast_path_on_random_networks(seed, batch):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    inputs, targets = torch.randn(batch, 6, dtype=torch.float64), torch.randint(6, (batch,))
    fast = BatchGradients(network)(inputs, targets).uncertainty
    exact = gradient_uncertainty(loop_gradients(network, functional.cross_entropy, inputs, targets))
    torch.testing.assert_close(fast.value, exact.value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{"channels": (4, 4)}, {"hidden": 0}, {"num_classes": 0}, {"channels": (4, 0, 4)}])
def test_network_sizes_that_are_rejected(options):
    with pytest.raises(ValueError, match="at least 1, got channels"):
        DigitCNN(**options)


def test_network_names_the_images_it_takes():
    network = DigitCNN(channels=(2, 2, 2), hidden=4, num_classes=3)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"\(B, 1, 28, 28\), got \(2, 1, 32, 32\)"):
        network(torch.zeros(2, 1, 32, 32))


def test_room_exports_its_public_names():
    for name in room.__all__:
        assert callable(getattr(room, name))
