"""WaffleCLIP on small images of shapes: a dual encoder, trained in a minute, with random descriptors.

    python -m tests.replicas.waffleclip_shapes --seeds 0 1 2 --out outputs/replica_waffleclip

Images are 24x24 renders of 6 shapes in 6 colours; captions name colour and shape, sometimes only one of them or
neither, and continue with words that are meaningless or tied to that colour or shape. The encoders are trained on 24 of
the 36 combinations, and classify all 36 or the 12 unseen ones by "A photo of a red circle." or WaffleCLIP's prompts.

There are two text towers. One splits texts at spaces, so a comma or full stop is part of the word before it: captions
hold "circle" and "circle,", the plain prompt "circle.". The other drops punctuation. The difference between them is the
part of a gain that is due to a plain prompt that ends like no caption.

Prints a Markdown table for each tower beside the figures that the method's specification gives, and leaves one JSON
file for each training (an existing one is not repeated), ``summary.csv`` and ``budget.png`` in the folder.
"""

import argparse
import csv
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib.figure
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.engine.storage import Storage
from tenfold.methods.waffleclip.concepts import concept_prefix
from tenfold.methods.waffleclip.prompt_sets import build_prompt_sets, distinct_prompts
from tenfold.methods.waffleclip.scoring import prototypes
from tenfold.metrics.classification import topk_accuracy
from tenfold.pretraining.tiny.captions import common_words

SIZE = 24
COLOURS = {"red": (0.9, 0.15, 0.15), "orange": (0.95, 0.55, 0.1), "yellow": (0.9, 0.85, 0.2), "green": (0.2, 0.7, 0.25),
           "blue": (0.2, 0.35, 0.9), "purple": (0.6, 0.25, 0.75)}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TIED_WORDS = {"red": "rose", "orange": "autumn", "yellow": "lemon", "green": "meadow", "blue": "ocean",
              "purple": "grape", "circle": "wheel", "square": "window", "triangle": "roof", "star": "night",
              "cross": "church", "ring": "wedding"}  # fmt: skip
"""Words that occur with a colour or shape in captions and add no meaning."""
LEAD_INS = ("A photo of a", "A picture of the", "An image of a", "a", "This is a")
COMBINATIONS = [(colour, shape) for colour in range(len(COLOURS)) for shape in range(len(SHAPES))]
NAMES = [f"{list(COLOURS)[colour]} {SHAPES[shape]}" for colour, shape in COMBINATIONS]
UNSEEN = [i for i, (colour, shape) in enumerate(COMBINATIONS) if (shape - colour) % 6 in (0, 3)]
"""Two of each colour and two of each shape."""
SEEN = [i for i in range(len(COMBINATIONS)) if i not in UNSEEN]

ALPHABET = ["abcdefghijklmnopqrstuvwxyz-"]
"""Source of random characters: the classes have no descriptors of their own."""

NUM_WORDS = 4330
NUM_BUCKETS, TEXT_WIDTH, DIM = 2048, 64, 48
BATCH_SIZE, NUM_STEPS, LEARNING_RATE = 128, 1500, 2e-3
NUM_TEST_IMAGES = 200
"""Test images of each class; with the specification's 40 a difference of one percent is lost in sampling noise."""
NUM_REPETITIONS = 7
BUDGETS = (1, 2, 4, 8, 15, 30)
SPECIFIED = {  # of training seeds 0, 1, 2
    "plain": "37.9 / 35.6 / 37.4", "waffle 1": "39.0 / 37.5 / 38.5", "waffle 15": "39.7 / 37.4 / 38.9",
    "own 1": "38.2 / 36.8 / 37.6", "own 15": "39.9 / 37.3 / 38.7", "plain + concept": "37.6 / 36.0 / 36.3",
    "waffle 15 + concept": "39.2 / 37.3 / 37.8", "plain, unseen": "60.6 / 60.8 / 59.4",
    "waffle 1, unseen": "63.0 / 68.9 / 66.8", "waffle 15, unseen": "64.1 / 68.9 / 67.5",
}  # fmt: skip


