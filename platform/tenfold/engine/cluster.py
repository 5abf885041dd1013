"""Start of Ray: the single entry point for every job, test and endpoint of the project."""

import logging
import os
import secrets
import sys
from typing import Any

MIB = 2**20
ENVIRONMENT_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a training loop keep their meaning
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",  # importing torch is slow on a busy laptop
    # A second report of a worker waits until the first was fetched: at Ray's 2 s, quick epochs stand still.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def set_environment() -> None:
    """Set Ray's environment variables, without overriding those set by the user.

    A local cluster is closed to other users of the machine by token authentication, with a token known only to this
    process tree, unless ``RAY_AUTH_MODE`` says otherwise. An existing cluster keeps its own mode.
    """
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_MODE" not in os.environ:
        if _ray_is_imported():
            return  # Ray read its mode on import (in a notebook, say): its default, a token file, applies
        os.environ["RAY_AUTH_MODE"] = "token"
    if os.environ["RAY_AUTH_MODE"] == "token" and not cluster_address():
        named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
        if not named:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _ray_is_imported() -> bool:
    return "ray" in sys.modules


def cluster_address() -> str | None:
    """Address of the cluster that this process belongs to or was told to use; None starts a local one."""
    return os.environ.get("RAY_ADDRESS") or None


def start(
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    dashboard: bool = True,
    object_store_mib: int = 256,
    log_to_driver: bool = False,
    **options: Any,
) -> None:
    """Connect to the cluster of this process, or start a local one; a second call does nothing.

    Args:
        address: Cluster to join; None: the one of this process, else a local one.
        num_cpus: Logical CPUs of a local cluster, at least 1; None takes the machine's cores. May exceed the cores:
            workers that mostly wait need no core of their own.
        dashboard: Whether to start the dashboard. Required when Tune runs Train: without it a trial that is stopped
            early never releases its workers' resources.
        object_store_mib: Shared memory of a local cluster, in MiB. Small, since images travel by files, not objects.
        log_to_driver: Whether the workers' output appears here. Off, since progress and errors arrive by other means;
            all output is in Ray's log files.
        options: Passed on to ``ray.init`` for a local cluster.

    Raises:
        ValueError: ``num_cpus`` below 1.
    """
    set_environment()
    import ray

    if ray.is_initialized():
        return
    if address := address or cluster_address():
        ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.WARNING)
        return
    # A job submitted to this cluster starts `python` from this PATH, which must be the one with Ray.
    os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
    if num_cpus is not None and num_cpus < 1:
        raise ValueError(f"num_cpus must be at least 1, got {num_cpus}")
    ray.init(
        address="local",  # a bare init would join any cluster running on this machine
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=object_store_mib * MIB,
        log_to_driver=log_to_driver,
        logging_level=logging.WARNING,
        **options,
    )


def own_address() -> str:
    """Return the address by which other processes of this machine join the cluster of this one."""
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


def stop() -> None:
    """Disconnect from the cluster; a local one shuts down."""
    import ray

    ray.shutdown()
