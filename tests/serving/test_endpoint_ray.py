"""End to end over real HTTP: Ray Serve, its proxy, replicas in processes of their own."""

import io
import logging
import shlex
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from jobs.rollout import describe
from serve.deployment.endpoint import deploy
from serve.deployment.haproxy import prepare_environment
from serve.settings import ServeSettings
from tenfold.catalog import load_predictor
from tenfold.data.images import resize_image
from tenfold.figures.overlays import overlay
from tests.serving import v2_client
from tests.serving.real_bundles import LOADER as REAL_LOADER
from tests.serving.real_bundles import SERIES, draw_inputs, make_regression_bundle
from tests.serving.stand_ins import (
    CLASSES,
    EXPLAINING_LOADER,
    OPEN_LOADER,
    POISON,
    SIZE,
    UNTIL,
    expected_logits,
    expected_map,
    expected_open_probs,
    make_bundle,
    make_open_bundle,
    own_prompts,
    served,
)
from tests.serving.v2_client import outputs_of

pytestmark = pytest.mark.ray

SETTINGS = ServeSettings(port=0, drain_timeout_s=5, health_period_s=1, request_timeout_s=20, max_body_bytes=2**20)
SMALL = {"num_cpus": 0.1, "placement": "own"}
INLINE = {"num_cpus": 0.1, "placement": "inline"}


class Deployed:
    """A deployed endpoint and its bundles."""

    def __init__(self, folder):
        self.folder = folder
        self.bundles = {
            "colour": make_bundle(folder / "colour"),
            "batched": make_bundle(folder / "batched", delay_s=0.1, poisonable=True),
            "slow": make_bundle(folder / "slow", delay_s=0.3),
            "open": make_open_bundle(folder / "open", delay_s=0.05),
            "tints": make_bundle(folder / "tints", seed=1, delay_s=0.05, explains=True),
            "series": make_regression_bundle(folder / "series", SERIES, ("x", "y"))[0],
        }
        self.models = {
            "colour": served(self.bundles["colour"], **SMALL),
            "batched": served(self.bundles["batched"], "batched", batch_wait_s=0.2, **SMALL),
            "slow": served(
                self.bundles["slow"], "slow", max_batch_size=2, max_ongoing_requests=4, max_queued_requests=4, **SMALL
            ),
            "open": served(self.bundles["open"], "open", loader=OPEN_LOADER, batch_wait_s=0.2, **SMALL),
            "tints": served(self.bundles["tints"], "tints", loader=EXPLAINING_LOADER, batch_wait_s=0.2, **SMALL),
            "series": served(self.bundles["series"], "series", loader=REAL_LOADER, batch_wait_s=0.2, **INLINE),
        }
        self.deploy()

    def deploy(self, **changed):
        self.endpoint = deploy(list((self.models | changed).values()), SETTINGS)
        self.models |= changed
        self.url = self.endpoint.url


@pytest.fixture(scope="module")
def deployed(request, tmp_path_factory):
    prepare_environment()  # before the cluster, which hands it on to Serve
    request.getfixturevalue("ray_cluster")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    service = Deployed(tmp_path_factory.mktemp("bundles"))
    yield service
    service.endpoint.shutdown()


