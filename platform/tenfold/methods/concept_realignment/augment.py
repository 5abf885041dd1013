"""Augmentation of photographs, drawn for a whole batch: random resized crops, flips, brightness and saturation.

The training transform of concept embedding models: ColorJitter(brightness 32/255, saturation 0.5..1.5),
RandomResizedCrop with an area of 8 to 100 % and an aspect ratio of 3/4 to 4/3, and a horizontal flip.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_BRIGHTNESS = 32 / 255
_SATURATION = (0.5, 1.5)
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_GREY = (0.2989, 0.587, 0.114)


def photo_augment(images: Tensor, size: int, *, mirror: bool) -> Tensor:
    """Crop, resize, flip and recolour every image at random.

    Random numbers come from torch's global CPU generator, whose state is part of every checkpoint. The crop is bilinear
    without antialiasing, so training images larger than ``size`` lose some sharpness where the crop is large.

    Args:
        images: uint8 ``(B, T, T, 3)``.
        size: Side S of the result.
        mirror: Whether images are flipped horizontally with probability 0.5.

    Returns:
        uint8 ``(B, S, S, 3)``.
    """
    batch = len(images)
    area = torch.empty(batch).uniform_(*_AREA)
    aspect = torch.empty(batch).uniform_(math.log(_ASPECT[0]), math.log(_ASPECT[1])).exp()
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    # Centre of the crop in grid coordinates, -1..1, such that it stays inside.
    across, down = ((1 - side) * torch.empty(batch).uniform_(-1, 1) for side in (wide, high))
    flip = torch.where(torch.rand(batch) < 0.5, -1.0, 1.0) if mirror else torch.ones(batch)
    brightness = torch.empty(batch).uniform_(1 - _BRIGHTNESS, 1 + _BRIGHTNESS)
    saturation = torch.empty(batch).uniform_(*_SATURATION)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = wide * flip, across, high, down
    theta, brightness, saturation = (each.to(images.device) for each in (theta, brightness, saturation))
    pixels = images.permute(0, 3, 1, 2).float()
    with torch.autocast(images.device.type, enabled=False):  # in bfloat16 the grid is half a pixel off
        grid = functional.affine_grid(theta, [batch, 3, size, size], align_corners=False)
        pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    pixels = (pixels * brightness.view(-1, 1, 1, 1)).clamp(0, 255)
    grey = (pixels * pixels.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    pixels = grey + (pixels - grey) * saturation.view(-1, 1, 1, 1)
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
