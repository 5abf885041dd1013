"""Start of Ray, with ray.init replaced, and refusals of placement and loop settings."""

import os
from typing import Any

import pytest

from tenfold.engine import cluster
from tenfold.engine.settings import RunConfig, ScaleConfig

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", *cluster.ENVIRONMENT_DEFAULTS)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Environment without Ray's variables; changes are undone after the test."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in NAMES})
    monkeypatch.setattr(cluster, "_ray_is_imported", lambda: False)  # other tests may have imported it
    return monkeypatch


@pytest.fixture
def calls(environment: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options that ray.init was called with."""
    import ray

    asked: list[dict[str, Any]] = []
    environment.setattr(ray, "is_initialized", lambda: bool(asked))
    environment.setattr(ray, "init", lambda **options: asked.append(options))
    return asked


def test_a_local_cluster_is_closed_by_a_fresh_token(environment):
    cluster.set_environment()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    cluster.set_environment()
    assert os.environ["RAY_AUTH_TOKEN"] == token
    del os.environ["RAY_AUTH_TOKEN"]
    cluster.set_environment()
    assert os.environ["RAY_AUTH_TOKEN"] != token


@pytest.mark.parametrize(
    "given",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "mine"},
        {"RAY_AUTH_TOKEN_PATH": "/run/secrets/token"},
        {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": "10.0.0.1:6379"},
    ],
)
def test_no_token_is_made_where_the_user_or_the_cluster_has_decided(environment, given):
    os.environ.update(given)
    cluster.set_environment()
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        assert os.environ.get(name) == given.get(name)
    assert os.environ["RAY_AUTH_MODE"] == given.get("RAY_AUTH_MODE", "token")


def test_a_ray_imported_earlier_keeps_the_mode_that_it_read(environment):
    environment.setattr(cluster, "_ray_is_imported", lambda: True)
    cluster.set_environment()
    assert "RAY_AUTH_MODE" not in os.environ
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_what_the_user_has_set_stays(environment):
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "7"
    cluster.set_environment()
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "7"


def test_a_local_cluster_never_joins_another_and_is_started_once(calls):
    cluster.start(num_cpus=3, object_store_mib=80, log_to_driver=False)
    cluster.start(num_cpus=5)
    (asked,) = calls
    expected = {
        "address": "local",
        "num_cpus": 3,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "object_store_memory": 80 * 2**20,
        "log_to_driver": False,
    }
    assert {name: asked[name] for name in expected} == expected


def test_the_cluster_that_this_process_belongs_to_is_joined_as_it_is(calls):
    os.environ["RAY_ADDRESS"] = "10.0.0.1:6379"
    cluster.start(num_cpus=3)
    (asked,) = calls
    assert asked["address"] == "10.0.0.1:6379"
    assert not {"num_cpus", "object_store_memory", "dashboard_host"} & asked.keys()  # Ray refuses them there


def test_an_empty_address_is_none(calls):
    os.environ["RAY_ADDRESS"] = ""
    assert cluster.cluster_address() is None
    cluster.start()
    assert calls[0]["address"] == "local"


def test_no_cpu_is_refused_before_anything_starts(calls):
    with pytest.raises(ValueError, match="num_cpus must be at least 1, got 0"):
        cluster.start(num_cpus=0)
    assert calls == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"cpus_per_worker": 0.0}, "cpus_per_worker must be positive, got 0"),
        ({"gpus_per_worker": -1.0}, "gpus_per_worker must not be negative, got -1"),
        ({"max_failures": -2}, "max_failures must be at least -1, got -2"),
        ({"storage": ""}, "storage must be a folder or a URL"),
    ],
)
def test_places_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ScaleConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*31\), got -1"),
        ({"seed": 2**31}, "seed must lie in"),
        *(({name: 0}, f"{name} must be at least 1, got 0") for name in ("num_epochs", "batch_size", "accumulate")),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        *(({name: 0}, f"{name} must be at least 1 or null, got 0") for name in ("max_steps", "patience")),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps must be at least 1 or null"),
        ({"clip_norm": 0.0}, "clip_norm must be positive or null"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \(0, 1\) or be null, got 1"),
        ({"checkpoint_every_s": 0.0}, "checkpoint_every_s must be positive"),
    ],
)
def test_loops_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**values)


def test_a_plain_process_is_one_worker():
    assert ScaleConfig(kind="plain", workers=8).num_workers == 1
    assert ScaleConfig(kind="ray", workers=8).num_workers == 8
