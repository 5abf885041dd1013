"""Signatures: the named tensors that a model takes and gives, and the words of a request that it understands.

One value describes a model to everybody: bundles, MLflow, the endpoint's metadata and OpenAPI page, and the tests.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from tenfold.types import Preprocessing, Task

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64", "text")
"""Types of a slot: numpy's names, and ``text`` for strings."""
LABELS, REGRESSION, CONCEPTS = "labels", "regression", "concepts"
"""Kinds of answers."""
IMAGES = "images"
"""Input of the models of labels: decoded images, uint8 ``(S, S, 3)`` each."""
CLASSES, PROMPTS, PROMPT_CLASSES = "classes", "prompts", "prompt_classes"
"""Optional text inputs of an open-vocabulary model: class names; or prompts, and the class of each."""
ATTRIBUTIONS, EXPLAINED = "attributions", "explained"
"""Outputs of a model that explains: a map ``(S, S)`` in [0, 1] for each image, and the class that it explains."""
OUTSIDE = "outside"
"""Output of a model with an out-of-distribution flag: 1 for an image that seems to belong to none of its classes."""
PREDICTIONS = "predictions"
"""Input of a concept bottleneck without images: the concepts that another model has predicted."""
STATE = "state"
"""What a concept bottleneck knows of an image: an output that may come back in place of the image."""
CONCEPT_VALUES, CONCEPT_MASK, CONCEPT_UNKNOWN = "concept_values", "concept_mask", "concept_unknown"
CONCEPT_PROBS, NEXT_CONCEPT, NEXT_GAIN = "concept_probs", "next_concept", "next_gain"
EXPLAIN, EXPLAIN_CLASS, LEVEL, WITH_STATE = "explain", "explain_class", "level", "with_state"
LOWER, UPPER = "lower", "upper"
"""Outputs, shaped like ``mean``: bounds of the central interval that contains the target with probability ``level``."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """An image in numbers: float32 ``(1 or 3, H, W)``, 0 for black."""

    max_value: float
    """Value of white."""

    def __post_init__(self) -> None:
        if not 0 < self.max_value < math.inf:
            raise ValueError(f"max_value must be positive, got {self.max_value}")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One named tensor, in or out; the batch axis comes first and is left out."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    """-1 for an axis of any length."""
    optional: bool = False
    """Of an input: may be left out. Of an output: given only where the request asks for it."""
    shared: bool = False
    """Of an input: belongs to the whole request instead of one example, so that its first axis has any length."""
    decision: bool = False
    """Of an output: a yes or no that rounding may turn, so that the probe set does not compare it."""
    image: Preprocessing | Pixels | None = None
    """How an image file becomes this input, or this output an image; None: it is not an image."""
    replaces: str | None = None
    """Of an optional input: the required one in whose place it may come; None: it comes beside the others."""

    def __post_init__(self) -> None:
        if self.replaces is not None and not self.optional:
            raise ValueError(f"an input that replaces another must be optional, got {self.name!r}")
        if not self.name or self.dtype not in DTYPES:
            raise ValueError(
                f"name must not be empty, dtype must be one of {', '.join(DTYPES)}, got {self.name!r} and "
                f"{self.dtype!r}"
            )
        if any(length < 1 and length != -1 for length in self.shape):
            raise ValueError(f"shape must hold lengths of at least 1, or -1 for any, got {self.shape}")
        if isinstance(self.image, Pixels) and (
            self.dtype != "float32" or len(self.shape) != 3 or self.shape[0] not in (1, 3)
        ):
            raise ValueError(
                f"an image in numbers must be float32 (1 or 3, H, W), got {self.dtype} {self.shape} for {self.name!r}"
            )

    def holds(self, shape: Sequence[int]) -> bool:
        """Return True if a tensor of this shape, batch axis included, has the slot's axes."""
        return len(shape) == len(self.shape) + 1 and all(
            wanted in (-1, length) for wanted, length in zip(self.shape, shape[1:], strict=True)
        )

    def check(self, values: Tensor | Sequence[str]) -> None:
        """Raise if a batch does not fit.

        Raises:
            ValueError: The dtype, the number of axes or a length differs, or a slot of text does not get texts.
        """
        shape = ", ".join(["B", *(str(length) if length > 0 else "any" for length in self.shape)])
        if not isinstance(values, Tensor):
            are_texts = not isinstance(values, str) and all(isinstance(value, str) for value in values)
            if self.dtype != "text" or self.shape or not are_texts:
                wanted = "a list of texts" if self.dtype == "text" else f"{self.dtype} ({shape})"
                raise ValueError(f"{self.name} must be {wanted}, got {values!r:.60}")
            return
        dtype = str(values.dtype).removeprefix("torch.")
        if not self.holds(values.shape) or dtype != self.dtype:
            raise ValueError(f"{self.name} must be {self.dtype} ({shape}), got {dtype} {tuple(values.shape)}")


