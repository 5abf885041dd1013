"""Atomically published folders: on a disk, in memory, and on an S3 server in this process."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from tenfold.engine.fit import FitPlan
from tenfold.engine.run import Interrupted, PlainRun
from tenfold.engine.storage import MARKER, Storage, ray_storage
from tests.engine import toy

BUCKET = "runs"
PLACES = ("local", "memory", "s3")


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """A bucket that Storage finds through the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "id", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=BUCKET)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        yield
    server.stop()


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Storage of a test's own, not created yet."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    name = uuid.uuid4().hex
    return {"local": str(tmp_path / name), "memory": f"memory://{name}", "s3": f"s3://{BUCKET}/{name}"}[request.param]


def filled(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def content(place: Storage, scratch: Path) -> dict[str, str]:
    """Read every file except the marker."""
    copy = scratch / uuid.uuid4().hex
    place.download(copy)
    files = {path.relative_to(copy).as_posix(): path for path in copy.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in files.items() if name != MARKER}


def test_a_published_folder_is_whole_and_says_what_it_is(url, tmp_path):
    place = Storage(url) / "folder"
    assert not place.exists()
    assert not place.is_complete()
    assert place.list() == []
    place.publish(filled(tmp_path / "source", a="one", deep__b="two"), {"step": 3})
    assert place.is_complete()
    assert place.read_json(MARKER) == {"step": 3}
    assert content(place, tmp_path) == {"a": "one", "deep/b": "two"}
    assert Storage(url).list() == ["folder"]
    assert place.list() == [MARKER, "a", "deep"]


def test_publishing_again_replaces_everything(url, tmp_path):
    place = Storage(url) / "folder"
    place.publish(filled(tmp_path / "first", a="one", b="two"), {})
    place.publish(filled(tmp_path / "second", b="three"), {"attempt": 2})
    assert content(place, tmp_path) == {"b": "three"}
    assert place.read_json(MARKER) == {"attempt": 2}
    assert Storage(url).list() == ["folder"]  # no old content is left under another name


class PowerCutError(Exception):
    pass


def test_a_crash_while_publishing_leaves_nothing_that_counts_as_whole(url, tmp_path, monkeypatch):
    place = Storage(url) / "folder"
    cut(monkeypatch, place)
    with pytest.raises(PowerCutError):
        place.publish(filled(tmp_path / "source", a="one", b="two"), {})
    monkeypatch.undo()
    assert not (Storage(url) / "folder").is_complete()


def test_a_crash_while_replacing_never_mixes_old_and_new(url, tmp_path, monkeypatch):
    place = Storage(url) / "folder"
    place.publish(filled(tmp_path / "first", a="one", b="two"), {})
    cut(monkeypatch, place)
    with pytest.raises(PowerCutError):
        place.publish(filled(tmp_path / "second", a="three", b="four"), {})
    monkeypatch.undo()
    left = Storage(url) / "folder"
    assert not left.is_complete() or content(left, tmp_path) == {"a": "one", "b": "two"}


def cut(monkeypatch: pytest.MonkeyPatch, place: Storage) -> None:
    """Simulate a power cut while files are copied into ``place``."""
    if place.is_local:
        # A move from another file system copies file by file, in any order.

        def move(source: Path, target: Path) -> None:
            Path(target).mkdir(parents=True)
            shutil.copy2(max(Path(source).iterdir()), target)
            raise PowerCutError

        monkeypatch.setattr("tenfold.engine.storage.shutil.move", move)
        return
    copied: list[str] = []
    put = place.fs.put_file

    def put_one(source: str, target: str) -> None:
        if copied:
            raise PowerCutError
        copied.append(target)
        put(source, target)

    monkeypatch.setattr(place.fs, "put_file", put_one)


def test_files_go_up_and_down_unchanged_and_without_the_marker(url, tmp_path):
    place = Storage(url) / "folder"
    source = filled(tmp_path / "source", a="one", deep__deeper__b="two", _COMPLETE="not mine to send")
    (source / "bytes").write_bytes(bytes(range(256)))
    place.upload(source)
    assert not place.is_complete()
    place.download(tmp_path / "copy")
    assert (tmp_path / "copy/bytes").read_bytes() == bytes(range(256))
    assert (tmp_path / "copy/deep/deeper/b").read_text() == "two"
    (Storage(url) / "nothing").download(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_json_is_replaced_read_back_and_removed(url):
    place = Storage(url)
    assert place.read_json("job.json") is None
    place.write_json("job.json", {"status": "running"})
    place.write_json("job.json", {"status": "finished", "values": [1, None, 0.1]})
    assert place.read_json("job.json") == {"status": "finished", "values": [1, None, 0.1]}
    assert place.list() == ["job.json"]
    place.remove("job.json")
    place.remove("job.json")
    assert place.read_json("job.json") is None


def test_a_json_file_that_can_not_be_replaced_keeps_its_content(tmp_path, monkeypatch):
    place = Storage(tmp_path)
    place.write_json("job.json", {"status": "running"})

    def no_space(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("tenfold.engine.storage.os.fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        place.write_json("job.json", {"status": "finished"})
    assert place.read_json("job.json") == {"status": "running"}


def test_removing_a_folder_takes_all_of_it_and_nothing_else(url, tmp_path):
    for name in ("1", "10"):
        (Storage(url) / name).publish(filled(tmp_path / f"source-{name}", deep__a="one"), {})
    (Storage(url) / "1").remove()
    assert Storage(url).list() == ["10"]
    assert (Storage(url) / "10").is_complete()


def test_a_fetched_folder_is_a_local_path_and_a_copy_goes_away(url, tmp_path):
    place = Storage(url) / "folder"
    place.publish(filled(tmp_path / "source", a="one"), {})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with place.fetched(scratch) as folder:
        assert (folder / "a").read_text() == "one"
    assert list(scratch.iterdir()) == []
    assert place.is_complete()


@pytest.mark.parametrize("name", ["..", "a/../b", "../a", "/etc", ""])
def test_names_that_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="relative path without"):
        Storage(tmp_path) / name


@pytest.mark.parametrize("root", ["memory://", "memory://a", "memory://a/"])
def test_a_name_is_joined_to_any_root(root):
    place = Storage(root) / "b"
    assert not place.is_local
    assert place.root.endswith("/b")
    assert "//" not in place.root


def test_a_relative_folder_means_one_place_wherever_it_is_opened_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Storage("outputs")
    assert place.local_path() == tmp_path / "outputs"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # like a worker started by another process
    assert Storage(place.url).local_path() == tmp_path / "outputs"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", r"bucket of 3 characters or more.*s3://bucket/prefix, got s3://"),
        ("s3://ab/x", "bucket of 3 characters or more"),
        ("nonsense://bucket/x", "a folder or a URL that fsspec can open, got 'nonsense://bucket/x'"),
    ],
)
def test_a_url_that_can_not_be_opened_is_told(url, message):
    with pytest.raises(ValueError, match=message):
        Storage(url)


def test_only_local_storage_has_a_local_path():
    with pytest.raises(ValueError, match="must be a local folder, got memory://x"):
        Storage("memory://x").local_path()


def test_ray_gets_a_path_and_a_file_system(s3, tmp_path):
    from pyarrow.fs import FileSystem, FileType

    assert ray_storage(str(tmp_path)) == (str(tmp_path), None)
    for url in (f"s3://{BUCKET}/for-ray", "memory://for-ray"):
        Storage(url).write_json("a.json", {})
        path, filesystem = ray_storage(url)
        assert isinstance(filesystem, FileSystem)
        assert filesystem.get_file_info(f"{path}/a.json").type == FileType.File


PLAN = FitPlan(num_epochs=2, monitor="val/mse", mode="min", ema_decay=0.9, checkpoint_every_steps=8)


def test_a_loop_with_its_checkpoints_on_s3_is_resumed_bit_for_bit(s3, tmp_path):
    def run(name: str) -> PlainRun:
        return PlainRun(folder=f"s3://{BUCKET}/{name}", seed=3, progress=False)

    whole = toy.train(run("whole"), PLAN, toy.Counting().objective())

    def crash(batch, clock):
        if clock.step == 22:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        toy.train(run("cut"), PLAN, toy.Counting().objective(after_step=crash))
    steps: list[int] = []
    note = toy.Counting().objective(after_step=lambda batch, clock: steps.append(clock.step))
    resumed = toy.train(run("cut"), PLAN, note)
    assert steps[0] == 16
    assert toy.weights(resumed.model) == toy.weights(whole.model)
    assert resumed.history == whole.history


def test_a_run_with_its_folders_on_s3_goes_on_after_a_stop(s3, tmp_path):
    """A stage, a stopped loop within it, and the stage's files: all in the bucket."""

    def train(run: PlainRun, stop_at: int | None) -> tuple[dict[str, Any], str]:
        def work(folder: Path) -> None:
            def after_step(batch, clock):
                if clock.step == stop_at:
                    run._stop.set()

            result = toy.train(run, PLAN, toy.Counting().objective(after_step=after_step))
            torch.save(result.model.state_dict(), folder / "model.pt")

        folder = run.stage("train", {"stage": 1}, work)
        weights = torch.load(folder / "model.pt", weights_only=True)
        return {name: tensor.tolist() for name, tensor in weights.items()}, str(folder)

    def start(name: str, stop_at: int | None = None) -> tuple[dict[str, Any], str]:
        url = f"s3://{BUCKET}/{name}"
        run = PlainRun(folder=f"{url}/run", shared=url, seed=3, progress=False)
        try:
            return train(run, stop_at)
        finally:
            run.close()

    whole, folder = start("stage-whole")
    assert not Path(folder).exists()  # scratch is deleted with the run
    with pytest.raises(Interrupted):
        start("stage-cut", stop_at=17)
    assert start("stage-cut")[0] == whole
    assert start("stage-cut", stop_at=0)[0] == whole  # finished: nothing is trained, so nothing stops
