"""Image classifiers: preprocessing, feature maps and heads, networks of the libraries, checkpoints, refusals."""

import os
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from tenfold.models.efficientnet import imagenet_weights
from tenfold.models.image_classifier import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL_CNN_WIDTHS,
    ImageClassifier,
    ModelConfig,
    build_classifier,
    parameter_groups,
)
from tenfold.types import Preprocessing
from tests.replicas.attribution_photographs import class_names, load_network

K = 5


def make_images(num: int = 3, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, size, size, 3), dtype=torch.uint8, generator=generator)


def small(**settings: object) -> ImageClassifier:
    return build_classifier(ModelConfig(**settings), K, 64).eval()


def test_images_are_scaled_and_normalised_per_channel():
    preprocessing = Preprocessing(image_size=2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    model = ImageClassifier(nn.Identity(), 3, K, preprocessing)
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    expected = torch.tensor([(0 - 0.5) / 0.5, (0.2 - 0.25) / 0.25, (1 - 0.0) / 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(model.normalise(image), expected)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, 3).byte()]
)
def test_images_of_another_form_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, H, W, 3\), got"):
        small()(images)


def test_logits_are_the_head_of_the_mean_of_the_feature_map():
    model = small()
    with torch.no_grad():
        feature_map = model.feature_map(make_images())
        assert feature_map.shape == (3, SMALL_CNN_WIDTHS[-1], 8, 8)
        torch.testing.assert_close(model.features(make_images()), feature_map.mean((2, 3)))
        torch.testing.assert_close(
            model(make_images()), feature_map.mean((2, 3)) @ model.head.weight.T + model.head.bias
        )


def test_only_weights_are_kept_and_they_bring_the_same_logits_back():
    model = small()
    assert {"mean", "std"}.isdisjoint(model.state_dict())
    other = small()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(make_images()), model(make_images()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["small_cnn", "timm:resnet10t"])
def test_parameter_groups_hold_every_parameter_once(name):
    model = build_classifier(ModelConfig(name=name), K, 64)
    groups = parameter_groups(model, learning_rate=0.5, head_multiplier=10)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[id(parameter)] for parameter in model.head.parameters()} == {5.0}
    assert {rates[id(parameter)] for parameter in model.backbone.parameters()} == {0.5}


@pytest.mark.parametrize(
    ("name", "dim"), [("torchvision:resnet50", 2048), ("torchvision:mobilenet_v3_small", 576), ("timm:resnet10t", 512)]
)
def test_networks_of_the_libraries_give_feature_maps(name, dim):
    model = build_classifier(ModelConfig(name=name), K, 64).eval()
    assert model.feature_dim == dim
    assert model.preprocessing == Preprocessing(image_size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with torch.no_grad():
        assert model.feature_map(make_images(1)).shape == (1, dim, 2, 2)
        assert model(make_images(1)).shape == (1, K)


def test_a_network_keeps_the_normalisation_of_its_training():
    model = build_classifier(ModelConfig(name="timm:tf_efficientnet_lite0"), K, 64)
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert model.preprocessing.std == (0.5, 0.5, 0.5)


def test_every_location_of_the_dilated_network_sees_the_whole_image():
    model = build_classifier(ModelConfig(name="dilated_cnn"), K, 64).eval()
    images = make_images(1).float().requires_grad_()
    feature_map = model.backbone(images.permute(0, 3, 1, 2))
    assert feature_map.shape == (1, model.feature_dim, 8, 8)
    feature_map[0, :, 0, 0].sum().backward()
    assert images.grad[0, :56, :56].abs().sum(-1).gt(0).float().mean() > 0.5  # dilation leaves gaps, ReLU more
    assert images.grad[0, 48:, 48:].abs().sum() > 0


@pytest.mark.parametrize(("stride", "side"), [(None, 2), (16, 4), (8, 8)])
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
def test_the_feature_map_can_be_made_finer_without_other_weights(name, stride, side):
    plain = build_classifier(ModelConfig(name=name), K, 64)
    model = build_classifier(ModelConfig(name=name, output_stride=stride), K, 64).eval()
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert model.feature_map(make_images(1)).shape == (1, model.feature_dim, side, side)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "small_cnn", "output_stride": 8}, "output_stride must be null for small_cnn, got 8"),
    ],
)
def test_settings_that_a_network_does_not_have_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_a_finer_map_is_refused_where_the_library_has_none():
    with pytest.raises(ValueError, match="output_stride must be null for torchvision:mobilenet_v3_small, got 16"):
        build_classifier(ModelConfig(name="torchvision:mobilenet_v3_small", output_stride=16), K, 64)


