"""Command line to preview the embedded handwriting data, or to build a task and time it."""

import argparse
import sys
import time
from pathlib import Path

from tenfold.data.embedded.handwriting.build import KINDS, build
from tenfold.data.embedded.handwriting.config import SPLITS, HandwritingConfig
from tenfold.data.embedded.handwriting.preview import draw_preview
from tenfold.data.embedded.handwriting.store import cache_root


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 on success, 2 for an invalid setting."""
    parser = argparse.ArgumentParser(prog="python -m tenfold.data.embedded.handwriting", description=__doc__)
    parser.add_argument("--preview", type=Path, metavar="FILE", help="draw a contact sheet of every task")
    parser.add_argument("--build", choices=sorted(KINDS), metavar="TASK", help=f"build one of {', '.join(KINDS)}")
    parser.add_argument("--num", type=int, default=4000, help="training images of --build (default 4000)")
    parser.add_argument("--workers", type=int, help="threads of --build (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-digits", type=int, default=4, help="largest number of digits in a scene (default 4)")
    parser.add_argument("--cooccurrence", type=float, default=0.0, help="spurious correlation in scenes, 0..1")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of pixels of pairs and sums, 0..1")
    parser.add_argument("--repeat", type=float, default=0.0, help="repeated digits of pairs and sums, 0..1")
    parser.add_argument("--cache", help="cache folder (default: TENFOLD_CACHE, else ~/.cache/tenfold)")
    options = parser.parse_args(arguments)
    if options.preview is None and options.build is None:
        parser.error("one of --preview FILE and --build TASK is required")
    try:
        config = HandwritingConfig(
            num_train=options.num,
            seed=options.seed,
            max_digits=options.max_digits,
            cooccurrence=options.cooccurrence,
            noise=options.noise,
            repeat=options.repeat,
            cache=options.cache,
        )
        if options.build is not None:
            _build(options.build, config, options.workers)
        if options.preview is not None:
            draw_preview(config, options.preview)
            print(f"drew {options.preview}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _build(task: str, config: HandwritingConfig, workers: int | None) -> None:
    start = time.perf_counter()
    folder = build(task, config, workers=workers)  # type: ignore[arg-type]  # argparse has checked the choice
    elapsed_s = time.perf_counter() - start
    sizes = ", ".join(f"{len(next(iter(folder.split(split).values())))} {split}" for split in SPLITS)
    print(f"{task}: {sizes} in {elapsed_s:.1f} s (about 0 if they were in the cache {cache_root(config.cache)})")
    print(f"{folder.stored.path}\nfingerprint {folder.fingerprint}")


if __name__ == "__main__":
    sys.exit(main())
