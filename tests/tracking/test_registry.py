"""Registered models: champions and candidates, verified copies, refusals."""

import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tenfold.bundle import BundleError, load_bundle
from tenfold.tracking.client import open_client
from tenfold.tracking.registry import Registered, find_version, register, registered_champions, resolve
from tenfold.tracking.runs import Tracker
from tests.tracking.bundles import LOADER, log_and_register, make_bundle
from tests.tracking.store import stored_models


def reason(store: str, registered: Registered) -> str:
    version = MlflowClient(store, store).get_model_version(registered.name, registered.version)
    return str(version.tags["reason"])


def version_of(store: str, reference: str) -> str:
    return str(find_version(open_client(store), store, reference).version)


def test_champion_is_replaced_by_a_better_one_only(store: str, tracker: Tracker, tmp_path: Path) -> None:
    def alias(value: float, seed: int) -> str:
        return log_and_register(tracker, tmp_path, "better", value, seed).alias

    assert alias(0.5, seed=0) == "champion"
    assert alias(0.4, seed=1) == "candidate"
    assert alias(0.5, seed=2) == "candidate"  # a tie keeps the champion
    assert resolve(store, "models:/better@champion").version == "1"
    assert version_of(store, "models:/better@candidate") == "3"
    assert alias(0.6, seed=3) == "champion"
    assert version_of(store, "models:/better@champion") == "4"
    assert resolve(store, "models:/better/1").version == "1"

    version = MlflowClient(store).get_model_version("better", "2")
    assert version.tags == {
        "metric": "map",
        "value": "0.4",
        "mode": "max",
        "data_fingerprint": "f1",
        "run_id": tracker.run_id,
        "bundle_digest": load_bundle(tmp_path / "bundle-1").digest,
        "reason": "the champion, version 1, has map 0.5, this version 0.4 (max is better)",
    }


def test_less_is_better_in_mode_min(tracker: Tracker, tmp_path: Path) -> None:
    values = (0.5, 0.6, 0.4)
    aliases = [
        log_and_register(tracker, tmp_path, "lower", value, seed, metric="loss", mode="min").alias
        for seed, value in enumerate(values)
    ]
    assert aliases == ["champion", "candidate", "champion"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data_fingerprint": "f2"}, "has data_fingerprint f1, this version f2: not comparable"),
        ({"metric": "accuracy"}, "has metric map, this version accuracy: not comparable"),
        ({"mode": "min"}, "has mode max, this version min: not comparable"),
        ({"value": math.nan}, "map is nan, which can't be compared"),
    ],
)
def test_what_can_not_be_compared_is_a_candidate(
    store: str, tracker: Tracker, tmp_path: Path, request: pytest.FixtureRequest, changes: dict[str, Any], why: str
) -> None:
    name = f"incomparable-{next(iter(changes))}-{next(iter(changes.values()))}"
    log_and_register(tracker, tmp_path, name, 0.5)
    second = log_and_register(tracker, tmp_path, name, **({"value": 0.9, "seed": 1} | changes))
    assert second.alias == "candidate"
    assert why in reason(store, second)
    assert version_of(store, f"models:/{name}@champion") == "1"


def test_registering_again_after_a_crash_makes_no_second_version(store: str, tracker: Tracker, tmp_path: Path) -> None:
    model_uri = tracker.log_bundle(make_bundle(tmp_path).folder, "again", LOADER)
    arguments: dict[str, Any] = {"run_id": tracker.run_id, "metric": "map", "mode": "max", "data_fingerprint": "f1"}
    first = register(store, model_uri, "again", value=0.5, **arguments)
    assert register(store, model_uri, "again", value=0.5, **arguments) == first
    # Killed between the version and its alias: the second call sets it.
    client = MlflowClient(store, store)
    client.delete_registered_model_alias("again", "champion")
    assert register(store, model_uri, "again", value=0.5, **arguments) == first
    assert len(client.search_model_versions("name = 'again'")) == 1


