"""Vectorised members: the outputs of the members one by one, for any network, input shape and thread."""

import itertools
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from tenfold.models import members as module
from tenfold.models.digit_cnn import DigitCNN
from tenfold.models.members import Members
from tenfold.models.regressors.build import RegressorConfig, build_regressor
from tenfold.tasks import Slot

REGRESSORS = {
    "mlp": ({}, (3,)),
    "cnn1d": ({"widths": (4, 4)}, (3, 9)),
    "cnn2d_sr": ({"widths": (4,), "depth": 2, "upscale": 2}, (3, 4, 6)),
    "cnn2d_sr_small": ({"widths": (4,), "upscale": 2}, (3, 4, 6)),
    "unet2d": ({"widths": (2, 3)}, (3, 4, 4)),
}
MOLECULES = (
    Slot(name="features", dtype="float32", shape=(-1, 5)),
    Slot(name="positions", dtype="float32", shape=(-1, 3)),
    Slot(name="n_atoms", dtype="int64", shape=()),
)
EXACT = {"rtol": 1e-11, "atol": 1e-13}
"""For float64, where sums are taken in another order."""


class BranchesOnInput(nn.Module):
    """Network whose operations depend on its inputs, which all members share."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs):
        return self.layer(inputs) if inputs.sum() > 0 else -self.layer(inputs)


class BranchesInNumpy(BranchesOnInput):
    def forward(self, inputs):
        return self.layer(inputs) if inputs.numpy().sum() > 0 else -self.layer(inputs)


class BranchesOnParameter(BranchesOnInput):
    """Network whose operations depend on a member's own parameters."""

    def forward(self, inputs):
        return self.layer(inputs).relu() if self.layer.bias[0] > 0 else self.layer(inputs)


