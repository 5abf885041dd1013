"""Calibration errors of many elements: against a naive loop over bins, and streamed against all at once.

    python -m tests.benchmarks.bench_calibration [--elements 10000000] [--chunks 10000 100000 1000000] [--threads 1]

Prints median processor times of one run and ratios to the loop: one mask per bin, as in public code for calibration
errors, in numpy and in torch; for bins of equal mass a split argsort. Then batches through ``StreamingCalibration``
against one call. Memory is the peak of a separate process, minus what it held with the inputs.
"""

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from tenfold.metrics.regression.calibration import (
    expected_normalized_calibration_error,
    uncertainty_calibration_error,
)
from tenfold.metrics.regression.streaming import StreamingCalibration

BINS, REPEATS = 15, 3
Inputs = tuple[np.ndarray, np.ndarray]


def make_inputs(elements: int) -> Inputs:
    random = np.random.default_rng(0)
    variance = random.gamma(2, 0.5, elements).astype(np.float32)
    return variance * random.standard_normal(elements, dtype=np.float32) ** 2, variance


def numpy_masks(error: np.ndarray, variance: np.ndarray) -> float:
    edges, total = np.linspace(variance.min(), variance.max(), BINS + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (variance > low) & (variance <= high)
        if inside.any():
            total += abs(error[inside].mean() - variance[inside].mean()) * inside.mean()
    return float(total)


def torch_masks(error: np.ndarray, variance: np.ndarray) -> float:
    errors, variances = torch.from_numpy(error), torch.from_numpy(variance)
    edges, total = torch.linspace(float(variances.min()), float(variances.max()), BINS + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = variances.gt(low) & variances.le(high)
        if inside.any():
            gap = (errors[inside].mean() - variances[inside].mean()).abs()
            total += float(gap * inside.float().mean())
    return total


def sorted_parts(error: np.ndarray, variance: np.ndarray) -> float:
    parts = np.array_split(np.argsort(variance, kind="stable"), BINS)
    return float(sum(abs(error[part].mean() - variance[part].mean()) * len(part) for part in parts) / len(error))


def streamed(error: np.ndarray, variance: np.ndarray, chunk: int = 100_000) -> float:
    calibration = StreamingCalibration()
    for start in range(0, len(error), chunk):
        calibration.update(error[start : start + chunk], variance[start : start + chunk])
    return calibration.bins(n_bins=BINS).calibration_error


def by_mass(error: np.ndarray, variance: np.ndarray) -> float:
    return uncertainty_calibration_error(error, variance, n_bins=BINS, strategy="mass")


WAYS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "numpy, a mask a bin": numpy_masks,
    "torch, a mask a bin": torch_masks,
    "UCE": uncertainty_calibration_error,
    "ENCE": expected_normalized_calibration_error,
    "argsort, split": sorted_parts,
    "UCE, equal mass": by_mass,
    "UCE, streamed": streamed,
}


def seconds(work: Callable[[], float]) -> tuple[float, float]:
    """Return the median time, and the result."""
    taken, value = [], 0.0
    for _ in range(REPEATS):
        start = time.process_time()
        value = work()
        taken.append(time.process_time() - start)
    return statistics.median(taken), value


def peak_of(way: str, elements: int) -> float:
    """Return the megabytes that a variant adds to the peak resident set of this process."""
    error, variance = make_inputs(elements)
    WAYS[way](error[:1000], variance[:1000])
    # The peak so far includes making the inputs: allocate as much again, so that any further memory shows.
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident_kb()
    ballast = np.ones(max(0, held) * 1024, dtype=np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WAYS[way](error, variance)
    del ballast
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


def resident_kb() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", choices=list(WAYS), help="print the peak of one variant and exit")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(f"{peak_of(options.memory_of, options.elements):.0f}")
        return
    error, variance = make_inputs(options.elements)
    print(f"{options.elements} elements, {BINS} bins, {options.threads} threads")
    taken = {}
    for name, way in WAYS.items():
        taken[name], value = seconds(lambda way=way: way(error, variance))
        base = taken[
            "argsort, split" if "argsort, split" in taken and "streamed" not in name else "numpy, a mask a bin"
        ]
        command = [sys.executable, "-m", __spec__.name, "--elements", str(options.elements), "--memory-of", name]
        memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(
            f"  {name:>20}: {taken[name]:6.2f} s ({base / taken[name]:5.2f} x), {memory:>5} MB, {value:.9f}", flush=True
        )
    for chunk in options.chunks:
        cost, _ = seconds(lambda chunk=chunk: streamed(error, variance, chunk))
        print(f"  streamed, {chunk:8d} at once: {cost:6.2f} s, {cost / taken['UCE']:5.2f} times one call", flush=True)


if __name__ == "__main__":
    main()
