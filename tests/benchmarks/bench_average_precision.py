"""Mean average precision of all classes at once, against a loop over scikit-learn and against torchmetrics.

    python -m tests.benchmarks.bench_average_precision [--images 40000] [--classes 80] [--repeats 3] [--threads 1]

Prints seconds and ratios of the same run; the defaults have the size of COCO's validation split.
"""

import argparse
import time
from collections.abc import Callable

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision

from tenfold.metrics.average_precision import mean_average_precision


def seconds(function: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Return the best time over the calls, and the last result."""
    times, value = [], 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        value = function()
        times.append(time.perf_counter() - start)
    return min(times), value


def by_scikit_learn(scores: Tensor, targets: Tensor) -> float:
    arrays = scores.numpy(), targets.numpy()
    values = [average_precision_score(arrays[1][:, i], arrays[0][:, i]) for i in range(scores.shape[1])]
    return 100 * sum(values) / len(values)


def by_torchmetrics(scores: Tensor, targets: Tensor) -> float:
    # Takes probabilities; it would apply a sigmoid to scores outside [0, 1].
    return 100 * MultilabelAveragePrecision(num_labels=scores.shape[1])(scores, targets).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(options.images, options.classes, generator=generator) < 0.036).long()
    scores = torch.sigmoid(torch.randn(targets.shape, generator=generator) + 2 * targets - 3)
    ties = (50 * scores).round() / 50
    print(f"{options.images} images, {options.classes} classes, float32, {options.threads} threads")
    for name, given in (("distinct scores", scores), ("50 levels", ties)):
        ours, value = seconds(lambda given=given: mean_average_precision(given, targets), options.repeats)
        print(f"{name}: all at once {ours:.3f} s (mAP {value:.6f})")
        for rival, function in (("scikit-learn loop", by_scikit_learn), ("torchmetrics", by_torchmetrics)):
            theirs, other = seconds(lambda given=given, function=function: function(given, targets), 1)
            print(
                f"  {rival}: {theirs:.3f} s, {theirs / ours:.1f} times as long, mAP differs by {abs(other - value):.1e}"
            )


if __name__ == "__main__":
    main()
