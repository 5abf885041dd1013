"""A model of this process: verified, compared with training, its calls batched. Independent of Ray and HTTP."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from serve.contract import (
    Answer,
    Batched,
    Call,
    Client,
    Conversing,
    Description,
    Failure,
    Meter,
    Outputs,
    RefusedError,
    Start,
    overloaded,
)
from serve.settings import ServedModel
from serve.tasks.batches import Batcher, joined
from serve.tasks.table import kind_of
from tenfold.bundle import Bundle, check_probe, load_bundle
from tenfold.tasks import Predictor
from tenfold.types import load_name

logger = logging.getLogger(__name__)


class Silent:
    """A meter that nobody reads."""

    def batch(self, num_examples: int, latency_ms: float) -> None: ...

    def texts(self, latency_ms: float) -> None: ...


def import_loader(dotted: str) -> Callable[[Bundle, str], Predictor]:
    """Import the function named by ``module:function``; raises ValueError if there is none."""
    module, _, name = dotted.partition(":")
    try:
        function: Callable[[Bundle, str], Predictor] = load_name(dotted)
    except AttributeError as error:
        raise ValueError(f"{module} has no function {name!r} that loads a predictor") from error
    return function


def as_declared(outputs: Outputs, description: Description) -> Outputs:
    """Convert outputs to the types that the signature declares; texts and what it does not declare stay as they are."""
    dtypes = {slot.name: slot.dtype for slot in description.signature.outputs if slot.dtype != "text"}
    return {name: values.astype(dtypes.get(name, values.dtype), copy=False) for name, values in outputs.items()}


def describe_bundle(model: ServedModel, bundle: Bundle) -> Description:
    """Describe a model from its bundle, before it is loaded."""
    metadata = bundle.metadata
    return Description(
        name=model.name,
        version=model.version,
        method=metadata.method,
        signature=metadata.signature,
        whole=metadata.format > 1,
    )


class LocalModel:
    """One version of a model in this process; a ``Client``.

    Served equals trained: every checksum of the bundle is verified, then the predictor must reproduce all outputs that
    training stored for the probe set. The slow first call happens here.

    Args:
        model: Bundle and batching settings.
        meter: Told the size and time of each batch.
        peers: Other models that it may ask, by name.

    Raises:
        BundleError: If a file was modified, or the outputs differ from those of training.
        ValueError: If the loader or the kind is not known.
    """

    def __init__(
        self, model: ServedModel, meter: Meter | None = None, peers: Mapping[str, Client] | None = None
    ) -> None:
        torch.set_num_threads(model.threads)
        bundle = load_bundle(model.folder)
        predictor = import_loader(model.loader)(bundle, model.device)
        difference = check_probe(bundle, predictor, model.probe_tolerance)
        logger.info("%s version %s: probe outputs within %.3g of training", model.name, model.version, difference)
        description = describe_bundle(model, bundle)
        if not description.whole:
            description = replace(description, signature=predictor.signature, whole=True)
        self._model, self._description = model, description
        meter = meter or Silent()
        start = Start(
            model=model,
            bundle=bundle,
            predictor=predictor,
            description=description,
            peers=peers or {},
            meter=meter,
        )
        self.loaded = loaded = kind_of(description.signature.kind).load(start)
        # One thread: concurrent calls of one predictor gain nothing, and the event loop stays free.
        self._executor = ThreadPoolExecutor(1, f"predict-{model.name}", torch.set_num_threads, (model.threads,))
        self._conversing: Conversing | None = None
        self._batched: tuple[Batched, Batcher] | None = None
        if isinstance(loaded, Conversing):
            self._conversing = loaded
        else:
            options: dict[str, Any] = {"max_weight": model.max_batch_size, "wait_s": model.batch_wait_s}
            self._batched = loaded, Batcher(loaded.run, self._executor, **options, meter=meter)
        self._ongoing = 0

    async def ask(self, call: Call, known_version: str, required_version: str | None = None) -> Answer | RefusedError:
        """Answer a call, batched with others; see ``Client``.

        Raises:
            RuntimeError: If the predictor failed.
        """
        this = self._description
        try:
            if required_version is not None and required_version != this.version:
                sentence = f"model {this.name} has no version {required_version!r}; served is: {this.version}"
                raise RefusedError(404, sentence, "unknown_model")
            outputs, spent = await self._answer(call)
        except RefusedError as error:
            error.description = this
            return error
        told = this if known_version != this.version else None
        return Answer(version=this.version, outputs=as_declared(outputs, this), spent=spent, description=told)

    async def _answer(self, call: Call) -> tuple[Outputs, Mapping[str, float]]:
        if self._batched is not None:
            self._batched[0].check(call)
        if self._ongoing >= self._model.ongoing_requests + self._model.max_queued_requests:
            raise overloaded(f"model {self._model.name} has as many requests waiting as it takes; try again")
        self._ongoing += 1
        try:
            if self._conversing is not None:
                return await self._conversing.answer(call)
            assert self._batched is not None
            batched, batcher = self._batched
            pieces = await batched.pieces(call)
            waits = [batcher.submit(piece, call.budget.deadline) for piece in pieces]
            results = [await waits[0]] if len(waits) == 1 else await asyncio.gather(*waits)
        finally:
            self._ongoing -= 1
        parts = []
        for result in results:
            if isinstance(result, Failure):
                raise RuntimeError(f"the predictor failed: {result.message}")  # noqa: TRY004 - not a matter of types
            if isinstance(result, RefusedError):
                raise result
            parts.append(result)
        return joined(parts), {}

    async def describe(self) -> Description:
        """Describe this version."""
        return self._description

    def ready(self) -> bool:
        """Return True: it is loaded."""
        return True

    async def check_health(self) -> None:
        """Raise if the predictor no longer works."""
        trying = self.loaded.try_out
        if inspect.iscoroutinefunction(trying):
            await trying()
        else:
            await asyncio.get_running_loop().run_in_executor(self._executor, trying)
