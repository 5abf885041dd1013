"""Mixed clients over kept-alive connections while versions roll over, processes are killed and replicas come and go.

Run from the root of the repository: ``python -m tests.benchmarks.bench_endurance``. Every answer is compared with the
numbers of the version that gave it. A request that fails is sent once more; what fails then is a failure.
"""

import argparse
import io
import logging
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from serve.deployment.endpoint import deploy
from serve.deployment.haproxy import prepare_environment
from serve.settings import Autoscaling, ServedModel, ServeSettings
from tenfold.engine import cluster
from tests.serving import v2_client
from tests.serving.stand_ins import (
    CLASSES,
    EXPLAINING_LOADER,
    OPEN_LOADER,
    SIZE,
    expected_logits,
    expected_map,
    expected_open_probs,
    make_bundle,
    make_open_bundle,
    own_prompts,
    served,
)

SETTINGS = ServeSettings(port=0, access_log=False, drain_timeout_s=5, health_period_s=1)
SMALL = {"num_cpus": 0.1}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


class Endpoint:
    """The models, their versions by name, and what the clients were told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders = {
            ("colour", "1"): make_bundle(folder / "colour-1").folder,
            ("colour", "2"): make_bundle(folder / "colour-2", seed=5).folder,
            ("tints", "1"): make_bundle(folder / "tints", seed=1, explains=True).folder,
            ("open", "1"): make_open_bundle(folder / "open").folder,
            ("slow", "1"): make_bundle(folder / "slow", seed=2, delay_s=0.05).folder,
        }
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.versions: Counter[str | None] = Counter()
        self.is_over = threading.Event()
        self.bursts = threading.Event()
        self.url = ""

    def models(self, colour: str) -> list[ServedModel]:
        """Inline and own, of a fixed number and by load."""

        def model(name: str, version: str, **options: Any) -> ServedModel:
            fields = {"name": name, "version": version, "folder": str(self.folders[name, version])} | SMALL | options
            return served(_Folder(self.folders[name, version]), **fields)  # type: ignore[arg-type]

        scaling = Autoscaling(
            min_replicas=1, max_replicas=2, target_ongoing_requests=2, upscale_delay_s=1, downscale_delay_s=1
        )
        return [
            model("colour", colour, placement="inline"),
            model("tints", "1", placement="own", loader=EXPLAINING_LOADER),
            model("open", "1", placement="inline", loader=OPEN_LOADER),
            model("slow", "1", placement="own", autoscaling=scaling, max_batch_size=2),
        ]

    def roll(self, colour: str) -> None:
        self.url = deploy(self.models(colour), SETTINGS).url

    # ---- clients ----

    def client(self, number: int) -> None:
        """Ask without pause over one connection."""
        random_numbers = random.Random(number)
        kinds = (self.tensors, self.picture, self.map, self.words)
        with httpx.Client(timeout=60) as http:
            while not self.is_over.is_set():
                self.ask(http, random_numbers.choice(kinds), random_numbers.randrange(10**6))

    def burst_client(self, number: int) -> None:
        """Ask the model that scales while there is a burst."""
        with httpx.Client(timeout=60) as http:
            while not self.is_over.is_set():
                if self.bursts.wait(0.2):
                    self.ask(http, self.slow, number)

    def ask(self, http: httpx.Client, kind: Callable[[httpx.Client, int], None], seed: int) -> None:
        for attempt in range(2):
            try:
                kind(http, seed)
            except (httpx.HTTPError, NotAnsweredError) as error:
                self.counts["retried" if attempt == 0 else "failed"] += 1
                if attempt == 1:
                    self.problems.append(f"{kind.__name__}: {error!r}"[:300])
                time.sleep(0.1)
                continue
            except AssertionError as error:
                self.counts["wrong"] += 1
                self.problems.append(f"{kind.__name__}: {error}"[:600])
            else:
                self.counts[kind.__name__] += 1
            return

    def post(self, http: httpx.Client, path: str, **content: Any) -> httpx.Response:
        reply = http.post(f"{self.url}{path}", **content)
        if reply.status_code != 200:
            assert reply.headers["content-type"] == "application/json", reply.text
            raise NotAnsweredError(f"{reply.status_code} {reply.text}")
        self.versions[reply.headers["tenfold-model-version"]] += 1
        return reply

    def tensors(self, http: httpx.Client, seed: int) -> None:
        images = random_images(1 + seed % 5, seed)
        body, headers = v2_client.encode_request(images, binary=bool(seed % 2))
        reply = self.post(http, "/v2/models/colour/infer", content=body, headers=headers)
        logits = v2_client.outputs_of(reply)["logits"]
        folder = self.folders["colour", reply.headers["tenfold-model-version"]]
        np.testing.assert_allclose(logits, expected_logits(folder, torch.from_numpy(images)).numpy(), **TOLERANCE)

    def picture(self, http: httpx.Client, seed: int) -> None:
        image = random_images(1, seed)
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        files = {"image": ("a.png", buffer.getvalue(), "image/png")}
        reply = self.post(http, "/predict/colour", files=files)
        folder = self.folders["colour", reply.json()["version"]]
        expected = expected_logits(folder, torch.from_numpy(image))[0].sigmoid().tolist()
        told = {label["name"]: label["probability"] for label in reply.json()["labels"]}
        np.testing.assert_allclose([told[name] for name in CLASSES], expected, **TOLERANCE)

    def map(self, http: httpx.Client, seed: int) -> None:
        images, label = random_images(1, seed), seed % 3
        body, headers = v2_client.encode_request(images, parameters={"explain": True, "explain_class": label})
        outputs = v2_client.outputs_of(self.post(http, "/v2/models/tints/infer", content=body, headers=headers))
        expected = expected_map(self.folders["tints", "1"], torch.from_numpy(images[0]), label).numpy()
        np.testing.assert_allclose(outputs["attributions"][0], expected, **TOLERANCE)

    def words(self, http: httpx.Client, seed: int) -> None:
        images = random_images(1, seed)
        classes = [("crab", "gnu"), ("bee", "bug", "rag"), CLASSES][seed % 3]
        body, headers = v2_client.encode_request(images, classes=classes)
        outputs = v2_client.outputs_of(self.post(http, "/v2/models/open/infer", content=body, headers=headers))
        expected = expected_open_probs(torch.from_numpy(images), own_prompts(classes)).numpy()
        np.testing.assert_allclose(outputs["probs"], expected, **TOLERANCE)

    def slow(self, http: httpx.Client, seed: int) -> None:
        images = random_images(1, seed)
        body, headers = v2_client.encode_request(images)
        outputs = v2_client.outputs_of(self.post(http, "/v2/models/slow/infer", content=body, headers=headers))
        expected = expected_logits(self.folders["slow", "1"], torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(outputs["logits"], expected, **TOLERANCE)


class NotAnsweredError(Exception):
    """A reply other than 200."""


class _Folder:
    """What ``served`` reads of a bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


