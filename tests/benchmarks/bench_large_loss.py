"""Overhead of Large Loss: loss and gradient of LL-R and LL-Ct against plain binary cross-entropy.

    python -m tests.benchmarks.bench_large_loss [--device cpu] [--repeats 300] [--threads 1]

Prints microseconds of forward and backward of the loss alone and the ratio to plain cross-entropy in the same run, for
batches of the shapes of PASCAL VOC, COCO, CUB and OpenImages; with and without value checks.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.methods.large_loss.loss import large_loss_bce

SHAPES = {"VOC": (16, 20), "COCO": (16, 80), "CUB": (16, 312), "OpenImages": (64, 5000)}


def microseconds(loss: Callable[[Tensor], Tensor], logits: Tensor, repeats: int) -> float:
    """Return the median time of a forward and backward pass."""
    wait = torch.cuda.synchronize if logits.is_cuda else (lambda: None)
    times = []
    for _ in range(repeats):
        leaf = logits.clone().requires_grad_()
        wait()
        start = time.perf_counter()
        loss(leaf).backward()
        wait()
        times.append(time.perf_counter() - start)
    return 1e6 * sorted(times)[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"loss alone, forward and backward, {options.device}, {options.threads} threads, rate 1 %")
    for name, shape in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(shape, generator=generator).to(options.device)
        labels = (torch.rand(shape, generator=generator) < 0.01).to(torch.int8).to(options.device)

        def plain(z: Tensor, labels: Tensor = labels) -> Tensor:
            return functional.binary_cross_entropy_with_logits(z, (labels == 1).to(z.dtype))

        microseconds(plain, logits, options.repeats)  # warm up
        base = microseconds(plain, logits, options.repeats)
        line = f"{name:>10} {shape[0]}x{shape[1]}: plain {base:6.0f} us"
        for scheme in ("LL-R", "LL-Ct"):
            for validate in (False, True):

                def treated(
                    z: Tensor, labels: Tensor = labels, scheme: str = scheme, validate: bool = validate
                ) -> Tensor:
                    return large_loss_bce(z, labels, scheme, 0.01, validate=validate)[0]

                cost = microseconds(treated, logits, options.repeats)
                line += f" | {scheme}{' checked' if validate else ''} {cost:6.0f} us ({cost / base:.2f}x)"
        print(line)


if __name__ == "__main__":
    main()