def test_registering_checks_its_arguments(store: str, tracker: Tracker, tmp_path: Path) -> None:
    model_uri = tracker.log_bundle(make_bundle(tmp_path).folder, "checked", LOADER)
    good: dict[str, Any] = {"name": "checked", "metric": "map", "mode": "max", "data_fingerprint": "f1"}
    for changes, why in [
        ({"name": "../checked"}, "model's name"),
        ({"name": "Checked"}, "model's name"),
        ({"mode": "most"}, "max, min, got 'most'"),
        ({"data_fingerprint": ""}, "must not be empty"),
        ({"model_uri": "runs:/x/model"}, "model_uri must be like"),
    ]:
        arguments = {"model_uri": model_uri} | good | changes
        with pytest.raises(ValueError, match=why):
            register(store, run_id=tracker.run_id, value=0.5, **arguments)
    assert "checked" not in registered_champions(store)


def test_resolved_bundle_is_a_verified_copy(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "copied", 0.5)
    resolved = resolve(store, "models:/copied@champion")
    assert (resolved.name, resolved.version, resolved.run_id) == ("copied", "1", tracker.run_id)
    assert resolved.metrics == {"map": 0.5}
    assert load_bundle(resolved.folder).digest == load_bundle(tmp_path / "bundle-0").digest
    assert not resolved.folder.is_relative_to(stored_models(tracker)[-1])
    # A copy that was damaged is fetched again, and nothing is left lying about.
    (resolved.folder / "config.yaml").write_text("damaged: true\n")
    assert resolve(store, "models:/copied@champion") == resolved
    load_bundle(resolved.folder)
    assert not [path for path in resolved.folder.parent.iterdir() if path.name.startswith(".")]


def test_changed_byte_in_the_store_is_refused(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "tampered", 0.5)
    weights = next(stored_models(tracker)[-1].rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"models:/tampered/1 is refused: .*model\.safetensors"):
        resolve(store, "models:/tampered@champion")


def test_another_whole_bundle_in_its_place_is_refused(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "swapped", 0.5)
    inside = next(stored_models(tracker)[-1].rglob("model.safetensors")).parent
    inside.rename(tmp_path / "away")
    make_bundle(tmp_path, seed=1).folder.rename(inside)
    with pytest.raises(BundleError, match="the store holds the bundle"):
        resolve(store, "models:/swapped/1")


def test_model_that_points_outside_is_refused(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "outside", 0.5)
    description = next(stored_models(tracker)[-1].rglob("MLmodel"))
    description.write_text(description.read_text().replace("artifacts/bundle-0", "../../../../bundle-0"))
    with pytest.raises(BundleError, match="points outside"):
        resolve(store, "models:/outside/1")


def test_what_is_not_registered_is_answered_with_what_is(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "known", 0.5)
    for model, why in [
        ("models:/unknown@champion", r"no model 'unknown' is registered in sqlite:.*; registered: .*\bknown\b"),
        ("models:/known@production", r"no alias 'production'; its aliases: champion \(version 1\)"),
        ("models:/known/7", r"no version 7; its versions: \[1\]"),
        ("known", "must be like models:/name@alias or models:/name/3"),
        ("models:/known/latest", "must be like"),
        ("models:/known@champion/more", "must be like"),
        ("models:/../known/1", "must be like"),
        ("models:/Known@champion", "model's name must match"),
    ]:
        with pytest.raises(ValueError, match=why):
            resolve(store, model)


def test_version_without_a_bundle_is_told(store: str) -> None:
    client = MlflowClient(store, store)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "file:///somewhere")
    with pytest.raises(ValueError, match="models:/foreign/1 holds no bundle"):
        resolve(store, "models:/foreign/1")


def test_champions_are_listed(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "listed-b", 0.5)
    log_and_register(tracker, tmp_path, "listed-a", 0.5, seed=1)
    log_and_register(tracker, tmp_path, "listed-c", math.nan, seed=2)  # a candidate without a champion
    listed = [name for name in registered_champions(store) if name.startswith("listed")]
    assert listed == ["listed-a", "listed-b"]
