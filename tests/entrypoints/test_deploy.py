"""What ``jobs/deploy.py`` composes, refuses and writes, and how a second one finds the first; without Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs import rollout
from jobs.config import compose_container
from jobs.rollout import as_settings, at_running_address, changes, check, check_free, config_text, stored_config
from serve.deployment import running
from serve.deployment.application import Args, build
from serve.deployment.keeper import Keeper
from serve.deployment.running import Running
from serve.settings import Autoscaling, ServedModel, ServeSettings
from tenfold.config import ConfigError
from tenfold.tracking import registry
from tests.serving.stand_ins import LOADER, make_bundle

ROOT = Path(__file__).parents[2]


def settings_of(*words):
    return check(compose_container(stored_config(), as_settings(words)))


@pytest.fixture
def champions(tmp_path, monkeypatch):
    """A registry with version 7 of two models."""
    folders = {name: make_bundle(tmp_path / name).folder for name in ("colours", "tints")}

    def resolve(uri, reference):
        name = reference.removeprefix("models:/").partition("@")[0].partition("/")[0]
        return registry.Resolved(name=name, version="7", run_id="r", metrics={}, folder=folders[name])

    monkeypatch.setattr(registry, "resolve", resolve)
    monkeypatch.setattr(registry, "registered_champions", lambda uri: sorted(folders))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folders


def test_every_setting_of_a_model_can_be_said():
    assert set(settings_of().each) | {"name", "version", "folder"} == set(ServedModel.__dataclass_fields__)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("inline", {"placement": "inline"}),
        ("own", {"placement": "own"}),
        ("gpu", {"placement": "own", "device": "cuda", "gpus": 1.0}),
        ("autoscaled", {"placement": "own", "max_replicas": 4}),
        ("scale_to_zero", {"placement": "own", "max_replicas": 2}),
    ],
)
def test_a_preset_is_a_valid_model(preset, expected):
    each = settings_of(f"served={preset}").each
    model = rollout.build(ServedModel, {"name": "m", "version": "1", "folder": "."} | each, "each")
    assert {key: getattr(model, key) for key in expected} == expected
    assert (model.autoscaling is not None and model.autoscaling.min_replicas == 0) is (preset == "scale_to_zero")


def test_scaling_begins_from_the_defaults_or_from_the_preset():
    alone = settings_of("each.autoscaling.max_replicas=4", "serve.ingress_autoscaling.max_replicas=3")
    assert alone.each["autoscaling"] == vars(Autoscaling(max_replicas=4))
    assert alone.serve.ingress_autoscaling == Autoscaling(max_replicas=3)
    preset = settings_of("served=scale_to_zero", "each.autoscaling.max_replicas=4").each["autoscaling"]
    assert (preset["min_replicas"], preset["max_replicas"], preset["downscale_delay_s"]) == (0, 4, 60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["served=fast"], "served must be one of autoscaled, gpu, inline, own, scale_to_zero, got 'fast'"),
        (["replicas=2"], "replicas: there is no such setting"),
        (["each.name=a"], "each.name: there is no such setting"),
        (["each.max_batch_size=big"], "each.max_batch_size: Input should be a valid integer"),
        (["each.num_cpus=0"], "each.num_cpus must be above 0"),
        (["each.autoscaling.replicas=1"], "each.autoscaling.replicas: there is no such setting"),
        (["served=inline", "each.num_gpus=0.5"], "each.placement of model each must be own"),
        (["models=[]"], "models must hold at least one model"),
        (["models=3"], "models must be references, folders or mappings with model, got 3"),
        (["models=[{placement: own}]"], "models.0 must say model"),
        (["models=[{model: a, folder: b}]"], "models.0 must say model"),
        (["models=[a, {model: b, batch: 2}]"], "models.1.batch: there is no such setting"),
        (["models=[{model: a, name: a/b}]"], "models.0: a model's name must match"),
        (["models=[{model: a, autoscaling: {min_replicas: 3}}]"], "models.0.autoscaling: min_replicas and max"),
        (["serve.app_name=../a"], "serve.app_name must match"),
        (["serve.host=0.0.0.0"], "serve.keys_file must be given"),
        (["write_config=a.yaml", "serve.port=0"], "serve.port must be above 0 in a config file"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_starts(words, message):
    with pytest.raises(ConfigError) as refused:
        settings_of(*words)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_the_command_that_a_training_prints_is_shown_as_it_will_run(capsys):
    assert rollout.run("", Keeper(None), ["model=models:/large_loss@champion", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["models"] == "models:/large_loss@champion"
    assert rollout.run("", Keeper(None), ["each.autoscaling.max_replicas=4", "each.zz=1"]) == 2
    assert capsys.readouterr().err.startswith("error: each.zz: there is no such setting; each has ")


def test_models_take_what_they_do_not_say_from_each(champions):
    settings = settings_of(
        "models=[{model: models:/tints@champion, placement: own, num_gpus: 0.5}, models:/colours/7]",
        "each.max_batch_size=8",
    )
    tints, colours = (model for _, model in rollout.pinned(settings, "sqlite:///x"))
    assert (tints.name, tints.version, tints.placement, tints.gpus, tints.max_batch_size) == (
        "tints",
        "7",
        "own",
        0.5,
        8,
    )
    assert (colours.name, colours.is_inline, colours.max_batch_size) == ("colours", True, 8)
    every = [model.name for _, model in rollout.pinned(settings_of(), "sqlite:///x")]
    assert every == ["colours", "tints"]
    with pytest.raises(ValueError, match="got more than once: tints"):
        rollout.pinned(settings_of("models=[models:/tints@champion, models:/tints/7]"), "sqlite:///x")


def test_the_config_file_pins_versions_and_is_what_serve_takes(champions, tmp_path, monkeypatch):
    from ray.serve.schema import ServeDeploySchema

    monkeypatch.chdir(tmp_path)
    words = ["models=[{model: models:/tints@champion, name: t, autoscaling: {min_replicas: 0}}, colours]"]
    settings = settings_of(*words, f"each.loader={LOADER}", "serve.max_images=64", "serve.port=8123")
    text = config_text(settings, "sqlite:////runs/mlflow.db")
    read = ServeDeploySchema.model_validate(yaml.safe_load(text))
    [application] = read.applications
    assert (read.http_options.host, read.http_options.port, application.route_prefix) == ("127.0.0.1", 8123, "/")
    assert isinstance({"spec": {"serveConfigV2": text}}["spec"]["serveConfigV2"], str)
    tints, colours = application.args["models"]
    assert (tints["model"], tints["name"], tints["autoscaling"]["min_replicas"]) == ("models:/tints/7", "t", 0)
    assert (colours["model"], len(colours["version"])) == (str(champions["colours"]), 12)
    assert application.args["settings"] == {"host": "127.0.0.1", "max_images": 64, "port": 8123}
    assert build(Args.model_validate(application.args)) is not None


def test_a_config_file_holds_no_password():
    with pytest.raises(ValueError, match="tracking_uri must hold no password") as refused:
        config_text(settings_of(), "https://anna:secret@mlflow.example.org")
    assert "secret" not in str(refused.value)


def running_endpoint(**changed):
    told = {
        "pid": os.getpid(), "started": running.start_time(os.getpid()), "machine": socket.gethostname(),
        "address": "127.0.0.1:1", "host": "127.0.0.1", "port": 8123, "url": "http://127.0.0.1:8123",
        "models": {"a": "1"}, "environment": {"RAY_AUTH_TOKEN": "secret", "PATH": "/else"},
    }  # fmt: skip
    return Running(**(told | changed))


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_record_is_found_while_its_process_and_its_ray_live(tmp_path, listening, capsys):
    record = running.record_of(tmp_path, "", "tenfold")
    assert running.find(record) is None
    alive = running_endpoint(address=listening)
    running.write(record, alive)
    assert running.find(record) == alive
    assert record.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == ""
    for stale in ({"address": "127.0.0.1:1"}, {"started": "1"}, {"machine": "another"}, {"pid": 2**22 + 1}):
        running.write(record, replace(alive, **stale))
        assert running.find(record) is None
        told = capsys.readouterr().err
        assert "no longer runs an endpoint" in told
        assert len(told.splitlines()) == 1
    record.write_text('{"pid": ')
    assert running.find(record) is None


def test_only_the_process_of_a_record_removes_it(tmp_path):
    record = running.record_of(tmp_path, "", "tenfold")
    running.write(record, running_endpoint(pid=1))
    running.remove(record)
    assert record.exists()
    running.write(record, running_endpoint())
    running.remove(record)
    assert not record.exists()
    running.remove(record)


def test_runs_in_an_object_store_have_their_record_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path))
    one, other = (running.record_of(None, f"s3://{bucket}/runs", "a") for bucket in ("one", "other"))
    assert one.is_relative_to(tmp_path)
    assert one != other


def test_a_second_deployment_takes_the_variables_of_the_first(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_TOKEN": "own", "RAY_SERVE_X": "1", "PATH": "/bin"})
    running.adopt_environment(running_endpoint())
    assert os.environ == {"RAY_AUTH_TOKEN": "secret", "PATH": "/bin"}


def test_two_deployments_take_turns(tmp_path, capsys):
    record = running.record_of(tmp_path, "", "tenfold")
    order = []

    def second():
        with running.locked(record):
            order.append("second")

    with running.locked(record):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert "waiting for another jobs/deploy.py" in capsys.readouterr().err


def test_the_address_is_that_of_the_endpoint_that_runs():
    found = running_endpoint(host="::1")
    for port in (8000, 0, 8123):
        taken = at_running_address(ServeSettings(port=port), found)
        assert (taken.host, taken.port) == ("::1", 8123)
    with pytest.raises(ValueError, match=r"serve\.port must be 8123, where the endpoint tenfold already runs"):
        at_running_address(ServeSettings(port=8124), found)
    with pytest.raises(ValueError, match=r"serve\.host must be ::1"):
        at_running_address(ServeSettings(host="127.0.0.2"), found)


def test_an_occupied_port_is_told(listening):
    with pytest.raises(ValueError, match=r"serve\.port must be free"):
        check_free(ServeSettings(port=int(listening.partition(":")[2])))
    check_free(ServeSettings(port=0))


def test_versions_before_and_after_are_told():
    told = changes({"a": "1", "b": "2", "c": "3"}, {"a": "2", "b": "2", "d": "1"})
    assert told.splitlines()[1:] == [
        "  a: version 1 -> 2",
        "  b: version 2, as before",
        "  c: version 3 -> none",
        "  d: version none -> 1",
    ]


def test_what_waits_imports_neither_torch_nor_mlflow():
    code = "import sys, jobs.deploy; print(sorted({'torch', 'mlflow', 'pandas', 'ray', 'hydra'} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


STANDING = """
import sys
from pathlib import Path
from serve.deployment import keeper

