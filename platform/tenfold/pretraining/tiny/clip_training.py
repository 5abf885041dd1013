"""Training of the shipped small CLIP, on printed characters and captions of them; never on handwriting.

Takes about a quarter of an hour on one core. Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", ICML 2021, with two changes: all captions of a batch that are true of an image count as positives; and
during training both towers are also pulled towards one anchor for each character, the most important fact.
"""

import json
import math
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from tenfold.data.embedded.handwriting.build import load
from tenfold.data.embedded.handwriting.config import HandwritingConfig, Split
from tenfold.data.embedded.handwriting.splits import Digits, Glyphs, Letters
from tenfold.data.embedded.handwriting.store import cache_root
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS, LETTERS
from tenfold.engine.fit import Clock, FitPlan, Objective, fit
from tenfold.engine.run import PlainRun
from tenfold.files import write_atomically
from tenfold.hashing import content_hash
from tenfold.models.clip import Clip, ClipConfig, load_clip
from tenfold.pretraining.tiny.captions import COLUMN, NUM_CHARACTERS, Writer, common_words, truth
from tenfold.pretraining.tiny.clip_images import Artist
from tenfold.pretraining.tiny.clip_tokens import CONTEXT, VOCABULARY, learn_tokens
from tenfold.types import Batch, Preprocessing

NUM_STEPS = 5000
STEPS_PER_EPOCH = 100
EVALUATE_EVERY = 5
"""Epochs between evaluations."""
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.05
EMA_DECAY = 0.998
LARGEST_SCALE = math.log(100)
NUM_CAPTIONS_FOR_TOKENS = 16_000

PROMPTS = ("a photo of a {}", "A photo of a {}.", "a digit photo of a {}")
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "hf_tokenizer_name": "tiny_clip",  # any name: open_clip reads the files in the same folder
        "width": 64,
        "heads": 4,
        "layers": 2,
    },
}
PREPROCESSING = Preprocessing(
    image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="crop", interpolation="bicubic"
)