def random_images(num_images, seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 250, (num_images, size, size, 3)).astype(np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def infer(service, model, images, binary=True, **said):
    body, headers = v2_client.encode_request(images, binary=binary, **said)
    return httpx.post(f"{service.url}/v2/models/{model}/infer", content=body, headers=headers, timeout=60)


def predict(service, model, data):
    return httpx.post(f"{service.url}/predict/{model}", content=data, headers={"content-type": "image/png"}, timeout=60)


@pytest.mark.parametrize("binary", [True, False])
def test_v2_gives_the_predictors_numbers(deployed, binary):
    images = random_images(70)  # more than two batches of 32
    logits = outputs_of(infer(deployed, "colour", images, binary))["logits"]
    expected = expected_logits(deployed.bundles["colour"].folder, torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)  # a matrix product of another batch size


def test_plain_gives_the_predictors_numbers(deployed):
    image = random_images(1, size=30)[0]
    reply = predict(deployed, "colour", png(image))
    assert reply.status_code == 200, reply.text
    resized = torch.from_numpy(resize_image(image, SIZE)[None])
    probs = expected_logits(deployed.bundles["colour"].folder, resized)[0].sigmoid().tolist()
    told = {label["name"]: label["probability"] for label in reply.json()["labels"]}
    assert told == pytest.approx(dict(zip(CLASSES, probs, strict=True)), rel=1e-6)
    assert reply.headers["tenfold-model-version"] == "1"


def test_the_request_id_is_told_once_and_is_never_the_clients_malformed_one(deployed):
    given = httpx.get(f"{deployed.url}/v2", headers={"x-request-id": "mine-1"})
    made = httpx.get(f"{deployed.url}/v2")
    assert given.headers.get_list("x-request-id") == ["mine-1"]
    assert len(made.headers.get_list("x-request-id")) == 1
    for malformed in (
        [("x-request-id", "a b {}")],
        [(b"x-request-id", "é".encode())],
        [("x-request-id", "a?"), ("x-request-id", "b")],
    ):
        [told] = httpx.get(f"{deployed.url}/v2", headers=malformed).headers.get_list("x-request-id")
        assert len(told) == 36, malformed


def test_concurrent_requests_share_batches_and_get_their_own_answers(deployed):
    requests = [random_images(1, seed) for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        replies = [outputs_of(reply) for reply in pool.map(lambda x: infer(deployed, "batched", x), requests)]
    folder = deployed.bundles["batched"].folder
    for images, outputs in zip(requests, replies, strict=True):
        expected = expected_logits(folder, torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-6, atol=1e-6)
    # One call per request would tell 1 throughout.
    assert max(outputs["batch_size"].item() for outputs in replies) >= 4


def test_a_bad_image_fails_alone(deployed):
    good, poisoned = random_images(1)[0], random_images(1)[0]
    poisoned[0, 0, 0] = POISON
    sent = [png(good), b"\x89PNG\r\n\x1a\nbroken", png(good), png(poisoned), png(good), png(good)]
    with ThreadPoolExecutor(len(sent)) as pool:
        replies = list(pool.map(lambda data: predict(deployed, "batched", data), sent))
    assert [reply.status_code for reply in replies] == [200, 422, 200, 500, 200, 200]
    assert "damaged" in replies[1].json()["error"]
    assert "internal error" in replies[3].json()["error"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_refused(deployed, announced):
    data = b"x" * (3 * 2**20)
    content = data if announced else (data[start : start + 65536] for start in range(0, len(data), 65536))
    reply = httpx.post(f"{deployed.url}/predict/colour", content=content, headers={"content-type": "image/png"})
    assert (reply.status_code, reply.json()) == (413, {"error": "the request body may have at most 1048576 bytes"})


def test_refusals_over_http(deployed):
    assert "served are: batched, colour, open, series, slow, tints" in predict(deployed, "none", b"").json()["error"]
    assert predict(deployed, "colour", b"GIF89a").status_code == 415
    assert infer(deployed, "colour", random_images(1, size=9)).status_code == 422
    assert httpx.get(f"{deployed.url}/docs").status_code == 200


def test_overload_is_told_at_once(deployed):
    started = time.monotonic()
    with ThreadPoolExecutor(30) as pool:
        replies = list(pool.map(lambda _: infer(deployed, "slow", random_images(1)), range(30)))
    counts = Counter(reply.status_code for reply in replies)
    assert counts.keys() == {200, 503}
    refused = [reply for reply in replies if reply.status_code == 503]
    assert all(int(reply.headers["retry-after"]) >= 1 and "try again" in reply.json()["error"] for reply in refused)
    # 30 requests in batches of two would take 4.5 s, had none been refused.
    assert counts[200] < 30
    assert time.monotonic() - started < 60
    assert infer(deployed, "slow", random_images(1)).status_code == 200


def test_many_vocabularies_at_once_get_their_own_answers_and_each_is_encoded_once(deployed):
    vocabularies = [("crab", "gnu"), ("gnu", "crab"), ("bee", "bug", "rag"), ("r", "g", "b", "rgb")]
    requests = [(random_images(1, seed), vocabularies[seed % 4] if seed % 5 else None) for seed in range(30)]

    def ask(request):
        images, classes = request
        return outputs_of(infer(deployed, "open", images, classes=classes))

    before = outputs_of(infer(deployed, "open", random_images(1)))["num_encoded"].item()
    with ThreadPoolExecutor(30) as pool:
        replies = list(pool.map(ask, requests))
    for (images, classes), outputs in zip(requests, replies, strict=True):
        expected = expected_open_probs(torch.from_numpy(images), own_prompts(classes or CLASSES)).numpy()
        np.testing.assert_allclose(outputs["probs"], expected, rtol=1e-5)
    assert max(outputs["batch_size"].item() for outputs in replies) >= 4
    again = [ask((random_images(1), classes)) for classes in vocabularies]
    assert {outputs["num_encoded"].item() for outputs in again} == {before + len(vocabularies)}


def test_new_texts_hold_up_nobody_else(deployed, tmp_path):
    known = {"warm": ["rr"], "cold": ["bb", "b"]}
    outputs_of(infer(deployed, "open", random_images(1), prompts=known))
    go = tmp_path / "go"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(infer, deployed, "open", random_images(1), prompts={"any": [f"{UNTIL}{go}"]})
        try:
            wait_for(go.with_suffix(".waiting").exists)
            own = outputs_of(infer(deployed, "open", random_images(1)))
            brought = outputs_of(infer(deployed, "open", random_images(1), prompts=known))
            assert not waiting.done()
        finally:
            go.touch()
        assert outputs_of(waiting.result())["probs"].shape == (1, 1)
    assert own["probs"].shape == (1, 3)
    assert brought["probs"].shape == (1, 2)


def test_bad_texts_fail_alone(deployed):
    sent = [["crab", "gnu"], ["unreadable"], ["broken"], ["crab", "gnu"]]
    with ThreadPoolExecutor(len(sent)) as pool:
        replies = list(pool.map(lambda classes: infer(deployed, "open", random_images(1), classes=classes), sent))
    assert [reply.status_code for reply in replies] == [200, 422, 500, 200]
    assert "a text must be readable" in replies[1].json()["error"]
    assert "secret" not in replies[2].text


def test_plain_takes_classes_in_a_form(deployed):
    files = {"image": ("a.png", png(random_images(1)[0]), "image/png")}
    reply = httpx.post(f"{deployed.url}/predict/open", files=files, data={"classes": '["crab", "gnu"]'}, timeout=60)
    assert {label["name"] for label in reply.json()["labels"]} == {"crab", "gnu"}
    refused = httpx.post(f"{deployed.url}/predict/colour", files=files, data={"classes": '["crab"]'}, timeout=60)
    assert (refused.status_code, refused.json()["error"]) == (
        422,
        "model colour knows its own classes only; leave out 'classes' and 'prompts'",
    )


def test_who_asks_for_a_map_shares_batches_with_who_does_not(deployed):
    ways = [None, {"explain": True}, {"explain": True, "explain_class": 2}]
    requests = [(random_images(1, seed), ways[seed % 3]) for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(lambda asked: infer(deployed, "tints", asked[0], parameters=asked[1]), requests))
    folder = deployed.bundles["tints"].folder
    sizes = []
    for (images, asked), outputs in zip(requests, map(outputs_of, replies), strict=True):
        logits = expected_logits(folder, torch.from_numpy(images))
        np.testing.assert_allclose(outputs["logits"], logits.numpy(), rtol=1e-6, atol=1e-6)
        assert ("attributions" in outputs) is ("explained" in outputs) is (asked is not None)
        if asked is not None:
            label = asked.get("explain_class", int(logits.argmax()))
            assert outputs["explained"].tolist() == [label]
            [scores] = outputs["attributions"]
            np.testing.assert_array_equal(scores, expected_map(folder, torch.from_numpy(images[0]), label).numpy())
        sizes.append(outputs["batch_size"].item())
    assert max(sizes) >= 4  # of those who asked alike; one call per request would tell 1 throughout


def test_the_overlay_of_a_map_is_sent(deployed):
    image = random_images(1)[0]
    reply = httpx.post(
        f"{deployed.url}/predict/tints",
        params={"explain": "true", "explain_class": "blue"},
        files={"image": ("a.png", png(image), "image/png")},
        headers={"accept": "image/png"},
        timeout=60,
    )
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    assert (reply.headers["tenfold-explained-class"], reply.headers["tenfold-model-version"]) == ("blue", "1")
    scores = expected_map(deployed.bundles["tints"].folder, torch.from_numpy(image), 2)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(reply.content))), overlay(image, scores.numpy()))


