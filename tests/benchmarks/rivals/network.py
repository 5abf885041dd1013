"""The network that every server of the benchmark runs, and its inputs; imports only torch and numpy."""

from itertools import pairwise

import numpy as np
import torch
from torch import nn

SIZE = 64
NUM_CLASSES = 10
MAX_BATCH_SIZE = 32
BATCH_WAIT_S = 0.002


def build_network() -> nn.Module:
    """Small convolutional network, about the size of those for the embedded data; the same weights in each process."""
    torch.manual_seed(0)
    widths = (3, 32, 64, 128)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], NUM_CLASSES))
    return network.eval()


def random_images(num_images: int, size: int = SIZE) -> np.ndarray:
    """The same images in each process, uint8 ``(N, size, size, 3)``."""
    return np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3)).astype(np.uint8)


class Predictor:
    """The network on one thread, from and to numpy."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._network = build_network()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities and logits, ``(N, 2, C)``, of uint8 images ``(N, S, S, 3)``."""
        with torch.inference_mode():
            logits = self._network(torch.tensor(images).permute(0, 3, 1, 2).float().div(255))
            return torch.stack([logits.sigmoid(), logits], dim=1).numpy()
