"""Requests for attribution maps: parameters, their checks, and the classes to explain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.limits import RefusedError, invalid
from serve.settings import ServeSettings

EXPLAIN = "explain"
EXPLAIN_CLASS = "explain_class"
ATTRIBUTIONS = "attributions"
"""Output, float32 ``(N, S, S)`` in [0, 1]: a map of each image, 1 at its maximum."""
EXPLAINED = "explained"
"""Output, int64 ``(N,)``: the class that each map explains."""

_BYTES_PER_NUMBER = 4
_BYTES_PER_NUMBER_IN_JSON = 22  # at most, for a float32 in [0, 1] with comma and space
_SHOWN_NAMES = 10


@dataclass(frozen=True)
class Explain:
    """A request for maps."""

    classes: tuple[str | int, ...] | None = None
    """Class names or indices: one for all images, or one for each; None: the class with the highest logit."""


def read_explain(parameters: Mapping[str, Any], is_named: bool, num_images: int) -> Explain | None:
    """Read the parameters of an infer request; None: no maps.

    Args:
        parameters: Parameters of the request.
        is_named: Whether the request names the output ``attributions`` or ``explained``, which also asks for maps.
        num_images: Number of images N.

    Raises:
        RefusedError: 422, for an invalid value.
    """
    wanted = parameters.get(EXPLAIN)
    if wanted is None:
        wanted = is_named
    elif not isinstance(wanted, bool):
        raise invalid(f"{EXPLAIN!r} must be true or false, got {_shown(wanted)}", "explain")
    elif is_named and not wanted:
        raise invalid(
            f"{EXPLAIN!r} is false, but the outputs {ATTRIBUTIONS!r} or {EXPLAINED!r} are asked for", "explain"
        )
    return choose(wanted, parameters.get(EXPLAIN_CLASS), num_images)


def choose(wanted: bool, classes: Any, num_images: int) -> Explain | None:
    """Check a request for maps as far as possible without the model; ``classes`` is the value of ``explain_class``.

    Raises:
        RefusedError: 422, for an invalid value.
    """
    if classes is None:
        return Explain() if wanted else None
    if not wanted:
        raise invalid(f"{EXPLAIN_CLASS!r} says which class to explain, so {EXPLAIN!r} must be true with it", "explain")
    each = classes if isinstance(classes, list) else [classes]
    if not all(isinstance(one, str | int) and not isinstance(one, bool) for one in each):
        raise invalid(
            f"{EXPLAIN_CLASS!r} must be a class name or an index, or a list with one for each picture, "
            f"got {_shown(classes)}",
            "explain",
        )
    if len(each) not in (1, num_images):
        raise invalid(
            f"{EXPLAIN_CLASS!r} must hold one class, or one for each of the pictures ({num_images}), got {len(each)}",
            "explain",
        )
    return Explain(tuple(each))


def check_size(num_images: int, image_size: int, in_json: bool, settings: ServeSettings) -> None:
    """Raise ``RefusedError`` (422) if the maps of N images exceed the limit of a reply."""
    of_one = image_size**2 * (_BYTES_PER_NUMBER_IN_JSON if in_json else _BYTES_PER_NUMBER)
    limit = settings.max_attribution_bytes
    if num_images * of_one > limit:
        way_out = f"explain at most {limit // of_one} at once" if limit >= of_one else "leave out 'explain'"
        if in_json:
            way_out += ", or ask for raw bytes (binary_data_output)"
        raise RefusedError(
            422,
            f"the maps of {num_images} pictures of {image_size}x{image_size} take up to {num_images * of_one} bytes, "
            f"and a reply may hold {limit} bytes of maps; {way_out}",
            "batch_size",
        )


class ClassIndex:
    """Class names and indices as clients write them, resolved to columns.

    Args:
        model: Name of the model, for refusals.
        classes: Names of the K classes; a duplicate name refers to the first.
    """

    def __init__(self, model: str, classes: tuple[str, ...]) -> None:
        self._model = model
        self._classes = classes
        self._columns = {name: column for column, name in reversed(list(enumerate(classes)))}

    def labels(self, explain: Explain, num_images: int) -> np.ndarray | None:
        """Class to explain for each image, int64 ``(N,)``; None: the class with the highest logit.

        A string is a name; if no class has that name and it consists of digits, it is an index.

        Raises:
            ValueError: An unknown class, or a number of classes other than 1 or N.
        """
        if explain.classes is None:
            return None
        columns = [self._column(one) for one in explain.classes]
        if len(columns) not in (1, num_images):
            raise ValueError(f"there must be one class to explain, or {num_images}, got {len(columns)}")
        return np.array(columns * num_images if len(columns) == 1 else columns, np.int64)

    def _column(self, given: str | int) -> int:
        column = given if isinstance(given, int) else self._columns.get(given)
        if column is None and isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 10:
            column = int(given)
        num_classes = len(self._classes)
        if column is None:
            names = ", ".join(self._classes[:_SHOWN_NAMES])
            more = f" ... ({num_classes} in all)" if num_classes > _SHOWN_NAMES else ""
            raise ValueError(f"model {self._model} has no class {_shown(given)} to explain; it has {names}{more}")
        if not 0 <= column < num_classes:
            raise ValueError(
                f"model {self._model} has no class {_shown(given)} to explain; its classes are 0 to {num_classes - 1}"
            )
        return column


def _shown(value: Any) -> str:
    """``repr`` of a value of the client, truncated."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
