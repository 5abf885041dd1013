"""A trained multi-label classifier, ready to answer."""

from tenfold.bundle import Bundle
from tenfold.models.partial_labels.predictor import MultiLabelPredictor
from tenfold.models.partial_labels.predictor import load as load_multilabel_predictor


def load(bundle: Bundle, device: str = "cpu") -> MultiLabelPredictor:
    """The network that a bundle describes, with its weights.

    Raises:
        ValueError: The weights don't fit the network that the bundle's settings name.
    """
    return load_multilabel_predictor(bundle, device)
