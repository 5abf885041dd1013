"""Bundles in MLflow's model format, for ``mlflow.pyfunc.load_model`` and ``mlflow models predict``."""

import importlib
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import FLAVOR_NAME, save_model
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from torch import Tensor

from tenfold.bundle import PROBE_FILE, Bundle, load_probes, package_versions
from tenfold.tasks import Signature, Slot, scalar_params
from tenfold.tracking import pyfunc as tracking_pyfunc
from tenfold.tracking.pyfunc import Arrays
from tenfold.types import Preprocessing

_ARTIFACT = "bundle"
_PARAM_TYPES = {"boolean": "boolean", "integer": "long", "number": "double", "string": "string"}
"""JSON schema's type to MLflow's."""
_LIST_TYPES = {"b": "boolean", "i": "long", "u": "long", "f": "double"}
"""Kind of a numpy type to MLflow's type."""
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
        Two rows of each required input, from the probe set if there is one, else noise; a single image input comes
        without its name. And the predictor's signature in MLflow's words, with an open batch axis.

    Raises:
        ValueError: The outputs of the predictor do not fit its signature.
    """
    module, _, function = load_predictor.partition(":")
    predictor = getattr(importlib.import_module(module), function)(bundle.folder, device="cpu")
    signature: Signature = predictor.signature
    example = _example(bundle, signature)
    outputs = tracking_pyfunc.predict_arrays(predictor, example)
    signature.check_outputs({name: torch.from_numpy(array) for name, array in outputs.items()})
    return example, mlflow_signature(signature)


def mlflow_signature(signature: Signature) -> ModelSignature:
    """Return a signature in MLflow's words.

    MLflow's tensors cannot be optional, its parameters always are: an optional input is a parameter that holds a list,
    numbers in the order of their rows, and is left out where the list is empty. Outputs are those of every answer.
    """
    params = [
        ParamSpec(param.name, _PARAM_TYPES[param.schema["type"]], False if param.schema["type"] == "boolean" else None)
        for param in scalar_params(signature)
    ]
    params += [ParamSpec(slot.name, _list_type(slot), [], (-1,)) for slot in signature.inputs if slot.optional]
    schema: Any = ParamSchema(params) if params else None
    return ModelSignature(
        inputs=Schema([_spec(slot, named=not _is_bare(signature)) for slot in signature.required]),
        outputs=Schema([_spec(slot) for slot in signature.always]),
        params=schema,
    )


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


def _is_bare(signature: Signature) -> bool:
    """Whether the model takes images alone, which clients then send without a name."""
    return len(signature.required) == 1 and isinstance(signature.required[0].image, Preprocessing)


def _example(bundle: Bundle, signature: Signature) -> Arrays:
    if _is_bare(signature) and PROBE_FILE not in bundle.metadata.files:
        return np.random.default_rng(0).integers(0, 256, (2, *signature.required[0].shape), dtype=np.uint8)
    probe = load_probes(bundle)[0]
    rows = {slot.name: _two_rows(probe[slot.name], slot.shared) for slot in signature.required}
    return next(iter(rows.values())) if _is_bare(signature) else rows


def _two_rows(values: Tensor | Sequence[str], shared: bool) -> np.ndarray:
    array = values.numpy() if isinstance(values, Tensor) else np.array(values, dtype=object)
    return array if shared else array[[0, -1]]


def _spec(slot: Slot, *, named: bool = True) -> ColSpec | TensorSpec:
    dtype = np.dtype(object if slot.dtype == "text" else slot.dtype)
    return TensorSpec(dtype, (-1, *slot.shape), slot.name if named else None)


def _list_type(slot: Slot) -> str:
    return "string" if slot.dtype == "text" else _LIST_TYPES[np.dtype(slot.dtype).kind]


def _pip_requirements() -> list[str]:
    # Not tenfold: a public index may lack it, or have another package of that name.
    versions = {name: number for name, number in package_versions().items() if name not in ("tenfold", "ray")}
    versions |= {name: version(name) for name in ("mlflow", "safetensors", "PyYAML")}
    # A local version such as "+cu130" exists only in its own index.
    return [f"{name}=={number.partition('+')[0]}" for name, number in versions.items()]
