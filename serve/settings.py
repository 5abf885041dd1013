"""What is served and under which limits: plain values that check themselves, before anything starts."""

import ipaddress
import math
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MIB = 2**20
_MIN_ONGOING = 16


@dataclass(frozen=True, kw_only=True)
class Autoscaling:
    """Number of replicas by load; a minimum of 0 lets an idle model go away until the next request."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing_requests: float = 16.0
    """Requests in progress per replica that the number of replicas aims at."""
    downscale_delay_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"replicas need 0 <= min_replicas <= max_replicas and max_replicas >= 1, "
                f"got {self.min_replicas} and {self.max_replicas}"
            )
        _check_positive(self, "target_ongoing_requests", "downscale_delay_s")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One bundle behind one name."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    """Part of the URL: letters, digits, dot, dash, underscore, at most 63."""
    version: str
    """Pinned version, told in every reply; the registry's number, or any name of that form."""
    folder: str
    """The bundle; every node that runs a replica must be able to read it."""
    num_replicas: int = 1
    """Ignored where ``autoscaling`` is given."""
    autoscaling: Autoscaling | None = None
    max_batch_size: int = 32
    """Pictures in one call of the predictor, over all requests that share it."""
    max_batch_values: int = 250_000
    """Numbers in the inputs of one call of a regressor, over all requests that share it; a single example may have
    more."""
    batch_wait_s: float = 0.002
    """How long an incomplete batch waits for company once the predictor is free; 0 sends what is there."""
    max_ongoing_requests: int | None = None
    """Requests that one replica takes at once; None: two batches, at least 16. With few, Serve's router spends its
    time asking whether there is room."""
    max_queued_requests: int = 128
    """Requests that wait for a replica, per ingress replica; more are refused with 503."""
    device: str = "cpu"
    num_cpus: float = 0.5
    """CPUs that Ray reserves per replica; half a CPU leaves a two-core machine room for a roll-out."""
    num_gpus: float | None = None
    """None: 1 for a CUDA device, else 0."""
    num_threads: int | None = None
    """Threads of one predictor call; None: the whole CPUs reserved, at least 1."""
    probe_tolerance: float = 1e-4
    """Largest difference to the numbers that training stored for the probe set, as a share of the largest of them (of
    logits at least 1). Float32 on other hardware differs by rounding, which grows with the numbers."""
    loader: str = "tenfold.catalog:load_predictor"
    """``module:function`` that makes a predictor of (verified bundle, device)."""

    def __post_init__(self) -> None:
        for field, pattern in (("name", MODEL_NAME), ("version", VERSION)):
            if not pattern.fullmatch(getattr(self, field)):
                raise ValueError(f"a model's {field} must match {pattern.pattern}, got {getattr(self, field)!r}")
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.loader):
            raise ValueError(f"loader must be written module:function, got {self.loader!r}")
        _check_positive(
            self,
            *("num_replicas", "max_batch_size", "max_batch_values", "max_queued_requests"),
            *("num_cpus", "probe_tolerance"),
        )
        for field in ("num_threads", "max_ongoing_requests"):
            if getattr(self, field) is not None:
                _check_positive(self, field)
        if not 0 <= self.batch_wait_s < math.inf:
            raise ValueError(f"batch_wait_s must be at least 0, got {self.batch_wait_s}")
        if self.num_gpus is not None and not 0 <= self.num_gpus < math.inf:
            raise ValueError(f"num_gpus must be at least 0, got {self.num_gpus}")

    @property
    def ongoing_requests(self) -> int:
        """One batch in the predictor and the next one gathering, where nothing else is asked for."""
        return self.max_ongoing_requests or max(_MIN_ONGOING, 2 * self.max_batch_size)

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
class ServeSettings:
    """Where an endpoint listens and what it refuses.

    Without ``keys_file`` only a loopback host is accepted: whoever reaches another address could call the models.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = 8000
    """0 picks a free one."""
    keys_file: str | None = None
    """File of API keys, a ``key_id:sha256hex`` per line, readable where the ingress runs."""
    max_body_bytes: int = 16 * _MIB
    max_pixels: int = 16_000_000
    """Largest width times height of a picture that is decoded."""
    max_images: int = 256
    """Most pictures, or other examples, in one request."""
    max_values: int = 250_000
    """Most numbers in the inputs of one request to a model that takes no pictures; as many as a coloured picture of
    288x288."""
    max_classes: int = 1000
    """Most classes that a request may bring along, to models with an open vocabulary."""
    max_prompts: int = 4000
    """Most texts about them, over all classes. On a CPU a large text tower takes some of them per second only; what
    takes longer than the request may is still finished, and there for the next request."""
    max_text_characters: int = 500
    """Longest class name or prompt."""
    max_attribution_bytes: int = 16 * _MIB
    """Most that the attribution maps of one reply may take: 4 bytes a pixel in raw bytes, up to 22 in JSON."""
    max_reply_bytes: int = 64 * _MIB
    """Most that the numbers of a regression's reply may take: 4 bytes each in raw bytes, up to 25 in JSON."""
    request_timeout_s: float = 30.0
    retry_after_s: float = 1.0
    """What a refusal for overload tells the client to wait."""
    drain_timeout_s: float = 20.0
    """How long a replica that goes away may finish its requests."""
    health_period_s: float = 5.0
    health_timeout_s: float = 30.0
    ready_timeout_s: float = 180.0
    """How long ``deploy`` waits until every model answers."""
    ingress_replicas: int = 1
    ingress_num_cpus: float = 0.2
    decode_threads: int = 2
    """Pictures decoded at once by one ingress replica; each may need three bytes per pixel of ``max_pixels``."""
    access_log: bool = True
    """One JSON line per request on the standard output of the ingress."""
    app_name: str = "tenfold"
    route_prefix: str = "/"
    """Path of the application on the address; another application of the same cluster needs another one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be in 0..65535, got {self.port}")
        _check_positive(
            self,
            *("max_body_bytes", "max_pixels", "max_images", "request_timeout_s", "retry_after_s", "drain_timeout_s"),
            *("max_classes", "max_prompts", "max_text_characters", "max_attribution_bytes"),
            *("max_values", "max_reply_bytes"),
            *("health_period_s", "health_timeout_s", "ready_timeout_s"),
            *("ingress_replicas", "ingress_num_cpus", "decode_threads"),
        )
        if not self.app_name:
            raise ValueError("app_name must not be empty")
        if not re.fullmatch(r"/|(/[A-Za-z0-9_-]+)+", self.route_prefix):
            raise ValueError(f"route_prefix must be / or a path such as /demo, got {self.route_prefix!r}")
        if self.keys_file is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines, so keys_file must be given "
                f"(python -m serve.keys KEY_ID makes a key); or keep host at 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """True where only this machine reaches the host; names other than ``localhost`` are taken as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_models(models: "list[ServedModel] | tuple[ServedModel, ...]") -> None:
    """Raise ValueError for an empty list or a name that occurs twice."""
    if not models:
        raise ValueError("at least one model must be given to serve")
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"every model needs its own name; given more than once: {', '.join(twice)}")


def _check_positive(settings: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(settings, field)
        if not 0 < value < math.inf:
            raise ValueError(f"{field} must be above 0, got {value}")
