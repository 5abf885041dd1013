"""Cost of ``explain`` relative to plain prediction: in the predictor, and through the HTTP application.

Run from the root of the repository: ``python -m tests.benchmarks.bench_explain``. Weights are random. The cases take
turns, and each ratio is of minimum times of one run on one machine. A round trip through the application (without Ray
Serve, client included) covers decoding, predicting and encoding the maps.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from tenfold.bundle import Bundle
from tests.serving.local import LocalService
from tests.serving.real_bundles import EXPLAINING_METHODS, LOADER, make_real_bundle
from tests.serving.stand_ins import served
from tests.serving.v2_client import encode_request

NUM_CLASSES = 20


def least_ms(cases: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the minimum time of each case, as background load only adds; the cases take turns, at least five each."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
    begun = time.perf_counter()
    while len(times["plain"]) < 5 or time.perf_counter() - begun < seconds:
        for name, run in cases.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: min(of_case) for name, of_case in times.items()}


def predictor_cases(service: LocalService, images: np.ndarray) -> dict[str, Callable[[], object]]:
    loaded = service.clients["m"].loaded
    predictor = loaded._explaining  # called directly, as by a replica
    assert predictor is not None
    tensor, labels = torch.from_numpy(images), torch.zeros(len(images), dtype=torch.int64)
    return {
        "plain": lambda: predictor(tensor),
        "top class": lambda: predictor.explain(tensor),
        "given class": lambda: predictor.explain(tensor, labels),
    }


def http_cases(service: LocalService, images: np.ndarray) -> dict[str, Callable[[], object]]:
    def ask(**parameters: object) -> Callable[[], object]:
        body, headers = encode_request(images, parameters=parameters)

        def run() -> None:
            reply = service.http.post("/v2/models/m/infer", content=body, headers=headers)
            assert reply.status_code == 200, reply.text

        return run

    return {"plain": ask(), "top class": ask(explain=True), "given class": ask(explain=True, explain_class=0)}


def compare(bundle: Bundle, label: str, batch_sizes: list[int], seconds: float) -> None:
    service = LocalService([served(bundle, "m", loader=LOADER)])
    size = bundle.preprocessing.image_size
    for num_images in batch_sizes:
        images = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3)).astype(np.uint8)
        for place, make_cases in (("predictor", predictor_cases), ("application", http_cases)):
            times = least_ms(make_cases(service, images), seconds)
            ratios = "".join(f"{times[name] / times['plain']:12.2f}" for name in ("top class", "given class"))
            print(f"{label:34}{num_images:4d}  {place:12}{times['plain']:10.2f}{ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per line")
    parser.add_argument("--threads", type=int, default=1, help="threads per predictor call, as in serving")
    parser.add_argument("--large", default="torchvision:resnet18", help="network at 224x224; empty leaves it out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks = [("small_cnn", 64, [1, 32])] + ([(options.large, 224, [1, 4])] if options.large else [])
    print(f"{'model':34}{'N':>4}  {'where':12}{'plain ms':>10}{'top/plain':>12}{'given/plain':>12}")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for network, size, batch_sizes in networks:
            for method in EXPLAINING_METHODS:
                path = Path(folder) / f"{method}-{size}"
                bundle = make_real_bundle(path, method, network=network, image_size=size, num_classes=NUM_CLASSES)
                compare(bundle, f"{method} {network} {size}", batch_sizes, options.seconds)


if __name__ == "__main__":
    main()
