"""Requests for attribution maps: their checks, and the classes or concepts to explain."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve.contract import Limits, RefusedError, invalid, shown
from serve.tasks.slots import check_param
from tenfold.tasks import ATTRIBUTIONS, EXPLAIN, EXPLAIN_CLASS, EXPLAIN_PARAMS, EXPLAINED

MAP_OUTPUTS = (ATTRIBUTIONS, EXPLAINED)
_BYTES_PER_NUMBER = 4
_BYTES_PER_NUMBER_IN_JSON = 22  # at most, for a float32 in [0, 1] with comma and space
_SHOWN_NAMES = 10


def read_explain(params: Mapping[str, Any], is_named: bool, num_images: int, noun: str = "class") -> dict[str, Any]:
    """Check the parameters of a request for maps.

    Args:
        params: Parameters of the request.
        is_named: Whether the request names the output ``attributions`` or ``explained``, which also asks for maps.
        num_images: Number of images N.
        noun: What is explained.

    Returns:
        Empty where no maps are asked for; else ``explain``, and ``explain_class``, a list of one class or N, where the
        request says which classes to explain.

    Raises:
        RefusedError: 422, for an invalid value.
    """
    of_explain, of_class = EXPLAIN_PARAMS
    wanted, classes = params.get(EXPLAIN), params.get(EXPLAIN_CLASS)
    if wanted is None:
        wanted = is_named
    elif not check_param(of_explain, wanted) and is_named:
        raise invalid(
            f"{EXPLAIN!r} is false, but the outputs {ATTRIBUTIONS!r} or {EXPLAINED!r} are asked for", "explain"
        )
    if classes is None:
        return {EXPLAIN: True} if wanted else {}
    if not wanted:
        raise invalid(f"{EXPLAIN_CLASS!r} says which {noun} to explain, so {EXPLAIN!r} must be true with it", "explain")
    each = classes if isinstance(classes, list) else [classes]
    if len(each) <= max(num_images, _SHOWN_NAMES):  # checking takes long for many
        check_param(of_class, classes, EXPLAIN)
    if len(each) not in (1, num_images):
        raise invalid(
            f"{EXPLAIN_CLASS!r} must hold one {noun}, or one for each of the pictures ({num_images}), got {len(each)}",
            "explain",
        )
    return {EXPLAIN: True, EXPLAIN_CLASS: each}


def check_explains(explains: bool, name: str, method: str) -> None:
    """Refuse a request for maps to a model that has none."""
    if not explains:
        sentence = f"model {name} (method {method}) gives no attribution maps"
        raise RefusedError(422, sentence, "explain", lacks=ATTRIBUTIONS)


def check_size(num_images: int, image_size: int, in_json: bool, limits: Limits) -> None:
    """Raise ``RefusedError`` (422) if the maps of N images exceed the limit of a reply."""
    of_one = image_size**2 * (_BYTES_PER_NUMBER_IN_JSON if in_json else _BYTES_PER_NUMBER)
    limit = limits.max_attribution_bytes
    if num_images * of_one > limit:
        way_out = f"explain at most {limit // of_one} at once" if limit >= of_one else "leave out 'explain'"
        if in_json:
            way_out += ", or ask for raw bytes (binary_data_output)"
        raise invalid(
            f"the maps of {num_images} pictures of {image_size}x{image_size} take up to {num_images * of_one} bytes, "
            f"and a reply may hold {limit} bytes of maps; {way_out}",
            "batch_size",
        )


class ClassIndex:
    """Names and indices of classes, or of concepts, as clients write them, resolved to columns.

    Args:
        model: Name of the model, for refusals.
        classes: Names of the K classes; a duplicate name refers to the first.
        nouns: One and several of what they name, for refusals.
    """

    def __init__(self, model: str, classes: Sequence[str], nouns: tuple[str, str] = ("class", "classes")) -> None:
        self._model = model
        self._noun, self._nouns = nouns
        self._classes = classes
        self._columns = {name: column for column, name in reversed(list(enumerate(classes)))}

    def labels(self, classes: Sequence[str | int] | None, num_images: int) -> np.ndarray | None:
        """Class to explain for each image, int64 ``(N,)``; None: the class with the highest logit.

        A string is a name; if no class has that name and it consists of digits, it is an index.

        Raises:
            RefusedError: 422 for an unknown class, or a number of classes other than 1 or N.
        """
        if classes is None:
            return None
        columns = [self._column(one) for one in classes]
        if len(columns) not in (1, num_images):
            raise invalid(f"there must be one {self._noun} to explain, or {num_images}, got {len(columns)}", "explain")
        return np.array(columns * num_images if len(columns) == 1 else columns, np.int64)

    def _column(self, given: str | int) -> int:
        column = given if isinstance(given, int) else self._columns.get(given)
        if column is None and isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 10:
            column = int(given)
        num_classes = len(self._classes)
        if column is None:
            names = ", ".join(self._classes[:_SHOWN_NAMES])
            more = f" ... ({num_classes} in all)" if num_classes > _SHOWN_NAMES else ""
            raise invalid(
                f"model {self._model} has no {self._noun} {shown(given)} to explain; it has {names}{more}", "explain"
            )
        if not 0 <= column < num_classes:
            raise invalid(
                f"model {self._model} has no {self._noun} {shown(given)} to explain; its {self._nouns} are 0 to "
                f"{num_classes - 1}",
                "explain",
            )
        return column
