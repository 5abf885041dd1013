"""Train a method on a data set, track the run, register the model.

python jobs/train.py method=large_loss data=handwriting scale=local run.num_epochs=3
"""

import sys

from jobs.cli import main
from tenfold.config import job_from_dict
from tenfold.engine.settings import JobConfig, ScaleConfig
from tenfold.training import TrainResult, train


def work(job: JobConfig) -> None:
    result = train(job)
    print(report(job, result))


def report(job: JobConfig, result: TrainResult) -> str:
    """What was reached and where everything is, with the commands to go on."""
    lines = []
    if result.status == "unchanged":
        lines.append("these settings were trained to the end before; run.tag=NAME makes another run of them")
    width = max(28, *(len(name) + 2 for name in result.metrics))
    lines += [f"{name:<{width}}{value:.4g}" for name, value in sorted(result.metrics.items())]
    where = {"run": result.run_id, "folder": result.folder, "model": result.model_uri}
    lines += [f"{name:<{width}}{value}" for name, value in where.items()]
    if result.registered is not None:
        entry = result.registered
        lines.append(f"{'registered':<{width}}models:/{entry.name}/{entry.version} @{entry.alias}")
        reference = f"models:/{entry.name}@{entry.alias}"
        usual = job.run.tracking_uri is None and job.scale.storage == ScaleConfig().storage
        store = "" if usual else f" tracking_uri={result.tracking_uri}"
        lines += [
            "",
            f"python jobs/evaluate.py model={reference}{store}",
            f"python jobs/deploy.py model={reference}{store}",
        ]
    lines.append(f"mlflow ui --backend-store-uri {result.tracking_uri}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", "config", job_from_dict, work))