def train(out: Path, seed: int, num_steps: int = NUM_STEPS, run_folder: Path | None = None) -> dict[str, float]:
    """Train, write the folder and evaluate; an interrupted training with the same settings is resumed.

    Args:
        out: Folder for open_clip_config.json, open_clip_model.safetensors, the tokenizer's files and training.json.
        seed: Seed of weights, images and captions.
        num_steps: A multiple of ``STEPS_PER_EPOCH``.
        run_folder: Folder of the checkpoints; None: in the cache folder of the embedded data.

    Returns:
        Zero-shot accuracies in percent, on unseen fonts and on handwriting.

    Raises:
        ValueError: ``num_steps`` is not a multiple of ``STEPS_PER_EPOCH``.
    """
    if num_steps < 1 or num_steps % STEPS_PER_EPOCH:
        raise ValueError(f"num_steps must be a multiple of {STEPS_PER_EPOCH}, got {num_steps}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    settings = {"model": MODEL, "seed": seed, "steps": num_steps, "batch": BATCH_SIZE, "rate": LEARNING_RATE}
    run = PlainRun(folder=run_folder or cache_root(None) / f"tiny-clip-{content_hash(settings)[:12]}", seed=seed)
    try:
        artist = Artist()
        _write_tokens(artist, seed, out)
        model = _ClipWithAnchors(_untrained(out))

        def clamp_scale(_: Batch, __: Clock) -> None:
            with torch.no_grad():
                model.clip.network.logit_scale.clamp_(max=LARGEST_SCALE)  # type: ignore[operator]

        def evaluate(averaged: nn.Module) -> dict[str, float]:
            assert isinstance(averaged, _ClipWithAnchors)
            _write_weights(averaged.clip, out)
            return {"val/accuracy": zero_shot_accuracy(_read_back(out), "val", PROMPTS[0])}

        result = fit(
            run,
            model,
            Objective(loss=_loss, after_step=clamp_scale),
            _Batches(artist, model.clip.tokenize, seed),
            FitPlan(
                num_epochs=num_steps // STEPS_PER_EPOCH,
                clip_norm=1.0,
                precision="fp32",
                ema_decay=EMA_DECAY,
                evaluate_every=EVALUATE_EVERY,
                stage="clip",
            ),
            optimizer=_optimizer,
            schedule=_schedule,
            evaluate=evaluate,
        )
    finally:
        run.close()
    assert isinstance(result.model, _ClipWithAnchors)
    _write_weights(result.model.clip, out)
    figures = measure(_read_back(out))
    rounded = {name: round(value, 2) for name, value in figures.items()}
    about = {"seed": seed, "num_steps": result.steps, "batch_size": BATCH_SIZE, "accuracy_percent": rounded}
    write_atomically(out / "training.json", json.dumps(about, indent=1).encode())
    return figures


def measure(clip: Clip) -> dict[str, float]:
    """Return zero-shot accuracies in percent, by data and prompt."""
    figures = {}
    for prompt in PROMPTS:
        figures[f"test fonts, {prompt!r}"] = zero_shot_accuracy(clip, "test", prompt)
        figures[f"handwriting, {prompt!r}"] = zero_shot_accuracy(clip, "test", prompt, kind=Digits)
    figures["test fonts, letters"] = zero_shot_accuracy(clip, "test", "a photo of the letter {}", kind=Letters)
    return figures


def zero_shot_accuracy(clip: Clip, split: Split, prompt: str, kind: type[Glyphs | Letters | Digits] = Glyphs) -> float:
    """Return the zero-shot accuracy on a split, in percent."""
    data: Any = load(kind, HandwritingConfig(), split)  # type: ignore[type-var]  # any of the three
    names = LETTERS if kind is Letters else DIGIT_WORDS
    prototypes = clip.embed_texts([prompt.format(name) for name in names])
    images = torch.from_numpy(np.array(data.images))
    nearest = torch.cat([(clip.embed_images(part) @ prototypes.T).argmax(dim=1) for part in images.split(500)])
    return 100 * float((nearest == torch.from_numpy(np.array(data.labels))).float().mean())


class _ClipWithAnchors(nn.Module):
    """CLIP in training, with an anchor for each character that is dropped afterwards."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(True)
        self.anchors = nn.Parameter(torch.randn(NUM_CHARACTERS, clip.embedding_dim))


class _Batches:
    """Batches generated on demand; each is a function of the seed and its number."""

    def __init__(self, artist: Artist, tokenize: Callable[[list[str]], Tensor], seed: int) -> None:
        self._artist, self._tokenize, self._seed = artist, tokenize, seed

    def num_batches(self) -> int:
        return STEPS_PER_EPOCH

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        for at in range(epoch * STEPS_PER_EPOCH + start, (epoch + 1) * STEPS_PER_EPOCH):
            drawn = self._artist.draw(BATCH_SIZE, _seed_of(self._seed, at))
            writer = Writer(f"{self._seed}-{at}")
            captions = [writer.caption(facts) for facts in drawn.facts.tolist()]
            claims = np.array([caption.claims for caption in captions])
            yield {
                "index": torch.arange(BATCH_SIZE),
                "pixels": (drawn.images - PREPROCESSING.mean[0]) / PREPROCESSING.std[0],
                "tokens": self._tokenize([caption.text for caption in captions]),
                "true": torch.from_numpy(truth(drawn.facts, claims)),
                "characters": torch.from_numpy(drawn.facts[:, COLUMN["character"]]),
            }


def _loss(model: Any, batch: Batch, _: Clock) -> Tensor:
    """Symmetric cross-entropy with targets spread evenly over all true pairs, plus that of the anchors."""
    clip = model.clip
    images = functional.normalize(clip.image_features(batch["pixels"]), dim=-1)
    texts = functional.normalize(clip.text_features(batch["tokens"]), dim=-1)
    anchors = functional.normalize(model.anchors, dim=-1)
    scale = clip.network.logit_scale.exp()
    logits = scale * images @ texts.T
    true = batch["true"].float()
    of_images = -(functional.log_softmax(logits, dim=1) * true / true.sum(dim=1, keepdim=True)).sum(dim=1)
    of_texts = -(functional.log_softmax(logits, dim=0) * true / true.sum(dim=0, keepdim=True)).sum(dim=0)
    to_anchors = [functional.cross_entropy(scale * side @ anchors.T, batch["characters"]) for side in (images, texts)]
    return (of_images.mean() + of_texts.mean() + to_anchors[0] + to_anchors[1]) / 2


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    # No weight decay on gains, biases, the logit scale and the class and position embeddings.
    undecayed = [weight for name, weight in model.named_parameters() if weight.ndim < 2 or "embedding" in name]
    decayed = [weight for name, weight in model.named_parameters() if not (weight.ndim < 2 or "embedding" in name)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": undecayed, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))


def _schedule(optimizer: torch.optim.Optimizer, num_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    def factor(step: int) -> float:
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, num_steps - WARMUP_STEPS)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _write_tokens(artist: Artist, seed: int, out: Path) -> None:
    writer = Writer(f"{seed}-tokens")
    texts = [" ".join(common_words())]
    for at in range(NUM_CAPTIONS_FOR_TOKENS // 500):
        facts = artist.draw(500, _seed_of(seed, 2**31 + at)).facts
        texts += [writer.caption(row).text for row in facts.tolist()]
    learn_tokens(texts, out)


def _untrained(out: Path) -> Clip:
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    network = open_clip.CLIP(**MODEL)
    return Clip(network, HFTokenizer(str(out), context_length=CONTEXT), PREPROCESSING, fingerprint="untrained")


def _read_back(out: Path) -> Clip:
    # Evaluate what others will load. This also restores the attention mask, whose infinities became NaN when the model
    # was averaged.
    return load_clip(ClipConfig(name=f"local-dir:{out}"))


def _write_weights(clip: Clip, out: Path) -> None:
    preprocess = {
        "mean": PREPROCESSING.mean,
        "std": PREPROCESSING.std,
        "interpolation": PREPROCESSING.interpolation,
        "resize_mode": "shortest",
    }
    weights = {name: tensor.contiguous() for name, tensor in clip.network.state_dict().items()}
    write_atomically(out / "open_clip_model.safetensors", save(weights, {"format": "pt"}))
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    write_atomically(out / "open_clip_config.json", json.dumps(config, indent=1).encode())
