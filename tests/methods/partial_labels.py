"""Helpers for tests of the methods that train on partial labels: jobs on tiny scenes, and the losses of a record."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from jobs.config import compose_job
from tenfold.engine.settings import JobConfig
from tenfold.methods.large_loss.noise_record import epoch_losses

TINY = (
    "scale=local", "data=handwriting", "data.num_train=64", "data.num_val=32", "data.num_test=32",
    "model.pretrained=false", "run.batch_size=16", "run.num_epochs=2",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One MLflow store and one data cache for a whole test file: creating them takes seconds."""

    folder: Path
    method: str
    words: tuple[str, ...]
    """Overrides of every job."""

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/store/mlflow.db"

    def overrides(self, *more: str, method: str | None = None, storage: str | Path | None = None) -> list[str]:
        places = (f"scale.storage={storage or self.folder / 'runs'}", f"run.tracking_uri={self.uri}")
        return [f"method={method or self.method}", *TINY, *self.words, *places, *more]

    def job(self, *more: str, method: str | None = None, storage: str | Path | None = None) -> JobConfig:
        return compose_job(self.overrides(*more, method=method, storage=storage))


@contextmanager
def open_place(folder: Path, method: str, *words: str) -> Iterator[Place]:
    """Keep MLflow of this machine out for as long as the place is open."""
    (folder / "store").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Place(folder, method, words)


def read_losses(folder: Path) -> pd.DataFrame:
    """Read all losses of a record: one row per (epoch, sample), the index, and one column per class."""
    classes = json.loads(pq.read_schema(next(folder.glob("losses/*/*.parquet"))).metadata[b"classes"])
    frames = []
    for epoch, sample, losses in epoch_losses(folder):
        index = pd.MultiIndex.from_product([[epoch], sample], names=["epoch", "sample"])
        frames.append(pd.DataFrame(losses, index=index, columns=classes))
    return pd.concat(frames)
