"""Golden vectors of gradient uncertainty, shared by the test modules of the method."""

import json
from pathlib import Path

import numpy as np
import torch

from tenfold.models.digit_cnn import DigitCNN

_GOLDEN = np.load(Path(__file__).parents[1] / "golden/gradient_uncertainty.npz")
META = json.loads(str(_GOLDEN["meta"]))


def golden(name):
    return torch.from_numpy(np.asarray(_GOLDEN[name]))


def assert_matches(actual, name, tolerance=1e-9):
    """Compare with a golden array; the tolerance is relative to the largest magnitude of the array."""
    expected = golden(name)
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), 1))


def golden_network():
    """Return the float64 network whose parameters, inputs and gradients are golden (``cnn.*``)."""
    first, *_ = META["cnn_channels"]
    assert first == 1
    network = DigitCNN(channels=tuple(META["cnn_channels"][1:]), hidden=META["cnn_fc"]).double()
    network.load_state_dict({name: golden(f"cnn.param.{name}") for name in META["param_names"]})
    return network
