"""The one table of methods: name to recipe, predictor and task. What jobs and endpoints look up; imported lazily."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tenfold.bundle import Bundle, load_bundle
from tenfold.models.catalog import NETWORKS
from tenfold.types import Predictor, Task


@dataclass(frozen=True, kw_only=True)
class Method:
    """A room of the house, by the modules of its three doors."""

    task: Task
    room: str
    extends: str | None = None
    """The method whose room this one may import, because it builds on it; None: no other."""
    network: str = "image_classifier"
    """The family of networks that it takes, by its name in ``NETWORKS``: a job's group ``model``."""

    def config_class(self) -> type:
        """The method's ``Config``; its module imports no network, so that looking at settings is quick."""
        return import_module(f"{self.room}.settings").Config

    def model_class(self) -> type:
        """The settings class of the job's network."""
        return NETWORKS[self.network].config_class()

    def recipe(self) -> ModuleType:
        """Module with ``train(job, run)`` and ``evaluate(predictor, data, run)``."""
        return import_module(f"{self.room}.recipe")

    def predictor(self) -> ModuleType:
        """Module with ``load(bundle, device)``."""
        return import_module(f"{self.room}.predictor")


METHODS: dict[str, Method] = {
    "boostlu": Method(task=Task.MULTI_LABEL, room="tenfold.methods.boostlu", extends="large_loss"),
    "calm": Method(task=Task.CLASSIFICATION, room="tenfold.methods.calm"),
    "datadream": Method(task=Task.CLASSIFICATION, room="tenfold.methods.datadream", network="clip"),
    "gradient_uncertainty": Method(
        task=Task.CLASSIFICATION,
        room="tenfold.methods.gradient_uncertainty",
        network="digit_cnn",
    ),
    "large_loss": Method(task=Task.MULTI_LABEL, room="tenfold.methods.large_loss"),
    "posterior_annealing": Method(
        task=Task.REGRESSION,
        room="tenfold.methods.posterior_annealing",
        network="regressor",
    ),
    "waffleclip": Method(task=Task.CLASSIFICATION, room="tenfold.methods.waffleclip", network="clip"),
}


def method(name: str) -> Method:
    """The entry of a method.

    Raises:
        ValueError: No such method.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def load_predictor(bundle: Bundle | Path | str, device: str = "cpu") -> Predictor:
    """A bundle as a predictor on a device; a folder is verified first.

    Raises:
        ValueError: The folder is no intact bundle (``BundleError``), or its method is unknown here.
    """
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    return method(bundle.metadata.method).predictor().load(bundle, device)
