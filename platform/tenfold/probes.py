"""Probe sets: inputs with the outputs that training computed for them, by which a loaded model proves that it is it.

A file of tensors holds ``N.inputs.NAME`` and ``N.outputs.NAME`` of the N-th combination of inputs, from 0, and in its
header the inputs of text, as JSON. Earlier files hold one combination: ``inputs.NAME`` and ``outputs.NAME``, or
``images`` and ``logits``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from tenfold.tasks import IMAGES, Predictor, Signature

Inputs = Mapping[str, Tensor | Sequence[str]]
"""Inputs of a call by name; texts are lists of strings."""
_INPUTS, _OUTPUTS = "inputs.", "outputs."
_LOGITS, _TEXTS = "logits", "texts"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One combination of inputs, and its outputs: those of every answer, without decisions."""

    inputs: Inputs
    outputs: Mapping[str, Tensor]


def answer(predictor: Predictor, inputs: Inputs, signature: Signature) -> dict[str, Tensor]:
    """Return the outputs that are stored and compared, computed as one batch.

    Raises:
        ValueError: Inputs or outputs do not fit the signature.
    """
    signature.check_inputs(inputs)
    with torch.inference_mode():
        outputs = predictor(**inputs)
    signature.check_outputs(outputs)
    return {slot.name: outputs[slot.name].detach().cpu() for slot in signature.always if not slot.decision}


def write_probes(predictor: Predictor, probes: Tensor | Inputs | Sequence[Inputs]) -> bytes:
    """Compute the outputs and return the content of a probe file.

    Args:
        predictor: The trained model.
        probes: Inputs by name, or several combinations of inputs; a tensor alone is the input ``images``.

    Raises:
        ValueError: There are no probes, or inputs or outputs do not fit the predictor's signature.
    """
    if isinstance(probes, Tensor):
        probes = {IMAGES: probes}
    combinations = [probes] if isinstance(probes, Mapping) else list(probes)
    if not combinations:
        raise ValueError("probes must hold at least one combination of inputs, got none")
    tensors: dict[str, Tensor] = {}
    texts: list[dict[str, list[str]]] = []
    for number, inputs in enumerate(combinations):
        texts.append({name: list(values) for name, values in inputs.items() if not isinstance(values, Tensor)})
        of_inputs = {name: values for name, values in inputs.items() if isinstance(values, Tensor)}
        tensors |= {f"{number}.{_INPUTS}{name}": values for name, values in of_inputs.items()}
        outputs = answer(predictor, inputs, predictor.signature)
        tensors |= {f"{number}.{_OUTPUTS}{name}": values for name, values in outputs.items()}
    # Cloned: the format refuses tensors that share storage.
    stored = {
        name: values.detach().cpu().clone(memory_format=torch.contiguous_format) for name, values in tensors.items()
    }
    return save(stored, metadata={_TEXTS: json.dumps(texts)})


def read_probes(path: Path) -> list[Probe]:
    """Read a probe file, earlier ones too.

    Raises:
        ValueError: It lacks inputs or outputs.
    """
    with safe_open(path, "pt") as file:
        texts: list[dict[str, list[str]]] = json.loads((file.metadata() or {}).get(_TEXTS, "[{}]"))
        found = list(file.keys())
        stored = {_current_name(name): file.get_tensor(name) for name in found}
    probes = [
        Probe(
            inputs={**_under(f"{number}.{_INPUTS}", stored), **of_text},
            outputs=_under(f"{number}.{_OUTPUTS}", stored),
        )
        for number, of_text in enumerate(texts)
    ]
    if not probes or not all(probe.inputs and probe.outputs for probe in probes):
        raise ValueError(f"{path} lacks inputs or outputs; it holds {sorted(found)}")
    return probes


def compare(probes: Sequence[Probe], predictor: Predictor, signature: Signature, tolerance: float) -> float:
    """Return the largest difference between the stored outputs and those of a predictor, on any device.

    Args:
        probes: At least one.
        predictor: The model in question.
        signature: What its inputs and outputs must fit.
        tolerance: Largest allowed difference, relative to the largest stored magnitude over all outputs, which counts
            as at least 1 where logits are among them, because rounding grows with magnitude.

    Raises:
        ValueError: Inputs or outputs do not fit the signature, a shape differs from the stored one, or a difference
            exceeds the tolerance.
    """
    expected = [value for probe in probes for value in probe.outputs.values() if value.numel()]
    least = 1.0 if any(_LOGITS in probe.outputs for probe in probes) else 0.0
    allowed = tolerance * max([least, *(value.double().abs().max().item() for value in expected)])
    largest = 0.0
    for probe in probes:
        answers = answer(predictor, probe.inputs, signature)
        for name, value, wanted in _pairs(probe, answers):
            difference = (value - wanted).abs().max().item() if wanted.numel() else 0.0
            if not difference <= allowed:  # also true for NaN
                raise ValueError(
                    f"the predictor's {name} differ by {difference:.3g} from those stored in training, {allowed:.3g} "
                    f"is allowed; check that the package versions match those of the bundle"
                )
            largest = max(largest, difference)
    return largest


def _pairs(probe: Probe, answers: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, stored in probe.outputs.items():
        if name not in answers:
            raise ValueError(f"outputs must include {name}, which the probe set holds, got {', '.join(answers)}")
        value, wanted = answers[name].double(), stored.double()
        if value.shape != wanted.shape:
            raise ValueError(f"{name} must be {tuple(wanted.shape)} as in the probe set, got {tuple(value.shape)}")
        yield name, value, wanted


def _current_name(name: str) -> str:
    """Return the name that a tensor of an earlier file has today."""
    earlier = {IMAGES: f"{_INPUTS}{IMAGES}", _LOGITS: f"{_OUTPUTS}{_LOGITS}"}.get(name, name)
    return f"0.{earlier}" if earlier.startswith((_INPUTS, _OUTPUTS)) else earlier


def _under(prefix: str, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
