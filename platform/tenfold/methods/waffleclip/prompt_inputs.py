"""Inputs of the prompts: class names, descriptors and vocabulary, checked against the data set."""

from dataclasses import dataclass
from pathlib import Path

from tenfold.data.classification import ClassificationData
from tenfold.data.descriptors import check_descriptors, read_descriptors, shipped_descriptors
from tenfold.methods.waffleclip.concepts import concept_prefix
from tenfold.methods.waffleclip.prompts import PREFIX
from tenfold.methods.waffleclip.settings import LISTS_NOT_NEEDED, Config
from tenfold.methods.waffleclip.text_files import read_names
from tenfold.methods.waffleclip.vocabulary import build_vocabulary
from tenfold.pretraining.tiny.captions import common_words


@dataclass(frozen=True)
class PromptInputs:
    """Inputs from which prompts are built; random streams depend on their order."""

    descriptors: dict[str, list[str]]
    """Class key to descriptors, in the order of the file."""
    keys: tuple[str, ...]
    """The same keys in label order."""
    vocabulary: list[str]
    """Words, sorted."""
    prefix: str
    """Text before the name of a class."""


def gather_prompt_inputs(config: Config, data: ClassificationData) -> PromptInputs:
    """Read and check the inputs that the modes of a configuration need.

    Raises:
        ValueError: A file is missing or malformed, a mode needs a descriptor file and there is none, the file's
            classes are not those of the data, a class has no descriptor, or a concept is required and there is none.
    """
    path = Path(config.descriptors) if config.descriptors is not None else shipped_descriptors(data.name)
    names = data.prompt_names or data.classes
    vocabulary = _vocabulary(config, path)
    if path is None:
        _refuse_without_lists(config, data)
        # These modes use the alphabet of the descriptors alone: that of the random words takes its place.
        lists = {name: [" ".join(vocabulary)] for name in names}
        keys = tuple(names)
    else:
        lists = read_descriptors(path)
        by_name = data.sort_case_insensitive
        check_descriptors(lists, data.classes, path, prompt_names=data.prompt_names, sort_case_insensitive=by_name)
        keys = tuple(sorted(lists, key=str.lower) if by_name else lists)
        if config.empty_lists == "refuse" and (empty := [key for key in lists if not lists[key]]):
            raise ValueError(
                f"{path} must hold descriptors of every class, got an empty list for {empty[0]!r} ({len(empty)} of "
                f"{len(lists)} classes); add descriptors, or set method.empty_lists=blank"
            )
    return PromptInputs(lists, keys, vocabulary, _prefix(config, data))


def _refuse_without_lists(config: Config, data: ClassificationData) -> None:
    if needing := [mode for mode in config.modes if mode not in LISTS_NOT_NEEDED]:
        raise ValueError(
            f"mode {needing[0]} needs descriptors of the {len(data.classes)} classes of {data.name!r}, got none; set "
            f"method.descriptors to a JSON file that maps class to list of texts (python -m "
            f"tenfold.methods.waffleclip.language writes one), or method.mode=waffle, which needs none"
        )


def _vocabulary(config: Config, descriptors: Path | None) -> list[str]:
    if config.vocabulary == "clip" or (config.vocabulary is None and descriptors is None):
        return list(common_words())
    if config.vocabulary is None:
        assert descriptors is not None
        return build_vocabulary([read_descriptors(descriptors)])
    path = Path(config.vocabulary)
    if not path.is_dir():
        return read_names(path)
    files = sorted(path.glob("*.json"))
    if not files:
        raise ValueError(f"vocabulary must be a folder with descriptor files (*.json), got none in {path}")
    return build_vocabulary([read_descriptors(each) for each in files])


def _prefix(config: Config, data: ClassificationData) -> str:
    if config.concept == "auto":
        prefix = concept_prefix(data.concept)
    elif config.concept != "none":
        prefix = concept_prefix(config.concept)
    else:
        prefix = config.prefix if config.prefix is not None else PREFIX
    if "context_prompt_ensemble" in config.modes and not (prefix.startswith(PREFIX) and ":" in prefix):
        raise ValueError(
            f"mode context_prompt_ensemble needs a concept, got none for data {data.name!r}; set method.concept to "
            f"what its classes have in common"
        )
    return prefix
