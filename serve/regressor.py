"""A regression model as a Serve deployment."""

from typing import Any

from serve.contract import Answer, Declined
from serve.loaded_regressor import LoadedRegressor
from serve.regression import Regression
from serve.replica import Replica
from serve.settings import ServedModel


class Regressor(Replica[LoadedRegressor]):
    """A bundle that answers with mean, std and intervals, verified at start and batched across requests.

    Args:
        model: What to load and how to batch.

    Raises:
        BundleError: If the bundle is not what was trained; the replica then does not start.
    """

    def __init__(self, model: ServedModel) -> None:
        super().__init__(model, LoadedRegressor)

    async def regress(
        self, asked: Regression, known_version: str, required_version: str | None = None
    ) -> Answer | Declined:
        """Outputs for the inputs of one request, sharing batches with other requests; see ``ModelClient``."""
        if declined := self._loaded.decline(asked, required_version):
            return declined
        return await self._answer(self._loaded.pieces(asked), known_version)

    async def infer(self, *_: Any) -> Declined:
        """Pictures for a model that this one has just replaced."""
        return self._other_task()
