"""Requests per second and latency at 16 connections: with batching, without, and with nothing to compute.

Run from the root of the repository: ``python -m tests.benchmarks.bench_serving``. All numbers are from one run on one
machine, client included: compare them only with each other.
"""

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from serve.deploying import deploy
from serve.fast_path import prepare_environment
from serve.settings import ServedModel, ServeSettings
from tenfold.bundle import PROBE_FILE, Bundle, save_bundle
from tenfold.engine import cluster
from tenfold.types import Preprocessing, Task
from tests.serving.v2_client import encode_request

SIZE = 64
NUM_CLASSES = 10


class ConvPredictor:
    """Small convolutional network, about the size of those for the embedded data."""

    def __init__(self, bundle: Bundle) -> None:
        metadata = bundle.metadata
        self.task, self.classes, self.preprocessing = metadata.task, metadata.classes, metadata.preprocessing
        self._network = build_network()
        self._network.load_state_dict(bundle.tensors())

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        logits = self._network(images.permute(0, 3, 1, 2).float().div(255))
        return {"probs": logits.sigmoid(), "logits": logits}


class ConstantPredictor:
    """Predictor that computes nothing, which leaves the cost of serving."""

    def __init__(self, bundle: Bundle) -> None:
        metadata = bundle.metadata
        self.task, self.classes, self.preprocessing = metadata.task, metadata.classes, metadata.preprocessing

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        zeros = torch.zeros(len(images), NUM_CLASSES)
        return {"probs": zeros, "logits": zeros}


def load_conv(bundle: Bundle, device: str = "cpu") -> ConvPredictor:
    return ConvPredictor(bundle)


def load_constant(bundle: Bundle, device: str = "cpu") -> ConstantPredictor:
    return ConstantPredictor(bundle)


def build_network() -> nn.Module:
    widths = (3, 32, 64, 128)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], NUM_CLASSES))
    return network.eval()


def make_bundle(folder: Path, *, constant: bool) -> Path:
    torch.manual_seed(0)
    network = build_network()
    images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits = network(images.permute(0, 3, 1, 2).float().div(255))
    return save_bundle(
        folder,
        config={},
        tensors=network.state_dict(),
        method="bench",
        task=Task.MULTI_LABEL,
        classes=[str(k) for k in range(NUM_CLASSES)],
        preprocessing=Preprocessing(image_size=SIZE),
        metrics={},
        data_name="none",
        data_fingerprint="0" * 64,
        files={
            PROBE_FILE: save({"images": images, "logits": torch.zeros_like(logits) if constant else logits.clone()})
        },
    ).folder


@dataclass(frozen=True)
class Figures:
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    num_failed: int


async def measure(url: str, request: bytes, num_connections: int, num_requests: int) -> Figures:
    """Send ``request`` over persistent connections, each as soon as its last reply has arrived."""
    address = urlsplit(url)
    latencies: list[float] = []
    num_failed = 0
    remaining = num_requests

    async def connection() -> None:
        nonlocal remaining, num_failed
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while remaining > 0:
            remaining -= 1
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            latencies.append(time.perf_counter() - started)
            num_failed += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(num_connections)))
    elapsed_s = time.perf_counter() - started
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return Figures(num_requests / elapsed_s, p50, p99, num_failed)


def http_request(path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    method = "POST" if body else "GET"
    fields = {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def run_no_op() -> None:
    """Start a bare Serve application beside ours, as the lower bound set by Serve."""
    from ray import serve
    from starlette.responses import PlainTextResponse

    @serve.deployment(max_ongoing_requests=64, max_queued_requests=256, ray_actor_options={"num_cpus": 0.2})
    class NoOp:
        async def __call__(self, request: object) -> PlainTextResponse:
            return PlainTextResponse("ok")

    serve.run(NoOp.bind(), name="no-op", route_prefix="/no-op")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000, help="per case")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="the cases take turns; the median round is printed")
    options = parser.parse_args()
    prepare_environment()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    cluster.start(num_cpus=4, dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        compare(Path(folder), options.connections, options.requests, options.rounds)
    cluster.stop()


def compare(folder: Path, num_connections: int, num_requests: int, num_rounds: int) -> None:
    """Serve the cases, measure them in turn and print the median round of each."""
    conv, constant = make_bundle(folder / "conv", constant=False), make_bundle(folder / "constant", constant=True)
    module = "tests.benchmarks.bench_serving"

    def model(name: str, bundle: Path, kind: str, max_batch_size: int) -> ServedModel:
        return ServedModel(
            name=name, version="1", folder=str(bundle), loader=f"{module}:load_{kind}", max_batch_size=max_batch_size
        )

    models = [
        model("batched", conv, "conv", 32),
        model("single", conv, "conv", 1),
        model("constant", constant, "constant", 32),
    ]
    with deploy(models, ServeSettings(port=0, access_log=False, drain_timeout_s=5)) as endpoint:
        run_no_op()
        time.sleep(3)  # the proxy reloads for the second application and closes connections
        images = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8)
        body, headers = encode_request(images)
        cases = {
            f"v2 infer, {name}": http_request(f"/v2/models/{name}/infer", body, headers)
            for name in ("batched", "single", "constant")
        }
        cases["ingress alone (GET /v2)"] = http_request("/v2")
        cases["bare Serve no-op"] = http_request("/no-op")
        for request in cases.values():
            asyncio.run(measure(endpoint.url, request, num_connections, 300))
        rounds: dict[str, list[Figures]] = {name: [] for name in cases}
        for _ in range(num_rounds):
            for name, request in cases.items():
                rounds[name].append(asyncio.run(measure(endpoint.url, request, num_connections, num_requests)))
        print(f"{'case':26} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'failed':>7}")
        for name, figures in rounds.items():
            middle = sorted(figures, key=lambda one: one.requests_per_s)[len(figures) // 2]
            failed = sum(one.num_failed for one in figures)
            print(f"{name:26} {middle.requests_per_s:8.0f} {middle.p50_ms:8.1f} {middle.p99_ms:8.1f} {failed:7d}")


if __name__ == "__main__":
    main()
