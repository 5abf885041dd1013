"""Training of posterior members by every scheme, and the threshold of the out-of-distribution flag."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tenfold import __version__
from tenfold.bundle import load_bundle
from tenfold.data.catalog import load_uncertainty
from tenfold.data.classification import ClassificationData, ClassificationSplit
from tenfold.data.uncertainty import UncertaintyData, smallest_margin
from tenfold.engine.fit import Clock, FitPlan, fit
from tenfold.engine.predict import check_classes
from tenfold.engine.recipe import save_results, train_once
from tenfold.engine.run import Interrupted, Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.engine.storage import Storage
from tenfold.files import write_atomically
from tenfold.methods.gradient_uncertainty.baselines import SghmcChain, SwagChain, laplace_members
from tenfold.methods.gradient_uncertainty.batches import ShuffledBatches
from tenfold.methods.gradient_uncertainty.evaluation import measure, member_probs
from tenfold.methods.gradient_uncertainty.figures import log_figures
from tenfold.methods.gradient_uncertainty.members import stack_members
from tenfold.methods.gradient_uncertainty.predictor import (
    MEMBER,
    THRESHOLD,
    PosteriorPredictor,
    grey,
    load,
    predictor_of,
)
from tenfold.methods.gradient_uncertainty.sampler import ChainError, GradientUncertaintySampler, SamplerConfig
from tenfold.methods.gradient_uncertainty.settings import CHAINS, Config
from tenfold.methods.gradient_uncertainty.variational import MeanFieldNetwork
from tenfold.metrics.uncertainty import predictive_uncertainty, threshold_at
from tenfold.models.digit_cnn import build_digit_cnn
from tenfold.types import Batch

METRIC = "val/nll"
NUM_PROBES = 8
REPORT_EVERY = 200
"""Steps between checks of whether to checkpoint or stop."""
VARIATIONAL_RATE = 1e-3
"""Learning rate of Adam for ``bayes_by_backprop``. Under plain gradient descent the divergence would move a standard
deviation by at most learning rate / N per step, so that all would stay at their initial value."""
CONFUSING = "small_margin"
CONFUSING_SHARE = 0.05
JUDGE_RATE, JUDGE_BATCH, JUDGE_STREAM = 1e-3, 64, 2**32 - 1
"""Learning rate (Adam), examples per worker and step, and random stream of the judge; no member shares the stream."""

Members = list[dict[str, Tensor]]


def train(job: JobConfig, run: Run) -> Outcome:
    """Sample or train the members, set the threshold on held-out images, evaluate, and write a bundle and figures.

    Args:
        job: Settings; ``job.method`` is a ``Config`` of this method.
        run: Execution context. With several workers each runs its own chain and keeps its share of the members.
    """
    data = _with_confusing(job, run.once_per_node(lambda: load_uncertainty(job.data)), run)
    trained = train_once(run, job, data.inside.fingerprint, lambda folder: _train(job, data, run, folder))
    if run.is_main and run.recorder is not None and job.method.figures:
        log_figures(run, job.method, data, load(load_bundle(trained.bundle)), trained.results["trace"])
    return trained.outcome(METRIC, "min")


def evaluate(predictor: Any, data: Any, run: Run) -> dict[str, float]:
    """Return accuracy, calibration and out-of-distribution detection on data with the same classes.

    The set ``small_margin`` is omitted: selecting it takes a network trained on the training split.

    Raises:
        ValueError: The classes of the data differ from those of the model.
    """
    loaded = run.once_per_node(lambda: load_uncertainty(data))
    check_classes(predictor.classes, loaded.inside.name, loaded.inside.classes)
    return measure(predictor, loaded)


def _with_confusing(job: JobConfig, data: UncertaintyData, run: Run) -> UncertaintyData:
    """Add the set ``small_margin`` to the data, selected by a judge network that is not a member.

    The training of the judge depends on data, network and seed only: jobs with shared stages share it.
    """
    epochs = job.method.judge_epochs
    if not epochs:
        return data
    key = {
        "data": data.inside.fingerprint,
        "model": dataclasses.asdict(job.model),
        "seed": run.seed,
        "epochs": epochs,
        "workers": run.world_size,
        "version": __version__,
    }

    def work(folder: Path) -> None:
        path = folder / "probs.safetensors"
        if run.share(path.exists()):
            return
        train, test = data.inside.split("train"), data.inside.test
        result = fit(
            run,
            build_digit_cnn(job.model, len(data.inside.classes)),
            _loss,
            run.loader(lambda rows: _batch(train, rows), len(train), JUDGE_BATCH, shuffle=True),
            FitPlan(num_epochs=epochs, precision="fp32", stage="judge"),
            optimizer=lambda bare: torch.optim.Adam(bare.parameters(), lr=JUDGE_RATE),
            evaluate=lambda bare: _validate(bare, data.inside),
        )
        if run.is_main:
            probs = _probs_of(result.model, test, data.inside.classes).contiguous()
            write_atomically(path, lambda temporary: save_file({"test": probs}, temporary))

    seed = int(np.random.SeedSequence((run.seed, JUDGE_STREAM)).generate_state(1)[0])
    folder = run.stage("gradient_uncertainty_judge", key, work, seed=seed)
    probs = load_file(folder / "probs.safetensors")["test"]
    return dataclasses.replace(data, confusing={CONFUSING: smallest_margin(probs, CONFUSING_SHARE)})


def _train(job: JobConfig, data: UncertaintyData, run: Run, folder: Path) -> None:
    """Run the training stage; all of its output goes into ``folder``."""
    config: Config = job.method
    members, trace, history = _members(job, data, run)
    stacked = stack_members(members)
    classes = data.inside.classes
    device = str(run.device)
    held_out = member_probs(
        predictor_of(config, job.model, stacked, classes, 0.0, device), data.inside.split("val").images
    )
    scores = getattr(predictive_uncertainty(held_out), config.score)
    threshold = threshold_at(scores.cpu(), config.false_positive_rate)
    predictor = predictor_of(config, job.model, stacked, classes, threshold, device)
    metrics = measure(predictor, data) | {"members": float(len(members))}
    if len(trace):
        late = trace[config.warmup_steps + 1 :]
        metrics |= {"chain/steps": float(len(trace)), "chain/kept_share": len(members) / max(len(late), 1)}
    if not run.is_main:
        return
    served = predictor_of(config, job.model, {name: value.cpu() for name, value in stacked.items()}, classes, threshold)
    save_results(
        folder,
        job,
        served,
        data.inside.test.images.read(np.arange(min(NUM_PROBES, len(data.inside.test)))),
        tensors={
            **{f"{MEMBER}{name}": value for name, value in stacked.items()},
            THRESHOLD: torch.tensor(threshold).double(),
        },
        metrics=metrics,
        history=history,
        data_name=data.inside.name,
        data_fingerprint=data.inside.fingerprint,
        trace=trace.tolist(),
    )


def _members(job: JobConfig, data: UncertaintyData, run: Run) -> tuple[Members, Tensor, list[dict[str, float]]]:
    """Return the parameters of every member, the trace of gradient uncertainty (empty without one), and a history."""
    config: Config = job.method
    train = data.inside.split("train")
    if config.scheme in CHAINS:
        try:
            members, trace = _walk(job, train, run)
        except ChainError as error:
            raise RuntimeError(str(error)) from error  # with a cause, the command line prints the message only
        return members, trace, [{"epoch": 1.0, "step": float(len(trace)), "members": float(len(members))}]
    if config.scheme == "bayes_by_backprop":
        return _variational(job, data, run)
    networks: list[nn.Module] = []
    history: list[dict[str, float]] = []
    for number in range(config.num_members if config.scheme == "deep_ensemble" else 1):
        torch.manual_seed(int(np.random.SeedSequence((run.seed, number)).generate_state(1)[0]))
        drop = config.dropout if config.scheme == "mc_dropout" else 0.0
        network = build_digit_cnn(job.model, len(data.inside.classes), drop)
        stage = f"member{number}" if config.scheme == "deep_ensemble" else "fit"
        result = fit(
            run,
            network,
            _loss,
            run.loader(lambda rows: _batch(train, rows), len(train), job.run.batch_size, shuffle=True),
            FitPlan.of(job.run, stage=stage),
            optimizer=lambda bare: torch.optim.SGD(bare.parameters(), lr=config.learning_rate),
            evaluate=lambda bare: _validate(bare, data.inside),
        )
        networks.append(result.model.cpu())
        history = history or result.history
    if config.scheme == "laplace":
        members = laplace_members(networks[0], _batches(job, train, run.seed), config.num_members, run.seed)
    else:
        members = [{name: value.detach() for name, value in network.named_parameters()} for network in networks]
    return members, torch.zeros(0), history


def _variational(job: JobConfig, data: UncertaintyData, run: Run) -> tuple[Members, Tensor, list[dict[str, float]]]:
    """Train a Gaussian over every parameter and draw members; the history is that of the means."""
    config: Config = job.method
    train = data.inside.split("train")
    torch.manual_seed(int(np.random.SeedSequence((run.seed, 0)).generate_state(1)[0]))
    posterior = MeanFieldNetwork(build_digit_cnn(job.model, len(data.inside.classes)), config.initial_std)
    # Workers draw different parameters; 1 + rank, because rank 0 would reuse the numbers that initialised the means.
    torch.manual_seed(int(np.random.SeedSequence((run.seed, 0, 1 + run.rank)).generate_state(1)[0]))

    def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        return _loss(model, batch, clock) + posterior.divergence(config.prior_variance) / len(train)

    result = fit(
        run,
        posterior,
        loss,
        run.loader(lambda rows: _batch(train, rows), len(train), job.run.batch_size, shuffle=True),
        FitPlan.of(job.run),
        optimizer=lambda bare: torch.optim.Adam(bare.parameters(), lr=VARIATIONAL_RATE),
        evaluate=lambda bare: _validate(bare.get_submodule("mean"), data.inside),
    )
    trained: Any = result.model.cpu()
    return trained.draws(config.num_members, run.seed), torch.zeros(0), result.history


def _walk(job: JobConfig, train: ClassificationSplit, run: Run) -> tuple[Members, Tensor]:
    """Run a chain on every worker, from the last checkpoint if any; return all members and the trace of this worker."""
    config: Config = job.method
    share = -(-config.num_members // run.world_size)
    batches = _batches(job, train, run.seed + run.rank)
    steps = job.run.num_epochs * len(batches)
    max_steps = min(steps, job.run.max_steps or steps)
    torch.manual_seed(int(np.random.SeedSequence((run.seed, run.rank)).generate_state(1)[0]))
    chain = _chain(job, build_digit_cnn(job.model, 10).to(run.device), len(train), share, len(batches), run)
    with run.restore("chain") as found:
        if found is not None:
            world_size = Storage(found).read_json("about.json")["world_size"]
            if world_size != run.world_size:
                raise ValueError(
                    f"scale.workers must be {world_size}, as in the checkpoint, got {run.world_size}; set it so, or "
                    f"another run.tag to start over"
                )
            state = torch.load(found / f"rank-{run.rank}.pt", map_location="cpu", weights_only=True)
            chain.load_state_dict(state["chain"])
            done = int(state["done"])
        else:
            done = 0
    bar = run.progress(max_steps, "chain")
    bar.update(done)
    walk, over, saved_at = chain.advance(batches, max_steps), False, time.monotonic()
    while not over:
        taken = sum(1 for _, _ in zip(range(REPORT_EVERY), walk, strict=False))
        done += taken
        bar.update(taken)
        finished = torch.tensor(float(taken < REPORT_EVERY))
        over = bool(run.all_reduce(finished, "sum") == run.world_size)
        stop, late = run.share((run.stop_requested(), time.monotonic() - saved_at > job.run.checkpoint_every_s))
        if stop or late:
            _checkpoint(run, chain, done)
            saved_at = time.monotonic()
        if stop and not over:
            raise Interrupted
    bar.close()
    if isinstance(chain, GradientUncertaintySampler):
        samples = chain.run(batches, max_steps)  # no step is left: checks the number of members
        members, trace = samples.members, samples.uncertainty_trace
    else:
        members, trace = chain.members, torch.zeros(0)
    return _gathered(run, members), trace


def _checkpoint(run: Run, chain: Any, done: int) -> None:
    with tempfile.TemporaryDirectory(dir=run.scratch) as name:
        folder = Path(name) / "checkpoint"
        folder.mkdir()
        if run.is_main:
            Storage(folder).write_json("about.json", {"stage": "chain", "world_size": run.world_size})
        torch.save({"chain": chain.state_dict(), "done": done}, folder / f"rank-{run.rank}.pt")
        run.report("chain", {}, step=done, epoch=1, checkpoint=folder)


def _chain(job: JobConfig, network: nn.Module, num_examples: int, share: int, num_batches: int, run: Run) -> Any:
    config: Config = job.method
    seed = run.seed + run.rank
    if config.scheme == "sghmc":
        return SghmcChain(
            network, num_examples=num_examples, learning_rate=config.learning_rate, friction=config.friction,
            prior_variance=config.prior_variance, num_members=share, burn_in=config.burn_in, seed=seed,
        )  # fmt: skip
    if config.scheme == "swag":
        return SwagChain(
            network, learning_rate=config.learning_rate, num_members=share, rank=config.swag_rank,
            burn_in=config.burn_in, steps_between=max(1, num_batches), seed=seed,
        )  # fmt: skip
    triggered = config.scheme in ("triggered", "random_kicks")
    return GradientUncertaintySampler(
        network,
        SamplerConfig(
            mode="triggered" if triggered else config.scheme,  # type: ignore[arg-type]
            lr=config.learning_rate,
            num_members=share,
            noise_power=config.noise_power,
            threshold=config.threshold,
            warmup=config.warmup_steps,
            temperature=config.temperature,
            prior_variance=config.prior_variance,
            burn_in=config.burn_in,
            seed=seed,
            random_kicks=config.kick_rate if config.scheme == "random_kicks" else None,
        ),
    )


def _gathered(run: Run, members: Members) -> Members:
    """Gather the members of all workers on every worker; their numbers may differ."""
    if run.world_size == 1:
        return members
    counts = [int(each) for each in run.all_gather(torch.tensor([len(members)]))]
    most = max(counts)
    together: dict[str, list[Tensor]] = {}
    for name, value in stack_members(members).items():
        padded = torch.cat([value, value[:1].expand(most - len(value), *value.shape[1:])])
        parts = run.all_gather(padded)
        together[name] = [row for part, count in zip(parts, counts, strict=True) for row in part[:count]]
    return [dict(zip(together, values, strict=True)) for values in zip(*together.values(), strict=True)]


def _batches(job: JobConfig, train: ClassificationSplit, seed: int) -> ShuffledBatches:
    pixels = grey(train.images.read(np.arange(len(train))))
    return ShuffledBatches(pixels, torch.from_numpy(train.labels.copy()), job.run.batch_size, seed=seed)


def _batch(train: ClassificationSplit, rows: np.ndarray) -> Batch:
    return {"inputs": grey(train.images.read(rows)), "labels": torch.from_numpy(train.labels[rows])}


def _loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
    return functional.cross_entropy(model(batch["inputs"]), batch["labels"])


def _probs_of(model: nn.Module, split: ClassificationSplit, classes: tuple[str, ...]) -> Tensor:
    """Return the class probabilities of one network, ``(N, C)`` on the CPU."""
    parameters = {name: value.detach()[None] for name, value in model.named_parameters()}
    device = str(next(model.parameters()).device)
    return member_probs(PosteriorPredictor(model, parameters, classes, device=device), split.images)[0]


def _validate(model: nn.Module, data: ClassificationData) -> dict[str, float]:
    split = data.split("val")
    probs = _probs_of(model, split, data.classes)
    labels = torch.from_numpy(split.labels.copy())
    of_label = probs.gather(1, labels[:, None]).clamp_min(torch.finfo(probs.dtype).tiny)
    accuracy = (probs.argmax(1) == labels).float().mean()
    return {"val/accuracy": 100 * float(accuracy), "val/nll": -float(of_label.log().mean())}
