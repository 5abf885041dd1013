"""Prometheus metrics beyond those of Ray Serve, exported by Ray's metrics agent."""

from ray.util.metrics import Counter, Histogram

from serve.http.access_log import Trace

_LATENCY_MS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000]
_IMAGES: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class RequestMetrics:
    """Request metrics of the ingress."""

    def __init__(self) -> None:
        self._latency = Histogram(
            "tenfold_request_latency_ms",
            description="Time from the request's first byte to the reply, in milliseconds.",
            boundaries=_LATENCY_MS,
            tag_keys=("model", "version", "status"),
        )
        self._refused = Counter(
            "tenfold_refused_requests_total",
            description="Requests answered with a 4xx or 503, by reason.",
            tag_keys=("model", "reason"),
        )
        self._explained = Counter(
            "tenfold_explained_images_total",
            description="Images answered with an attribution map.",
            tag_keys=("model", "version"),
        )

    def record(self, trace: Trace) -> None:
        tags = {"model": trace.model, "version": trace.version, "status": str(trace.status)}
        self._latency.observe(trace.latency_ms, tags=tags)
        if trace.reason:
            self._refused.inc(tags={"model": trace.model, "reason": trace.reason})
        elif trace.num_explained and trace.status == 200:
            self._explained.inc(trace.num_explained, tags={"model": trace.model, "version": trace.version})


class BatchMetrics:
    """Predictor metrics of one replica."""

    def __init__(self, model: str, version: str) -> None:
        tags = {"model": model, "version": version}
        self._images = Histogram(
            "tenfold_batch_images",
            description="Images in one call of the predictor.",
            boundaries=_IMAGES,
            tag_keys=("model", "version"),
        )
        self._latency = Histogram(
            "tenfold_predictor_latency_ms",
            description="Time of one call of the predictor, in milliseconds.",
            boundaries=_LATENCY_MS,
            tag_keys=("model", "version"),
        )
        self._texts = Histogram(
            "tenfold_texts_latency_ms",
            description="Time to encode the classes of a request (once per list), in milliseconds.",
            boundaries=_LATENCY_MS,
            tag_keys=("model", "version"),
        )
        self._images.set_default_tags(tags)
        self._latency.set_default_tags(tags)
        self._texts.set_default_tags(tags)

    def batch(self, num_examples: int, latency_ms: float) -> None:
        self._images.observe(num_examples)
        self._latency.observe(latency_ms)

    def texts(self, latency_ms: float) -> None:
        self._texts.observe(latency_ms)
