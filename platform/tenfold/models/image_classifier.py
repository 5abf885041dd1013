"""Convolutional image classifiers: a backbone that returns a feature map, and a head.

The plain head is linear in the mean of the map; a method may supply one that reads the map itself (class activation
maps). Backbone and head are separate modules because methods also freeze the backbone (linear initialisation) or train
the head at another learning rate.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load when it refuses a file; nothing is unpickled
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tenfold.models import efficientnet
from tenfold.types import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_CNN_WIDTHS = (16, 32, 64, 128)
DILATED_CNN_WIDTH = 64
OWN_NETWORKS = ("small_cnn", "dilated_cnn", "efficientnet_lite0")
EMBEDDED_PRETRAINING = ("small_cnn", "dilated_cnn")
"""Networks pre-trained by this project, on single digits."""
_LIBRARY_HEADS = ("fc", "classifier", "head.fc", "head")
"""Names of the classifier in the checkpoints of torchvision and timm."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Settings of the network."""

    name: str = "small_cnn"
    """``small_cnn``; ``dilated_cnn`` (also small, with a receptive field of the whole image); ``efficientnet_lite0``
    (ImageNet weights from a package); ``torchvision:NAME`` (``torchvision:resnet50``) or ``timm:NAME``
    (``timm:resnet50.a1_in1k``)."""
    pretrained: bool = False
    """Load the library's weights, from its cache or a download; for ``small_cnn`` and ``dilated_cnn`` the embedded
    pre-training on single digits."""
    output_stride: Literal[8, 16] | None = None
    """Image pixels per location of the feature map: 16 and 8 give a ResNet (torchvision) or a timm network finer maps
    than its own, mostly 32; None leaves the network unchanged."""
    checkpoint: str | None = None
    """Local weights of the backbone (.safetensors, or .pth read without pickle); overrides ``pretrained``."""
    init: Literal["end_to_end", "linear"] = "end_to_end"
    """``linear``: first a linear classifier on the frozen backbone, then the whole network (LinearInit)."""
    linear_epochs: int = 25
    """Epochs of the linear phase."""
    linear_learning_rate: float = 1e-3
    """Learning rate of Adam in the linear phase."""

    def __post_init__(self) -> None:
        library = self.name.split(":", 1)[0]
        if self.name not in OWN_NETWORKS and (
            library not in ("torchvision", "timm") or self.name in (library, f"{library}:")
        ):
            raise ValueError(
                f"name must be {', '.join(OWN_NETWORKS)}, torchvision:NAME or timm:NAME, got {self.name!r}"
            )
        if self.output_stride is not None and self.name in OWN_NETWORKS:
            raise ValueError(f"output_stride must be null for {self.name}, got {self.output_stride}")
        if self.linear_epochs < 1:
            raise ValueError(f"linear_epochs must be at least 1, got {self.linear_epochs}")
        if self.linear_learning_rate <= 0:
            raise ValueError(f"linear_learning_rate must be positive, got {self.linear_learning_rate}")


