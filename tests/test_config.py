"""Settings: what makes a job, what is refused and in which words, and what makes another run of it."""

import math
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from jobs.config import compose_container, compose_job
from tenfold.catalog import METHODS
from tenfold.config import ConfigError, build, job_from_dict
from tenfold.data.catalog import DATA
from tenfold.engine.settings import GROUPS, PLACEMENT_ONLY, JobConfig, RunConfig, ScaleConfig
from tenfold.models.clip import ClipConfig

CONF = Path(__file__).parents[1] / "jobs/conf"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def values(**groups: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A job of defaults but for what is given."""
    base: dict[str, dict[str, Any]] = {"method": {"name": "large_loss"}, "data": {"name": "handwriting"}}
    return {name: {**base.get(name, {}), **groups.get(name, {})} for name in {*base, *groups}}


def refused(container: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        job_from_dict(container)
    return str(caught.value)


# -- composing


def test_the_defaults_compose_to_a_job_that_runs_here():
    job = compose_job()
    assert (job.method_name, job.data.name, job.scale.kind) == ("large_loss", "handwriting", "ray")


def root_of(data: str) -> list[str]:
    """Where its files are, for a data set that has some."""
    needed = {"root": "/data", "predictions": "/data/predictions.npz"}
    return [
        f"data.{field.name}={needed[field.name]}" for field in fields(DATA[data].config_class()) if field.name in needed
    ]


@pytest.mark.parametrize("name", choices("data"))
def test_every_data_set_composes(name):
    assert compose_job([f"data={name}", *root_of(name)]).data.name == name


@pytest.mark.parametrize("name", choices("model"))
def test_every_network_composes(name):
    file = yaml.safe_load((CONF / f"model/{name}.yaml").read_text())
    network = file["defaults"][0].removesuffix("_defaults")
    method = next(method for method, entry in METHODS.items() if entry.network == network)
    job = compose_job([f"method={method}", f"model={name}"])
    assert type(job.model) is METHODS[method].model_class()
    for key, value in file.items():
        assert key == "defaults" or getattr(job.model, key) == value


def test_a_method_brings_its_network_unless_another_is_asked_for():
    assert compose_job(["method=datadream"]).model == ClipConfig(name="tiny")
    assert compose_job(["model=clip_rn50", "method=datadream"]).model == ClipConfig(name="RN50", pretrained="openai")
    with pytest.raises(ConfigError, match=r"model\.checkpoint: there is no such setting; model has name, pretrained"):
        compose_job(["method=waffleclip", "model=resnet50"])


@pytest.mark.parametrize("name", choices("scale"))
def test_every_scale_composes(name):
    scale = compose_job([f"scale={name}"]).scale
    assert scale.name == name
    assert scale.gpus_per_worker == (1 if name == "gpu" else 0)


@pytest.mark.parametrize("name", choices("method"))
def test_every_method_composes(name):
    assert compose_job([f"method={name}"]).method_name == name


def stated_by(name: str) -> dict[str, dict[str, Any]]:
    """What a file of ``conf/paper`` and those that it builds on say, by group."""
    file = yaml.safe_load((CONF / f"paper/{name}.yaml").read_text())
    groups: dict[str, dict[str, Any]] = {}
    for part in (*map(stated_by, file.pop("defaults", [])), file):
        for group, settings in part.items():
            groups[group] = {**groups.get(group, {}), **settings}
    return groups


@pytest.mark.parametrize("name", [name for name in choices("paper") if name.partition("-")[2] in choices("data")])
def test_the_settings_of_every_paper_are_taken_for_its_data(name):
    method, _, data = name.partition("-")
    job = compose_job([f"method={method}", f"data={data}", *root_of(data)])
    stated = compose_container("config", [f"method={method}", f"data={data}", *root_of(data)])
    for group, settings in stated_by(name).items():
        for key, raw in settings.items():
            value, taken = raw, job.as_dict()[group][key]
            if isinstance(raw, str) and "${" in raw:  # chosen from a table of the same file
                value = OmegaConf.select(
                    OmegaConf.create({**stated, group: {**stated[group], key: raw}}), f"{group}.{key}"
                )
            assert stated[group][key] == value
            assert taken == (value if isinstance(value, dict) else pytest.approx(value))


def test_storage_of_the_cluster_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TENFOLD_STORAGE", "s3://bucket/prefix")
    assert compose_job(["scale=k8s"]).scale.storage == "s3://bucket/prefix"
    monkeypatch.delenv("TENFOLD_STORAGE")
    assert compose_job(["scale=k8s"]).scale.storage == "outputs"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+run.extra=1", "settings can only be changed, not added or removed"),
        ("++run.seed=1", "settings can only be changed, not added or removed"),
        ("~run.seed", "settings can only be changed, not added or removed"),
        ("run.seed", "settings must be key=value, as in run.seed=1, got 'run.seed'"),
        ("run.sed=1", "run.sed: there is no such setting; run has seed, num_epochs"),
        ("sed=1", "sed: there is no such setting; the job has run, data, model, method, scale"),
        ("method.scheme.name=1", "method.scheme.name: there is no such setting"),
        ("method=lage_loss", "method must be one of boostlu, calm, concept_realignment, datadream, "),
        ("scale=laptop", "scale must be one of gpu, k8s, local, ray, got 'laptop'"),
        ("run=fast", r"run must be set key by key, got 'run=fast'; write run\.KEY=VALUE"),
        ("run=3", "run must be set key by key"),
        ("scale=3", "scale must be one of gpu, k8s, local, ray, got '3'"),
        ("paper=large_loss-cooc", "paper must be one of .*large_loss-coco"),
        ("data=coco", r"data\.root must be given: write data\.root="),
        ("run.seed=[", r"run\.seed"),
        ("scale.storage=${oc.env:TENFOLD_NOT_SET}", "TENFOLD_NOT_SET"),
        ("hydra.run.dir=elsewhere", r"must not be Hydra's own, got 'hydra\.run\.dir=elsewhere'"),
    ],
)
def test_what_is_no_setting_is_refused_in_one_message(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose_job([override])
    assert "\n" not in str(caught.value)
    assert "+" not in str(caught.value).replace(override, "")  # no advice to add keys


# -- checking


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (values(run={"seed": "first"}), "run.seed: Input should be a valid integer"),
        (values(run={"seed": 1.5}), "run.seed: Input should be a valid integer"),
        (values(run={"seed": None}), "run.seed: "),
        (values(run={"precision": "fp8"}), "run.precision: Input should be 'auto', 'fp32', 'bf16' or 'fp16', got"),
        (values(run={"sede": 1}), "run.sede: there is no such setting; run has seed, "),
        (values(run={"seed": -1}), "run.seed must lie in [0, 2**31), got -1"),
        (values(run={"clip_norm": 0}), "run.clip_norm must be positive or null, got 0"),
        (values(scale={"workers": 0}), "scale.workers must be at least 1, got 0"),
        (values(scale={"kind": "slurm"}), "scale.kind: Input should be 'plain' or 'ray', got 'slurm'"),
        (values(method={"scheme": "LL-X"}), "method.scheme: Input should be 'LL-R', "),
        (values(method={"delta_rel_percent": 100}), "method.delta_rel_percent must lie in [0, 100), got 100"),
        (values(method={"learning_rate": "nan"}), "method.learning_rate: Input should be a finite number"),
        (values(run={"clip_norm": math.inf}), "run.clip_norm: Input should be a finite number"),
        (
            values(model={"name": "resnet50"}),
            "model.name must be small_cnn, dilated_cnn, efficientnet_lite0, torchvision:NAME or timm:NAME, got",
        ),
        (values(model={"init": "linea"}), "model.init: Input should be 'end_to_end' or 'linear', got 'linea'"),
        (values(data={"num_train": 0}), "data.num_train must be at least 1, got 0"),
        (values(data={"name": "coco", "num_train": 5}), "data.num_train: there is no such setting; data has name"),
        (values(data={"name": "coco"}), "data.root: "),
        (values(data={"name": "imagewoof"}), "data.name must be one of handwriting, mnist, "),
        (
            values(method={"name": "small_loss"}),
            "method.name must be one of boostlu, calm, concept_realignment, datadream, ",
        ),
        ({"method": {}, "data": {}}, "method.name must be one of boostlu, calm, concept_realignment, datadream, "),
        ({**values(), "optimizer": {}}, "unknown setting 'optimizer'; a job has the groups method, data, model, scale"),
        ({**values(), "run": 3}, "run must be a group of settings, got 3"),
        ({**values(), "run": "fast"}, "run must be a group of settings, got 'fast'"),
    ],
)
def test_every_offence_is_one_line_with_the_full_key(given, message):
    said = refused(given)
    assert said.startswith(message)
    assert len(said.splitlines()) == 1


def test_all_offences_are_told_at_once():
    said = refused(values(run={"seed": "x", "num_epochs": "y"}, scale={"workers": 0}, method={"alpha": "z"}))
    keys = [line.split(":")[0].split(" ")[0] for line in said.splitlines()]
    assert sorted(keys) == ["method.alpha", "run.num_epochs", "run.seed", "scale.workers"]


def test_numbers_may_come_as_texts():
    job = job_from_dict(values(run={"seed": "3", "clip_norm": "1e-1"}, scale={"workers": 2.0}, method={"alpha": 1}))
    assert (job.run.seed, job.run.clip_norm, job.scale.workers) == (3, 0.1, 2)
    assert isinstance(job.method.alpha, float)


def test_a_missing_group_takes_its_defaults():
    job = job_from_dict(values())
    assert job.run == RunConfig()
    assert job.scale == ScaleConfig()


def test_the_values_that_were_checked_are_left_alone():
    given = values(run={"seed": "3"})
    before = {name: dict(group) for name, group in given.items()}
    job_from_dict(given)
    assert given == before


def test_nothing_can_be_changed_once_it_is_checked():
    job = job_from_dict(values())
    for settings in (job, job.run, job.scale, job.method, job.data, job.model):
        with pytest.raises(FrozenInstanceError):
            settings.seed = 1


def test_nested_settings_name_the_whole_path():
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        depth: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Inner

    assert build(Outer, {"inner": {"depth": "2"}}, "outer").inner.depth == 2
    with pytest.raises(ConfigError, match=r"^outer\.inner\.depth: Input should be a valid integer.*got 'x'$"):
        build(Outer, {"inner": {"depth": "x"}}, "outer")
    with pytest.raises(ConfigError, match=r"^outer\.inner\.width: "):
        build(Outer, {"inner": {"width": 1}}, "outer")


# -- the same job and another job


def test_a_job_survives_being_written_down():
    job = compose_job(["method.scheme=LL-Cp", "run.seed=4", "run.clip_norm=0.5", "scale=local", "data.num_train=7"])
    again = job_from_dict(job.as_dict())
    assert again == job
    assert again.digest() == job.digest()
    assert again.run_name == job.run_name == f"large_loss-handwriting-{job.digest()[:10]}"


def test_the_order_of_keys_means_nothing():
    backwards = {name: dict(reversed(group.items())) for name, group in reversed(compose_job().as_dict().items())}
    assert job_from_dict(backwards).digest() == compose_job().digest()


def other(value: Any, name: str) -> Any:
    """Another valid value of a setting."""
    special: dict[str, Any] = {
        "scheme": "LL-Ct", "optimizer": "sgd", "observatory": "off", "precision": "fp32", "kind": "plain",
        "init": "linear", "name": "timm:resnet18", "cooccurrence": 0.5, "cooccurrence_test": 0.5, "distinct": False,
        "ema_decay": 0.5, "label_smoothing": 0.2, "clip": 0.1,
        "concept_task": "sums", "operands": (10, 10), "costs": {"operand_1": 2.0},
    }  # fmt: skip
    if name in special:
        return special[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "3" if value is None else value + "x"


def settings_of(job: JobConfig) -> list[tuple[str, str]]:
    names = [(group, name) for group, settings in job.as_dict().items() for name in settings]
    # Not for the default network: output_stride.
    return [each for each in names if each not in (("method", "name"), ("data", "name"), ("model", "output_stride"))]


@pytest.mark.parametrize(("group", "name"), settings_of(job_from_dict(values())))
def test_a_digest_changes_with_all_but_placement(group, name):
    job = job_from_dict(values())
    container = job.as_dict()
    container[group][name] = other(container[group][name], name)
    changed = job_from_dict(container)
    assert changed != job
    assert (changed.digest() == job.digest()) == (name in PLACEMENT_ONLY.get(group, ()))


def test_a_plain_process_is_the_same_job_whatever_is_said_of_workers():
    plain = job_from_dict(values(scale={"kind": "plain"}))
    assert replace(plain, scale=replace(plain.scale, workers=7, gpus_per_worker=1.0)).digest() == plain.digest()
    assert job_from_dict(values(scale={"workers": 1})).digest() != plain.digest()


def test_placement_names_settings_that_exist():
    jobs = [job_from_dict(values()), compose_job(["data=coco", "data.root=/data"])]
    known = {(group, name) for job in jobs for group, names in job.as_dict().items() for name in names}
    assert {(group, name) for group, names in PLACEMENT_ONLY.items() for name in names} <= known
    assert set(PLACEMENT_ONLY) <= set(GROUPS)
