"""The one table of networks: a family's name to its settings. Imported lazily."""

from dataclasses import dataclass

from tenfold.types import load_name


@dataclass(frozen=True, kw_only=True)
class Network:
    """A family of networks that one settings class describes."""

    config: str
    """``module:class`` of its settings."""

    def config_class(self) -> type:
        return load_name(self.config)


NETWORKS: dict[str, Network] = {
    "clip": Network(config="tenfold.models.clip:ClipConfig"),
    "digit_cnn": Network(config="tenfold.models.digit_cnn:DigitCnnConfig"),
    "image_classifier": Network(config="tenfold.models.image_classifier:ModelConfig"),
    "regressor": Network(config="tenfold.models.regressors.build:RegressorConfig"),
}