def test_who_explains_is_told(deployed):
    wait_for(lambda: deployed.endpoint.explaining_models() == {"tints"})
    refused = infer(deployed, "colour", random_images(1), parameters={"explain": True})
    assert (refused.status_code, refused.json()["error"]) == (
        422,
        "model colour (method colour) gives no attribution maps; of the models served here, these do: tints",
    )
    outputs = httpx.get(f"{deployed.url}/v2/models/tints").json()["outputs"]
    assert {"attributions", "explained"} <= {tensor["name"] for tensor in outputs}


def test_regressions_of_several_lengths_and_levels_share_a_replica(deployed):
    predictor = load_predictor(deployed.bundles["series"])
    asked = [
        (draw_inputs(SERIES, num=1 + seed % 3, length=5 + seed % 2, seed=seed), 0.5 + seed / 20) for seed in range(9)
    ]

    def regress(request):
        inputs, level = request
        body, headers = v2_client.encode_regression_request({"input": inputs["input"].numpy()}, level=level)
        return httpx.post(f"{deployed.url}/v2/models/series/infer", content=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(9) as pool:
        replies = list(pool.map(regress, asked))
    for (inputs, level), outputs in zip(asked, map(outputs_of, replies), strict=True):
        expected = predictor(**inputs)
        lower, upper = predictor.interval(expected, level)
        for name, value in {**expected, "lower": lower, "upper": upper}.items():
            np.testing.assert_allclose(outputs[name], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    refused = httpx.post(f"{deployed.url}/predict/series", json={"inputs": {"input": [1, 2]}}, timeout=60)
    assert (refused.status_code, refused.json()["error"]) == (
        422,
        "'input' must be float32 [N,2,any], each length at least 1, got float32 [1, 2]",
    )
    refused = infer(deployed, "series", random_images(1))
    assert (refused.status_code, refused.json()["error"]) == (422, "the inputs are input, each once; got ['images']")


def test_what_is_printed_after_a_deployment(deployed):
    text = describe(deployed.endpoint)
    assert f"curl -F image=@image.png {deployed.url}/predict/colour" in text
    [numbers] = [line for line in text.splitlines() if line.endswith("/predict/series")]
    [_, header, _, body, url] = shlex.split(numbers.partition("curl ")[2])
    told = httpx.post(url, content=body, headers=dict([header.split(": ")]), timeout=60).json()
    assert (told["level"], [target["name"] for target in told["targets"]]) == (0.9, ["x", "y"])
    zero_shot = [line.strip() for line in text.splitlines() if "classes=" in line]
    asked = """-F 'classes=["cat", "dog"]'"""
    assert zero_shot == [f"any classes: curl -F image=@image.png {asked} {deployed.url}/predict/open"]


def test_a_second_address_is_refused(deployed):
    with pytest.raises(ValueError, match="where Serve already listens"):
        deploy(list(deployed.models.values()), ServeSettings(port=1))


class Traffic:
    """Clients that ask without pause and keep what they were told."""

    def __init__(self, service, num_clients=3, retries=0):
        self._retries = retries
        self.counts, self.versions, self.problems = Counter(), Counter(), []
        self._service, self._stop = service, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    def _ask(self):
        data = png(random_images(1)[0])
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                for _ in range(self._retries + 1):
                    problem = reply = None
                    try:
                        reply = client.post(
                            f"{self._service.url}/predict/colour", content=data, headers={"content-type": "image/png"}
                        )
                    except httpx.HTTPError as error:
                        problem = repr(error)
                    else:
                        assert reply.headers["content-type"] == "application/json", reply.text
                        if reply.status_code == 200:
                            break
                if reply is None:
                    self.problems.append(problem)
                    continue
                self.counts[reply.status_code] += 1
                self.versions[reply.headers.get("tenfold-model-version")] += 1
                if reply.status_code != 200:
                    self.problems.append(reply.text)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_):
        time.sleep(0.5)
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_rollout_fails_no_request(deployed):
    bundle = make_bundle(deployed.folder / "colour-2", seed=5, size=12, classes=("cyan", "pink"))
    with Traffic(deployed) as traffic:
        deployed.deploy(colour=served(bundle, version="2", **SMALL))
        wait_for(lambda: predict(deployed, "colour", png(random_images(1)[0])).json()["version"] == "2")
    assert traffic.problems == []
    assert traffic.versions.keys() == {"1", "2"}
    labels = predict(deployed, "colour", png(random_images(1)[0])).json()["labels"]
    assert {label["name"] for label in labels} == {"cyan", "pink"}


def test_a_rollout_that_cannot_start_leaves_the_old_version(deployed):
    before = deployed.models["colour"]
    bundle = make_bundle(deployed.folder / "wrong", shift=1.0)  # not the model that was trained
    with Traffic(deployed, num_clients=1) as traffic, pytest.raises(RuntimeError, match="differ by 1"):
        deployed.deploy(colour=served(bundle, version="9", **SMALL))
    assert traffic.problems == []
    assert traffic.versions.keys() == {before.version}
    deployed.deploy()


def test_a_killed_replica_is_replaced_and_no_request_lost(deployed):
    import ray

    def replicas():
        named = ray.util.list_named_actors(all_namespaces=True)
        return {actor["name"]: actor for actor in named if "#model-colour#" in actor["name"]}

    wait_for(lambda: len(replicas()) == 1)  # the one of the last roll-out has gone
    [(name, actor)] = replicas().items()
    with Traffic(deployed) as traffic:
        ray.kill(ray.get_actor(name, namespace=actor["namespace"]))
        wait_for(
            lambda: replicas().keys() - {name} and predict(deployed, "colour", png(random_images(1)[0])).is_success
        )
    assert traffic.problems == []
    assert traffic.counts[200] > 0


def test_a_killed_ingress_is_replaced_and_no_request_lost_after_one_retry(deployed):
    import ray

    def ingresses():
        named = ray.util.list_named_actors(all_namespaces=True)
        return {actor["name"]: actor for actor in named if "#ingress#" in actor["name"]}

    wait_for(lambda: len(ingresses()) == 2)
    name, actor = next(iter(ingresses().items()))
    with Traffic(deployed, retries=1) as traffic:
        ray.kill(ray.get_actor(name, namespace=actor["namespace"]))
        wait_for(lambda: len(ingresses().keys() - {name}) == 2)
    assert traffic.problems == []
    assert traffic.counts[200] > 0


def test_prometheus_has_our_series(deployed):
    import ray

    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    wanted = [
        'ray_tenfold_batch_images_count{',
        'ray_tenfold_request_latency_ms_count{',
        'ray_tenfold_refused_requests_total{',
        'ray_tenfold_texts_latency_ms_count{',
        'ray_tenfold_explained_images_total{',
    ]  # fmt: skip
    wait_for(lambda: all(series in httpx.get(url).text for series in wanted))
    text = httpx.get(url).text
    assert 'model="batched"' in text
    assert 'reason="overload"' in text
    assert 'reason="body_size"' in text


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.2)
