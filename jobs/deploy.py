"""Serve registered models and bundles at one HTTP endpoint (Open Inference Protocol v2, and /predict).

python jobs/deploy.py                                   # every registered champion
python jobs/deploy.py model=models:/large_loss@champion serve.port=8001
python jobs/deploy.py served=gpu each.num_gpus=0.5      # a preset, and settings of every model
python jobs/deploy.py write_config=serve.yaml           # for serve deploy and a RayService; starts nothing

A second call on the same machine rolls over the endpoint that runs. Open-vocabulary models (CLIP) also accept classes
with the request; regressions take numbers by input name and reply with mean, std and the interval at the level of the
request. See serve/README.md.
"""

import sys
from collections.abc import Sequence

from serve.deployment.keeper import Keeper, keep


def main(keeper: Keeper, words: Sequence[str]) -> int:
    """Run the command in a process of its own, which ends when the models are ready."""
    from jobs.rollout import run  # imported late: torch and MLflow, which the process that waits does not need

    return run(__doc__ or "", keeper, words)


if __name__ == "__main__":
    sys.exit(keep(main, sys.argv[1:]))
