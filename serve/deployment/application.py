"""Ray Serve application: ``application`` builds it from Python, ``build`` from a Serve config file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from serve.clients.local import describe_bundle
from serve.deployment.ingress import Ingress
from serve.deployment.replica import Model
from serve.settings import Autoscaling, ServedModel, ServeSettings, check_models
from serve.tasks.table import kind_of
from tenfold.bundle import load_bundle

_START_ATTEMPTS = 3
_deployment: Any = serve.deployment  # its overloads hide the return type for a class


class Args(BaseModel):
    """Arguments of ``build`` in a Serve config file."""

    model_config = ConfigDict(extra="forbid")

    models: list[dict[str, Any]]
    """Models to serve: ``model`` (a bundle folder, or ``models:/name@alias`` or ``models:/name/3`` of the registry) and
    any field of ``ServedModel``; ``name`` and ``version`` have defaults, also for folders."""
    settings: dict[str, Any] = {}
    """Fields of ``ServeSettings``. The config file's ``http_options`` set the real address, which is unknown here, so
    API keys are required unless ``host`` is given as a loopback address."""
    tracking_uri: str | None = None
    """Tracking URI of the registry; None: MLflow's environment variables."""


def build(args: Args) -> Application:
    """Build the application of a config file (``import_path: serve.deployment.application:build``).

    Raises:
        ValueError: If a setting is invalid, a bundle was modified or the registry has no such model.
    """
    settings = TypeAdapter(ServeSettings).validate_python({"host": "0.0.0.0"} | args.settings)  # noqa: S104
    return application([served_model(entry, args.tracking_uri) for entry in args.models], settings)


def served_model(entry: dict[str, Any], tracking_uri: str | None = None) -> ServedModel:
    """Resolve an entry of ``Args.models``; an alias is pinned to the version that it names now.

    For a folder, ``name`` defaults to the folder's name and ``version`` to a digest of its content.

    Raises:
        ValueError: If ``model`` is missing, a field is invalid, or the model can't be found.
    """
    fields = dict(entry)
    source = fields.pop("model", None)
    if not isinstance(source, str) or not source:
        raise ValueError(f"model must be a bundle folder or models:/name@alias, got {source!r} in {entry}")
    if source.startswith("models:/"):
        from tenfold.tracking import registry, runs  # imported late: MLflow takes seconds

        resolved = registry.resolve(runs.tracking_uri(tracking_uri, Path("outputs")), source)
        defaults = {"name": resolved.name, "version": str(resolved.version), "folder": str(resolved.folder)}
    else:
        folder = Path(source).absolute()
        defaults = {"name": folder.name, "version": load_bundle(folder).digest[:12], "folder": str(folder)}
    return TypeAdapter(ServedModel).validate_python(defaults | fields)


def application(models: Sequence[ServedModel], settings: ServeSettings) -> Application:
    """Build the application: an ingress with the ``inline`` models, in front of one deployment for each of the others.

    Every bundle is verified first, so that a damaged one is reported before anything starts.

    Raises:
        ValueError: No model, a duplicate name, or a modified bundle.
    """
    models = [replace(model, folder=str(Path(model.folder).absolute())) for model in models]
    check_models(models)
    descriptions = [describe_bundle(model, load_bundle(model.folder)) for model in models]
    for description in descriptions:
        kind_of(description.signature.kind)  # one that this code does not know would spoil the others' pages
    inline = [model for model in models if model.is_inline]
    own = [model for model in models if not model.is_inline]
    handles = {model.name: _model_deployment(model, settings).bind(model, {}) for model in own}
    return _ingress_deployment(models, settings).bind(inline, own, handles, descriptions, settings)


def _model_deployment(model: ServedModel, settings: ServeSettings) -> Any:
    resources: dict[str, Any] = {"num_cpus": model.num_cpus, "num_gpus": model.gpus}
    return _deployment(Model).options(
        name=f"model-{model.name}",
        max_ongoing_requests=model.ongoing_requests,
        max_queued_requests=model.max_queued_requests,
        ray_actor_options=resources,
        **_replicas(model.num_replicas, model.autoscaling),
        **_common(settings),
    )


def _ingress_deployment(models: Sequence[ServedModel], settings: ServeSettings) -> Any:
    # Room for everything that the models accept: their own limits must apply first, as those refuse in JSON.
    capacity = 16 + sum(model.max_queued_requests + model.ongoing_requests * model.max_replicas for model in models)
    return _deployment(Ingress).options(
        name="ingress",
        max_ongoing_requests=capacity,
        max_queued_requests=capacity,
        ray_actor_options={"num_cpus": ingress_cpus(models, settings)},
        **_replicas(settings.num_ingress, settings.ingress_autoscaling),
        **_common(settings),
    )


def ingress_cpus(models: Sequence[ServedModel], settings: ServeSettings) -> float:
    """CPUs that Ray reserves for one process that answers HTTP."""
    return settings.ingress_num_cpus + sum(model.num_cpus for model in models if model.is_inline)


def _replicas(count: int, scaling: Autoscaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"num_replicas": count}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
        )
    }


def _common(settings: ServeSettings) -> dict[str, Any]:
    return {
        "backpressure_config": BackpressureConfig(status_code=503, retry_after_s=settings.retry_after_s),
        "health_check_period_s": settings.health_period_s,
        "health_check_timeout_s": settings.health_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": settings.drain_timeout_s,
        "max_surge_percent": 100,  # a new replica is ready before an old one stops
        "max_constructor_retry_count": _START_ATTEMPTS,
        "logging_config": LoggingConfig(enable_access_log=False),  # the middleware writes one, with more in it
    }
