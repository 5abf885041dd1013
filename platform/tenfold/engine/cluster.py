"""The one place that starts Ray: every job, test and endpoint of the project comes through here."""

import logging
import os
import secrets
import sys
from typing import Any

MIB = 2**20
ENVIRONMENT_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a training loop keep their meaning
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",  # a busy laptop imports torch slowly
    # A second report of a worker waits until the first was fetched: at Ray's 2 s, quick epochs stand still.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def set_environment() -> None:
    """Set what Ray reads from the environment, without overriding what the user has set.

    A local cluster is closed to other users of the machine: token authentication with a token that lives only in
    this process tree, unless ``RAY_AUTH_MODE`` says otherwise. A cluster that exists already brings its own mode.
    """
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_MODE" not in os.environ:
        if _ray_is_imported():
            return  # Ray read its mode when it was imported (a notebook, say): its own default, a token file, holds
        os.environ["RAY_AUTH_MODE"] = "token"
    if os.environ["RAY_AUTH_MODE"] == "token" and not cluster_address():
        named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
        if not named:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _ray_is_imported() -> bool:
    return "ray" in sys.modules


def cluster_address() -> str | None:
    """Address of the cluster that this process was started on or told to use; None: start one here."""
    return os.environ.get("RAY_ADDRESS") or None


def start(
    *,
    num_cpus: int | None = None,
    dashboard: bool = True,
    object_store_mib: int = 256,
    log_to_driver: bool = False,
    **options: Any,
) -> None:
    """Connect to the cluster this process belongs to, or start a local one; a second call does nothing.

    Args:
        num_cpus: Logical CPUs of a local cluster, at least 1; None takes the cores of the machine. It may exceed
            the cores: workers that mostly wait need no core of their own.
        dashboard: Needed wherever Tune meets Train: without it a trial that is stopped early never gives its
            workers' resources back.
        object_store_mib: Shared memory of a local cluster. Small, since pictures travel by files and not by objects.
        log_to_driver: Whether what workers print appears here. Off, since progress and errors come by other ways; all
            of it is in Ray's log files.
        options: Passed on to ``ray.init`` for a local cluster.
    """
    set_environment()
    import ray

    if ray.is_initialized():
        return
    if address := cluster_address():
        ray.init(address=address, log_to_driver=log_to_driver)
        return
    # A job submitted to this cluster starts `python` from this PATH: it should be the one that has Ray.
    os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
    if num_cpus is not None and num_cpus < 1:
        raise ValueError(f"num_cpus must be at least 1, got {num_cpus}")
    ray.init(
        address="local",  # a bare init would join any cluster that runs on this machine
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=object_store_mib * MIB,
        log_to_driver=log_to_driver,
        logging_level=logging.WARNING,
        **options,
    )


def stop() -> None:
    """Leave the cluster; a local one ends with it."""
    import ray

    ray.shutdown()
