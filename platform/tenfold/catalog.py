"""Table of methods: name to recipe, predictor and task. Imports methods lazily."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tenfold.bundle import Bundle, load_bundle
from tenfold.models.catalog import NETWORKS
from tenfold.tasks import Predictor
from tenfold.types import Task


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method and the modules of its package."""

    task: Task
    room: str
    extends: str | None = None
    """Method that this one builds on and may import; None: none."""
    network: str = "image_classifier"
    """Family of networks, by its name in ``NETWORKS``; selects the settings of the job group ``model``."""

    def config_class(self) -> type:
        """Return the method's ``Config``; its module imports no networks and loads quickly."""
        return import_module(f"{self.room}.settings").Config

    def model_class(self) -> type:
        """Return the settings class of the job's network."""
        return NETWORKS[self.network].config_class()

    def recipe(self) -> ModuleType:
        """Import the module with ``train(job, run)`` and ``evaluate(predictor, data, run)``."""
        return import_module(f"{self.room}.recipe")

    def predictor(self) -> ModuleType:
        """Import the module with ``load(bundle, device)``."""
        return import_module(f"{self.room}.predictor")


METHODS: dict[str, Method] = {
    "boostlu": Method(task=Task.MULTI_LABEL, room="tenfold.methods.boostlu", extends="large_loss"),
    "calm": Method(task=Task.CLASSIFICATION, room="tenfold.methods.calm"),
    "concept_realignment": Method(task=Task.CONCEPTS, room="tenfold.methods.concept_realignment"),
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
    """Look up a method.

    Raises:
        ValueError: If there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def load_predictor(bundle: Bundle | Path | str, device: str = "cpu") -> Predictor:
    """Load the predictor of a bundle on a device; a folder is verified first.

    Raises:
        ValueError: If the folder is not an intact bundle (``BundleError``), or its method is unknown.
    """
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    return method(bundle.metadata.method).predictor().load(bundle, device)