def test_the_packaged_network_knows_espresso_and_cats():
    from skimage import data

    model = load_network()
    coffee, cat = (
        functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None].float(), (224, 224), antialias=True, mode="bilinear"
        )
        for image in (data.coffee(), data.chelsea())
    )
    with torch.inference_mode():
        probs = model(torch.cat([coffee, cat]).round().byte().permute(0, 2, 3, 1)).softmax(1)
    names = class_names()
    assert names[int(probs[0].argmax())] == "espresso"
    assert probs[0].max() > 0.85
    assert "cat" in names[int(probs[1].argmax())]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_tiny_patch16_224", r"must return a feature map \(B, D, h, w\), got \(1, 197, 192\)"),
        ("torchvision:vit_b_16", "no convolutional feature map"),
        ("torchvision:swin_t", "must return a feature map"),  # channels last
        ("torchvision:resnet5000", "torchvision has no classifier 'resnet5000'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier"),
        ("timm:resnet5000", "timm has no model 'resnet5000'"),
        ("timm:resnet10t.nobody_in1k", r"cannot download .*set model\.checkpoint"),
    ],
)
def test_networks_without_a_feature_map_and_unknown_ones_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        build_classifier(ModelConfig(name=name), K, 64)


@pytest.mark.parametrize("name", ["resnet50", "timm", "timm:", "torchvision:", "keras:x", ""])
def test_a_name_that_names_no_library_is_refused(name):
    with pytest.raises(ValueError, match=r"must be small_cnn, dilated_cnn, .* torchvision:NAME or timm:NAME"):
        ModelConfig(name=name)


@pytest.mark.parametrize("settings", [{"linear_epochs": 0}, {"linear_learning_rate": 0.0}])
def test_a_linear_phase_that_makes_no_sense_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ModelConfig(**settings)


def test_no_class_is_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        build_classifier(ModelConfig(), 0, 64)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_checkpoint_fills_the_backbone_and_leaves_the_head(tmp_path, ending):
    weights = small().backbone.state_dict()
    path = tmp_path / f"backbone{ending}"
    if ending == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    model = small(checkpoint=str(path), pretrained=True)  # the checkpoint wins
    for name, tensor in model.backbone.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_published_checkpoint_of_the_whole_network_loads(tmp_path, name):
    from torchvision import models

    network = models.get_model(name)
    torch.save(network.state_dict(), tmp_path / "published.pth")
    model = build_classifier(ModelConfig(name=f"torchvision:{name}", checkpoint=str(tmp_path / "published.pth")), K, 64)
    first, loaded = next(network.parameters()), next(model.backbone.parameters())
    torch.testing.assert_close(loaded, first, rtol=0, atol=0)


class Malicious:
    """Object whose unpickling runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path):
    torch.save({"0.weight": Malicious(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"model\.checkpoint .*evil\.pth"):
        small(checkpoint=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_checkpoints_that_do_not_match_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.checkpoint must be an existing file, got .*nothing\.pth"):
        small(checkpoint=str(tmp_path / "nothing.pth"))
    weights = small().backbone.state_dict()
    name = next(iter(weights))
    for number, (content, message) in enumerate(
        [
            ({key: value for key, value in weights.items() if key != name}, f"lacks 1 of the backbone's.*{name}"),
            ({**weights, name: torch.zeros(2)}, "does not match the network"),
            ({"state_dict": weights}, "lacks"),
            ([1, 2], r"model\.checkpoint"),
        ]
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(ValueError, match=message):
            small(checkpoint=str(tmp_path / f"{number}.pth"))
    for ending in ("pth", "safetensors"):
        (tmp_path / f"damaged.{ending}").write_bytes(b"not a checkpoint at all")
        with pytest.raises(ValueError, match=r"model\.checkpoint .*damaged"):
            small(checkpoint=str(tmp_path / f"damaged.{ending}"))


def test_a_head_may_read_the_feature_map():
    class Peak(nn.Module):
        def __init__(self, feature_dim: int, num_classes: int) -> None:
            super().__init__()
            self.score = nn.Conv2d(feature_dim, num_classes, 1)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.score(features).amax((2, 3))

    model = build_classifier(ModelConfig(), K, 64, map_head=Peak).eval()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(model(images), model.head.score(model.feature_map(images)).amax((2, 3)))
    groups = parameter_groups(model, 1e-3, 10.0)
    assert [len(group["params"]) for group in groups] == [len(list(model.backbone.parameters())), 2]


def test_a_latent_head_has_the_library_s_weights(tmp_path):
    network = torchvision.models.resnet18()
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    config = ModelConfig(name="torchvision:resnet18", checkpoint=str(tmp_path / "resnet18.safetensors"))
    images = make_images(size=32)
    model = build_classifier(config, 1000, 32, latent=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), network.eval()(model.normalise(images)))
    # Another width has no trained weights, and a network of ours neither.
    assert build_classifier(config, 7, 32, latent=True).head.weight.shape == (7, 512)
    assert build_classifier(ModelConfig(), 7, 32, latent=True).head.weight.shape == (7, SMALL_CNN_WIDTHS[-1])
    with pytest.raises(ValueError, match="latent must be False"):
        build_classifier(config, 7, 32, lambda dim, num: nn.Identity(), latent=True)


def test_a_latent_of_efficientnet_is_its_imagenet_logits():
    latent = build_classifier(ModelConfig(name="efficientnet_lite0", pretrained=True), 1000, 224, latent=True)
    torch.testing.assert_close(latent.head.weight.detach(), imagenet_weights()["classifier.weight"])