@dataclass(frozen=True, kw_only=True)
class Param:
    """One word of a request."""

    name: str
    schema: Mapping[str, Any]
    """JSON schema of its value; ``description`` completes the sentence "must be ..."."""
    repeated: bool = False
    """Whether a reply repeats it."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a model takes, gives and understands."""

    kind: str
    """Kind of answer, which names the module that serves it; a task can have several."""
    task: Task
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    params: tuple[Param, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    """Facts for people and clients, as plain JSON: classes, units, thresholds."""

    def __post_init__(self) -> None:
        for what, names in (
            ("inputs", [slot.name for slot in self.inputs]),
            ("outputs", [slot.name for slot in self.outputs]),
            ("params", [param.name for param in self.params]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"names of {what} must be unique, got {', '.join(names)}")
        if not self.inputs or not self.outputs:
            raise ValueError("a signature must have at least one input and one output")
        required = {slot.name for slot in self.required}
        for slot in self.inputs:
            if slot.replaces is not None and slot.replaces not in required:
                raise ValueError(f"{slot.name} must replace a required input, got {slot.replaces!r}")
        json.dumps(self.about, allow_nan=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the classes, or of the channels of the target; empty for a model with neither."""
        return tuple(self.about.get("classes") or self.about.get("targets") or ())

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Conversion of image files to the model's first image input; None for a model without one."""
        found = (slot.image for slot in self.inputs if isinstance(slot.image, Preprocessing))
        return next(found, None)

    @property
    def required(self) -> tuple[Slot, ...]:
        """Inputs that every request brings."""
        return tuple(slot for slot in self.inputs if not slot.optional)

    def takes(self, names: Collection[str]) -> bool:
        """Return True if a request may bring inputs of these names: all that it needs, nothing twice, none unknown."""
        return fits(names, self.inputs)

    @property
    def always(self) -> tuple[Slot, ...]:
        """Outputs of every answer."""
        return tuple(slot for slot in self.outputs if not slot.optional)

    def check_inputs(self, inputs: Mapping[str, Tensor | Sequence[str] | None]) -> None:
        """Raise if the inputs of a call do not fit; None stands for an optional input that is left out.

        Raises:
            ValueError: An input is missing, unknown or does not fit its slot, or the numbers of examples differ.
        """
        given = {name: values for name, values in inputs.items() if values is not None}
        _check_named("inputs", given, self.inputs, self.takes(given))
        examples = [slot.name for slot in self.inputs if slot.name in given and not slot.shared]
        _check_rows("inputs", {name: len(given[name]) for name in examples})

    def check_outputs(self, outputs: Mapping[str, Tensor]) -> None:
        """Raise if the outputs of a call are not those of the signature.

        Raises:
            ValueError: An output is missing, unknown or does not fit its slot, or the numbers of examples differ.
        """
        needed = {slot.name for slot in self.always}
        is_whole = needed <= outputs.keys() <= {slot.name for slot in self.outputs}
        _check_named("outputs", outputs, self.outputs, is_whole)
        _check_rows("outputs", {name: len(values) for name, values in outputs.items()})

    def num_examples(self, inputs: Mapping[str, Sized]) -> int:
        """Return the number of examples of a call: the length of its first input that is not of the whole request."""
        given = (len(inputs[slot.name]) for slot in self.inputs if slot.name in inputs and not slot.shared)
        return next(given, 1)

    def gives(self, output: str) -> bool:
        """Return True if the model has an output of this name."""
        return any(slot.name == output for slot in self.outputs)

    def as_dict(self) -> dict[str, Any]:
        """Return the signature as plain JSON, for ``signature_of``."""
        stored: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return stored


def fits(names: Collection[str], slots: Sequence[Slot]) -> bool:
    """Return True if inputs of these names fit the slots: each required one once, or what replaces it; none unknown."""
    given = set(names)
    required = {slot.name for slot in slots if not slot.optional}
    replaced = [slot.replaces for slot in slots if slot.replaces is not None and slot.name in given]
    return (
        len(set(replaced)) == len(replaced)
        and given.isdisjoint(replaced)
        and required <= given | set(replaced)
        and given <= {slot.name for slot in slots}
    )


def told(slot: Slot) -> str:
    """Return an input's name for a message, with whether it may be left out."""
    if slot.replaces is not None:
        return f"{slot.name} (in place of {slot.replaces})"
    return f"{slot.name} (optional)" if slot.optional else slot.name


def _check_named(what: str, given: Mapping[str, Tensor | Sequence[str]], slots: Sequence[Slot], is_whole: bool) -> None:
    if not is_whole:
        names = ", ".join(map(told, slots))
        raise ValueError(f"{what} must be {names}, got {', '.join(sorted(given)) or 'none'}")
    for slot in slots:
        if slot.name in given:
            slot.check(given[slot.name])


def _check_rows(what: str, lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what} must have one row for each example, got {dict(lengths)}")


def signature_of(stored: Mapping[str, Any]) -> Signature:
    """Return the signature that ``as_dict`` wrote.

    Raises:
        KeyError, TypeError, ValueError: It is not one.
    """
    return Signature(
        kind=stored["kind"],
        task=Task(stored["task"]),
        inputs=tuple(_slot(each) for each in stored["inputs"]),
        outputs=tuple(_slot(each) for each in stored["outputs"]),
        params=tuple(Param(**each) for each in stored["params"]),
        about=stored["about"],
    )


def preprocessing_of(stored: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that was written as plain JSON; older writers left its last two fields out."""
    return Preprocessing(
        image_size=stored["image_size"],
        mean=tuple(stored["mean"]),
        std=tuple(stored["std"]),
        resize=stored.get("resize", "stretch"),
        interpolation=stored.get("interpolation", "bilinear"),
    )


def _slot(stored: Mapping[str, Any]) -> Slot:
    image = stored["image"]
    if image is not None:
        image = Pixels(**image) if "max_value" in image else preprocessing_of(image)
    return Slot(**{**stored, "shape": tuple(stored["shape"]), "image": image})


class Predictor(Protocol):
    """Model loaded from a bundle: the same numbers in training, in MLflow and behind an endpoint."""

    signature: Signature

    def __call__(self, *images: Any, **inputs: Any) -> Mapping[str, Tensor]:
        """Return named outputs on the CPU, first axis B.

        Args:
            *images: The input ``images``, by position, of a model that takes images.
            inputs: Each input by the name of its slot: a tensor, or a list of strings where the slot holds text.
                Optional ones are None where they are left out. Where the signature has scalar parameters, they are
                keyword arguments too.
        """
        ...


# ---- labels: one class of several, or any number of labels ----


@dataclass(frozen=True, kw_only=True)
class OutsideFlag:
    """Rule that flags an input as out-of-distribution: the classifier's output ``outside`` is then 1."""

    score: str
    """Name of the output that is compared with the threshold."""
    threshold: float
    """Inputs with a score above it are flagged."""
    false_positive_rate: float
    """Share of held-out in-distribution inputs that the threshold was chosen to flag."""


class OpenVocabularyPredictor(Predictor, Protocol):
    """Predictor that also classifies into classes given by the caller as text prompts (zero-shot)."""

    def embed(self, images: Tensor) -> Tensor:
        """Return unit vectors float32 ``(B, D)`` on the CPU for uint8 ``(B, S, S, 3)``."""
        ...

    def prototypes_of(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        """Return class prototypes float32 ``(K, D)`` on the CPU, in the order of ``prompts``.

        Text embeddings are cached between calls.

        Args:
            prompts: At least one prompt for each class name.
        """
        ...

    def classify(self, embeddings: Tensor, prototypes: Tensor) -> Mapping[str, Tensor]:
        """Return ``probs`` and ``logits``, float32 ``(B, K)``; with the model's own prototypes the same as a call."""
        ...


class ExplainingPredictor(Predictor, Protocol):
    """Predictor that also returns attribution maps of its answers."""

    def explain(self, images: Tensor, labels: Tensor | None = None) -> Mapping[str, Tensor]:
        """Return the outputs of a call and their attributions, in one forward pass.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            labels: Class to explain for each image, int64 ``(B,)``; None: the one with the highest logit.

        Returns:
            The outputs of a call, ``attributions`` float32 ``(B, S, S)`` in [0, 1] (each map scaled by its own maximum)
            and ``explained``, the explained classes, int64 ``(B,)``, all on the CPU.

        Raises:
            ValueError: A label is not a class.
        """
        ...


def classification(
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    scores: Sequence[str | Slot] = (),
    prompt_template: str | None = None,
    explains: bool = False,
    flag: OutsideFlag | None = None,
) -> Signature:
    """Signature of an image classifier with one class per image.

    Args:
        classes: Names of the K classes.
        preprocessing: Conversion of an image file to the input ``images``, uint8 ``(S, S, 3)``.
        scores: Further outputs; a name alone stands for one float32 number per image.
        prompt_template: Sentence with one ``{}`` for the class name, of an open-vocabulary model; None for others.
        explains: Whether it gives attribution maps.
        flag: Rule that sets the output ``outside``, which must be among the scores; None: without one.

    Raises:
        ValueError: The prompt template does not have exactly one place for the name.
    """
    return _labels(Task.CLASSIFICATION, classes, preprocessing, scores, prompt_template, explains, flag)


def multi_label(
    classes: Sequence[str], preprocessing: Preprocessing, *, scores: Sequence[str | Slot] = (), explains: bool = False
) -> Signature:
    """Signature of an image classifier with any number of labels per image; arguments as in ``classification``."""
    return _labels(Task.MULTI_LABEL, classes, preprocessing, scores, None, explains, None)


def _labels(
    task: Task,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    scores: Sequence[str | Slot],
    prompt_template: str | None,
    explains: bool,
    flag: OutsideFlag | None,
) -> Signature:
    size = preprocessing.image_size
    inputs = [Slot(name=IMAGES, dtype="uint8", shape=(size, size, 3), image=preprocessing)]
    width = len(classes)
    about: dict[str, Any] = {
        "classes": list(classes),
        "resize": preprocessing.resize,
        "interpolation": preprocessing.interpolation,
    }
    if prompt_template is not None:
        if not isinstance(prompt_template, str) or prompt_template.count("{}") != 1:
            raise ValueError(
                f"prompt_template must be a string with one {{}} for the class name, got {prompt_template!r}"
            )
        names = (CLASSES, PROMPTS, PROMPT_CLASSES)
        inputs += [Slot(name=name, dtype="text", optional=True, shared=True) for name in names]
        width = -1
        about["prompt_template"] = prompt_template
    outputs = [Slot(name=name, dtype="float32", shape=(width,)) for name in ("probs", "logits")]
    outputs += [
        one if isinstance(one, Slot) else Slot(name=one, dtype="float32", decision=one == OUTSIDE) for one in scores
    ]
    if flag is not None:
        about[OUTSIDE] = asdict(flag)
    params: tuple[Param, ...] = ()
    if explains:
        outputs.append(Slot(name=ATTRIBUTIONS, dtype="float32", shape=(size, size), optional=True))
        outputs.append(Slot(name=EXPLAINED, dtype="int64", optional=True))
        params = EXPLAIN_PARAMS
    return Signature(kind=LABELS, task=task, inputs=tuple(inputs), outputs=tuple(outputs), params=params, about=about)


def prompts_by_class(
    template: str,
    classes: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    prompt_classes: Sequence[str] | None = None,
) -> dict[str, list[str]] | None:
    """Return the prompts of each class that a call to an open-vocabulary model names.

    Args:
        template: Sentence with ``{}`` for the class name.
        classes: Class names, each put into the template; None: not given.
        prompts: Prompts; None: not given.
        prompt_classes: The class of each prompt; classes are ordered by their first prompt.

    Returns:
        Prompts by class name; None where nothing is given, for the model's own classes.

    Raises:
        ValueError: Both ways are used, one of ``prompts`` and ``prompt_classes`` is missing or longer, there is no
            class, a class is named twice, or a text is empty or none.
    """
    for name, texts in ((CLASSES, classes), (PROMPTS, prompts), (PROMPT_CLASSES, prompt_classes)):
        if texts is not None:
            _check_texts(name, texts)
    if classes is not None:
        if prompts is not None or prompt_classes is not None:
            raise ValueError(
                f"a call must bring either {CLASSES} or {PROMPTS}, got both; the prompts name their classes"
            )
        if len(set(classes)) < len(classes):
            raise ValueError(f"{CLASSES} must be unique, got {', '.join(classes)}")
        return {name: [template.replace("{}", name)] for name in classes}
    if prompts is None and prompt_classes is None:
        return None
    if prompts is None or prompt_classes is None or len(prompts) != len(prompt_classes):
        counts = " and ".join("none" if texts is None else str(len(texts)) for texts in (prompts, prompt_classes))
        raise ValueError(f"{PROMPTS} and {PROMPT_CLASSES} must come together, one class for each prompt, got {counts}")
    found: dict[str, list[str]] = {}
    for prompt, name in zip(prompts, prompt_classes, strict=True):
        found.setdefault(name, []).append(prompt)
    return found


def _check_texts(name: str, texts: Sequence[str]) -> None:
    # A single text is a sequence of texts, too.
    if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{name} must be a list of at least one text, none empty, got {texts!r:.60}")


_CLASS: dict[str, Any] = {"type": ["string", "integer"]}
EXPLAIN_PARAMS = (
    Param(name=EXPLAIN, schema={"type": "boolean", "description": "true or false"}),
    Param(
        name=EXPLAIN_CLASS,
        schema={
            "anyOf": [_CLASS, {"type": "array", "items": _CLASS}],
            "description": "a class name or an index, or a list with one for each picture",
        },
    ),
)


# ---- regression: numbers with their uncertainty ----


class RegressionPredictor(Predictor, Protocol):
    """Regression model: predictions with their uncertainty, in the target's unit."""

    def interval(self, outputs: Mapping[str, Tensor], level: float) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends, each shaped like ``mean``, of the prediction interval at ``level``.

        Args:
            outputs: Outputs of a call.
            level: Nominal coverage, in (0, 1).
        """
        ...


def regression(
    targets: Sequence[str],
    inputs: Sequence[Slot],
    target_shape: Sequence[int] | None = None,
    parts: Sequence[str] = (),
) -> Signature:
    """Signature of a regression model, which gives ``mean`` and ``std``, and the bounds of an interval at a level.

    Args:
        targets: Names of the target's channels, with units.
        inputs: Its inputs.
        target_shape: Shape of one target, channels first, -1 for an axis that follows the inputs. None: the channels,
            and one axis of any length for each that a single input has after its first.
        parts: Names of further outputs shaped like ``mean``, such as the parts of the std.
    """
    if target_shape is None:
        following = inputs[0].shape[1:] if len(inputs) == 1 else ()
        target_shape = (len(targets), *(-1 for _ in following))
    shape = tuple(target_shape)
    outputs = [Slot(name=name, dtype="float32", shape=shape) for name in ("mean", "std", *parts)]
    outputs += [Slot(name=name, dtype="float32", shape=shape, optional=True) for name in (LOWER, UPPER)]
    return Signature(
        kind=REGRESSION,
        task=Task.REGRESSION,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        params=(LEVEL_PARAM,),
        about={"targets": list(targets)},
    )


LEVEL_PARAM = Param(
    name=LEVEL,
    repeated=True,
    schema={
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "a number between 0 and 1, such as 0.9",
        "examples": [0.9],
    },
)


# ---- concepts: what an image shows, which people may correct, and the class that follows ----


class ConceptPredictor(Predictor, Protocol):
    """Concept bottleneck whose class follows from concepts, and which realigns them after every correction."""

    def encode(self, images: Tensor) -> Tensor:
        """Return what the bottleneck needs to know of each image, float32 ``(B, D)`` on the CPU.

        Args:
            images: uint8 ``(B, S, S, 3)``; ``predictions`` float32 ``(B, K)`` of a model without images.
        """
        ...

    def pack(self, encoded: Tensor) -> Tensor:
        """Return ``encode``'s rows as states, uint8 ``(B, M)``, each with a checksum that names this model."""
        ...

    def unpack(self, states: Tensor) -> Tensor:
        """Return the rows that ``pack`` wrote.

        Raises:
            ValueError: A state was changed, or comes from another model.
        """
        ...

    def respond(
        self,
        encoded: Tensor,
        concept_values: Tensor | None = None,
        concept_mask: Tensor | None = None,
        concept_unknown: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """Return the outputs of every answer; arguments after the first as the inputs of a call."""
        ...

    def explain(self, images: Tensor, concepts: Tensor) -> Tensor:
        """Return where one concept of each image comes from: maps float32 ``(B, S, S)`` in [0, 1] on the CPU.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            concepts: Columns, int64 ``(B,)``.
        """
        ...


def concepts(
    classes: Sequence[str],
    names: Sequence[str],
    preprocessing: Preprocessing | None,
    *,
    state_size: int,
    groups: Mapping[str, Sequence[int]] | None = None,
    exclusive: Sequence[str] = (),
    costs: Mapping[str, float] | None = None,
    explains: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Signature:
    """Signature of a concept bottleneck, whose concepts a request may correct.

    Args:
        classes: Names of the C classes.
        names: Names of the K concepts.
        preprocessing: Conversion of an image file to the input ``images``; None for a model that takes the concepts
            ``predictions``, float32 ``(K,)``, which another model has predicted.
        state_size: Bytes M of the state that may come back in place of the image.
        groups: Columns of each group, asked together; None: concepts are asked one by one.
        exclusive: Groups of which at most one concept is true.
        costs: Cost of asking each group, or each concept where there are no groups; 1 where left out.
        explains: Whether it gives the map of a concept.
        about: Further facts for people and clients, as plain JSON.

    Returns:
        Inputs: the image, or a ``state`` in its place; ``concept_values`` float32 ``(K,)`` in [0, 1], used where
        ``concept_mask``, uint8 ``(K,)``, is 1; ``concept_unknown``, uint8 ``(K,)``, is 1 where nobody knows, so that it
        is not asked again. Outputs: ``probs`` and ``logits`` of the classes, ``concept_probs`` before and ``concepts``
        after corrections and realignment, ``next_concept``, the index of the question to ask next among
        ``about["questions"]``, -1 for none, and ``next_gain``, by which its answer is expected to lower the entropy of
        the class, in nats. Optional: ``attributions`` and ``explained``, ``state``.
    """
    num_concepts, num_classes = len(names), len(classes)
    if preprocessing is None:
        first = Slot(name=PREDICTIONS, dtype="float32", shape=(num_concepts,))
    else:
        size = preprocessing.image_size
        first = Slot(name=IMAGES, dtype="uint8", shape=(size, size, 3), image=preprocessing)
    state = Slot(name=STATE, dtype="uint8", shape=(state_size,), optional=True)
    row = (num_concepts,)
    outputs = [Slot(name=name, dtype="float32", shape=(num_classes,)) for name in ("probs", "logits")]
    outputs += [Slot(name=name, dtype="float32", shape=row) for name in (CONCEPT_PROBS, CONCEPTS)]
    outputs += [Slot(name=NEXT_CONCEPT, dtype="int64", decision=True)]
    outputs += [Slot(name=NEXT_GAIN, dtype="float32", decision=True)]  # of whichever question was chosen
    params = [Param(name=WITH_STATE, schema={"type": "boolean", "description": "true or false"})]
    if explains and preprocessing is not None:
        outputs.append(Slot(name=ATTRIBUTIONS, dtype="float32", shape=(size, size), optional=True))
        outputs.append(Slot(name=EXPLAINED, dtype="int64", optional=True))
        params += EXPLAIN_PARAMS
    questions = list(names if groups is None else groups)
    return Signature(
        kind=CONCEPTS,
        task=Task.CONCEPTS,
        inputs=(
            first,
            replace(state, replaces=first.name),
            Slot(name=CONCEPT_VALUES, dtype="float32", shape=row, optional=True),
            Slot(name=CONCEPT_MASK, dtype="uint8", shape=row, optional=True),
            Slot(name=CONCEPT_UNKNOWN, dtype="uint8", shape=row, optional=True),
        ),
        outputs=(*outputs, state),
        params=tuple(params),
        about={
            "classes": list(classes),
            "concepts": list(names),
            "questions": questions,
            "groups": None
            if groups is None
            else {name: [names[column] for column in columns] for name, columns in groups.items()},
            "exclusive": list(exclusive),
            "costs": {name: float((costs or {}).get(name, 1.0)) for name in questions},
            **(about or {}),
        },
    )


def target_shape(shape: Sequence[int], inputs: Sequence[Slot]) -> tuple[int, ...]:
    """Return the shape of a target, without the batch axis, with -1 for each axis whose length may vary.

    The first axis holds the channels and is fixed; the others may follow inputs of any length.

    Args:
        shape: Shape of one observed target, without the batch axis.
        inputs: Inputs of the model.
    """
    is_open = any(-1 in slot.shape for slot in inputs)
    return (*shape[:1], *(-1 if is_open else length for length in shape[1:]))


def scalar_params(signature: Signature) -> Iterator[Param]:
    """Parameters with one scalar type, which MLflow can declare and a predictor takes as keywords."""
    return (param for param in signature.params if isinstance(param.schema.get("type"), str))


# ---- bundles of format 1 ----


def signature_of_format_1(
    stored: Mapping[str, Any], observed: Sequence[int] | None = None, parts: Sequence[str] = ()
) -> Signature:
    """Return the signature of a model whose bundle stored its task, classes, and preprocessing or inputs instead.

    It may know less than the predictor's own, which has further scores, prompts or maps.

    Args:
        stored: Metadata of the bundle.
        observed: Of a regression: shape of one observed target; None: unknown.
        parts: Of a regression, as in ``regression``.

    Raises:
        KeyError, TypeError, ValueError: The metadata are not such.
    """
    task, columns = Task(stored["task"]), tuple(stored["classes"])
    inputs, preprocessing = stored.get("inputs", ()), stored["preprocessing"]  # older bundles, of images, lack inputs
    if bool(inputs) == (preprocessing is not None):
        raise ValueError(f"a model must have either preprocessing or inputs, got {preprocessing} and {inputs}")
    if task is Task.REGRESSION:
        slots = [
            Slot(
                name=each["name"],
                dtype=each["dtype"],
                shape=tuple(each["shape"]),
                image=None if each.get("max_value") is None else Pixels(max_value=each["max_value"]),
            )
            for each in inputs
        ]
        return regression(columns, slots, observed and target_shape(observed, slots), parts)
    constructors = {Task.CLASSIFICATION: classification, Task.MULTI_LABEL: multi_label}
    return constructors[task](columns, preprocessing_of(preprocessing))
