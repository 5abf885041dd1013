"""Train one of the shipped small foundation models."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 on success, 2 after an invalid setting."""
    parser = argparse.ArgumentParser(prog="python -m tenfold.pretraining.tiny", description=__doc__)
    parser.add_argument("model", choices=("clip", "diffusion"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the trained model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimiser steps of clip (default: as the shipped weights)")
    options = parser.parse_args(arguments)
    if options.model == "diffusion" and options.steps is not None:
        parser.error("--steps is for clip only")
    try:
        if options.model == "clip":
            from tenfold.pretraining.tiny import clip_training

            num_steps = clip_training.NUM_STEPS if options.steps is None else options.steps
            for name, value in clip_training.train(options.out, options.seed, num_steps).items():
                print(f"{name}: {value:.1f} %")
        else:
            from tenfold.pretraining.tiny import diffusion_training

            diffusion_training.train(options.out, options.seed)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
