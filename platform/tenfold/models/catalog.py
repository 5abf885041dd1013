"""Table of networks: name of a family to its settings class, imported lazily."""

from dataclasses import dataclass

from tenfold.types import load_name


@dataclass(frozen=True, kw_only=True)
class Network:
    """Family of networks configured by one settings class."""

    config: str
    """Settings class as ``module:class``."""

    def config_class(self) -> type:
        """Import and return the settings class."""
        return load_name(self.config)


NETWORKS: dict[str, Network] = {
    "clip": Network(config="tenfold.models.clip:ClipConfig"),
    "digit_cnn": Network(config="tenfold.models.digit_cnn:DigitCnnConfig"),
    "image_classifier": Network(config="tenfold.models.image_classifier:ModelConfig"),
    "regressor": Network(config="tenfold.models.regressors.build:RegressorConfig"),
}