def work(keeper, words):
    Path(words[0]).write_text(keeper.start_ray(3))
    if words[1] == "fail":
        return 2
    keeper.hand_over("app", None)
    return 0

if __name__ == "__main__":
    keeper.cluster.start = lambda num_cpus=None: print("start", num_cpus, flush=True)
    keeper.cluster.own_address = lambda: "1.2.3.4:5"
    keeper.cluster.stop = lambda: print("stop", flush=True)
    wait = keeper.wait_for_stop
    keeper.wait_for_stop = lambda: (print("kept", flush=True), wait())
    keeper._drain = lambda name: print("drain", name, flush=True)
    sys.exit(keeper.keep(work, sys.argv[1:]))
"""


@pytest.mark.parametrize("way", ["fail", "stay"])
def test_the_keeper_holds_ray_until_it_is_asked_to_stop(tmp_path, way):
    script, told = tmp_path / "standing.py", tmp_path / "told"
    script.write_text(STANDING)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    with subprocess.Popen(
        [sys.executable, str(script), str(told), way], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "start 3\n"
        if way == "stay":
            assert process.stdout.readline() == "kept\n"
            process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert told.read_text() == "1.2.3.4:5"
    assert (process.returncode, rest) == ((2, "stop\n") if way == "fail" else (0, "start None\ndrain app\nstop\n"))


def test_a_record_is_json_without_other_variables(tmp_path):
    record = running.record_of(tmp_path, "", "tenfold")
    environment = running.joining_environment({"RAY_AUTH_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "x", "RAY_SERVE_A": "1"})
    running.write(record, running_endpoint(environment=environment))
    assert json.loads(record.read_text())["environment"] == {"RAY_AUTH_TOKEN": "t", "RAY_SERVE_A": "1"}