class ChangesConstant(BranchesOnInput):
    """Network that changes a constant in place, and holds a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.offset = torch.arange(2.0, dtype=torch.float64)

    def forward(self, inputs):
        total = torch.tensor(1.0, dtype=torch.float64)
        total += self.offset.sum()
        values, places = self.layer(inputs).max(1)
        return {"sum": total + self.layer(inputs) + self.offset, "best": (values, places)}


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(3, padding=1), nn.Flatten(), nn.Dropout(), nn.LazyLinear(5),
    )  # fmt: skip


def regressor(name):
    options, shape = ({"widths": (6,), "depth": 2}, None) if name == "egnn" else REGRESSORS[name]
    free = None if shape is None else (shape[0], *(-1,) * (len(shape) - 1))
    schemas = MOLECULES if free is None else (Slot(name="input", dtype="float32", shape=free),)
    return build_regressor(RegressorConfig(name=name, **options), schemas, 3)


MAKERS = {
    "digit_cnn": lambda: DigitCNN(channels=(2, 3, 4), hidden=6),
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "convolutions": convolutions,
    "branches on input": BranchesOnInput,
    "branches in numpy": BranchesInNumpy,
    "branches on parameter": BranchesOnParameter,
    "changes constant": ChangesConstant,
    **{name: lambda name=name: regressor(name) for name in (*REGRESSORS, "egnn")},
}
SHAPES = {"digit_cnn": (1, 28, 28), "perceptron": (2, 3), "convolutions": (1, 9, 11)}


def example(name, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if name == "egnn":
        features, positions = (torch.randn(rows, 4, size, generator=generator, dtype=torch.float64) for size in (5, 3))
        return features, positions, torch.randint(1, 5, (rows,), generator=generator)
    shape = SHAPES.get(name) or REGRESSORS.get(name, (None, (3,)))[1]
    values = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    # Networks that branch on the sum must see the same sign in every part of the rows.
    return (values.abs() if name in ("branches on input", "branches in numpy") else values,)


def networks(name, count=3):
    torch.manual_seed(0)
    made = [MAKERS[name]().double().eval() for _ in range(count)]
    for network in made:
        network(*example(name, 1))  # lazy layers learn their size
    return made


def one_by_one(made, inputs):
    with torch.no_grad():
        answers = [network(*inputs) for network in made]
    return torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *answers)


def identical(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "budget"),
    [*itertools.product(MAKERS, (1, 2**40)), ("convolutions", 3000), ("cnn1d", 3000), ("egnn", 3000)],
)
def test_members_equal_one_by_one(name, budget, monkeypatch):
    monkeypatch.setattr(module, "ACTIVATION_BYTES", budget)
    monkeypatch.setattr(module, "MAX_ROWS", 6)
    made = networks(name)
    members = Members.of(made)
    first = {}
    # Each shape is called, recorded, repeated; 8 rows are 6 and 2.
    for turn in range(4):
        for rows in (1, 4, 8):
            inputs = example(name, rows, seed=rows + (turn == 3))
            answer = members(*inputs)
            torch.testing.assert_close(answer, one_by_one(made, inputs), **EXACT)
            if turn < 3:
                identical(answer, first.setdefault(rows, answer))


@pytest.mark.parametrize(
    ("name", "way"), [("perceptron", "forward"), ("branches on input", "_together"), ("branches in numpy", "_together")]
)
def test_only_networks_without_branches_on_numbers_are_recorded(name, way):
    members = Members.of(networks(name))
    for _ in range(2):
        members(*example(name, 3))
    (plan,) = members._plans.values()
    assert [each._repeat.__name__ for each in plan.passes.values()] == [way]


@pytest.mark.parametrize("name", ["branches on input", "branches in numpy", "branches on parameter", "egnn"])
def test_branches_on_numbers_are_taken_anew_at_every_call(name):
    made = networks(name)
    members = Members.of(made)
    inputs = example(name, 3)
    for sign in (1, -1, 1, -1, -1):
        turned = tuple(sign * each.abs() if each.is_floating_point() else each for each in inputs)
        torch.testing.assert_close(members(*turned), one_by_one(made, turned), **EXACT)


@pytest.mark.parametrize("name", ["digit_cnn", "cnn1d"])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(name):
    members = Members.of(networks(name))
    inputs = example(name, 11)
    whole = members(*inputs)
    for rows in (slice(0, 1), slice(3, 7), slice(5, 11)):
        expected = torch.utils._pytree.tree_map(lambda each, rows=rows: each[:, rows], whole)
        torch.testing.assert_close(members(*(each[rows] for each in inputs)), expected, **EXACT)


def test_the_network_is_left_unchanged():
    (network,) = networks("convolutions", 1)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    members = Members(
        network, {name: value[None].repeat_interleave(2, 0) for name, value in network.named_parameters()}
    )
    inputs = example("convolutions", 4)
    answers = [members(*inputs) for _ in range(3)]
    assert network.training
    assert all(layer.training for layer in network)
    for name, value in network.state_dict().items():
        identical(value, before[name])
    assert not any(answer.requires_grad for answer in answers)
    torch.testing.assert_close(answers[2], one_by_one([network.eval()] * 2, inputs), **EXACT)
    assert torch.is_grad_enabled()


def test_tensors_not_named_are_those_of_the_network():
    (network,) = networks("perceptron", 1)
    bias = torch.arange(12.0, dtype=torch.float64).view(4, 3)
    answers = Members(network, {"3.bias": bias})(*example("perceptron", 2))
    with torch.no_grad():
        expected = network(*example("perceptron", 2)) - network[3].bias + bias[:, None]
    torch.testing.assert_close(answers, expected, **EXACT)


def test_memory_layout_dtype_and_modes_may_change_between_calls():
    made = networks("digit_cnn")
    members = Members.of(made)
    (images,) = example("digit_cnn", 4)
    expected = one_by_one(made, (images,))
    last = images.transpose(2, 3).contiguous().transpose(2, 3)
    for inputs in (images, last, images.clone().requires_grad_()) * 2:
        torch.testing.assert_close(members(inputs), expected, **EXACT)
        with torch.inference_mode():
            torch.testing.assert_close(members(inputs), expected, **EXACT)
    single = Members.of([network.float() for network in made])
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = single(images.float())
        assert (coarse - expected).abs().max() > 1e-4
        torch.testing.assert_close(single(images.float()), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2}, {"kernel_size": 3}, {"kernel_size": (2, 3)}, {"kernel_size": [3, 2], "stride": [3, 2]},
        {"kernel_size": 1}, {"kernel_size": 2, "stride": 1}, {"kernel_size": 3, "stride": 3, "padding": 1},
        {"kernel_size": 2, "ceil_mode": True}, {"kernel_size": 2, "dilation": 2}, {"kernel_size": 2, "stride": (2, 2)},
        {"kernel_size": 2, "return_indices": True},
    ],
    ids=str,
)  # fmt: skip
def test_pooling_by_slices_is_pooling(options):
    maps = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 2, 2], maps[1, 1, 3, 3] = torch.nan, -torch.inf
    for values in (maps, maps[0]):
        torch.testing.assert_close(
            module._max_pool2d(values, **options), functional.max_pool2d(values, **options), rtol=0, atol=0,
            equal_nan=True,
        )  # fmt: skip


def test_pooling_refuses_what_torch_refuses():
    with pytest.raises(RuntimeError, match="too small"):
        module._max_pool2d(torch.zeros(1, 1, 1, 4), 2)


@pytest.mark.parametrize("name", ["convolutions", "branches on input", "branches on parameter"])
def test_threads_may_call_at_the_same_time(name):
    made = networks(name)
    members = Members.of(made)
    expected = {rows: one_by_one(made, example(name, rows, rows)) for rows in (1, 2, 3, 5)}
    start, failures = threading.Barrier(4), []

    def ask(number):
        try:
            start.wait()
            for turn in range(30):
                rows = (1, 2, 3, 5)[(turn + number) % 4]
                torch.testing.assert_close(members(*example(name, rows, rows)), expected[rows], **EXACT)
        except (AssertionError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_number_of_kept_shapes_is_limited(monkeypatch):
    monkeypatch.setattr(module, "MAX_SHAPES", 2)
    made = networks("perceptron")
    members = Members.of(made)
    for rows in (1, 2, 3, 1, 1, 1):
        torch.testing.assert_close(
            members(*example("perceptron", rows)), one_by_one(made, example("perceptron", rows)), **EXACT
        )
        assert len(members._plans) <= 2


def test_errors_in_the_inputs_are_those_of_the_network():
    members = Members.of(networks("digit_cnn"))
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 28, 28\)"):
        members(torch.zeros(2, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="type"):
        members(torch.zeros(2, 1, 28, 28))
    molecules = Members.of(networks("egnn"))
    features, positions, _ = example("egnn", 2)
    for counts in ([1, 2], [0, 5]) * 2:
        if counts == [1, 2]:
            molecules(features, positions, torch.tensor(counts))
        else:
            with pytest.raises(ValueError, match=r"n_atoms must lie in 1..4, got 0 to 5"):
                molecules(features, positions, torch.tensor(counts))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "got 0 names"),
        ({"weight": torch.zeros(2, 1, 3), "bogus": torch.zeros(2)}, r"unknown: \['bogus'\]"),
        ({"weight": torch.zeros(2, 1, 3), "bias": torch.zeros(3, 1)}, r"got \[2, 3\]"),
        ({"weight": torch.zeros(0, 1, 3)}, r"at least one, got \[0\]"),
        ({"bias": torch.zeros(())}, r"at least one, got \[0\]"),
    ],
)
def test_members_that_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        Members(nn.Linear(3, 1), parameters)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "N at least 1, got none"),
        ((torch.zeros(0, 3),), r"N at least 1, got \(0, 3\)"),
        ((torch.zeros(()),), r"N at least 1, got \(\)"),
        ((torch.zeros(2, 3), torch.zeros(3, 3)), r"N at least 1, got \(2, 3\), \(3, 3\)"),
    ],
)
def test_inputs_that_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        Members(nn.Linear(3, 1), {"bias": torch.zeros(2, 1)})(*inputs)


def test_an_ensemble_without_networks_is_refused():
    with pytest.raises(ValueError, match="at least one network"):
        Members.of([])
