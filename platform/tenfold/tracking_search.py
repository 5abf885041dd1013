"""Finding runs again: the run of given settings, and the nested runs of a sweep."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenfold.tracking import PARENT_TAG, Status, check_status
from tenfold.tracking_client import database_exists, open_client, quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_OPEN_STATUSES = ("RUNNING", "SCHEDULED")


@dataclass(frozen=True, kw_only=True)
class ChildRun:
    """What a sweep reads back of one nested run."""

    run_id: str
    name: str
    status: str
    """RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    params: dict[str, str]
    metrics: dict[str, float]
    """The latest value of each."""
    tags: dict[str, str]


def find_run(uri: str, experiment: str, tags: Mapping[str, str]) -> str | None:
    """Id of the latest run of an experiment that carries all of the tags; None if there is none."""
    if not database_exists(uri):
        return None
    client = open_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    condition = " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in tags.items())
    runs = client.search_runs([found.experiment_id], condition, order_by=["attributes.start_time DESC"], max_results=1)
    return str(runs[0].info.run_id) if runs else None


def child_runs(uri: str, parent: str) -> list[ChildRun]:
    """All runs nested directly in the run ``parent``, oldest first."""
    return [
        ChildRun(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            status=run.info.status,
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            tags=dict(run.data.tags),
        )
        for run in _search_children(open_client(uri), parent)
    ]


def close_stale_children(uri: str, parent: str, status: Status = "KILLED") -> list[str]:
    """End the nested runs that are still open: a trial that the scheduler stopped never ends its own.

    Call it only once nothing works on them any more.

    Returns:
        Ids of the runs that were closed.

    Raises:
        ValueError: If ``status`` is none of FINISHED, FAILED, KILLED.
    """
    check_status(status)
    client = open_client(uri)
    stale = [run.info.run_id for run in _search_children(client, parent) if run.info.status in _OPEN_STATUSES]
    for run_id in stale:
        client.set_terminated(run_id, status)
    return stale


def _search_children(client: "MlflowClient", parent: str) -> "Iterator[Run]":
    experiment_id = client.get_run(parent).info.experiment_id
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.`{PARENT_TAG}` = {quoted(parent)}",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return
