"""What is known of each data set in words: its domain, what its classes have in common, how it numbers them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Words for prompts."""

    word: str = ""
    """What the images show, with a space at its end; the domain words of DataDream."""
    concept: str | None = None
    """What the classes are; the high-level concepts of WaffleCLIP, None where it has none."""
    sort_case_insensitive: bool = False
    """Whether labels follow the names without regard to case, whatever the order in a descriptor file."""


DOMAINS: dict[str, Domain] = {
    "handwriting": Domain(word="digit ", concept="digit"),
    "mnist": Domain(word="digit ", concept="digit"),
    "imagenet": Domain(),
    "imagenetv2": Domain(),
    "imagenet_100": Domain(),
    "cub200": Domain(concept="bird"),
    "places365": Domain(concept="place"),
    "dtd": Domain(word="texture "),
    "food101": Domain(word="food ", concept="food"),
    "eurosat": Domain(word="satellite ", concept="land use"),
    "pets": Domain(word="pet ", concept="breed", sort_case_insensitive=True),
    "flowers102": Domain(word="flower "),
    "fgvc_aircraft": Domain(word="aircraft "),
    "cars": Domain(word="car "),
    "caltech101": Domain(),
    "sun397": Domain(word="scene "),
    "stl10": Domain(),
    "folders": Domain(),
    "cub_localisation": Domain(concept="bird"),
    "imagenet_localisation": Domain(),
    "openimages_localisation": Domain(),
}
"""By the name of the data set in a configuration."""
