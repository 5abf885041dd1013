"""What crosses the floors of serving: calls, answers and refusals, the clients of models, and the kinds of answers.

A protocol turns bytes into a ``Call`` and an ``Answer`` into bytes; a kind knows what a call means; a client carries
calls to a model, wherever it runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tenfold.tasks import Signature

_MIB = 2**20
_BYTES_PER_NUMBER, _BYTES_PER_NUMBER_IN_JSON = 4, 25  # at most, with sign, comma and space
FILE = "image"
"""Member of a JSON body, and field of a form, with an image file."""
Outputs = dict[str, np.ndarray]
"""Output name to values, first axis N."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request and its reply."""

    max_body_bytes: int = 16 * _MIB
    max_json_keys: int = 20_000
    """Maximum keys in the JSON of a body; a quoted colon in a text may count as one."""
    max_json_lists: int = 250_000
    """Maximum lists and objects in the JSON of a body, brackets in texts included; nested lists take most memory."""
    max_pixels: int = 16_000_000
    """Maximum width times height of a decoded image."""
    max_images: int = 256
    """Maximum images or other examples in one request."""
    max_values: int = 250_000
    """Maximum input values in one request to a regression model: an RGB image of 288x288."""
    max_classes: int = 1000
    """Maximum classes in one request to an open-vocabulary model."""
    max_prompts: int = 4000
    """Maximum prompts in one request, over all classes. On a CPU a large text encoder processes only a few per second;
    encoding continues after the request has timed out, and is cached for the next one."""
    max_text_characters: int = 500
    """Maximum length of a class name or prompt."""
    max_attribution_bytes: int = 16 * _MIB
    """Maximum size of the attribution maps of one reply: 4 bytes a pixel as raw bytes, up to 22 in JSON."""
    max_reply_bytes: int = 64 * _MIB
    """Maximum size of the values of a reply: 4 bytes each as raw bytes, up to 25 in JSON."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What answering may cost."""

    deadline: float | None = None
    """Time by which the answer is needed, in seconds since 1970; None: whenever."""
    queries: int | None = None
    """Questions that may still be put to other models; None: any number."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request to a model."""

    inputs: Mapping[str, np.ndarray]
    """Input name to values, first axis N; texts are arrays of objects."""
    params: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    """Wanted outputs; None: all that are not optional."""
    budget: Budget = Budget()


@dataclass(frozen=True, kw_only=True)
class Description:
    """Public description of one version of a model."""

    name: str
    version: str
    method: str
    signature: Signature
    whole: bool = True
    """False for a signature read from a bundle of format 1, which may know less than the model itself."""


class RefusedError(Exception):
    """A refused request; travels between processes as a value.

    Args:
        status: HTTP status.
        sentence: One sentence for the client.
        reason: One word for logs and metrics.
        headers: Further reply headers.
        lacks: Output that the model does not have; the refusal then names the models that do.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        reason: str,
        headers: Mapping[str, str] | None = None,
        lacks: str | None = None,
    ) -> None:
        super().__init__(status, sentence, reason, headers, lacks)
        self.status = status
        self.sentence = sentence
        self.reason = reason
        self.headers = dict(headers or {})
        self.lacks = lacks
        self.description: Description | None = None
        """Model that refused; None if no model saw the request."""

    def __str__(self) -> str:
        return self.sentence


def invalid(sentence: str, reason: str = "tensor") -> RefusedError:
    """A refusal (422) of content that the model does not take."""
    return RefusedError(422, sentence, reason)


def overloaded(sentence: str, retry_after_s: float = 1.0) -> RefusedError:
    """A refusal (503) for want of room."""
    # The header takes whole seconds only.
    return RefusedError(503, sentence, "overload", {"Retry-After": str(max(1, round(retry_after_s)))})


def shown(value: Any) -> str:
    """``repr`` of a value of the client, truncated."""
    text = repr(value[:81] if isinstance(value, list) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_reply(count: int, in_json: bool, limits: Limits) -> None:
    """Raise ``RefusedError`` (422) if a reply of so many values would be too large."""
    size = count * (_BYTES_PER_NUMBER_IN_JSON if in_json else _BYTES_PER_NUMBER)
    if size > limits.max_reply_bytes:
        way_out = "ask for fewer examples or outputs" + (", or for raw bytes over v2" if in_json else "")
        raise invalid(
            f"the reply would take up to {size} bytes, and may take {limits.max_reply_bytes}; {way_out}", "size"
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Outputs for all examples of one request, first axis N, in request order."""

    version: str
    outputs: Outputs
    spent: Mapping[str, float] = field(default_factory=dict)
    """What answering cost, such as questions put to other models."""
    description: Description | None = None
    """Set if the answering model is of another version than the caller knew."""


