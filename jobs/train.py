"""Train a method on a data set, track the run, register the model.

python jobs/train.py method=large_loss data=handwriting scale=local run.num_epochs=3
"""

import re
import shlex
import sys
from dataclasses import fields
from typing import Any

from jobs.cli import main
from tenfold.config import job_from_dict
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.engine.settings import JobConfig, ScaleConfig
from tenfold.training import TrainResult, train


def work(job: JobConfig) -> None:
    result = train(job)
    print(report(job, result))


def report(job: JobConfig, result: TrainResult) -> str:
    """Describe metrics, locations and follow-up commands of a training."""
    lines = []
    if result.status == "unchanged":
        lines.append("these settings were trained to the end before; run.tag=NAME starts another run of them")
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
            f"python jobs/evaluate.py model={reference}{store}{_data_words(job.data)}",
            f"python jobs/deploy.py model={reference}{store}",
        ]
    lines.append(f"mlflow ui --backend-store-uri {result.tracking_uri}")
    return "\n".join(lines)


def _data_words(data: Any) -> str:
    """Command-line words for these data, each with a leading space; empty for the embedded default."""
    words = [] if data == HandwritingConfig() else [f"data={data.name}"]
    for field in fields(data):
        value = getattr(data, field.name)
        if field.name != "name" and value != field.default and isinstance(value, str | int | float):
            # Quoted twice, for Hydra and for the shell, unless it is a plain word.
            plain = re.fullmatch(r"[\w./:-]+", str(value))
            written = value if plain else "'" + str(value).replace("'", "\\'") + "'"
            words.append(shlex.quote(f"data.{field.name}={written}"))
    return "".join(f" {word}" for word in words)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", "config", job_from_dict, work))