Results = Sequence[Mapping[str, Any]]
Punctuation = Literal["attached", "dropped"]
PUNCTUATION: tuple[Punctuation, ...] = get_args(Punctuation)
"""Treatment of a comma or full stop by the text tower: part of the word before it, or dropped."""


class DualEncoder(nn.Module):
    """An image tower of three convolutions and a text tower of hashed words and letter trigrams."""

    def __init__(self, punctuation: Punctuation) -> None:
        super().__init__()
        self.punctuation = punctuation
        self.image_tower = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 9, 128), nn.ReLU(), nn.Linear(128, DIM),
        )  # fmt: skip
        self.pieces = nn.EmbeddingBag(NUM_BUCKETS, TEXT_WIDTH, mode="mean")
        self.text_tower = nn.Sequential(nn.Linear(TEXT_WIDTH, 128), nn.ReLU(), nn.Linear(128, DIM))
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit rows ``(B, 48)`` of images ``(B, 3, 24, 24)``."""
        return functional.normalize(self.image_tower(images), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows ``(N, 48)``."""
        rows = [pieces_of(text, self.punctuation) for text in texts]
        starts = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0)
        pieces = self.pieces(torch.tensor([piece for row in rows for piece in row]), starts)
        return functional.normalize(self.text_tower(pieces), dim=1)


def pieces_of(text: str, punctuation: Punctuation) -> list[int]:
    """Hash buckets of the words of a text and of their letter trigrams."""
    text = text.lower()
    if punctuation == "dropped":
        text = text.translate(_TO_SPACES)
    return [bucket for word in text.split() for bucket in _word_pieces(word)]


_TO_SPACES = str.maketrans(",.:", "   ")


@cache
def _word_pieces(word: str) -> tuple[int, ...]:
    framed = f"<{word}>"
    pieces = {framed, *(framed[i : i + 3] for i in range(len(framed) - 2))}
    return tuple(zlib.crc32(piece.encode()) % NUM_BUCKETS for piece in sorted(pieces))


def render(colours: np.ndarray, shapes: np.ndarray, rs: np.random.RandomState) -> Tensor:
    """Render images ``(B, 3, 24, 24)`` in [-1, 1] with random position, size, rotation, background and noise."""
    count = len(colours)
    radius = rs.uniform(4.5, 8, count)
    centre = rs.uniform(8, SIZE - 8, (count, 2))
    angle = rs.uniform(0, 2 * np.pi, count)[:, None, None]
    row, column = np.mgrid[:SIZE, :SIZE] + 0.5
    y = (row - centre[:, 0, None, None]) / radius[:, None, None]
    x = (column - centre[:, 1, None, None]) / radius[:, None, None]
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    distance = np.empty_like(x)  # in units of the radius, negative inside
    for i, shape in enumerate(SHAPES):
        distance[shapes == i] = outside(shape, x[shapes == i], y[shapes == i])
    distance *= radius[:, None, None]
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    ink = np.array(list(COLOURS.values()))[colours] + rs.normal(0, 0.12, (count, 3))
    ground = rs.uniform(0, 1, (count, 3))
    images = cover * ink[:, None, None] + (1 - cover) * ground[:, None, None]
    images += rs.normal(0, 0.2, images.shape)
    return torch.from_numpy(2 * np.clip(images, 0, 1) - 1).float().permute(0, 3, 1, 2)


def outside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of points to a shape of radius 1, positive outside."""
    far = np.hypot(x, y)
    if shape == "circle":
        return far - 0.9
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.8
    if shape == "triangle":
        sides = np.pi * np.array([1 / 2, 7 / 6, 11 / 6])
        return np.maximum.reduce([np.cos(side) * x + np.sin(side) * y for side in sides]) - 0.5
    if shape == "star":
        to_corner = np.abs((np.arctan2(y, x) * 5 / (2 * np.pi)) % 1 - 0.5) * 2  # 1 on the five rays, 0 between them
        return far - (0.4 + 0.65 * to_corner)
    if shape == "cross":
        return np.minimum(np.maximum(np.abs(x) - 0.3, np.abs(y) - 1), np.maximum(np.abs(y) - 0.3, np.abs(x) - 1))
    return np.abs(far - 0.75) - 0.22


@cache
def vocabulary() -> list[str]:
    """Common words, as many as in the paper's vocabulary, without those that have a meaning in the captions."""
    taken = {*COLOURS, *SHAPES, *TIED_WORDS.values(), "shape"}
    words = [word for word in common_words() if word not in taken]
    chosen = np.random.RandomState(0).choice(len(words), NUM_WORDS, replace=False)
    return [words[i] for i in np.sort(chosen)]


