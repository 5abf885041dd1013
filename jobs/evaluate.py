"""Figures of a registered model on any data with its classes.

python jobs/evaluate.py model=models:/large_loss@champion data=handwriting data.seed=7
"""

import sys
from dataclasses import asdict, dataclass
from typing import Any

from jobs.cli import as_reference, main
from tenfold.bundle import load_bundle
from tenfold.catalog import load_predictor, method
from tenfold.config import ConfigError, build
from tenfold.data.catalog import DATA
from tenfold.engine.launch import LaunchOptions, launch
from tenfold.engine.run import Run
from tenfold.engine.settings import ScaleConfig
from tenfold.engine.storage import Storage
from tenfold.hashing import content_hash
from tenfold.tracking import resolve, resume_run
from tenfold.training import start_ray, storage_tracking_uri


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is evaluated, on what, where."""

    model: str
    """``models:/name@alias`` or ``models:/name/3``."""
    tracking_uri: str | None
    data: Any
    scale: ScaleConfig


def check(container: dict[str, Any]) -> EvaluateSettings:
    data = container["data"]
    if data["name"] not in DATA:
        raise ConfigError(f"data.name must be one of {', '.join(DATA)}, got {data['name']!r}")
    return EvaluateSettings(
        model=container["reference"],
        tracking_uri=container["tracking_uri"],
        data=build(DATA[data["name"]].config_class(), data, "data"),
        scale=build(ScaleConfig, container["scale"], "scale"),
    )


def work(settings: EvaluateSettings) -> None:
    scale = settings.scale
    uri = storage_tracking_uri(settings.tracking_uri, Storage(scale.storage))
    model = resolve(uri, settings.model)
    if scale.kind == "ray":
        start_ray(scale)
    name = f"evaluate-{content_hash([model.name, model.version, asdict(settings.data)])[:10]}"
    options = LaunchOptions(name=name, folder=(Storage(scale.storage) / name).url, shared=Storage(scale.storage).url)
    metrics = launch(_evaluate, {"bundle": str(model.folder), "data": settings.data}, scale, options)
    tracker = resume_run(uri, model.run_id)
    tracker.log_metrics({f"evaluated/{settings.data.name}/{key}": value for key, value in metrics.items()}, 0)
    tracker.finish("FINISHED")
    print(f"models:/{model.name}/{model.version} on {settings.data.name}")
    print("\n".join(f"{key:<28}{value:.4g}" for key, value in sorted(metrics.items())))


def _evaluate(run: Run, settings: dict[str, Any]) -> dict[str, float]:
    """Runs in every worker."""
    bundle = load_bundle(settings["bundle"])
    predictor = load_predictor(bundle, str(run.device))
    return method(bundle.metadata.method).recipe().evaluate(predictor, settings["data"], run)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", "evaluate", check, work, as_reference(sys.argv[1:])))
