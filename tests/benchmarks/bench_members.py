"""Ensemble members in one pass against a loop, and against the limits of the machine.

    python -m tests.benchmarks.bench_members [--members 30] [--rows 1 4 8 32 128] [--only digit_cnn mlp] [--threads 1]

For each network and number of inputs, median milliseconds of processor time, each variant in turn in every round: a
plain loop (modules in ``eval()`` under ``inference_mode``, stacked), ``vmap`` at each call, and ``Members``; its first
call, which vectorises before anything is recorded; and the floor, the larger of the arithmetic at the speed of a large
matrix product and reading the weights at the speed of a sum over memory, both measured at the start. Ratios are to the
loop.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

from tenfold.models.digit_cnn import DigitCNN
from tenfold.models.members import Members
from tenfold.models.regressors.cnn1d import Cnn1dRegressor
from tenfold.models.regressors.egnn import EgnnRegressor
from tenfold.models.regressors.mlp import MlpRegressor

ROUNDS, SECONDS = 15, 3.0
"""Maximum number of rounds, and maximum time after the first three."""


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def rows_of(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda rows: (torch.rand(rows, *shape),)


def molecules(rows: int) -> tuple[Tensor, ...]:
    return torch.rand(rows, 12, 6), torch.rand(rows, 12, 3), torch.full((rows,), 10)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "digit_cnn": (DigitCNN, rows_of(1, 28, 28)),
    "narrow_digit_cnn": (lambda: DigitCNN(channels=(16, 32, 32), hidden=128), rows_of(1, 28, 28)),
    "8x8_cnn": (small_network, rows_of(1, 8, 8)),
    "perceptron": (perceptron, rows_of(1, 28, 28)),
    "mlp": (lambda: MlpRegressor(10, 1), rows_of(10)),
    "cnn1d_32": (lambda: Cnn1dRegressor(3, 3, widths=(32, 32, 32)), rows_of(3, 64)),
    "cnn1d_128": (lambda: Cnn1dRegressor(3, 3), rows_of(3, 64)),
    "egnn_32": (lambda: EgnnRegressor(6, 1, width=32, num_layers=3), molecules),
}


def in_turn(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median milliseconds of each variant; variants take turns in every round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in ways}
    began = clock()
    for number in range(ROUNDS + 3):
        for name, way in ways.items():
            start = clock()
            way()
            if number >= 3:  # first call, recording, replay
                taken[name].append(clock() - start)
        if number >= 5 and clock() - began > SECONDS:
            break
    return {name: 1e3 * statistics.median(each) for name, each in taken.items()}


def machine() -> tuple[float, float]:
    """Return the machine's floating point operations and bytes per millisecond."""
    side, numbers = 1024, 20_000_000
    square, line = torch.rand(side, side), torch.rand(numbers)
    taken = in_turn({"product": lambda: square @ square, "sum": line.sum})
    return 2 * side**3 / taken["product"], 4 * numbers / taken["sum"]


def compare(name: str, count: int, rows: int, speeds: tuple[float, float]) -> None:
    make, inputs_of = NETWORKS[name]
    networks, inputs = [make().eval() for _ in range(count)], inputs_of(rows)
    parameters, buffers = stack_module_state(networks)
    state = {key: value.detach() for key, value in {**parameters, **buffers}.items()}
    members = Members.of(networks)

    def loop() -> object:
        with torch.inference_mode():
            answers = [network(*inputs) for network in networks]
            if isinstance(answers[0], Tensor):
                return torch.stack(answers)
            return tuple(torch.stack(each) for each in zip(*answers, strict=True))

    def vectorised() -> object:
        with torch.inference_mode():
            return vmap(lambda member: functional_call(networks[0], member, inputs))(state)

    def at_once() -> object:
        with torch.inference_mode():
            return members(*inputs)

    def never_recorded() -> object:
        members_once = Members.__new__(Members)
        members_once.__dict__.update(members.__dict__, _plans={})
        with torch.inference_mode():
            return members_once(*inputs)

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        networks[0](*inputs)
    floor = max(
        count * counter.get_total_flops() / speeds[0],
        sum(value.nbytes for value in state.values()) / speeds[1],
    )
    torch.testing.assert_close(at_once(), loop(), rtol=1e-4, atol=1e-5)
    taken = in_turn({"loop": loop, "vmap": vectorised, "Members": at_once, "first call": never_recorded})
    print(
        f"{name:>17}, {rows:3d} inputs: loop {taken['loop']:8.2f} ms; "
        + ", ".join(f"{way} {taken['loop'] / taken[way]:5.2f} x" for way in ("vmap", "Members", "first call"))
        + f"; floor {floor:7.2f} ms ({taken['loop'] / floor:5.1f} x)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=30)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 32, 128])
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    speeds = machine()
    measured = f"{speeds[0] / 1e6:.0f} GFLOP/s, {speeds[1] / 1e6:.1f} GB/s"
    print(f"{options.members} members, {options.threads} threads; {measured}")
    for name in options.only:
        for rows in options.rows:
            compare(name, options.members, rows, speeds)


if __name__ == "__main__":
    main()
