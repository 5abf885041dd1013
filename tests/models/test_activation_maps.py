"""Class activation maps: equality with the plain head, a value by hand, refusals."""

import pytest
import torch

from tenfold.models.activation_maps import cam_logits, class_activation_maps, class_map_at

B, D, K, H, W = 3, 4, 5, 2, 6
GENERATOR = torch.Generator().manual_seed(0)
FEATURES, WEIGHT, BIAS = (
    torch.randn(shape, generator=GENERATOR, dtype=torch.float64) for shape in ((B, D, H, W), (K, D), (K,))
)


def test_their_mean_is_the_plain_head():
    logits = cam_logits(class_activation_maps(FEATURES, WEIGHT, BIAS))
    torch.testing.assert_close(logits, FEATURES.mean((2, 3)) @ WEIGHT.T + BIAS)


def test_by_hand():
    maps = class_activation_maps(
        torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), torch.tensor([[10.0, 1.0]]), torch.ones(1)
    )
    assert maps.tolist() == [[[[14.0, 25.0]]]]


def test_a_1x1_convolution_gives_the_same():
    expected = torch.nn.functional.conv2d(FEATURES, WEIGHT[..., None, None], BIAS)
    torch.testing.assert_close(class_activation_maps(FEATURES, WEIGHT[..., None, None], BIAS), expected)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_one_class_alone_is_its_map_among_all(bias):
    labels = torch.tensor([4, 0, 2])
    every = class_activation_maps(FEATURES, WEIGHT, bias)
    torch.testing.assert_close(class_map_at(FEATURES, WEIGHT, bias, labels), every[torch.arange(B), labels])


def test_gradients():
    inputs = [tensor.clone().requires_grad_() for tensor in (FEATURES, WEIGHT, BIAS)]
    assert torch.autograd.gradcheck(class_activation_maps, inputs)


def test_half_precision_is_pooled_in_float32():
    maps = torch.full((1, 1, 64, 64), 1000.0, dtype=torch.float16)
    assert cam_logits(maps).item() == 1000.0  # the sum, 4096000, overflows float16


@pytest.mark.parametrize(
    ("features", "weight", "bias", "message"),
    [
        (FEATURES[0], WEIGHT, BIAS, r"features must be a map \(B, D, H, W\)"),
        (FEATURES[..., :0], WEIGHT, BIAS, "H and W at least 1"),
        (FEATURES, WEIGHT[:, :3], BIAS, r"weight must be \(K, 4\) .*, got \(5, 3\)"),
        (FEATURES, WEIGHT, BIAS[:3], r"bias must be \(5,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(features, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        class_activation_maps(features, weight, bias)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 5]), r"must lie in 0\.\.4, .*got 0\.\.5"),
        (torch.tensor([-1, 1, 2]), r"got -1\.\.2"),
        (torch.tensor([0, 1]), r"must be int64 \(3,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "got torch.float32"),
    ],
)
def test_labels_that_are_not_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        class_map_at(FEATURES, WEIGHT, BIAS, labels)


def test_empty_maps_are_refused():
    with pytest.raises(ValueError, match="H and W at least 1"):
        cam_logits(torch.zeros(1, 2, 0, 3))