def random_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, (count, SIZE, SIZE, 3)).astype(np.uint8)


def kill(deployment: str) -> str:
    """End one process of a deployment by SIGKILL."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    name = next(actor for actor in named if f"#{deployment}#" in actor["name"])
    actor = ray.get_actor(name["name"], namespace=name["namespace"])
    from ray.util.state import get_actor

    told = get_actor(actor._actor_id.hex(), address=ray.get_runtime_context().gcs_address)
    os.kill(told.pid, signal.SIGKILL)
    return f"killed {deployment}, process {told.pid}"


def num_replicas(deployment: str) -> int:
    from ray import serve

    states = serve.status().applications["tenfold"].deployments[deployment].replica_states
    return int(states.get("RUNNING", 0))


def endure(endpoint: Endpoint, seconds: float, num_clients: int) -> Counter[str]:
    """Ask for ``seconds`` while things happen; return what happened."""
    happened: Counter[str] = Counter()
    quarter = num_clients // 4
    threads = [threading.Thread(target=endpoint.client, args=(k,)) for k in range(num_clients - quarter)]
    threads += [threading.Thread(target=endpoint.burst_client, args=(k,)) for k in range(quarter)]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    events = [
        (0.15, lambda: endpoint.roll("2")),
        (0.45, lambda: print(kill("model-tints"), flush=True)),
        (0.65, lambda: print(kill("ingress"), flush=True)),
        (0.85, lambda: print(kill("model-slow"), flush=True)),
    ]
    replicas = num_replicas("model-slow")
    period = 26.0  # a replica takes seconds to start

    def rest() -> None:
        for moment, event in events:
            time.sleep(max(0.0, started + moment * seconds - time.monotonic()))
            began = time.monotonic()
            event()
            print(f"event at {moment:.0%} took {time.monotonic() - began:.1f} s", flush=True)
            happened["events"] += 1

    acting = threading.Thread(target=rest)
    acting.start()
    while (passed := time.monotonic() - started) < seconds or acting.is_alive():
        (endpoint.bursts.set if passed % period < period / 2 else endpoint.bursts.clear)()
        try:
            now = num_replicas("model-slow")
        except KeyError:
            now = replicas
        happened["scaled up"] += max(0, now - replicas)
        happened["scaled down"] += max(0, replicas - now)
        replicas = now
        time.sleep(0.5)
    endpoint.is_over.set()
    endpoint.bursts.set()
    for thread in threads:
        thread.join()
    return happened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    prepare_environment()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    cluster.start(num_cpus=8, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        endpoint = Endpoint(Path(folder))
        endpoint.roll("1")
        happened = endure(endpoint, options.seconds, options.clients)
    answers = sum(endpoint.counts[kind] for kind in ("tensors", "picture", "map", "words", "slow"))
    print(f"answers {answers}: {dict(endpoint.counts)}")
    print(f"versions {dict(endpoint.versions)}; {dict(happened)}")
    print(f"wrong {endpoint.counts['wrong']}, failed after one retry {endpoint.counts['failed']}")
    for problem in endpoint.problems[:20]:
        print(f"  {problem}")
    cluster.stop()


if __name__ == "__main__":
    main()