def caption(colour: str, shape: str, rs: np.random.RandomState) -> str:
    """Draw a caption: a lead-in, colour and shape or the part of them that is kept, and up to four more words."""
    fate = rs.rand(2)
    parts = ["" if fate[0] < 0.2 else colour, "shape" if fate[1] < 0.15 else "" if fate[1] < 0.25 else shape]
    more = [
        TIED_WORDS[(colour, shape)[rs.randint(2)]] if rs.rand() < 0.5 else vocabulary()[rs.randint(NUM_WORDS)]
        for _ in range(rs.randint(5))
    ]
    text = " ".join([LEAD_INS[rs.randint(len(LEAD_INS))], *filter(None, parts)])
    return f"{text}, {' '.join(more)}" if more else text


def train(seed: int, punctuation: Punctuation) -> DualEncoder:
    """Train contrastively on the 24 seen combinations."""
    torch.manual_seed(seed)
    rs = np.random.RandomState(seed)
    model = DualEncoder(punctuation)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, NUM_STEPS, pct_start=0.1)
    targets = torch.arange(BATCH_SIZE)
    names = list(COLOURS)
    for _ in range(NUM_STEPS):
        batch = np.array([COMBINATIONS[i] for i in rs.choice(SEEN, BATCH_SIZE)])
        texts = [caption(names[colour], SHAPES[shape], rs) for colour, shape in batch]
        images = model.embed_images(render(batch[:, 0], batch[:, 1], rs))
        logits = model.log_scale.exp().clamp(max=100) * images @ model.embed_texts(texts).T
        loss = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def evaluate(model: DualEncoder, seed: int) -> dict[str, list[float]]:
    """Top-1 accuracy in percent of every prompt mode, for each of the seven repetitions (one for plain prompts)."""
    rs = np.random.RandomState(10_000 + seed)
    labels = np.repeat(np.arange(len(NAMES)), NUM_TEST_IMAGES)
    which = np.array(COMBINATIONS)[labels]
    images = model.embed_images(render(which[:, 0], which[:, 1], rs))
    targets = torch.from_numpy(labels)
    is_unseen = torch.isin(targets, torch.tensor(UNSEEN))
    unseen_targets = torch.searchsorted(torch.tensor(UNSEEN), targets[is_unseen])

    descriptors = dict.fromkeys(NAMES, ALPHABET)

    def ask(mode: str, n_pairs: int = 1, concept: str | None = None) -> Tensor:
        """Scores ``(R, B, C)``, all repetitions in one product."""
        prefix = concept_prefix(concept)
        sets = [
            build_prompt_sets(mode, descriptors, vocabulary(), seed=i, n_pairs=n_pairs, prefix=prefix)
            for i in range(1 if mode == "clip" else NUM_REPETITIONS)
        ]
        texts, rows, counts = distinct_prompts(sets)
        vectors = prototypes(model.embed_texts(texts)[rows], counts)
        return (images @ vectors.T).view(len(images), len(sets), len(NAMES)).transpose(0, 1)

    asked = {
        "plain": ask("clip"),
        "plain + concept": ask("clip", concept="coloured shape"),
        "waffle 15 + concept": ask("waffle", 15, concept="coloured shape"),
        **{f"waffle {n}": ask("waffle", n) for n in BUDGETS},
        **{f"own {n}": ask("adaptive_randomness", n) for n in BUDGETS},
    }
    results = {name: [topk_accuracy(each, targets, 1) for each in scores] for name, scores in asked.items()}
    for name in ("plain", "waffle 1", "waffle 15", "own 1", "own 15"):
        scores = asked[name][:, is_unseen][:, :, UNSEEN]
        results[f"{name}, unseen"] = [topk_accuracy(each, unseen_targets, 1) for each in scores]
    return results


