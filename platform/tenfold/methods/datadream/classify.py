"""Stage C: train the classifier on real shots and synthetic images together.

Kim et al., "DataDream", ECCV 2024: within a batch, the cross-entropies of the real and of the synthetic rows are
averaged separately and weighted; CutMix and MixUp never mix real with synthetic rows.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tenfold.data.classification import ClassificationData
from tenfold.engine.fit import Clock, FitPlan, FitResult, fit
from tenfold.engine.run import Run
from tenfold.engine.settings import JobConfig, RunConfig
from tenfold.methods.datadream.augment import TrainingPool
from tenfold.methods.datadream.classifiers import PromptedClip, ScratchClassifier
from tenfold.methods.datadream.evaluation import split_metrics
from tenfold.methods.datadream.few_shot import FewShotData
from tenfold.methods.datadream.losses import real_synth_cross_entropy
from tenfold.methods.datadream.mixing import mix_by_domain
from tenfold.methods.datadream.schedules import warmup_cosine
from tenfold.methods.datadream.settings import Config
from tenfold.methods.datadream.shots import pool_repeats
from tenfold.methods.datadream.source import SeededSource
from tenfold.types import Batch

Network = PromptedClip | ScratchClassifier


def check_run(config: Config, run: RunConfig) -> None:
    """Check the settings of the run against those of the method, before any work.

    Raises:
        ValueError: The warm-up is longer than the training, or a moving average of the weights is requested.
    """
    if config.scheme != "zero_shot" and config.warmup_epochs > run.num_epochs:
        raise ValueError(
            f"warmup_epochs must be at most run.num_epochs = {run.num_epochs}, got {config.warmup_epochs}; "
            f"set method.warmup_epochs or run.num_epochs"
        )
    if run.ema_decay is not None:
        # Checkpoints hold adapters alone; a moving average would add the whole network to them.
        raise ValueError(f"run.ema_decay must be null with datadream, got {run.ema_decay}; set run.ema_decay=null")


def train_classifier(
    job: JobConfig,
    run: Run,
    data: ClassificationData,
    few_shot: FewShotData,
    synthetic: list[list[Path]] | None,
    network: Network,
    *,
    monitor: str | None,
) -> FitResult:
    """Train, and keep the best epoch.

    Args:
        job: The settings.
        run: The machine.
        data: Source of the validation split.
        few_shot: Classes and shots.
        synthetic: Image files of each class; None for real shots alone.
        network: Network to train.
        monitor: Validation metric that selects the epoch; None keeps the last.
    """
    config: Config = job.method
    repeats = max(1, pool_repeats(config.images_per_class, config.num_shots)) if config.real else 0
    pool = TrainingPool(few_shot, synthetic, repeats, network.preprocessing, config.augment)
    loss = ClassifierLoss(config, network, len(few_shot.classes), run)
    source = SeededSource(
        run.loader(lambda rows: pool.read(rows, 0), len(pool), job.run.batch_size, shuffle=True),
        pool.read,
        seed=run.seed,
        rank=run.rank,
        num_workers=config.num_loader_workers,
    )
    steps_per_epoch = -(-source.num_batches() // job.run.accumulate)
    val = data.val

    def evaluate(bare: nn.Module) -> dict[str, float]:
        return {} if val is None else split_metrics(run, bare.scorer(), val, "val")[0]  # type: ignore[operator]

    return fit(
        run,
        network,
        loss,
        source,
        FitPlan.of(job.run, monitor=monitor, mode="max"),
        optimizer=lambda bare: _optimizer(config, bare),
        schedule=lambda optimizer, steps: _schedule(config, job.run.num_epochs, optimizer, steps_per_epoch),
        evaluate=evaluate,
    )


class ClassifierLoss:
    """Cross-entropy of a batch; real and synthetic rows are weighted, and mixed separately."""

    def __init__(self, config: Config, network: Network, num_classes: int, run: Run) -> None:
        self._config, self._network, self._num_classes = config, network, num_classes
        self._seed, self._rank = run.seed, run.rank
        self._pooled = config.real and config.synthetic

    def __call__(self, model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        config = self._config
        pixels, labels, is_real = self._network.normalise(batch["images"]), batch["labels"], batch["is_real"]
        # A fresh generator in each step, so that a resumed training draws the same numbers.
        words = (self._seed, self._rank, clock.epoch, clock.step, int(batch["index"][0]))
        generator = np.random.default_rng(words)
        classes = self.draw_classes(labels, generator)
        num_classes = self._num_classes
        if classes is not None:
            labels, num_classes = torch.searchsorted(classes, labels), len(classes)
        targets = labels
        if config.mixing:
            one_hot = functional.one_hot(labels, num_classes).float()
            pixels, targets = mix_by_domain(pixels, one_hot, is_real, config.mixing, generator)
        logits = model(pixels, classes)
        if not self._pooled:
            return functional.cross_entropy(logits.float(), targets)
        return real_synth_cross_entropy(logits.float(), targets, is_real, config.real_weight, validate=False)[0]

    def draw_classes(self, labels: Tensor, generator: np.random.Generator) -> Tensor | None:
        """Draw the classes of a step, sorted: those of the batch and random others; None for all."""
        wanted = self._config.classes_per_step
        if wanted is None or wanted >= self._num_classes:
            return None
        present = labels.unique()
        others = np.setdiff1d(np.arange(self._num_classes), present.cpu().numpy())
        more = generator.choice(others, max(0, min(wanted - len(present), len(others))), replace=False)
        return torch.cat([present, torch.from_numpy(more).to(present)]).sort().values


def _optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    trained = [value for value in model.parameters() if value.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)


def _schedule(config: Config, num_epochs: int, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> LRScheduler:
    rates = warmup_cosine(
        config.learning_rate,
        min(config.min_learning_rate, config.learning_rate),
        num_epochs,
        steps_per_epoch,
        config.warmup_epochs,
        min(config.min_learning_rate, config.learning_rate),
    )
    return LambdaLR(optimizer, lambda step: float(rates[min(step, len(rates) - 1)]) / config.learning_rate)
