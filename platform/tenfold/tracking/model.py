"""Bundles in MLflow's model format, for ``mlflow.pyfunc.load_model`` and ``mlflow models predict``."""

import importlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import FLAVOR_NAME, save_model
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from tenfold.bundle import PROBE_FILE, Bundle, load_probes, package_versions
from tenfold.tracking import pyfunc as tracking_pyfunc
from tenfold.tracking.pyfunc import Arrays
from tenfold.types import output_shape

_ARTIFACT = "bundle"
_DOTTED_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)


def check_loader(load_predictor: str) -> str:
    """Return ``load_predictor`` if it has the form ``package.module:function``.

    Raises:
        ValueError: If it does not.
    """
    if not _DOTTED_NAME.fullmatch(load_predictor):
        raise ValueError(f"load_predictor must be like 'package.module:function', got {load_predictor!r}")
    return load_predictor


def example_and_signature(bundle: Bundle, load_predictor: str) -> tuple[Arrays, ModelSignature]:
    """Build an input example and the signature of the model.

    Args:
        bundle: The model; its predictor runs once, on the CPU.
        load_predictor: ``package.module:function``.

    Returns:
        Images uint8 ``(2, S, S, 3)`` from the probe set if there is one, else noise, or two of each named input; and
        the signature, with an open batch axis.
    """
    module, _, function = load_predictor.partition(":")
    predictor = getattr(importlib.import_module(module), function)(bundle.folder, device="cpu")
    example = _example(bundle)
    outputs = tracking_pyfunc.predict_arrays(predictor, example)
    params: Any = ParamSchema([ParamSpec("level", "double", None)]) if hasattr(predictor, "interval") else None
    signature = ModelSignature(
        inputs=Schema(_input_specs(bundle)),
        outputs=Schema(
            [
                TensorSpec(array.dtype, (-1, *output_shape(array.shape[1:], bundle.metadata.inputs)), name)
                for name, array in outputs.items()
            ]
        ),
        params=params,
    )
    return example, signature


def write_model(
    folder: Path,
    bundle: Bundle,
    load_predictor: str,
    example: Arrays,
    signature: ModelSignature,
    *,
    model_id: str,
    run_id: str,
) -> None:
    """Write a model from code: the files of the bundle, ``pyfunc.py`` and MLflow's metadata.

    Args:
        folder: Target folder; must not exist or be empty.
        bundle: Bundle to wrap.
        load_predictor: ``package.module:function`` that loads its predictor.
        example: Input example of the model.
        signature: Signature of the model; MLflow checks inputs against it.
        model_id: Id of the logged model that the folder will belong to.
        run_id: Id of the run that trained it.
    """
    save_model(
        str(folder),
        mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        python_model=tracking_pyfunc.__file__,
        artifacts={_ARTIFACT: str(bundle.folder)},
        model_config={"load_predictor": load_predictor, "device": "cpu"},
        signature=signature,
        input_example=example,
        pip_requirements=_pip_requirements(),
        metadata={"tenfold": bundle.metadata.versions["tenfold"], "method": bundle.metadata.method},
    )


def bundle_in_model(folder: Path) -> Path:
    """Find the bundle in a folder written by ``write_model``.

    Raises:
        ValueError: If the folder is not such a model.
    """
    if not (folder / "MLmodel").is_file():
        raise ValueError("it has no MLmodel file")
    artifacts = Model.load(str(folder)).flavors.get(FLAVOR_NAME, {}).get("artifacts", {})
    if _ARTIFACT not in artifacts:
        raise ValueError(f"its MLmodel file names no {_ARTIFACT}: it was not logged by Tracker.log_bundle")
    inside = (folder / artifacts[_ARTIFACT]["path"]).resolve()
    if not inside.is_relative_to(folder.resolve()):
        raise ValueError(f"its MLmodel file points outside of the model, to {artifacts[_ARTIFACT]['path']!r}")
    return inside


def _example(bundle: Bundle) -> Arrays:
    preprocessing = bundle.metadata.preprocessing
    if preprocessing is not None and PROBE_FILE not in bundle.metadata.files:
        size = preprocessing.image_size
        return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    probes = load_probes(bundle)
    if isinstance(probes, dict):
        return {name: value[[0, -1]].numpy() for name, value in probes.items()}
    return probes[[0, -1]].numpy()


def _input_specs(bundle: Bundle) -> list[ColSpec | TensorSpec]:
    preprocessing = bundle.metadata.preprocessing
    if preprocessing is not None:
        size = preprocessing.image_size
        return [TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))]
    return [TensorSpec(np.dtype(each.dtype), (-1, *each.shape), each.name) for each in bundle.metadata.inputs]


def _pip_requirements() -> list[str]:
    # Not tenfold: a public index may lack it, or have another package of that name.
    versions = {name: number for name, number in package_versions().items() if name not in ("tenfold", "ray")}
    versions |= {name: version(name) for name in ("mlflow", "safetensors", "PyYAML")}
    # A local version such as "+cu130" exists only in its own index.
    return [f"{name}=={number.partition('+')[0]}" for name, number in versions.items()]
