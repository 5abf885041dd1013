"""Deployment of an endpoint: starts Ray and Ray Serve if needed and waits until every model is ready."""

import json
import logging
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from types import TracebackType
from typing import Any

from serve.deployment.haproxy import free_port, listen_on, listening_host, prepare_environment
from serve.http.keys import Keys
from serve.settings import Autoscaling, ServedModel, ServeSettings, check_models
from tenfold.engine import cluster

_POLL_S = 0.1
# Serve's own timeout comes after the application's, which replies in JSON.
OUTER_TIMEOUT_FACTOR = 1.5

_owned: dict[str, bool] = {}
"""Applications of this process, and whether Serve was started for them; kept across roll-outs."""


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint; as a context manager, it shuts down on exit."""

    url: str
    """Base URL without a trailing slash."""
    models: tuple[ServedModel, ...]
    ready_timeout_s: float
    app_name: str
    port: int
    owns_serve: bool
    """Whether Serve was started for this endpoint and stops with it; a shared Serve keeps running."""

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until every model is ready.

        Raises:
            TimeoutError: After ``timeout_s`` (None: ``ready_timeout_s`` of the settings).
        """
        limit_s = self.ready_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        last = "no answer"
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5) as reply:  # noqa: S310
                    # A proxy that does not know the application yet replies differently.
                    if json.loads(reply.read()) == {"ready": True}:
                        return
            except urllib.error.HTTPError as error:
                last = f"HTTP {error.code}"
            except (OSError, HTTPException, ValueError) as error:
                last = str(error)
            time.sleep(_POLL_S)
        raise TimeoutError(f"{self.url} was not ready after {limit_s:g} s (last: {last})")

    def open_models(self) -> frozenset[str]:
        """Names of the open-vocabulary models; empty if the endpoint requires a key.

        Raises:
            OSError: If the endpoint does not answer.
        """
        return frozenset(model["name"] for model in self._listed() if model["prompt_template"] is not None)

    def explaining_models(self) -> frozenset[str]:
        """Names of the models with attribution maps; empty if the endpoint requires a key.

        Raises:
            OSError: If the endpoint does not answer.
        """
        return frozenset(model["name"] for model in self._listed() if model["explains"])

    def named_inputs(self) -> dict[str, list[dict[str, Any]]]:
        """Inputs of each model that has named inputs, as in ``/models``; empty if the endpoint requires a key.

        Raises:
            OSError: If the endpoint does not answer.
        """
        return {model["name"]: model["inputs"] for model in self._listed() if model["inputs"]}

    def _listed(self) -> list[dict[str, Any]]:
        """Entries of ``/models``."""
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=self.ready_timeout_s) as reply:  # noqa: S310
                listed: list[dict[str, Any]] = json.loads(reply.read())["models"]
                return listed
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            return []

    def drain(self) -> None:
        """Finish running requests, then stop the application; Serve and Ray keep running."""
        from ray import serve

        serve.delete(self.app_name)

    def shutdown(self) -> None:
        """Drain, and stop Serve if it was started for this endpoint; Ray keeps running."""
        from ray import serve

        self.drain()
        if self.owns_serve:
            serve.shutdown()

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


