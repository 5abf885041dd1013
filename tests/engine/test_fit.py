"""Training loop in a plain process: learning, exact resume, stopping, precision, EMA."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from tenfold.engine.fit import FitPlan, FitResult, fit
from tenfold.engine.run import Interrupted, PlainRun
from tests.engine import toy


def plain(folder: Path, **options: object) -> PlainRun:
    return PlainRun(folder=folder, seed=3, progress=False, **options)


def same(first: FitResult, second: FitResult) -> None:
    assert toy.weights(first.model) == toy.weights(second.model)
    assert first.history == second.history
    assert (first.best_epoch, first.steps) == (second.best_epoch, second.steps)


def test_learns_and_keeps_the_best_weights(tmp_path):
    result = toy.train(plain(tmp_path), FitPlan(num_epochs=6, monitor="val/mse", mode="min"))
    errors = [row["val/mse"] for row in result.history]
    assert min(errors) < 0.5 * errors[0] or errors[0] < 0.1
    assert result.best_epoch == errors.index(min(errors)) + 1
    inputs, targets = toy.data()
    with torch.no_grad():
        assert float(functional.mse_loss(result.model(inputs), targets)) == pytest.approx(min(errors), abs=1e-7)


@pytest.mark.parametrize(
    ("plan", "more"),
    [
        (FitPlan(num_epochs=3, monitor="val/mse", mode="min", ema_decay=0.9, clip_norm=1.0), {}),
        (FitPlan(num_epochs=3, accumulate=3), {"schedule": lambda opt, n: LambdaLR(opt, lambda step: 1 - step / n)}),
        (FitPlan(num_epochs=3, precision="bf16"), {"schedule": lambda opt, n: ReduceLROnPlateau(opt, patience=0)}),
    ],
    ids=["ema-clip-best", "accumulate-schedule", "bf16-plateau"],
)
@pytest.mark.parametrize("stop_at", [2, 5, 13])
def test_stopped_and_resumed_ends_bit_for_bit_where_it_would_have(tmp_path, plan, more, stop_at):
    whole = toy.train(plain(tmp_path / "whole"), plan, toy.Counting().objective(), **more)
    stop = threading.Event()
    steps = iter(range(1, 10_000))

    def after_step(batch, clock):
        if next(steps) == stop_at:
            stop.set()

    with pytest.raises(Interrupted):
        toy.train(plain(tmp_path / "cut", stop=stop), plan, toy.Counting().objective(after_step=after_step), **more)
    counting = toy.Counting()
    resumed = toy.train(plain(tmp_path / "cut"), plan, counting.objective(), **more)
    same(whole, resumed)
    assert (counting.seen == 3).all()  # every example once per epoch: the interruption neither lost nor repeated any


def test_resume_after_a_crash_repeats_only_what_the_checkpoint_lacks(tmp_path):
    plan = FitPlan(num_epochs=3, checkpoint_every_steps=5)
    whole = toy.train(plain(tmp_path / "whole"), plan)

    def crash(batch, clock):
        if clock.step == 23:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        toy.train(plain(tmp_path / "cut"), plan, toy.Counting().objective(after_step=crash))
    steps = []
    again = toy.Counting().objective(after_step=lambda batch, clock: steps.append(clock.step))
    same(whole, toy.train(plain(tmp_path / "cut"), plan, again))
    assert steps[0] == 20


def test_a_finished_loop_returns_its_result_without_training(tmp_path):
    plan = FitPlan(num_epochs=2, monitor="val/mse", mode="min")
    first = toy.train(plain(tmp_path), plan)

    def never(model, batch, clock):
        raise AssertionError("trained again")

    same(first, toy.train(plain(tmp_path), plan, never))


def test_a_half_written_checkpoint_is_not_read(tmp_path):
    plan = FitPlan(num_epochs=2)
    first = toy.train(plain(tmp_path), plan)
    newest = max((tmp_path / "checkpoints/fit").iterdir())
    broken = newest.with_name(f"{int(newest.name) + 1:09d}")
    broken.mkdir()
    (broken / "state.pt").write_bytes(b"half")
    same(first, toy.train(plain(tmp_path), plan))


def test_early_stopping_by_patience_and_by_drop(tmp_path):
    values = iter([5.0, 9.0, 8.0, 7.5, 9.5])

    def run_with(plan: FitPlan, folder: Path) -> FitResult:
        import numpy as np

        from tenfold.engine.fit import fit

        run = plain(folder)
        source = run.loader(lambda rows: {"inputs": torch.zeros(len(rows), 6)}, 8, 4, shuffle=False)
        return fit(
            run, nn.Linear(6, 1), lambda m, b, c: m(b["inputs"]).square().mean(), source, plan,
            optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=np.float64(0.1)),
            evaluate=lambda m: {"val/mAP": next(values)},
        )  # fmt: skip

    result = run_with(FitPlan(num_epochs=50, monitor="val/mAP", patience=2), tmp_path / "a")
    assert (len(result.history), result.best_epoch, result.stopped_early) == (4, 2, True)
    values = iter([9.0, 8.0, 5.0, 9.5])
    result = run_with(FitPlan(num_epochs=50, monitor="val/mAP", stop_after_drop=3.0), tmp_path / "b")
    assert (len(result.history), result.best_epoch) == (3, 1)


def test_accumulation_equals_one_large_batch(tmp_path):
    inputs = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))

    def final(batch_size: int, accumulate: int, folder: Path) -> torch.Tensor:
        from tenfold.engine.fit import fit

        run = plain(folder)
        model = nn.Linear(6, 1)
        nn.init.constant_(model.weight, 0.1)
        nn.init.zeros_(model.bias)
        source = run.loader(lambda rows: {"inputs": inputs[torch.from_numpy(rows)]}, 12, batch_size, shuffle=False)
        result = fit(
            run, model, lambda m, b, c: (m(b["inputs"]) - 1).square().mean(), source,
            FitPlan(num_epochs=2, accumulate=accumulate),
            optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        )  # fmt: skip
        assert result.steps == 4
        return result.model.weight

    torch.testing.assert_close(final(6, 1, tmp_path / "a"), final(2, 3, tmp_path / "b"))


def test_max_steps_ends_in_mid_epoch(tmp_path):
    result = toy.train(plain(tmp_path), FitPlan(num_epochs=10, max_steps=5))
    assert (result.steps, len(result.history)) == (5, 1)


def test_a_loss_that_is_not_finite_ends_training_with_the_way_out(tmp_path):
    def explode(model, batch, clock):
        return toy.loss(model, batch, clock) * (float("inf") if clock.step == 15 else 1)

    with pytest.raises(FloatingPointError, match=r"epoch 2 .*run\.clip_norm"):
        toy.train(plain(tmp_path), FitPlan(num_epochs=3), explode)


def test_an_unknown_monitor_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"monitor must be one of .*val/mse.*, got 'val/acc'"):
        toy.train(plain(tmp_path), FitPlan(num_epochs=1, monitor="val/acc"))


def test_clock_counts_epochs_and_steps(tmp_path):
    seen = []

    def note(model, batch, clock):
        seen.append((clock.epoch, clock.step, clock.total_steps))
        return toy.loss(model, batch, clock)

    toy.train(plain(tmp_path), FitPlan(num_epochs=2), note)
    assert seen[0] == (1, 0, 26)
    assert seen[13] == (2, 13, 26)
    assert len(seen) == 26


def test_the_average_keeps_a_mask_of_infinities(tmp_path):
    class Masked(nn.Module):
        mask: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.inner = toy.network()
            self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(inputs)

    inputs, targets = toy.data()
    run = PlainRun(folder=tmp_path, progress=False)
    result = fit(
        run,
        Masked(),
        toy.loss,
        run.loader(lambda rows: {"inputs": inputs[rows], "targets": targets[rows]}, len(inputs), 32, shuffle=True),
        FitPlan(num_epochs=2, ema_decay=0.9),
        optimizer=lambda bare: torch.optim.SGD(bare.parameters(), lr=0.1),
    )
    assert torch.equal(result.model.get_buffer("mask"), torch.full((2, 2), float("-inf")).triu(1))
    assert all(value.isfinite().all() for value in result.model.get_submodule("inner").state_dict().values())
