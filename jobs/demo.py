"""Data to a served prediction on a fresh machine: train, compare, register, serve, ask.

python jobs/demo.py                    # partial labels: assume negative, Large Loss, Large Loss + BoostLU
python jobs/demo.py story=datadream    # sixteen handwritten digits per class, and a generator that knows print only
python jobs/demo.py story=waffleclip   # zero-shot: class names, descriptors, random words
python jobs/demo.py --keep-serving     # leave the endpoint up until Ctrl-C
"""

import sys
from collections.abc import Sequence

from jobs.stories import STORIES


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return 0
    keep = "--keep-serving" in words
    settings = [word for word in words if word != "--keep-serving" and not word.startswith("story=")]
    named = [word.removeprefix("story=") for word in words if word.startswith("story=")]
    name = named[-1] if named else next(iter(STORIES))
    if name in STORIES:
        print(f"== {STORIES[name].opening}", flush=True)

    # Only now: PyTorch, Ray and MLflow take seconds to import, and the first line should not wait for them.
    from jobs.cli import MISTAKE, run
    from jobs.storytelling import compose_jobs, tell
    from tenfold.config import ConfigError

    try:
        if name not in STORIES:
            raise ConfigError(f"story must be one of {', '.join(STORIES)}, got {name!r}")
        jobs = compose_jobs(STORIES[name], settings)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return run(lambda: tell(STORIES[name], jobs, keep), words)


if __name__ == "__main__":
    sys.exit(main())