class Client(Protocol):
    """A served model: one of this process, one behind a Serve handle, or one of somebody else's server."""

    async def ask(self, call: Call, known_version: str, required_version: str | None = None) -> Answer | RefusedError:
        """Answer a call, or refuse it: a call that does not fit, or another version than the required one."""
        ...

    async def describe(self) -> Description:
        """Describe the running version; raises ``RefusedError`` if none is running."""
        ...

    def ready(self) -> bool:
        """Return whether a request would be answered now; asks nobody."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a person sent: a file, named values, or both."""

    content_type: str
    """``image/...``, ``multipart/form-data`` or ``application/json``."""
    file: bytes | None = None
    """Image file, not decoded; in JSON it came in base64."""
    file_field: str = ""
    """Field of the form that held it."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Members of the JSON object."""
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Text fields of the form, as written; a field may come several times."""
    query: Mapping[str, str] = field(default_factory=dict)
    accept: str = ""
    """The header ``Accept``."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A reply to look at."""

    content: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a kind is asked and answered by people, for the OpenAPI page."""

    properties: Mapping[str, Any]
    """JSON schemas of the members of the body, parameters of the request included."""
    required: tuple[str, ...]
    example: Mapping[str, Any]
    takes_file: bool
    query: Mapping[str, Any]
    """JSON schemas of the words of the query."""
    reply: Mapping[str, Any]
    """JSON schema of the members that the kind adds to the reply."""
    gives_picture: bool = False


class Kind(Protocol):
    """One kind of answer: a module of ``serve/tasks``, named in its table."""

    WORDS: tuple[str, ...]
    """Words of the query that it understands beside the parameters of the signature."""
    ACCEPTED: str
    """How people send something, for the refusal of another content type."""

    def read(self, sent: Sent, description: Description, limits: Limits) -> Call:
        """Read one example from people; raises ``RefusedError``."""
        ...

    def accept(self, call: Call, description: Description, limits: Limits, in_text: Callable[[str], bool]) -> Call:
        """Check and complete a call that came as tensors, before it goes to the model; raises ``RefusedError``.

        Args:
            call: Inputs of the right dtype by the names of the slots; parameters as sent.
            description: The model.
            limits: The limits.
            in_text: Whether an output of this name travels as text, which takes more room.
        """
        ...

    def misnamed(self, names: Sequence[Any], description: Description) -> RefusedError:
        """Refuse tensors whose names are not those of the inputs."""
        ...

    def show(
        self, answer: Answer, call: Call, description: Description, sent: Sent, limits: Limits
    ) -> Mapping[str, Any] | Picture:
        """Turn an answer into what people read or look at; raises ``RefusedError``."""
        ...

    def form(self, description: Description) -> Form:
        """Describe what ``read`` takes and ``show`` gives."""
        ...

    def load(self, start: "Start") -> "Batched | Conversing":
        """Prepare a verified predictor for calls; the slow first call happens here.

        Raises:
            BundleError: It does not behave as its signature says.
        """
        ...


class Meter(Protocol):
    """Sink of what a model does."""

    def batch(self, num_examples: int, latency_ms: float) -> None: ...

    def texts(self, latency_ms: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a kind loads from."""

    model: Any
    """``ServedModel``: batching and device."""
    bundle: Any
    """The verified bundle."""
    predictor: Any
    """Its predictor, whose answers to the probe set are those of training."""
    description: Description
    peers: Mapping[str, Client]
    """Other models that it may ask."""
    meter: Meter


@dataclass(frozen=True)
class Failure:
    """Result of a piece for which the predictor raised."""

    message: str


class Piece(Protocol):
    """All or part of a call, as an element of a batch."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    @property
    def weight(self) -> int:
        """Share of a batch, at most ``max_batch_size``."""
        ...


class Batched(Protocol):
    """A loaded model whose calls share batches."""

    def check(self, call: Call) -> None:
        """Raise ``RefusedError`` for a call that this version does not take."""
        ...

    async def pieces(self, call: Call) -> Sequence[Any]:
        """Split a checked call into pieces of at most one batch; raises ``RefusedError``."""
        ...

    def run(self, pieces: Sequence[Any]) -> Sequence[Outputs | RefusedError | Failure]:
        """Answer each piece, in order; called by one thread at a time."""
        ...

    def try_out(self) -> None:
        """Raise if the predictor no longer works, for example after a device error on a GPU."""
        ...


@runtime_checkable
class Conversing(Protocol):
    """A loaded model that asks other models while it answers one call."""

    async def answer(self, call: Call) -> tuple[Outputs, Mapping[str, float]]:
        """Return the outputs and what they cost; raises ``RefusedError``."""
        ...

    async def try_out(self) -> None:
        """Raise if it no longer works."""
        ...