def run(seed: int, punctuation: Punctuation, folder: Path) -> dict[str, Any]:
    """Train and evaluate, or read the result of an earlier run."""
    name = f"{punctuation}-seed{seed}.json"
    if (folder / name).exists():
        return json.loads((folder / name).read_text())
    start = time.process_time()
    accuracy = evaluate(train(seed, punctuation), seed)
    seconds = time.process_time() - start
    result = {"seed": seed, "punctuation": punctuation, "accuracy": accuracy, "seconds": seconds}
    folder.mkdir(parents=True, exist_ok=True)
    Storage(folder).write_json(name, result)
    return result


def mean(results: Results, name: str) -> float:
    """Mean over repetitions and trainings."""
    return float(np.mean([np.mean(result["accuracy"][name]) for result in results]))


def deviation(results: Results, name: str) -> float:
    """Population standard deviation over repetitions, averaged over trainings."""
    return float(np.mean([np.std(result["accuracy"][name]) for result in results]))


def table(results: Results) -> str:
    """Table with the specification's rows: mean ± standard deviation over repetitions for each training seed."""
    heads = " | ".join(f"training seed {result['seed']}" for result in results)
    lines = [
        f"| prompts | {heads} | mean | specification, seeds 0 / 1 / 2 |",
        "| --- " * (len(results) + 3) + "|",
    ]
    for name in [*SPECIFIED, "own 1, unseen", "own 15, unseen"]:
        values = [result["accuracy"][name] for result in results]
        cells = [f"{np.mean(each):.1f}" + (f" ± {np.std(each):.1f}" if len(each) > 1 else "") for each in values]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(results, name):.2f} | {SPECIFIED.get(name, '–')} |")
    return "\n".join(lines)


def budget_figure(by_tower: Mapping[Punctuation, Results]) -> matplotlib.figure.Figure:
    """Draw accuracy against the number of pairs, for shared and separate lists; bars are the repetitions' deviation."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    columns = figure.subplots(1, len(by_tower), sharey=True, squeeze=False)[0]
    for axes, (punctuation, results) in zip(columns, by_tower.items(), strict=True):
        for kind, label in (("waffle", "one list for all classes"), ("own", "a list for each class")):
            names = [f"{kind} {n}" for n in BUDGETS]
            means = [mean(results, name) for name in names]
            bars = [deviation(results, name) for name in names]
            axes.errorbar(BUDGETS, means, bars, marker="o", capsize=3, label=label)
        axes.axhline(mean(results, "plain"), color="grey", linestyle="--", label="plain prompt")
        axes.set(xscale="log", xticks=BUDGETS, xticklabels=BUDGETS, title=f"punctuation {punctuation}")
        axes.set_xlabel("pairs of random descriptors")
        axes.minorticks_off()
    columns[0].set_ylabel("top-1 accuracy, 36 classes (%)")
    columns[0].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_waffleclip"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    by_tower = {each: [run(seed, each, options.out) for seed in options.seeds] for each in PUNCTUATION}
    everything = [result for results in by_tower.values() for result in results]
    with (options.out / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["punctuation", "prompts", "training_seed", "repetition", "top1_percent"])
        for result in everything:
            for name, values in result["accuracy"].items():
                start = (result["punctuation"], name, result["seed"])
                writer.writerows((*start, i, value) for i, value in enumerate(values))
    budget_figure(by_tower).savefig(options.out / "budget.png", dpi=120)
    for punctuation, results in by_tower.items():
        print(f"punctuation {punctuation}\n\n{table(results)}\n")
    seconds = ", ".join(f"{result['seconds']:.0f}" for result in everything)
    print(f"processor seconds of each training: {seconds}")


if __name__ == "__main__":
    main()
