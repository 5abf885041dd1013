"""Gradient uncertainty and mean gradient of a batch, and the answers of many members, against loops.

    python -m tests.benchmarks.bench_gradient_uncertainty [--threads 1 2] [--batch 200] [--members 30]

For each number of threads, on the published network: milliseconds of a plain training step; of the fast way; of
vectorised per-example gradients; of a forward and backward pass for each example; and of one backward pass for each
example through the graph of the whole batch, as the published code does it (timed for a few examples, times B / few).
Then the peak memory of each way in a process of its own, less what the process held before. Then the members'
answers: all in one pass against one after the other, and what ``posterior_predictive`` takes. Ratios are of medians of
one run; on one thread the time is the processor's, which other programs disturb less.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from tenfold.methods.gradient_uncertainty.ghost_norms import BatchGradients
from tenfold.methods.gradient_uncertainty.measure import gradient_uncertainty
from tenfold.methods.gradient_uncertainty.per_example import per_example_gradients
from tenfold.methods.gradient_uncertainty.predict import posterior_predictive, stack_members
from tenfold.models.digit_cnn import DigitCNN

LOOPED = 4
"""Backward passes through the whole batch's graph that are timed."""


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
    """The published way: a buffer of B gradients, filled by B backward passes through one graph."""
    parameters = list(network.parameters())
    buffer = torch.zeros(len(inputs), sum(value.numel() for value in parameters))
    losses = functional.cross_entropy(network(inputs), labels, reduction="none")
    for i in range(passes):
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
        if name.startswith("fast"):  # a chain checks its layers once, not at every step
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
    """Megabytes that a way adds to the highest resident set of this process."""
    network, inputs, labels = make_batch(batch)
    WAYS[way](network, inputs[:2], labels[:2])  # libraries load what they need
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WAYS[way](network, inputs, labels)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def time_members(count: int, repeats: int) -> None:
    networks = {
        "published": (DigitCNN, (1, 28, 28)),
        "8 x 8": (small_network, (1, 8, 8)),
        "perceptron": (perceptron, (1, 28, 28)),
    }
    for name, (make, shape) in networks.items():
        modules = [make().eval() for _ in range(count)]
        members = [{key: value.detach() for key, value in module.named_parameters()} for module in modules]
        stacked = stack_members(members)
        base = modules[0]
        for rows in (1, 4, 8, 32, 128):
            if name == "published" and rows > 32:
                continue
            inputs = torch.rand(rows, *shape)

            def in_turn(inputs: Tensor = inputs, modules: list[nn.Module] = modules) -> Tensor:
                with torch.no_grad():
                    return torch.stack([module(inputs).softmax(1) for module in modules])

            def at_once(
                inputs: Tensor = inputs, base: nn.Module = base, stacked: dict[str, Tensor] = stacked
            ) -> Tensor:
                def answer(one: dict[str, Tensor]) -> Tensor:
                    return functional_call(base, one, (inputs,)).softmax(1)

                with torch.no_grad():
                    return vmap(answer)(stacked)

            loop, vector = milliseconds(in_turn, repeats), milliseconds(at_once, repeats)
            chosen = milliseconds(
                lambda inputs=inputs, base=base, stacked=stacked: posterior_predictive(stacked, base, inputs), repeats
            )
            print(
                f"  {name:>10}, {rows:3d} inputs: loop {loop:7.2f} ms, one pass {vector:7.2f} ms "
                f"({loop / vector:4.2f} x), posterior_predictive {chosen:7.2f} ms ({loop / chosen:4.2f} x)",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--members", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", choices=list(WAYS), help="print the peak of one way and end")
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
        print(f"answers of {options.members} members, {threads} threads")
        time_members(options.members, options.repeats)


if __name__ == "__main__":
    main()