def deploy(models: Sequence[ServedModel], settings: ServeSettings, *, address: str | None = None) -> Endpoint:
    """Serve ``models`` as one application and return when all of them are ready.

    A second call rolls out its models: new replicas are ready before the old ones stop, so no request fails; if the new
    ones can't start, the old ones keep running. Starts a local Ray if none runs in this process.

    Args:
        models: The models.
        settings: Address and limits.
        address: Ray to join; None: the one of this process.

    Raises:
        ValueError: An invalid setting, no API keys on a public host, a modified bundle, or an address other than the
            one that Serve already listens on.
        RuntimeError: If a model's replicas can't start.
        TimeoutError: If the models are not ready within ``ready_timeout_s``.
    """
    models = list(models)
    check_models(models)
    if settings.keys_file:
        Keys.load(settings.keys_file)  # fail here, not in the log of a replica
    _try_inline(models)
    prepare_environment()
    cluster.start(address=address, num_cpus=local_cpus(models, settings))
    # Imported late: ray.serve reads the environment on import.
    from ray import serve
    from ray.serve.config import HTTPOptions

    from serve.deployment.application import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # failures are raised; the rest is in Ray's log files
    app = application(models, settings)
    running = _running_address()
    host, port = running or (settings.host, settings.port or free_port(settings.host))
    if running is None:
        serve.start(
            http_options=HTTPOptions(
                host=listen_on(host), port=port, request_timeout_s=OUTER_TIMEOUT_FACTOR * settings.request_timeout_s
            ),
        )
    elif settings.host != host or settings.port not in (0, port):
        raise ValueError(
            f"serve.host and serve.port must be {host} and {port}, where Serve already listens, "
            f"got {settings.host} and {settings.port}; shut it down first, or use its address (serve.port=0)"
        )
    try:
        serve.run(app, name=settings.app_name, route_prefix=settings.route_prefix)
    except RuntimeError as error:
        raise RuntimeError(f"{error} {_deployment_messages(settings.app_name)}") from error
    owns_serve = running is None or _owned.get(settings.app_name, False)
    _owned[settings.app_name] = owns_serve
    endpoint = Endpoint(
        f"http://{f'[{host}]' if ':' in host else host}:{port}{settings.route_prefix.rstrip('/')}",
        tuple(models),
        settings.ready_timeout_s,
        settings.app_name,
        port,
        owns_serve,
    )
    endpoint.wait_ready()
    return endpoint


def _try_inline(models: Sequence[ServedModel]) -> None:
    """Load the ``inline`` models once in this process, before anything changes.

    A process that answers HTTP starts also without a model that can't be loaded, so that the others can be asked; only
    here is there time to stop before a roll-out.

    Raises:
        BundleError: If a bundle was modified.
        RuntimeError: If a model can't be loaded.
    """
    inline = [model for model in models if model.is_inline]
    if not inline:
        return
    import torch

    from serve.clients.local import LocalModel
    from tenfold.bundle import load_bundle

    threads = torch.get_num_threads()
    for model in inline:
        load_bundle(model.folder)
        try:
            LocalModel(model)
        except Exception as error:
            raise RuntimeError(f"model {model.name} can't be loaded, and nothing was changed: {error}") from error
    torch.set_num_threads(threads)


def local_cpus(models: Sequence[ServedModel], settings: ServeSettings) -> int | None:
    """Logical CPUs for a cluster started here; None: the cores of the machine are enough.

    No other machine will join: replicas that share a core are slow, but a replica that can't be placed blocks the
    endpoint for ever. Counted twice, so that a roll-out fits beside the running replicas.
    """
    from serve.deployment.application import ingress_cpus  # late, as in deploy

    asked = sum(model.num_cpus * model.max_replicas for model in models if not model.is_inline)
    asked += settings.num_ingress * ingress_cpus(models, settings)
    needed = math.ceil(2 * asked)
    return needed if needed > (os.cpu_count() or 1) else None


def _running_address() -> tuple[str, int] | None:
    """Address that Serve listens on in this cluster; None if it is not running."""
    from ray.serve.context import _get_global_client  # there is no public API

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    return listening_host() or str(client.http_config.host), int(client.http_config.port)


def _deployment_messages(app_name: str) -> str:
    """Serve's messages about the deployments that did not start."""
    from ray import serve

    status = serve.status().applications.get(app_name)
    deployments = status.deployments if status else {}
    return " ".join(f"{name}: {one.message}" for name, one in deployments.items() if one.status != "HEALTHY")


__all__ = ["Autoscaling", "Endpoint", "ServeSettings", "ServedModel", "deploy"]
