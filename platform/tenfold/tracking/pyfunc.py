"""MLflow model of a bundle, logged "from code": MLflow copies this file into the model and runs it on loading.

It contains no weights and no pickle: the bundle is stored beside it as plain files, and the predictor is imported by
its dotted name, so MLflow returns exactly the outputs of the method's predictor.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

Arrays = np.ndarray | dict[str, np.ndarray]


def predict_arrays(predictor: Any, inputs: Arrays, params: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Predict named inputs, or the array of the only required one; return named outputs as arrays, first axis B.

    Args:
        predictor: A predictor with a ``signature``.
        inputs: The arrays.
        params: Parameters by name; None stands for one that is not given. Optional inputs are among them, as flat lists
            in the order of their rows; an empty list stands for one that is left out.

    Raises:
        ValueError: An input does not fit the signature.
    """
    signature = predictor.signature
    given: dict[str, Any] = dict(inputs) if isinstance(inputs, dict) else {signature.required[0].name: inputs}
    words = {name: value for name, value in (params or {}).items() if value is not None}
    num_rows = next((len(given[slot.name]) for slot in signature.required if slot.name in given), 0)
    for slot in signature.inputs:
        if slot.optional and len(flat := words.pop(slot.name, ())):
            given[slot.name] = flat if slot.dtype == "text" else _rows(slot, flat, -1 if slot.shared else num_rows)
    texts = {slot.name for slot in signature.inputs if slot.dtype == "text"}
    call = {
        name: [str(text) for text in values] if name in texts else torch.tensor(values)
        for name, values in given.items()
    }
    signature.check_inputs(call)
    with torch.inference_mode():
        outputs = predictor(**call, **words)
    return {name: output.cpu().numpy() for name, output in outputs.items()}


def _rows(slot: Any, flat: Any, num_rows: int) -> np.ndarray:
    """Return flat numbers as rows of a slot; -1: of as many as there are."""
    try:
        return np.array(flat, slot.dtype).reshape(num_rows, *slot.shape)
    except ValueError as error:
        rows = "rows" if num_rows < 0 else f"{num_rows} rows"
        raise ValueError(f"{slot.name} must hold {rows} of {slot.shape}, got {len(flat)} values") from error


class BundleModel(PythonModel):
    """Images uint8 ``(B, S, S, 3)`` or a dict of named arrays in; a dict of named arrays out.

    Parameters are those of the model's signature, and its optional inputs as flat lists:
    ``model.predict(inputs, params={"level": 0.9})`` adds the interval of a regression,
    ``model.predict(images, params={"classes": ["cat", "dog"]})`` asks an open-vocabulary model for other classes.

    Model config: ``load_predictor``, dotted name ``package.module:function`` called as
    ``function(bundle_folder, device=...)``; ``device``, ``cpu`` unless overridden by
    ``mlflow.pyfunc.load_model(uri, model_config={"device": "cuda"})``.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the predictor of the bundle.

        Raises:
            ModuleNotFoundError: If the package of the predictor is not installed.
        """
        config = context.model_config
        module, _, function = config["load_predictor"].partition(":")
        load_predictor = getattr(importlib.import_module(module), function)
        self._predictor = load_predictor(Path(context.artifacts["bundle"]), device=config["device"])

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Predict, with each output as an array."""
        return predict_arrays(self._predictor, model_input, params)


set_model(BundleModel())
