"""Ray Serve deployment of a regression model."""

from typing import Any

from serve.contract import Answer, Declined
from serve.loaded_regressor import LoadedRegressor
from serve.regression import Regression
from serve.replica import Replica
from serve.settings import ServedModel


class Regressor(Replica[LoadedRegressor]):
    """Replica of a regression model: verified at start, batched across requests.

    Args:
        model: Bundle and batching settings.

    Raises:
        BundleError: If the bundle differs from what was trained; the replica does not start.
    """

    def __init__(self, model: ServedModel) -> None:
        super().__init__(model, LoadedRegressor)

    async def regress(
        self, asked: Regression, known_version: str, required_version: str | None = None
    ) -> Answer | Declined:
        """Predict the inputs of one request, batched with other requests; see ``ModelClient``."""
        if declined := self._loaded.decline(asked, required_version):
            return declined
        return await self._answer(self._loaded.pieces(asked), known_version)

    async def infer(self, *_: Any) -> Declined:
        """Decline images meant for a classifier that this model has just replaced."""
        return self._other_task()
