"""MC dropout: one mask per batch, and the network unchanged afterwards."""

import pytest
import torch
from torch import nn

from tenfold.models.dropout import shared_dropout


def network(probability=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 64), nn.Dropout(probability), nn.BatchNorm1d(64), nn.Linear(64, 2)).eval()


def test_all_examples_of_a_batch_drop_the_same_units():
    layer = nn.Sequential(nn.Dropout(0.5)).eval()
    with shared_dropout(layer):
        first, second = layer(torch.ones(3, 5, 40)), layer(torch.ones(3, 5, 40))
    assert torch.equal(first, first[:1].expand_as(first))
    assert set(first.unique().tolist()) == {0.0, 2.0}  # kept units are scaled up
    assert not torch.equal(first, second)
    assert float(first[0].mean()) == pytest.approx(1, abs=0.25)  # 200 units


def test_an_output_does_not_depend_on_the_rest_of_the_batch():
    dropout_network, inputs = network(), torch.randn(6, 4)

    def answers(rows):
        torch.manual_seed(3)
        with torch.no_grad(), shared_dropout(dropout_network):
            return dropout_network(rows)

    torch.testing.assert_close(answers(inputs)[2:4], answers(inputs[2:4]))
    assert not torch.allclose(answers(inputs), dropout_network(inputs))


def test_the_network_is_restored_afterwards():
    dropout_network, inputs = network(), torch.randn(2, 4)
    before = dropout_network(inputs)
    with pytest.raises(KeyboardInterrupt), shared_dropout(dropout_network):
        raise KeyboardInterrupt
    assert torch.equal(dropout_network(inputs), before)
    assert not any(module.training for module in dropout_network.modules())


@pytest.mark.parametrize("without", [nn.Linear(2, 2), network(0.0)])
def test_a_network_without_dropout_is_refused(without):
    with (
        pytest.raises(ValueError, match=r"mc_dropout needs a network with dropout: set model\.dropout"),
        shared_dropout(without),
    ):
        pass
