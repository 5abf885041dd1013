"""Settings of served models and of the endpoint, checked on construction."""

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict

from serve.contract import Limits

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MIN_ONGOING = 16


@dataclass(frozen=True, kw_only=True)
class Autoscaling:
    """Replica count by load; with a minimum of 0, an idle model stops until the next request."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing_requests: float = 16.0
    """Target number of ongoing requests per replica."""
    upscale_delay_s: float = 30.0
    """Time for which the load must be above the target before replicas are added; the first one comes at once."""
    downscale_delay_s: float = 600.0
    """Time for which the load must be below the target before replicas are removed."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"min_replicas and max_replicas must be 0 <= min_replicas <= max_replicas and 1 <= max_replicas, "
                f"got {self.min_replicas} and {self.max_replicas}"
            )
        _check_positive(self, "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One bundle behind one name."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    """Name in the URL: letters, digits, dot, dash, underscore, at most 63."""
    version: str
    """Pinned version, repeated in every reply: the registry's number, or a name of the same characters."""
    folder: str
    """Bundle folder, readable on every node that runs a replica."""
    placement: Literal["inline", "own"] | None = None
    """``inline``: in the process that answers HTTP, one hop less, replicated with it. ``own``: in a deployment of its
    own, for GPUs, large models and models that scale by themselves. None: ``own`` with a GPU, several replicas or
    ``autoscaling``, else ``inline``."""
    num_replicas: int = 1
    """Number of replicas; ignored with ``autoscaling``."""
    autoscaling: Autoscaling | None = None
    max_batch_size: int = 32
    """Maximum images in one call of the predictor, over all requests that share it."""
    max_batch_values: int = 250_000
    """Maximum input values in one call of a regressor, over all requests that share it; a single example may have
    more."""
    batch_wait_s: float = 0.0
    """Time that an incomplete batch waits for further requests once the predictor is free; 0: a batch is what came
    during the one before."""
    max_ongoing_requests: int | None = None
    """Concurrent requests per replica; None: two batches, at least 16. Low values make Serve's router poll for free
    replicas."""
    max_queued_requests: int = 128
    """Requests waiting for a replica, per ingress replica; more are refused with 503."""
    device: str = "cpu"
    num_cpus: float = 0.5
    """CPUs that Ray reserves per replica; the default leaves a two-core machine room for a roll-out."""
    num_gpus: float | None = None
    """GPUs per replica; None: 1 for a CUDA device, else 0."""
    num_threads: int | None = None
    """Threads of one predictor call; None: the number of whole reserved CPUs, at least 1."""
    probe_tolerance: float = 1e-4
    """Maximum difference from the outputs that training stored for the probe set, relative to the largest of them (for
    logits at least 1). Rounding of float32 differs between machines and grows with the values."""
    loader: str = "tenfold.catalog:load_predictor"
    """``module:function`` that builds a predictor from (verified bundle, device)."""

    def __post_init__(self) -> None:
        for field, pattern in (("name", MODEL_NAME), ("version", VERSION)):
            if not pattern.fullmatch(getattr(self, field)):
                raise ValueError(f"a model's {field} must match {pattern.pattern}, got {getattr(self, field)!r}")
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.loader):
            raise ValueError(f"loader must be module:function, got {self.loader!r}")
        _check_positive(
            self,
            *("num_replicas", "max_batch_size", "max_batch_values", "max_queued_requests"),
            *("num_cpus", "probe_tolerance"),
        )
        for field in ("num_threads", "max_ongoing_requests"):
            if getattr(self, field) is not None:
                _check_positive(self, field)
        if self.placement not in (None, "inline", "own"):
            raise ValueError(f"placement must be inline or own, got {self.placement!r}")
        if self.placement == "inline" and self._scales_itself:
            raise ValueError(
                f"placement of model {self.name} must be own for a GPU, several replicas or autoscaling, got inline; "
                f"inline models are replicated and scaled with the endpoint (ingress_replicas, ingress_autoscaling) "
                f"and cannot rest at zero"
            )
        if not 0 <= self.batch_wait_s < math.inf:
            raise ValueError(f"batch_wait_s must be at least 0, got {self.batch_wait_s}")
        if self.num_gpus is not None and not 0 <= self.num_gpus < math.inf:
            raise ValueError(f"num_gpus must be at least 0, got {self.num_gpus}")

    @property
    def ongoing_requests(self) -> int:
        """Concurrent requests per replica; by default one batch in the predictor and one gathering."""
        return self.max_ongoing_requests or max(_MIN_ONGOING, 2 * self.max_batch_size)

    @property
    def _scales_itself(self) -> bool:
        return self.gpus > 0 or self.autoscaling is not None or self.num_replicas > 1

    @property
    def is_inline(self) -> bool:
        """Whether it lives in the process that answers HTTP."""
        return self.placement == "inline" or (self.placement is None and not self._scales_itself)

    @property
    def max_replicas(self) -> int:
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas

    @property
    def threads(self) -> int:
        return self.num_threads or max(1, int(self.num_cpus))

    @property
    def gpus(self) -> float:
        if self.num_gpus is not None:
            return self.num_gpus
        return 1.0 if self.device.startswith("cuda") else 0.0


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Limits):
    """Address and limits of an endpoint.

    Without ``keys_file`` only a loopback host is accepted: on any other, every client could call the models.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = 8000
    """Port; 0 picks a free one."""
    keys_file: str | None = None
    """File of API keys, one ``key_id:sha256hex`` per line, readable where the ingress runs."""
    request_timeout_s: float = 30.0
    body_timeout_s: float = 30.0
    """Time in which the whole body of a request must arrive; a client that sends it by drops is cut off."""
    retry_after_s: float = 1.0
    """Retry-After of a refusal for overload."""
    drain_timeout_s: float = 20.0
    """Time that a stopping replica has to finish its requests."""
    health_period_s: float = 5.0
    health_timeout_s: float = 30.0
    ready_timeout_s: float = 180.0
    """Time that ``deploy`` waits until every model is ready."""
    ingress_replicas: int | None = None
    """Processes that answer HTTP, each with all ``inline`` models; None: 2 where two cores are, so that one may die."""
    ingress_autoscaling: Autoscaling | None = None
    """Number of these processes by load, at least 1; then ``ingress_replicas`` is ignored."""
    ingress_num_cpus: float = 0.2
    """CPUs that Ray reserves for each, beside those of its ``inline`` models."""
    decode_threads: int = 2
    """Images decoded concurrently by one ingress replica; one of more than a million pixels has a thread of its own."""
    max_decoding_pixels: int = 64_000_000
    """Pixels of the images that one ingress replica decodes or keeps waiting for it; more are refused with 503."""
    access_log: bool = True
    """One JSON line per request on the standard output of the ingress."""
    app_name: str = "tenfold"
    route_prefix: str = "/"
    """URL prefix; each application of a cluster needs its own."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be in 0..65535, got {self.port}")
        _check_positive(
            self,
            *(
                "max_body_bytes",
                "max_pixels",
                "max_images",
                "request_timeout_s",
                "body_timeout_s",
                "retry_after_s",
                "drain_timeout_s",
            ),
            *("max_classes", "max_prompts", "max_text_characters", "max_attribution_bytes"),
            *("max_values", "max_reply_bytes", "max_json_keys", "max_json_lists"),
            *("health_period_s", "health_timeout_s", "ready_timeout_s"),
            *("ingress_num_cpus", "decode_threads", "max_decoding_pixels"),
        )
        if self.ingress_replicas is not None:
            _check_positive(self, "ingress_replicas")
        if self.ingress_autoscaling is not None and self.ingress_autoscaling.min_replicas < 1:
            raise ValueError("ingress_autoscaling must have min_replicas of at least 1, got 0: nobody would answer")
        if not self.app_name:
            raise ValueError("app_name must not be empty")
        if not re.fullmatch(r"/|(/[A-Za-z0-9_-]+)+", self.route_prefix):
            raise ValueError(f"route_prefix must be / or a path such as /demo, got {self.route_prefix!r}")
        if self.keys_file is None and not is_loopback(self.host):
            raise ValueError(
                f"keys_file must be given for a host that other machines reach, got host {self.host!r} without one; "
                f"create a key with python -m serve.http.keys KEY_ID, or keep host at 127.0.0.1"
            )

    @property
    def num_ingress(self) -> int:
        """Processes that answer HTTP, at most."""
        if self.ingress_autoscaling is not None:
            return self.ingress_autoscaling.max_replicas
        return self.ingress_replicas or min(2, os.cpu_count() or 1)


def is_loopback(host: str) -> bool:
    """Return True if only this machine reaches the host; names other than ``localhost`` count as public."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_models(models: "list[ServedModel] | tuple[ServedModel, ...]") -> None:
    """Raise ValueError for an empty list or a duplicate name."""
    if not models:
        raise ValueError("models must hold at least one model, got none")
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"names of models must be unique, got more than once: {', '.join(twice)}")


def _check_positive(settings: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(settings, field)
        if not 0 < value < math.inf:
            raise ValueError(f"{field} must be above 0, got {value}")
