"""MLflow model of a bundle, logged "from code": MLflow copies this file into the model and runs it on loading.

It contains no weights and no pickle: the bundle is stored beside it as plain files, and the predictor is imported by
its dotted name, so MLflow returns exactly the outputs of the method's predictor.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

Arrays = np.ndarray | dict[str, np.ndarray]


def predict_arrays(
    predictor: Callable[[Any], Any], inputs: Arrays, level: float | None = None
) -> dict[str, np.ndarray]:
    """Predict images, uint8 ``(B, S, S, 3)``, or named inputs; return named outputs as arrays, first axis B.

    With a level, a regression also returns ``lower`` and ``upper``, the bounds of the interval that contains the target
    with that probability.
    """
    if isinstance(inputs, dict):
        tensors: Any = {name: torch.tensor(array) for name, array in inputs.items()}
    else:
        tensors = torch.tensor(inputs)
    with torch.inference_mode():
        outputs = dict(predictor(tensors))
        if level is not None:
            outputs["lower"], outputs["upper"] = predictor.interval(outputs, level)  # type: ignore[attr-defined]
    return {name: output.cpu().numpy() for name, output in outputs.items()}


class BundleModel(PythonModel):
    """Images uint8 ``(B, S, S, 3)`` or a dict of named arrays in; a dict of named arrays out.

    A regression has the parameter ``level``: ``model.predict(inputs, params={"level": 0.9})`` adds the interval.

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
        return predict_arrays(self._predictor, model_input, (params or {}).get("level"))


set_model(BundleModel())