class ImageClassifier(nn.Module):
    """Logits = head(spatial mean of backbone(normalised image)), or head(backbone(normalised image)).

    Args:
        backbone: ``(B, 3, H, W)`` float to a feature map ``(B, D, h, w)``.
        feature_dim: Channels D of that map.
        num_classes: Classes K, at least 1.
        preprocessing: Preprocessing that the backbone expects.
        map_head: Feature map ``(B, D, h, w)`` to logits ``(B, K)``; None: linear on the map's mean.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_classes: int,
        preprocessing: Preprocessing,
        map_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.backbone = backbone
        self.head = map_head or nn.Linear(feature_dim, num_classes)
        self.reads_map = map_head is not None
        self.feature_dim = feature_dim
        self.preprocessing = preprocessing
        self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Convert uint8 ``(B, H, W, 3)`` to the backbone's float ``(B, 3, H, W)``."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}")
        return (images.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the feature map ``(B, D, h, w)`` of uint8 images ``(B, H, W, 3)``."""
        return self.backbone(self.normalise(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the mean-pooled features ``(B, D)`` of uint8 images ``(B, H, W, 3)``."""
        return self.feature_map(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, K)`` of uint8 images ``(B, H, W, 3)``."""
        return self.head(self.feature_map(images) if self.reads_map else self.features(images))


def build_classifier(
    config: ModelConfig,
    num_classes: int,
    image_size: int,
    map_head: Callable[[int, int], nn.Module] | None = None,
    *,
    latent: bool = False,
) -> ImageClassifier:
    """Build the network of a configuration, with a randomly initialised head.

    Args:
        config: Settings of the network.
        num_classes: Classes K.
        image_size: Side of the images.
        map_head: Function of channels D and classes K that returns a head on the feature map; None: the plain head.
        latent: Whether the plain head is that of the library's network, for a model that reads its outputs as features:
            1000 values with their weights, where the network is pre-trained on ImageNet.

    Raises:
        ValueError: The network is unknown or has no feature map, the checkpoint is missing or does not match, the
            weights can't be downloaded, or ``latent`` comes with ``map_head``.
    """
    library, _, name = config.name.partition(":")
    if library == "small_cnn":
        backbone: nn.Module = small_cnn()
        feature_dim = SMALL_CNN_WIDTHS[-1]
        preprocessing = Preprocessing(image_size=image_size)
    elif library == "dilated_cnn":
        backbone, feature_dim = dilated_cnn(), DILATED_CNN_WIDTH
        preprocessing = Preprocessing(image_size=image_size)
    elif library == "efficientnet_lite0":
        backbone, feature_dim = efficientnet.backbone(config.pretrained and config.checkpoint is None)
        preprocessing = Preprocessing(image_size=image_size, mean=efficientnet.MEAN, std=efficientnet.STD)
    else:
        build = _torchvision_backbone if library == "torchvision" else _timm_backbone
        backbone, feature_dim = build(name, config.pretrained and config.checkpoint is None, config.output_stride)
        # timm records the normalisation of each network; those of torchvision share one.
        trained_on = getattr(backbone, "pretrained_cfg", {})
        mean, std = trained_on.get("mean", IMAGENET_MEAN), trained_on.get("std", IMAGENET_STD)
        preprocessing = Preprocessing(image_size=image_size, mean=tuple(mean), std=tuple(std))
    if config.checkpoint is not None:
        _load_backbone(backbone, Path(config.checkpoint))
    if latent and map_head is not None:
        raise ValueError("latent must be False for a head that reads the feature map")
    head = map_head(feature_dim, num_classes) if map_head is not None else None
    model = ImageClassifier(backbone, feature_dim, num_classes, preprocessing, head)
    weights = _library_head(config) if latent else {}
    if weights and weights["weight"].shape == model.head.weight.shape:
        model.head.load_state_dict(weights)
    return model


def small_cnn() -> nn.Sequential:
    """Build four 3x3 convolutions with batch norm: 64x64 images to 8x8 maps of 128 channels, about 0.1 M weights."""
    layers: list[nn.Module] = []
    width_before, strides = 3, (2, 2, 2, 1)
    for width, stride in zip(SMALL_CNN_WIDTHS, strides, strict=True):
        layers += [nn.Conv2d(width_before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        width_before = width
    return nn.Sequential(*layers)


def dilated_cnn() -> nn.Sequential:
    """Build six 3x3 convolutions with batch norm: 64x64 images to 8x8 maps of 64 channels, about 0.13 M weights.

    With dilation, the receptive field of every location is 127 pixels wide, so it covers the whole image.
    """
    layers: list[nn.Module] = []
    width_before = 3
    for width, stride, dilation in ((16, 2, 1), (32, 2, 1), (64, 2, 1), (64, 1, 2), (64, 1, 4), (64, 1, 1)):
        convolution = nn.Conv2d(width_before, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        width_before = width
    return nn.Sequential(*layers)


def parameter_groups(
    model: ImageClassifier, learning_rate: float, head_multiplier: float
) -> list[dict[str, list[nn.Parameter] | float]]:
    """Return optimiser groups: the backbone at ``learning_rate``, all else (the head) at a multiple of it."""
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in backbone]
    return [
        {"params": list(model.backbone.parameters()), "lr": learning_rate},
        {"params": rest, "lr": learning_rate * head_multiplier},
    ]


def _torchvision_backbone(name: str, pretrained: bool, output_stride: int | None) -> tuple[nn.Module, int]:
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    if name not in models.list_models(models):
        raise ValueError(
            f"torchvision has no classifier {name!r}; it has {', '.join(models.list_models(models)[:8])} ..."
        )
    try:
        network = models.get_model(name, weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise ValueError(
            f"cannot download the weights of torchvision:{name} ({error}); set model.checkpoint"
        ) from error
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        if output_stride is not None:
            # Without dilation, as in the code of CALM: the weights still match, the stages see finer maps.
            for stage in (network.layer3, network.layer4) if output_stride == 8 else (network.layer4,):
                for layer in stage[0].modules():
                    if isinstance(layer, nn.Conv2d):
                        layer.stride = (1, 1)
        # Named as in the network, so that published weights load.
        backbone: nn.Module = nn.Sequential(OrderedDict(list(network.named_children())[:-2]))
    elif output_stride is not None:
        raise ValueError(
            f"output_stride must be null for torchvision:{name}, got {output_stride}; only its ResNets take one"
        )
    else:
        nodes = get_graph_node_names(network)[1]
        if "features" not in nodes and not hasattr(network, "features"):
            raise ValueError(f"torchvision:{name} has no convolutional feature map; use a ResNet or a timm network")
        if hasattr(network, "features"):
            backbone = nn.Sequential(OrderedDict(features=network.features))
        else:
            backbone = create_feature_extractor(network, ["features"])
    return backbone, _map_channels(backbone, f"torchvision:{name}")


def _timm_backbone(name: str, pretrained: bool, output_stride: int | None) -> tuple[nn.Module, int]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model {name!r}; timm.list_models('*resnet*') lists what it has")
    stride: dict[str, Any] = {"output_stride": output_stride} if output_stride is not None else {}
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **stride)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot download the weights of timm:{name} ({error}); set model.checkpoint") from error
    except TypeError as error:
        if output_stride is None:
            raise
        raise ValueError(f"output_stride must be null for timm:{name}, got {output_stride}") from error
    return network, _map_channels(network, f"timm:{name}")


def _library_head(config: ModelConfig) -> dict[str, Tensor]:
    """Return weight and bias of the network's own linear classifier; empty where it has no trained one."""
    library, _, name = config.name.partition(":")
    if config.checkpoint is not None:
        stored = _read_weights(Path(config.checkpoint))
        found = (prefix for prefix in _LIBRARY_HEADS if f"{prefix}.weight" in stored and f"{prefix}.bias" in stored)
        prefix = next(found, None)
        return {} if prefix is None else {key: stored[f"{prefix}.{key}"] for key in ("weight", "bias")}
    if not config.pretrained or library in EMBEDDED_PRETRAINING:
        return {}
    if library == "efficientnet_lite0":
        weights = efficientnet.imagenet_weights()
        return {key: weights[f"classifier.{key}"] for key in ("weight", "bias")}
    if library == "timm":
        import timm

        network: Any = timm.create_model(name, pretrained=True)
        layer = network.get_classifier()
    else:
        from torchvision import models

        *_, layer = (
            each for each in models.get_model(name, weights="DEFAULT").modules() if isinstance(each, nn.Linear)
        )
    return layer.state_dict() if isinstance(layer, nn.Linear) and layer.bias is not None else {}


def _map_channels(backbone: nn.Module, name: str) -> int:
    """Return the channels D of the feature map, or raise if the network has no such map."""
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        output = backbone(torch.zeros(1, 3, 224, 224))
    backbone.train(was_training)
    # A square image has a square map; Swin and similar networks keep their channels last.
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2] != output.shape[3]:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{name} must return a feature map (B, D, h, w), got {shape}; choose a convolutional network")
    return output.shape[1]


def _load_backbone(backbone: nn.Module, path: Path) -> None:
    weights = _read_weights(path)
    try:
        incompatible = backbone.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"model.checkpoint {path} does not match the network: {error}") from error
    if incompatible.missing_keys:
        missing = ", ".join(incompatible.missing_keys[:5])
        raise ValueError(
            f"model.checkpoint {path} lacks {len(incompatible.missing_keys)} of the backbone's tensors: {missing} ..."
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"model.checkpoint must be an existing file, got {path}")
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"model.checkpoint {path} is damaged or holds more than tensors: {error}") from error
    if not isinstance(weights, dict):
        raise ValueError(  # noqa: TRY004 - the content of a file, not an argument
            f"model.checkpoint {path} must hold tensors by name, got {type(weights).__name__}"
        )
    return weights
