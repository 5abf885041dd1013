"""Cost of BoostLU: a training step against plain binary cross-entropy, and the head against a naive one.

    python -m tests.benchmarks.bench_boostlu [--device cpu] [--rounds 15] [--threads 1] [--only step|head]

Each round times every variant once, in turn, so that background load affects all of them; on a CPU, processor time is
measured, which other processes disturb least. Prints medians and the median over rounds of the ratio to the first
variant, whose repetition shows how far a ratio can be trusted.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.methods.boostlu.head import BoostedCAMHead
from tenfold.methods.large_loss.loss import assume_negative_losses, large_loss_mask, num_large_losses, treated_mean
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier

STEPS = {  # network: image size, batch size, classes
    "small_cnn": (64, 32, 10),
    "torchvision:resnet18": (96, 8, 20),
    "torchvision:resnet50": (128, 4, 80),
}
STEPS_ON_A_GPU = {**STEPS, "torchvision:resnet18": (224, 32, 20), "torchvision:resnet50": (448, 16, 80)}
HEADS = {  # batch size, channels, map size, classes
    "small_cnn": (32, 128, 8, 10),
    "VOC at 448": (4, 2048, 14, 20),
    "COCO at 448": (4, 2048, 14, 80),
    "5,000 classes": (8, 512, 7, 5000),
}
ALPHA, RATE = 5.0, 0.01


class NaiveHead(nn.Module):
    """Head by definition: a 1x1 convolution, ``where``, the mean."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        maps = self.convolution(features)
        return torch.where(maps > 0, ALPHA * maps, maps).mean((2, 3))


class PlainHead(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean((2, 3)))


def time_in_turn(ways: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round, after two warm-up rounds."""
    on_gpu = device.type == "cuda"
    wait, clock = (torch.cuda.synchronize, time.perf_counter) if on_gpu else (lambda: None, time.process_time)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, way in ways.items():
            wait()
            start = clock()
            way()
            wait()
            if number >= 2:
                seconds[name].append(clock() - start)
    return seconds


def line(seconds: Mapping[str, list[float]]) -> str:
    """Format medians, and ratios to the first variant."""
    first = next(iter(seconds.values()))
    parts = []
    for name, each in seconds.items():
        ratio = statistics.median(mine / base for mine, base in zip(each, first, strict=True))
        parts.append(f"{name} {1e3 * statistics.median(each):.2f} ms ({ratio:.3f}x)")
    return " | ".join(parts)


def steps(name: str, size: int, batch: int, classes: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Build full training steps, from images to the optimiser's update."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8, generator=generator).to(device)
    labels = (torch.rand(batch, classes, generator=generator) < 0.05).to(torch.int8).to(device)
    target = (labels == 1).float()

    def step(model: ImageClassifier, optimizer: torch.optim.Optimizer, treat: bool) -> None:
        optimizer.zero_grad()
        logits = model(images)
        if treat:
            losses = assume_negative_losses(logits, labels)
            count = num_large_losses(logits.numel(), RATE)
            mask = large_loss_mask(losses, labels == 0, count, validate=False)
            loss = treated_mean(logits, losses, mask, "LL-Ct")
        else:
            loss = functional.binary_cross_entropy_with_logits(logits, target)
        loss.backward()
        optimizer.step()

    def boosted_head(channels: int, classes: int) -> nn.Module:
        return BoostedCAMHead(channels, classes, ALPHA)

    ways: dict[str, Callable[[], object]] = {}
    for title, head, treat in (
        ("plain BCE", None, False),
        ("plain BCE again", None, False),
        ("LL-Ct", None, True),
        ("LL-Ct + BoostLU", boosted_head, True),
    ):
        torch.manual_seed(0)
        model = build_classifier(ModelConfig(name=name), classes, size, head).to(device)
        ways[title] = partial(step, model, torch.optim.Adam(model.parameters(), lr=1e-5), treat)
    return ways


def heads(batch: int, channels: int, side: int, classes: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Build forward and backward passes of a head alone."""
    features = torch.randn(batch, channels, side, side).relu().to(device).requires_grad_()
    upstream = torch.randn(batch, classes).to(device)

    def step(head: nn.Module) -> None:
        torch.autograd.grad((upstream * head(features)).sum(), [features, *head.parameters()])

    made = {"naive": NaiveHead, "BoostedCAMHead": BoostedCAMHead, "plain head": PlainHead}
    return {title: partial(step, kind(channels, classes).to(device)) for title, kind in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("step", "head"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"{device}, {options.threads} threads, medians of {options.rounds} rounds, ratios to the first of each line")
    if options.only != "head":
        for name, (size, batch, classes) in (STEPS_ON_A_GPU if device.type == "cuda" else STEPS).items():
            seconds = time_in_turn(steps(name, size, batch, classes, device), options.rounds, device)
            print(f"step, {name}, {size}x{size}, batch {batch}, {classes} classes: {line(seconds)}", flush=True)
    if options.only != "step":
        for name, (batch, channels, side, classes) in HEADS.items():
            seconds = time_in_turn(heads(batch, channels, side, classes, device), options.rounds, device)
            print(f"head, {name}, map {batch}x{channels}x{side}x{side}, {classes} classes: {line(seconds)}", flush=True)


if __name__ == "__main__":
    main()
