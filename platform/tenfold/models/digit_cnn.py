"""Small convolutional network for single-digit images, as published with gradient uncertainty."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

DIGIT_SIZE = 28
_PADDING = 2


class DigitCNN(nn.Module):
    """Three convolutions, each with ReLU and max-pooling, then two linear layers; no normalisation, no dropout.

    Images are zero-padded by two pixels on every side, so that three poolings leave 4 x 4.

    Args:
        channels: Output channels of the three 5 x 5 convolutions.
        hidden: Hidden units between the two linear layers.
        num_classes: Number of logits.

    Raises:
        ValueError: There are not three channels, or a size is below 1.
    """

    def __init__(
        self, *, channels: tuple[int, int, int] = (32, 64, 64), hidden: int = 512, num_classes: int = 10
    ) -> None:
        super().__init__()
        if len(channels) != 3 or min(*channels, hidden, num_classes) < 1:
            raise ValueError(
                f"channels must be three numbers, and these, hidden and num_classes at least 1, "
                f"got channels={tuple(channels)}, hidden={hidden}, num_classes={num_classes}"
            )
        first, second, third = channels
        self.conv1 = nn.Conv2d(1, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.conv3 = nn.Conv2d(second, third, 5, padding=2)
        self.fc1: nn.Module = nn.Linear(third * 4 * 4, hidden)
        self.fc2: nn.Module = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` of grey images in [0, 1], ``(B, 1, 28, 28)``."""
        if images.ndim != 4 or images.shape[1:] != (1, DIGIT_SIZE, DIGIT_SIZE):
            raise ValueError(f"images must be (B, 1, {DIGIT_SIZE}, {DIGIT_SIZE}), got {tuple(images.shape)}")
        features = functional.pad(images, (_PADDING,) * 4)
        for convolution in (self.conv1, self.conv2, self.conv3):
            features = functional.max_pool2d(functional.relu(convolution(features)), 2)
        return self.fc2(functional.relu(self.fc1(features.flatten(1))))


@dataclass(frozen=True, kw_only=True)
class DigitCnnConfig:
    """Settings of the network."""

    name: str = "digit_cnn"
    """Fixed; selects this network."""
    channels: tuple[int, int, int] = (32, 64, 64)
    """Output channels of the three convolutions."""
    hidden: int = 512
    """Hidden units between the linear layers."""

    def __post_init__(self) -> None:
        if self.name != "digit_cnn":
            raise ValueError(f"name must be 'digit_cnn', got {self.name!r}")
        if len(self.channels) != 3 or min(*self.channels, self.hidden) < 1:
            raise ValueError(
                f"channels must be three numbers of at least 1, and hidden at least 1, got {tuple(self.channels)} "
                f"and {self.hidden}"
            )


def build_digit_cnn(config: DigitCnnConfig, num_classes: int, dropout: float = 0.0) -> DigitCNN:
    """Build the network with random weights, with dropout before both linear layers if ``dropout`` is positive."""
    first, second, third = config.channels
    network = DigitCNN(channels=(first, second, third), hidden=config.hidden, num_classes=num_classes)
    if dropout:
        network.fc1 = nn.Sequential(nn.Dropout(dropout), network.fc1)
        network.fc2 = nn.Sequential(nn.Dropout(dropout), network.fc2)
    return network
