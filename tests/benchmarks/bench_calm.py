"""Cost of CALM: a training step and an attribution map, against CAM on the same backbone.

    python -m tests.benchmarks.bench_calm [--device cpu] [--threads 1] [--rounds 15] [--networks dilated_cnn ...]

Each round times every variant once, so that background load affects all of them. Prints the median time and the median
over rounds of the ratio to the first variant of the same round; on a CPU, processor time is measured, which other
processes disturb less. ``plain`` is pooling and a linear layer. Weights are random and images are noise: the arithmetic
is the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.methods.calm.head import CalmHead, Objective
from tenfold.methods.calm.network import TrainedClassifier, calm_classifier
from tenfold.methods.calm.predictor import CalmPredictor
from tenfold.methods.calm.settings import Config
from tenfold.models.image_classifier import ModelConfig, build_classifier

MODES: tuple[Objective, ...] = ("cam", "em", "ml")


@dataclass(frozen=True)
class Case:
    """Network and the shape of its inputs."""

    model: ModelConfig
    image_size: int
    batch_size: int
    num_classes: int


CASES = {
    "dilated_cnn": Case(ModelConfig(name="dilated_cnn"), 64, 64, 10),
    "resnet18": Case(ModelConfig(name="torchvision:resnet18", output_stride=16), 128, 8, 200),
    "resnet50": Case(ModelConfig(name="torchvision:resnet50", output_stride=16), 224, 4, 200),
    "resnet50-1000": Case(ModelConfig(name="torchvision:resnet50", output_stride=16), 224, 4, 1000),
}
HEADS = {  # batch size, channels, classes, map size
    "handwriting": (64, 64, 10, 8),
    "CUB": (32, 2048, 200, 14),
    "ImageNet": (32, 2048, 1000, 14),
}


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> list[str]:
    """Time all variants round by round; ratios are to the first."""
    is_gpu = device.type == "cuda"
    wait, now = (torch.cuda.synchronize, time.perf_counter) if is_gpu else (lambda: None, time.process_time)
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds + 2):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            wait()
            start = now()
            variants[name]()
            wait()
            if turn >= 2:  # the first rounds warm up
                times[name].append(now() - start)
    base = times[names[0]]
    parts = []
    for name, taken in times.items():
        ratio = statistics.median(one / other for one, other in zip(taken, base, strict=True))
        parts.append(f"{name} {1000 * statistics.median(taken):.2f} ms ({ratio:.3f}x)")
    return parts


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    """Build a step: forward, backward, optimiser."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def head_step(head: CalmHead, features: Tensor, labels: Tensor) -> Callable[[], object]:
    """Build forward and backward of a head alone, down to the gradient of the feature map."""
    leaf = features.clone().requires_grad_()

    def step() -> None:
        head.loss(leaf, labels).backward()
        head.zero_grad(set_to_none=True)
        leaf.grad = None

    return step


def bench_network(name: str, rounds: int, device: torch.device) -> None:
    case = CASES[name]
    size, num_classes = case.image_size, case.num_classes
    images = torch.randint(0, 256, (case.batch_size, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, num_classes, (case.batch_size,), device=device)
    print(f"{name}, {case.batch_size} images of {size} x {size}, {num_classes} classes")
    steps: dict[str, Callable[[], object]] = {}
    attributions: dict[str, dict[str, Callable[[], object]]] = {}
    for mode in MODES:
        config = Config(mode=mode)
        torch.manual_seed(0)
        model = TrainedClassifier(calm_classifier(config, case.model, num_classes, size)).to(device)
        steps[mode] = training_step(model, partial(model, images, labels))
        torch.manual_seed(0)
        answering = calm_classifier(config, case.model, num_classes, size)
        predictor = CalmPredictor(answering, config, tuple(map(str, range(num_classes))), device.type)
        attributions[mode] = {
            f"{mode} predicts": partial(predictor, images),
            "and explains": partial(predictor.explain, images),
        }
    torch.manual_seed(0)
    plain = build_classifier(case.model, num_classes, size).to(device)
    steps["plain"] = training_step(plain, lambda: functional.cross_entropy(plain(images), labels))
    print("  training step   ", " | ".join(interleaved(steps, rounds, device)), flush=True)
    for mode in ("em", "cam"):
        print("  attribution     ", " | ".join(interleaved(attributions[mode], rounds, device)), flush=True)


def bench_head(name: str, rounds: int, device: torch.device) -> None:
    batch_size, channels, num_classes, side = HEADS[name]
    torch.manual_seed(0)
    features = torch.randn(batch_size, channels, side, side, device=device).relu()
    labels = torch.randint(0, num_classes, (batch_size,), device=device)
    steps: dict[str, Callable[[], object]] = {}
    for mode in MODES:
        steps[mode] = head_step(CalmHead(channels, num_classes, mode).to(device), features, labels)
    print(f"head alone, {name} {(batch_size, channels, side, side)}, {num_classes} classes")
    print("  forward+backward", " | ".join(interleaved(steps, rounds, device)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="*", choices=CASES, default=["dilated_cnn", "resnet18", "resnet50"])
    parser.add_argument("--heads", nargs="*", choices=HEADS, default=list(HEADS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"{device.type}, {options.threads} threads, {options.rounds} rounds; ratios are to the first of each line")
    for name in options.heads:
        bench_head(name, options.rounds, device)
    for name in options.networks:
        bench_network(name, options.rounds, device)


if __name__ == "__main__":
    main()
