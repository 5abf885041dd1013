"""Evaluate a registered model on any data with its classes, or compare it with another model.

python jobs/evaluate.py model=models:/large_loss@champion data=handwriting data.seed=7
python jobs/evaluate.py model=models:/boostlu@champion against=models:/large_loss/3 data=handwriting
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
from tenfold.tracking.registry import resolve
from tenfold.tracking.runs import Tracker, resume_run
from tenfold.training import start_ray, storage_tracking_uri


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Model, data and place of an evaluation."""

    model: str
    """Model: ``models:/name@alias`` or ``models:/name/3``."""
    against: str | None
    """Model to compare with, if the method supports it; None: no comparison."""
    tracking_uri: str | None
    data: Any
    scale: ScaleConfig


def check(container: dict[str, Any]) -> EvaluateSettings:
    data = container["data"]
    if data["name"] not in DATA:
        raise ConfigError(f"data.name must be one of {', '.join(DATA)}, got {data['name']!r}")
    return EvaluateSettings(
        model=container["reference"],
        against=container["against"],
        tracking_uri=container["tracking_uri"],
        data=build(DATA[data["name"]].config_class(), data, "data"),
        scale=build(ScaleConfig, container["scale"], "scale"),
    )


def work(settings: EvaluateSettings) -> None:
    scale = settings.scale
    uri = storage_tracking_uri(settings.tracking_uri, Storage(scale.storage))
    model = resolve(uri, settings.model)
    against = resolve(uri, settings.against) if settings.against is not None else None
    if against is not None:
        check_comparable(load_bundle(model.folder).metadata.method)
    if scale.kind == "ray":
        start_ray(scale)
    label = f"{model.name}/{model.version}"
    labels = [label] if against is None else [label, f"{against.name}/{against.version}"]
    name = f"evaluate-{content_hash([*labels, asdict(settings.data)])[:10]}"
    options = LaunchOptions(
        name=name,
        folder=(Storage(scale.storage) / name).url,
        shared=Storage(scale.storage).url,
        recorder=Tracker(uri, model.run_id),
    )
    bundles = [str(each.folder) for each in (model, against) if each is not None]
    metrics = launch(_evaluate, {"bundles": bundles, "labels": labels, "data": settings.data}, scale, options)
    tracker = resume_run(uri, model.run_id)
    prefix = f"evaluated/{settings.data.name}" if against is None else f"against/{labels[1]}/{settings.data.name}"
    tracker.log_metrics({f"{prefix}/{key}": value for key, value in metrics.items()}, 0)
    tracker.finish("FINISHED")
    print(" against ".join(f"models:/{each}" for each in labels), f"on {settings.data.name}")
    width = max(28, *(len(key) + 2 for key in metrics))
    print("\n".join(f"{key:<{width}}{value:.4g}" for key, value in sorted(metrics.items())))


def check_comparable(method_name: str) -> None:
    """Refuse a comparison that a method does not support.

    Raises:
        ValueError: If its recipe has no ``compare(predictor, reference, data, run, names)``.
    """
    if not hasattr(method(method_name).recipe(), "compare"):
        raise ValueError(f"method {method_name!r} can't compare two models; leave out against=...")


def _evaluate(run: Run, settings: dict[str, Any]) -> dict[str, float]:
    """Evaluate in one worker."""
    bundles = [load_bundle(folder) for folder in settings["bundles"]]
    predictors = [load_predictor(bundle, str(run.device)) for bundle in bundles]
    recipe = method(bundles[0].metadata.method).recipe()
    if len(predictors) == 1:
        return recipe.evaluate(predictors[0], settings["data"], run)
    return recipe.compare(*predictors, settings["data"], run, settings["labels"])


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", "evaluate", check, work, as_reference(sys.argv[1:])))
