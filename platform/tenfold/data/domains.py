"""Domain words and high-level concepts of the data sets, for prompts."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Words that describe a data set in prompts."""

    word: str = ""
    """Domain word of DataDream, with a trailing space."""
    concept: str | None = None
    """High-level concept of WaffleCLIP; None where it has none."""
    sort_case_insensitive: bool = False
    """Whether labels follow the case-insensitive order of the names, not the order of a descriptor file."""


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
"""Domains by the name of the data set in a configuration."""
