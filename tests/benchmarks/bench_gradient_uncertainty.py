"""Gradient uncertainty and mean gradient of a batch, and predictions of many members, against loops.

    python -m tests.benchmarks.bench_gradient_uncertainty [--threads 1 2] [--batch 200] [--members 30]

For each number of threads, on the published network: milliseconds of a plain training step; of the fast
implementation; of vectorised per-example gradients; of one forward and backward pass per example; and of one backward
pass per example through the graph of the whole batch, as in the published code (timed for a few examples and
extrapolated to B). Then the peak memory of each variant in a separate process, minus what it held before. Then the
members' predictions, batched against sequential (see ``bench_members``). Ratios are of medians of one run; on one
thread, processor time is measured, which other processes disturb less.
"""

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.methods.gradient_uncertainty.ghost_norms import BatchGradients
from tenfold.methods.gradient_uncertainty.per_example import per_example_gradients
from tenfold.methods.gradient_uncertainty.uncertainty import gradient_uncertainty
from tenfold.models.digit_cnn import DigitCNN
from tests.benchmarks import bench_members

LOOPED = 4
"""Timed backward passes through the graph of the whole batch."""
MEMBERS_OF = ("digit_cnn", "narrow_digit_cnn", "8x8_cnn", "perceptron")


def make_batch(batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return DigitCNN(), torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))


def training_step(network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    torch.autograd.grad(functional.cross_entropy(network(inputs), labels), list(network.parameters()))


def fast(network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    BatchGradients(network)(inputs, labels)


def corrected(network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    BatchGradients(network)(inputs, labels, squares=True)


def vectorised(network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    gradient_uncertainty(per_example_gradients(network, functional.cross_entropy, inputs, labels, chunk_size=25))


def one_by_one(network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    rows = []
    for i in range(len(inputs)):
        loss = functional.cross_entropy(network(inputs[i : i + 1]), labels[i : i + 1])
        grads = torch.autograd.grad(loss, list(network.parameters()))
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    gradient_uncertainty(torch.stack(rows))


def through_the_batch(network: nn.Module, inputs: Tensor, labels: Tensor, passes: int = LOOPED) -> None:
    """As published: a buffer of B gradients, filled by B backward passes through one graph."""
    parameters = list(network.parameters())
    buffer = torch.zeros(len(inputs), sum(value.numel() for value in parameters))
    losses = functional.cross_entropy(network(inputs), labels, reduction="none")
    for i in range(min(passes, len(inputs))):
        grads = torch.autograd.grad(losses[i], parameters, retain_graph=True)
        buffer[i] = torch.cat([grad.flatten() for grad in grads])


WAYS: dict[str, Callable[[nn.Module, Tensor, Tensor], None]] = {
    "training step": training_step,
    "fast": fast,
    "fast, with squares": corrected,
    "vectorised": vectorised,
    "one by one": one_by_one,
    "through the batch": through_the_batch,
}


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return 1e3 * sorted(times)[repeats // 2]


def time_gradients(batch: int, repeats: int) -> None:
    network, inputs, labels = make_batch(batch)
    base, setup = 0.0, milliseconds(lambda: BatchGradients(network)(inputs[:2], labels[:2]), repeats)
    reused = BatchGradients(network)
    for name, way in WAYS.items():
        if name.startswith("fast"):  # a chain checks its layers once, not every step
            squares = name != "fast"
            cost = milliseconds(lambda squares=squares: reused(inputs, labels, squares=squares), repeats)
        elif name in ("one by one", "vectorised"):
            cost = milliseconds(lambda way=way: way(network, inputs, labels), 1)
        elif name == "through the batch":
            cost = milliseconds(lambda: through_the_batch(network, inputs, labels, LOOPED), 1)
            once = milliseconds(lambda: through_the_batch(network, inputs, labels, 0), 1)
            cost = once + (cost - once) * batch / LOOPED
        else:
            cost = milliseconds(lambda way=way: way(network, inputs, labels), repeats)
        if name == "fast":
            base = cost
        ratio = f", {cost / base:6.2f} x fast" if base else ""
        print(f"  {name:>20}: {cost:9.1f} ms{ratio}", flush=True)
    print(f"  the check of the layers, once in a chain: {setup:.1f} ms", flush=True)


def measure_memory(batch: int) -> None:
    for name in WAYS:
        command = [sys.executable, "-m", __spec__.name, "--batch", str(batch), "--memory-of", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"  {name:>20}: {done.stdout.strip()} MB", flush=True)


def peak_of(way: str, batch: int) -> float:
    """Return the megabytes that a variant adds to the peak resident set of this process."""
    network, inputs, labels = make_batch(batch)
    WAYS[way](network, inputs[:2], labels[:2])  # warm up the libraries
    before = _peak_kib()
    WAYS[way](network, inputs, labels)
    return (_peak_kib() - before) * 1024 / 1e6


def _peak_kib() -> int:
    # Not getrusage: a process inherits the peak resident set of its parent.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--members", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", choices=list(WAYS), help="print the peak of one variant and exit")
    options = parser.parse_args()
    if options.memory_of:
        torch.set_num_threads(1)
        print(f"{peak_of(options.memory_of, options.batch):.0f}")
        return
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"gradients, batch {options.batch}, {threads} threads")
        time_gradients(options.batch, options.repeats)
    print(f"peak memory beyond network and batch, batch {options.batch}, 1 thread")
    measure_memory(options.batch)
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"predictions of {options.members} members, {threads} threads")
        speeds = bench_members.machine()
        for name, rows in itertools.product(MEMBERS_OF, (1, 4, 8, 32)):
            bench_members.compare(name, options.members, rows, speeds)


if __name__ == "__main__":
    main()
