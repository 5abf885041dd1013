"""Index draws for building prompt sets, and one matrix product for scoring them, against plain loops.

    python -m tests.benchmarks.bench_prompt_sets [--classes 37 101 200 1000] [--repeats 3] [--threads 1]

Prompts: the plain implementation turns the list of words or characters into an array and permutes it for every word and
character, finishes the prompts of every class, and copies the chosen list to the others by replacing the class name.
Both must give the same prompts. The draws of a seed are cached, so that the paper's comparison with and without a
concept draws once. Scoring: seven repetitions as one product, against a loop over repetitions and classes. Processor
times are measured.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from tenfold.methods.waffleclip.prompt_sets import build_prompt_sets
from tenfold.methods.waffleclip.prompts import PREFIX, build_prompt
from tenfold.methods.waffleclip.random_text import _chosen_draw
from tenfold.methods.waffleclip.scoring import prototypes
from tenfold.methods.waffleclip.vocabulary import character_pool, descriptor_shape

NUM_WORDS = 4330
NUM_PAIRS = 15


def made_up_data(num_classes: int, num_words: int = NUM_WORDS) -> tuple[dict[str, list[str]], list[str]]:
    """Make class names of one to three words with six descriptors each, and a vocabulary (paper's size by default)."""
    rs = np.random.RandomState(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = sorted({"".join(rs.choice(letters, rs.randint(3, 12))) for _ in range(2 * num_words)})[:num_words]
    # Capitals keep the names out of the random text, where replacement would corrupt it.
    names = {" ".join(rs.choice(vocabulary, 1 + i % 3)).title() for i in range(num_classes)}
    return {name: [" ".join(rs.choice(vocabulary, 4)) for _ in range(6)] for name in sorted(names)}, vocabulary


def straightforward_waffle(
    descriptors: dict[str, list[str]], vocabulary: list[str], seed: int, *, words: bool, prefix: str
) -> dict[str, list[str]]:
    """Build the modes "waffle" and "waffle_characters" with strings drawn one by one."""
    shape = descriptor_shape(list(descriptors))
    pool = [word[: shape.word_len] for word in vocabulary]
    characters = list(character_pool(descriptors))
    rs = np.random.RandomState(seed)
    prompts: dict[str, list[str]] = {}
    for name in descriptors:
        prompts[name] = []
        for _ in range(NUM_PAIRS):
            if words:
                text = " ".join(rs.choice(pool, 1, replace=False)[0] for _ in range(shape.n_words))
                prompts[name].append(build_prompt(name, text, prefix=prefix))
            blocks = [
                "".join(rs.choice(characters, 1, replace=False)[0] for _ in range(shape.group_len))
                for _ in range(shape.groups)
            ]
            prompts[name].append(build_prompt(name, ", ".join(blocks), prefix=prefix))
    chosen = list(descriptors)[rs.choice(len(descriptors))]
    return {name: [prompt.replace(chosen, name) for prompt in prompts[chosen]] for name in descriptors}


def timed(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the minimum processor seconds of each run; runs take turns, so that background load affects all."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for spent, run in zip(times, runs, strict=True):
            start = time.process_time()
            run()
            spent.append(time.process_time() - start)
    return [min(spent) for spent in times]


def compare_prompts(num_classes: int, repeats: int) -> None:
    descriptors, vocabulary = made_up_data(num_classes)
    for mode, words in (("waffle", True), ("waffle_characters", False)):

        def plain(words: bool = words, prefix: str = PREFIX) -> dict[str, list[str]]:
            return straightforward_waffle(descriptors, vocabulary, 0, words=words, prefix=prefix)

        def again(mode: str = mode, prefix: str = PREFIX) -> dict[str, list[str]]:
            return build_prompt_sets(mode, descriptors, vocabulary, seed=0, n_pairs=NUM_PAIRS, prefix=prefix)

        def first(again: Callable[[], dict[str, list[str]]] = again) -> dict[str, list[str]]:
            _chosen_draw.cache_clear()
            return again()

        if plain() != first():
            raise SystemExit(f"{mode}, {num_classes} classes: plain and ours must give the same prompts")
        slow, fast, remembered = timed([plain, first, again], repeats)
        print(
            f"{mode:>18} {len(descriptors):5d} classes: plain {slow:6.2f} s, ours {1e3 * fast:7.1f} ms "
            f"({slow / fast:4.1f}x), same seed again {1e3 * remembered:5.1f} ms ({slow / remembered:5.0f}x), "
            f"with and without a concept {2 * slow / (fast + remembered):4.1f}x"
        )


def compare_scoring(num_classes: int, repeats: int, num_images: int = 1000, dim: int = 512, num_seeds: int = 7) -> None:
    generator = torch.Generator().manual_seed(0)
    per_class = 2 * NUM_PAIRS

    def unit(rows: int) -> torch.Tensor:
        return functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)

    images = unit(num_images)
    prompts = unit(num_seeds * num_classes * per_class)
    counts = [per_class] * (num_seeds * num_classes)
    vectors = prototypes(prompts, counts)

    def loop() -> torch.Tensor:
        """Score the prompts of each repetition and class separately, then average."""
        own = prompts.view(num_seeds, num_classes, per_class, dim)
        rows = [torch.stack([(images @ text.T).mean(1) for text in texts], dim=1) for texts in own]
        return torch.stack(rows, dim=1)

    def whole() -> torch.Tensor:
        return (images @ prototypes(prompts, counts).T).view(num_images, num_seeds, num_classes)

    torch.testing.assert_close(whole(), loop(), rtol=0, atol=1e-5)
    slow, fast, product = timed([loop, whole, lambda: images @ vectors.T], repeats)
    print(
        f"scores of {num_images} images, {num_seeds} x {num_classes} classes: loop {1e3 * slow:7.1f} ms, prototypes "
        f"and product {1e3 * fast:6.1f} ms ({slow / fast:4.1f}x), product alone {1e3 * product:6.1f} ms "
        f"({slow / product:5.1f}x)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[37, 101, 200, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for num_classes in options.classes:
        compare_prompts(num_classes, options.repeats)
    for num_classes in options.classes:
        compare_scoring(num_classes, options.repeats)


if __name__ == "__main__":
    main()
