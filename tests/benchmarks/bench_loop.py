"""Cost of the training loop: ``fit`` against a bare PyTorch loop, in a plain process and through Ray Train.

Run from the root of the repository, on a quiet machine:

    python -m tests.benchmarks.bench_loop [plain] [ray] [first-step] [--rounds 9] [--steps 250] [--threads 1]

Bare loop and ``fit`` take turns in one run, with the same model and initial weights, the same batches of the same
``Loader`` and the same optimiser; both must end with bit-identical weights. Ratios are medians over the rounds: of the
steps alone, of the whole call (``fit`` writes a checkpoint at its end), and of processor time, which other processes
disturb less. With Ray, the bare loop runs here while the single worker waits, and vice versa. ``first-step`` starts
``jobs/train.py`` as a user does and waits for the checkpoint of the first step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.engine import cluster
from tenfold.engine.fit import Clock, FitPlan, Objective, fit
from tenfold.engine.launch import LaunchOptions, launch
from tenfold.engine.loader import Loader
from tenfold.engine.run import PlainRun, Run
from tenfold.engine.settings import ScaleConfig
from tenfold.engine.storage import Storage
from tenfold.hashing import content_hash
from tenfold.models.image_classifier import ModelConfig, build_classifier
from tenfold.types import Batch

NUM_CLASSES, SIZE, BATCH_SIZE = 10, 64, 32
WARM_UP = 10
"""Number of first steps of a round that are not counted."""
POLL_S = 0.01
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Round:
    """Timing of one training of one epoch."""

    step_ms: float
    """Mean time per step, without the warm-up steps."""
    call_s: float
    """Time of the whole call, from a fresh model to the end."""
    processor_s: float
    """Processor time of all threads over the whole call."""
    weights: str
    """Hash of the final weights."""


def make_loader(num_steps: int, rank: int = 0, world_size: int = 1) -> Loader:
    """Return a loader of random images and labels in memory."""
    rng = np.random.default_rng(0)
    num_examples = BATCH_SIZE * num_steps
    images = torch.from_numpy(rng.integers(0, 256, (num_examples, SIZE, SIZE, 3), dtype=np.uint8))
    targets = torch.from_numpy((rng.random((num_examples, NUM_CLASSES)) < 0.25).astype(np.float32))

    def read(rows: np.ndarray) -> Batch:
        at = torch.from_numpy(rows)
        return {"images": images[at], "targets": targets[at]}

    return Loader(read, num_examples, BATCH_SIZE, shuffle=True, rank=rank, world_size=world_size)


def bare_round(loader: Loader) -> Round:
    """Train with a minimal loop: no loss is kept, nothing is checked, shown or saved."""
    stamps: list[float] = []

    def work() -> nn.Module:
        model = _fresh_model()
        optimizer = _optimizer(model)
        model.train()
        for batch in loader.epoch(0):
            loss = functional.binary_cross_entropy_with_logits(model(batch["images"]), batch["targets"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            stamps.append(time.perf_counter())
        return model

    return _timed(work, stamps)


def fit_round(run: Run, loader: Loader, number: int) -> Round:
    """Train the same through ``fit``; every round is a stage of its own, so that none resumes another."""
    stamps: list[float] = []

    def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        return functional.binary_cross_entropy_with_logits(model(batch["images"]), batch["targets"])

    def work() -> nn.Module:
        objective = Objective(loss=loss, after_step=lambda batch, clock: stamps.append(time.perf_counter()))
        plan = FitPlan(num_epochs=1, stage=f"round-{number}")
        return fit(run, _fresh_model(), objective, loader, plan, optimizer=_optimizer).model

    return _timed(work, stamps)


def compare_plain(num_rounds: int, num_steps: int) -> None:
    """Compare ``fit`` in this process with the bare loop."""
    loader = make_loader(num_steps)
    with tempfile.TemporaryDirectory() as folder:
        run = PlainRun(folder=folder)
        bare_round(make_loader(50))  # warm up
        pairs = []
        for number in range(num_rounds):
            if number % 2:
                through_fit = fit_round(run, loader, number)
                pairs.append((bare_round(loader), through_fit))
            else:
                bare = bare_round(loader)
                pairs.append((bare, fit_round(run, loader, number)))
        run.close()
    _report("plain process", pairs)


def compare_ray(num_rounds: int, num_steps: int, threads: int) -> None:
    """Compare ``fit`` in a single Ray Train worker with the bare loop here and, to separate the process, there."""
    loader = make_loader(num_steps)
    cluster.start(num_cpus=max(2, threads + 1))
    # Ray's sockets and the worker's files need short paths.
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as pool:
        turns = Storage(Path(name) / "turns")
        scale = ScaleConfig(workers=1, cpus_per_worker=float(threads), max_failures=0, storage=name)
        options = LaunchOptions(name="bench", folder=f"{name}/bench", shared=name)
        settings = {"turns": turns.url, "rounds": num_rounds, "steps": num_steps}
        job = pool.submit(launch, _ray_work, settings, scale, options)
        _wait_for(turns, "ready.json", job)
        bare_round(make_loader(50))  # warm up
        pairs, pairs_inside = [], []
        for number in range(num_rounds):
            first = bare_round(loader) if number % 2 == 0 else None
            turns.write_json(f"go-{number}.json", {})
            inside, through_fit = (Round(**each) for each in _wait_for(turns, f"done-{number}.json", job))
            pairs.append((first or bare_round(loader), through_fit))
            pairs_inside.append((inside, through_fit))
        job.result()
    cluster.stop()
    _report("Ray Train, 1 worker, against a bare loop outside", pairs)
    _report("Ray Train, 1 worker, against a bare loop inside the worker", pairs_inside)


def _ray_work(run: Run, settings: dict[str, Any]) -> None:
    """Run in the worker: one round whenever the driver asks."""
    turns = Storage(settings["turns"])
    loader = make_loader(settings["steps"], run.rank, run.world_size)
    bare_round(make_loader(50))  # warm up
    turns.write_json("ready.json", {})
    for number in range(settings["rounds"]):
        while not turns.exists(f"go-{number}.json"):
            time.sleep(POLL_S)
        bare = bare_round(loader) if number % 2 else None
        through_fit = fit_round(run, loader, number)
        turns.write_json(f"done-{number}.json", [asdict(bare or bare_round(loader)), asdict(through_fit)])


def first_step(scales: Sequence[str], repeats: int) -> None:
    """Print the seconds from the start of ``jobs/train.py`` to the checkpoint of its first step."""
    with tempfile.TemporaryDirectory() as name:
        cache = f"data.cache={name}/cache"
        cold = _seconds_to_first_step("local", Path(name) / "cold", cache)
        print(f"first step, scale=local: {cold:5.1f} s with the embedded data to build")
        for scale in scales:
            times = [_seconds_to_first_step(scale, Path(name) / f"{scale}-{at}", cache) for at in range(repeats)]
            shown = ", ".join(f"{value:.1f}" for value in times)
            print(f"first step, scale={scale}: {statistics.median(times):5.1f} s (of {shown})")


def _seconds_to_first_step(scale: str, storage: Path, *overrides: str) -> float:
    command = [
        sys.executable, "jobs/train.py", f"scale={scale}", f"scale.storage={storage}", "model.pretrained=false",
        "run.num_epochs=1", "run.max_steps=2", "run.checkpoint_every_steps=1", "run.register=false", *overrides,
    ]  # fmt: skip
    log = storage.with_suffix(".log")
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        seconds = None
        while process.poll() is None:
            if seconds is None and any(storage.rglob("state.pt")):
                seconds = time.perf_counter() - start
            time.sleep(5 * POLL_S)
    if process.returncode != 0 or seconds is None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return seconds


def _wait_for(turns: Storage, name: str, job: "Future[Any]") -> Any:
    while not turns.exists(name):
        if job.done():
            job.result()
            raise RuntimeError(f"the worker ended before it wrote {name}")
        time.sleep(POLL_S)
    return turns.read_json(name)


def _fresh_model() -> nn.Module:
    torch.manual_seed(0)
    return build_classifier(ModelConfig(), NUM_CLASSES, SIZE)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def _timed(work: Callable[[], nn.Module], stamps: list[float]) -> Round:
    start, processor_start = time.perf_counter(), time.process_time()
    model = work()
    call_s, processor_s = time.perf_counter() - start, time.process_time() - processor_start
    weights = {name: tensor.double().flatten().tolist() for name, tensor in model.state_dict().items()}
    steps_s = stamps[-1] - stamps[WARM_UP - 1]
    return Round(
        step_ms=1e3 * steps_s / (len(stamps) - WARM_UP),
        call_s=call_s,
        processor_s=processor_s,
        weights=content_hash(weights),
    )


def _report(title: str, pairs: Sequence[tuple[Round, Round]]) -> None:
    """Print the speed of ``fit`` relative to the bare loop."""
    if len({each.weights for pair in pairs for each in pair}) != 1:
        raise RuntimeError("bare loop and fit must end with the same weights, got different ones")
    bare_ms, fit_ms = (statistics.median(pair[at].step_ms for pair in pairs) for at in (0, 1))
    print(f"{title}: {1e3 / bare_ms:.1f} steps/s bare, {1e3 / fit_ms:.1f} through fit, medians of {len(pairs)} rounds")
    for what in ("step_ms", "call_s", "processor_s"):
        ratios = sorted(getattr(bare, what) / getattr(through_fit, what) for bare, through_fit in pairs)
        quarter = len(ratios) // 4
        name = {"step_ms": "steps alone", "call_s": "whole call", "processor_s": "processor time"}[what]
        middle = f"half of the rounds within {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}"
        print(f"    {name:<15} {statistics.median(ratios):.3f} of the bare loop's speed, {middle}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["plain", "ray", "first-step"], help="plain, ray, first-step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="starts of each scale for first-step")
    options = parser.parse_args()
    unknown = set(options.parts) - {"plain", "ray", "first-step"}
    if unknown or options.steps <= WARM_UP or min(options.rounds, options.repeats, options.threads) < 1:
        parser.error(f"parts are plain, ray and first-step; --steps must exceed {WARM_UP}, the other numbers 0")
    torch.set_num_threads(options.threads)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}, {options.threads} threads, torch {torch.__version__}")
    if "plain" in options.parts:
        compare_plain(options.rounds, options.steps)
    if "ray" in options.parts:
        compare_ray(options.rounds, options.steps, options.threads)
    if "first-step" in options.parts:
        first_step(("local", "ray"), options.repeats)
    print(f"load at the end {', '.join(f'{value:.2f}' for value in os.getloadavg())}")


if __name__ == "__main__":
    main()
