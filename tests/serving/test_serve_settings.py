"""Settings, keys and the environment: errors are raised before anything starts."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from serve.deployment import haproxy
from serve.deployment.application import Args, build, served_model
from serve.deployment.endpoint import Endpoint, deploy, local_cpus
from serve.http.keys import Keys, new_key, presented_key
from serve.settings import Autoscaling, ServedModel, ServeSettings, check_models, is_loopback
from tenfold.tracking import registry
from tests.serving.stand_ins import LOADER, make_bundle, served


def model(**changes):
    return ServedModel(**({"name": "m", "version": "1", "folder": "x"} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "a model's name must match"),
        ({"name": ""}, "a model's name must match"),
        ({"name": "a" * 64}, "a model's name must match"),
        ({"version": "1 2"}, "a model's version must match"),
        ({"loader": "os.system"}, "module:function"),
        ({"num_replicas": 0}, "num_replicas must be above 0, got 0"),
        ({"max_batch_size": 0}, "max_batch_size must be above 0"),
        ({"max_queued_requests": -1}, "max_queued_requests must be above 0"),
        ({"num_cpus": float("nan")}, "num_cpus must be above 0"),
        ({"num_threads": 0}, "num_threads must be above 0"),
        ({"batch_wait_s": -0.1}, "batch_wait_s must be at least 0"),
        ({"num_gpus": -1}, "num_gpus must be at least 0"),
        ({"placement": "elsewhere"}, "placement must be inline or own, got 'elsewhere'"),
        ({"placement": "inline", "device": "cuda"}, "placement of model m must be own for a GPU"),
        ({"placement": "inline", "num_replicas": 2}, "placement of model m must be own for a GPU, several replicas"),
        ({"placement": "inline", "autoscaling": Autoscaling()}, "placement of model m must be own"),
    ],
)
def test_a_wrong_model_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_a_cuda_model_takes_a_gpu_and_two_batches():
    assert (model().gpus, model(device="cuda").gpus, model(device="cuda", num_gpus=0.25).gpus) == (0, 1, 0.25)
    assert [model(max_batch_size=size).ongoing_requests for size in (1, 8, 32)] == [16, 16, 64]
    assert model(max_ongoing_requests=3).ongoing_requests == 3
    assert (model(num_cpus=0.5).threads, model(num_cpus=3).threads, model(num_threads=2).threads) == (1, 3, 2)


def test_a_model_lives_in_the_process_that_answers_http_unless_it_scales_itself():
    assert model().is_inline
    assert not model(placement="own").is_inline
    assert not any(
        model(**changes).is_inline
        for changes in ({"device": "cuda"}, {"num_gpus": 0.5}, {"num_replicas": 2}, {"autoscaling": Autoscaling()})
    )
    assert model(device="cuda", num_gpus=0, placement="inline").is_inline


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 70000}, "port must be in 0..65535"),
        ({"max_values": 0}, "max_values must be above 0"),
        ({"max_json_keys": 0}, "max_json_keys must be above 0"),
        ({"max_decoding_pixels": 0}, "max_decoding_pixels must be above 0"),
        ({"ingress_replicas": 0}, "ingress_replicas must be above 0"),
        ({"ingress_autoscaling": Autoscaling(min_replicas=0)}, "ingress_autoscaling must have min_replicas of at"),
        ({"max_body_bytes": 0}, "max_body_bytes must be above 0"),
        ({"max_classes": 0}, "max_classes must be above 0"),
        ({"max_prompts": 0}, "max_prompts must be above 0"),
        ({"max_text_characters": 0}, "max_text_characters must be above 0"),
        ({"max_attribution_bytes": 0}, "max_attribution_bytes must be above 0"),
        ({"request_timeout_s": 0}, "request_timeout_s must be above 0"),
        ({"app_name": ""}, "app_name must not be empty"),
        ({"host": "0.0.0.0"}, "keys_file must be given"),
        ({"host": "::"}, "keys_file must be given"),
        ({"host": "localhost.example.org"}, "keys_file must be given"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ServeSettings(**changes)


def test_a_reachable_host_is_accepted_with_keys():
    assert ServeSettings(host="0.0.0.0", keys_file="keys").host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("x", False)],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2), (0, 0)])
def test_wrong_replica_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="0 <= min_replicas <= max_replicas"):
        Autoscaling(min_replicas=bounds[0], max_replicas=bounds[1])


def test_models_need_a_name_each():
    with pytest.raises(ValueError, match="at least one model"):
        check_models([])
    with pytest.raises(ValueError, match="got more than once: m"):
        check_models([model(), model(version="2")])


def test_unknown_fields_of_a_config_file_are_refused():
    with pytest.raises(ValidationError, match="max_batchsize"):
        TypeAdapter(ServedModel).validate_python({"name": "m", "version": "1", "folder": "x", "max_batchsize": 3})
    with pytest.raises(ValidationError, match="timeout"):
        TypeAdapter(ServeSettings).validate_python({"timeout": 3})


def test_a_folder_gives_name_and_version(tmp_path):
    bundle = make_bundle(tmp_path / "colours")
    found = served_model({"model": str(bundle.folder), "loader": LOADER, "autoscaling": {"max_replicas": 3}})
    assert (found.name, found.version, found.folder) == ("colours", bundle.digest[:12], str(bundle.folder))
    assert found.autoscaling == Autoscaling(max_replicas=3)
    named = served_model({"model": str(bundle.folder), "name": "c", "version": "7"})
    assert (named.name, named.version) == ("c", "7")
    with pytest.raises(ValueError, match="model must be a bundle folder or models:"):
        served_model({"name": "c"})


def test_a_registry_reference_becomes_a_pinned_version(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "colours")
    asked = []

    def resolve(uri, reference):
        asked.append((uri, reference))
        return registry.Resolved(name="colours", version="7", run_id="r", metrics={}, folder=bundle.folder)

    monkeypatch.setattr(registry, "resolve", resolve)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = served_model({"model": "models:/colours@champion", "max_batch_size": 8}, "sqlite:////somewhere/m.db")
    assert (found.name, found.version, found.folder, found.max_batch_size) == ("colours", "7", str(bundle.folder), 8)
    assert asked == [("sqlite:////somewhere/m.db", "models:/colours@champion")]


def test_a_config_file_needs_keys_unless_it_names_a_loopback_host(tmp_path):
    entry = {"model": str(make_bundle(tmp_path / "colours").folder), "loader": LOADER}
    with pytest.raises(ValueError, match="keys_file must be given"):
        build(Args(models=[entry]))
    assert build(Args(models=[entry], settings={"host": "127.0.0.1"})) is not None
    with pytest.raises(ValidationError, match="model_"):
        Args.model_validate({"models": [], "model_": 1})


def test_deploy_refuses_before_anything_starts(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(ValueError, match="got more than once"):
        deploy([served(bundle), served(bundle)], ServeSettings())
    with pytest.raises(ValueError, match="can't be read"):
        deploy([served(bundle)], ServeSettings(keys_file=str(tmp_path / "none")))


def test_a_local_cluster_has_room_for_every_model_and_its_roll_out(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    one = {"ingress_replicas": 1}
    assert local_cpus([model()], ServeSettings(**one)) is None
    assert local_cpus([model()], ServeSettings()) == 3  # two processes, each with the model
    assert local_cpus([model(name=name) for name in "abc"], ServeSettings(**one)) == 4
    assert local_cpus([model(placement="own", name=name) for name in "abc"], ServeSettings(**one)) == 4
    assert local_cpus([model(num_replicas=4, num_cpus=2)], ServeSettings(**one, ingress_num_cpus=1)) == 18
    scaled = model(autoscaling=Autoscaling(max_replicas=5))
    assert local_cpus([scaled], ServeSettings(**one, ingress_num_cpus=0.5)) == 6
    assert local_cpus([model()], ServeSettings(ingress_autoscaling=Autoscaling(max_replicas=4))) == 6


@pytest.fixture
def address():
    """URL of a server that answers every request with what the test puts in ``reply``."""

    class Handler(BaseHTTPRequestHandler):
        reply = (200, "{}")

        def do_GET(self):
            self.send_response(self.reply[0])
            self.end_headers()
            self.wfile.write(self.reply[1].encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_which_models_are_open_is_told_to_those_with_a_key_only(address):
    url, server = address
    endpoint = Endpoint(url, (), 5.0, "tenfold", 0, False)
    server.reply = (
        200,
        '{"models": [{"name": "a", "prompt_template": "{}."}, {"name": "b", "prompt_template": null}]}',
    )
    assert endpoint.open_models() == {"a"}
    server.reply = (401, '{"error": "an API key is needed"}')
    assert endpoint.open_models() == frozenset()
    server.reply = (500, "")
    with pytest.raises(OSError, match="500"):
        endpoint.open_models()


def test_keys_are_found_by_hash(tmp_path):
    key, line = new_key("anna")
    file = tmp_path / "keys"
    file.write_text(f"# people\n\n{line}\nbob:{hashlib.sha256(b'secret').hexdigest().upper()}\n")
    keys = Keys.load(file)
    assert key not in file.read_text()
    assert keys.identify(key) == "anna"
    assert keys.identify("secret") == "bob"
    assert keys.identify(hashlib.sha256(b"secret").hexdigest()) is None
    assert keys.identify("") is None
    assert keys.identify("x" * 10_000) is None
    assert key not in repr(keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("anna:abc", "line 1: expected key_id:sha256hex"),
        (f"anna:{'0' * 64}\nanna:{'1' * 64}", "line 2: the key id 'anna' occurs twice"),
    ],
)
def test_a_wrong_keys_file_is_told_without_its_content(tmp_path, text, message):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Keys.load(file)
    assert "abc" not in str(error.value).replace(str(file), "")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (("Bearer k", None), "k"),
        (("bearer  k ", None), "k"),
        (("Basic k", None), None),
        (("Bearer ", None), None),
        (("", "k"), "k"),
        (("Basic k", "q"), "q"),
        (("", None), None),
    ],
)
def test_where_a_key_is_looked_for(headers, expected):
    assert presented_key(*headers) == expected


def test_the_command_makes_a_key_that_works(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "serve.http.keys", "anna"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    file = tmp_path / "keys"
    file.write_text(done.stdout)
    assert Keys.load(file).identify(done.stderr.rpartition(" ")[2].strip()) == "anna"


@pytest.fixture
def environment():
    """Nothing of Serve set; all as before afterwards."""
    saved = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("RAY_SERVE_", "RAY_ADDRESS", "TENFOLD_HAPROXY_"))]:
        del os.environ[name]
    yield os.environ
    os.environ.clear()
    os.environ.update(saved)


def test_no_haproxy_means_the_python_proxy(environment, monkeypatch):
    monkeypatch.setattr(haproxy, "_binary", lambda: None)
    assert haproxy.prepare_environment() is False
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert "RAY_SERVE_HAPROXY_SOCKET_PATH" not in environment


def test_haproxy_gets_a_private_folder_with_short_paths(environment, monkeypatch):
    monkeypatch.setattr(haproxy, "_binary", lambda: "/opt/haproxy")
    assert haproxy.prepare_environment() is True
    socket_path = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"])
    metrics_path = environment["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"]
    assert socket_path.parent.stat().st_mode & 0o777 == 0o700
    assert len(metrics_path) + 57 <= 97
    # A call and an answer travel in one message between the process that answers HTTP and the model's.
    largest = max(ServeSettings().max_body_bytes, ServeSettings().max_reply_bytes)
    assert int(environment["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) > largest
    before = dict(environment)
    assert haproxy.prepare_environment() is True
    assert environment == before
    shutil.rmtree(socket_path.parent)


def test_what_the_user_set_stays(environment, monkeypatch):
    monkeypatch.setattr(haproxy, "_binary", lambda: "/opt/haproxy")
    chosen = {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "9",
    }
    environment.update(chosen)
    assert haproxy.prepare_environment() is False
    assert chosen.items() <= environment.items()


def test_other_systems_have_no_haproxy(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert haproxy.is_available() is False
