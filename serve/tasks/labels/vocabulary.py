"""Vocabulary of a request: class names or prompts, checked before anything is encoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.contract import Limits, invalid
from tenfold.tasks import CLASSES, PROMPT_CLASSES, PROMPTS

TEXT_INPUTS = (CLASSES, PROMPTS, PROMPT_CLASSES)
"""Optional text inputs: class names ``[K]``; or prompts ``[P]`` with the class of each ``[P]``, where classes are
ordered by their first prompt."""
CHECKED = Limits(max_classes=2**31, max_prompts=2**31, max_text_characters=2**31)
"""Limits for a vocabulary that was checked before."""


@dataclass(frozen=True)
class Vocabulary:
    """Classes of one request, at least one, in the order of the columns of its answer."""

    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...] | None = None
    """Prompts of each class, at least one; None: the model's prompt template with the class name."""

    def prompts_by_class(self, template: str) -> dict[str, tuple[str, ...]]:
        """Prompts by class name; ``template`` is the model's prompt template, with ``{}`` for the name."""
        if self.prompts is None:
            return {name: (template.replace("{}", name),) for name in self.classes}
        return dict(zip(self.classes, self.prompts, strict=True))

    def as_inputs(self) -> dict[str, np.ndarray]:
        """The text inputs of a call."""
        if self.prompts is None:
            return {CLASSES: np.array(self.classes, object)}
        return {
            PROMPTS: np.array([text for of_class in self.prompts for text in of_class], object),
            PROMPT_CLASSES: np.array(
                [name for name, of_class in zip(self.classes, self.prompts, strict=True) for _ in of_class], object
            ),
        }


def vocabulary_of(inputs: Mapping[str, np.ndarray], limits: Limits) -> Vocabulary | None:
    """Read and check the text inputs of a call; None: the model's own classes.

    Raises:
        RefusedError: 422, if they are invalid.
    """
    texts = {name: inputs[name].tolist() for name in TEXT_INPUTS if name in inputs}
    for name, given in texts.items():
        check_count(CLASSES if name == CLASSES else "prompts in all", len(given), limits)
    if (PROMPTS in texts) != (PROMPT_CLASSES in texts):
        raise invalid(f"{PROMPTS!r} and {PROMPT_CLASSES!r} come together: a text, and the class that it is about")
    if PROMPTS not in texts:
        return read_vocabulary(texts.get(CLASSES), None, limits)
    if len(texts[PROMPTS]) != len(texts[PROMPT_CLASSES]):
        lengths = f"{len(texts[PROMPTS])} and {len(texts[PROMPT_CLASSES])}"
        raise invalid(f"{PROMPTS!r} and {PROMPT_CLASSES!r} must be of one length, got {lengths}")
    prompts: dict[str, list[Any]] = {}
    for text, name in zip(texts[PROMPTS], texts[PROMPT_CLASSES], strict=True):
        if not isinstance(name, str):
            raise invalid(f"{PROMPT_CLASSES!r} must hold texts, got {name!r}")
        prompts.setdefault(name, []).append(text)
    return read_vocabulary(texts.get(CLASSES), prompts, limits)


def read_vocabulary(classes: Any, prompts: Any, limits: Limits) -> Vocabulary | None:
    """Read and check ``classes`` or ``prompts`` of a request.

    Args:
        classes: List of class names; None: not given.
        prompts: Object from class name to a list of prompts; None: not given.
        limits: The limits.

    Returns:
        The vocabulary; None if neither is given, for the model's own classes.

    Raises:
        RefusedError: 422, if either is invalid, or both are given.
    """
    if classes is None and prompts is None:
        return None
    if classes is not None and prompts is not None:
        raise invalid(
            f"a request brings either {CLASSES!r} or {PROMPTS!r}, not both: the prompts name their classes",
            "vocabulary",
        )
    if prompts is None:
        if not isinstance(classes, list):
            raise invalid(f"{CLASSES!r} must be a list of class names, got {_kind(classes)}", "vocabulary")
        return Vocabulary(_class_names(classes, CLASSES, limits))
    if not isinstance(prompts, Mapping):
        raise invalid(
            f"{PROMPTS!r} must be an object of class name to a list of texts, got {_kind(prompts)}", "vocabulary"
        )
    names = _class_names(list(prompts), PROMPTS, limits)
    check_count("prompts in all", sum(len(texts) for texts in prompts.values() if isinstance(texts, list)), limits)
    return Vocabulary(names, tuple(_prompts_of(name, prompts[name], limits) for name in names))


def check_count(what: str, count: int, limits: Limits) -> None:
    """Raise ``RefusedError`` (422) for too many classes (``what`` is ``classes``) or prompts."""
    limit = limits.max_classes if what == CLASSES else limits.max_prompts
    if count > limit:
        raise invalid(f"a request may bring at most {limit} {what}, got {count}", "vocabulary")


def _class_names(names: list[Any], field: str, limits: Limits) -> tuple[str, ...]:
    if not names:
        raise invalid(f"{field!r} must name at least one class", "vocabulary")
    check_count(CLASSES, len(names), limits)
    checked = tuple(_text(name, "a class name", limits) for name in names)
    seen: set[str] = set()
    for name in checked:
        if name in seen:
            raise invalid(f"{field!r} names the class {name!r} twice", "vocabulary")
        seen.add(name)
    return checked


def _prompts_of(name: str, texts: Any, limits: Limits) -> tuple[str, ...]:
    if not isinstance(texts, list) or not texts:
        got = "an empty list" if isinstance(texts, list) else _kind(texts)
        raise invalid(f"the prompts of {name!r} must be a list of at least one text, got {got}", "vocabulary")
    return tuple(_text(text, f"a prompt of {name!r}", limits) for text in texts)


def _text(value: Any, what: str, limits: Limits) -> str:
    if not isinstance(value, str):
        raise invalid(f"{what} must be a text, got {_kind(value)}", "vocabulary")
    if not value.strip():
        raise invalid(f"{what} must not be empty, got {value[:20]!r}", "vocabulary")
    if len(value) > limits.max_text_characters:
        raise invalid(
            f"{what} may have at most {limits.max_text_characters} characters, got {len(value)}", "vocabulary"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write as an escape
        raise invalid(f"{what} must be Unicode text: {error.reason}", "vocabulary") from error
    return value


def _kind(value: Any) -> str:
    """Name of a value's JSON type."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
