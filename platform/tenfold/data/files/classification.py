"""Single-label data sets from disk: lists, split, images and fingerprint in one call."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.classification import SPLITS, ClassificationData, ClassificationSplit, Split, check_splits
from tenfold.data.domains import DOMAINS
from tenfold.data.files.checks import check_disjoint, check_settings, require_root
from tenfold.data.files.readers import torchvision_sets
from tenfold.data.files.readers.cub import read_cub200
from tenfold.data.files.readers.folders import read_few_shots, read_folders
from tenfold.data.files.readers.image_lists import ImageList, ImageLists
from tenfold.data.files.readers.imagenet import read_imagenet, read_imagenet_100, read_imagenetv2
from tenfold.data.files.readers.split_files import read_split_file, read_text_lists
from tenfold.data.files.readers.stl10 import read_stl10
from tenfold.data.images import ArrayImages, FileImages, ResizedImages, cache_images, file_table
from tenfold.hashing import bytes_sha256
from tenfold.types import ImageSource, Preprocessing

_Reader = Callable[[Path, Sequence[Split]], ImageLists]
_READERS: dict[str, _Reader] = {
    "imagenet": read_imagenet,
    "imagenetv2": lambda root, parts: read_imagenetv2(root),
    "cub200": read_cub200,
    "places365": torchvision_sets.read_places365,
    "dtd": torchvision_sets.read_dtd,
    "food101": torchvision_sets.read_food101,
    "eurosat": torchvision_sets.read_eurosat,
    "pets": torchvision_sets.read_pets,
    "flowers102": torchvision_sets.read_flowers102,
    "cars": torchvision_sets.read_cars,
    "caltech101": torchvision_sets.read_caltech101,
    "sun397": torchvision_sets.read_sun397,
    "stl10": read_stl10,
    "folders": read_folders,
}
_NEED_SETTINGS = ("fgvc_aircraft", "imagenet_100")
NAMES = tuple(sorted((*_READERS, *_NEED_SETTINGS)))
"""Data sets that have a reader here."""


@dataclass(frozen=True, kw_only=True)
class ClassificationFilesConfig:
    """Name, location and split of the data set."""

    name: str
    """One of ``NAMES``; ``folders`` is any data set in ``{train,val,test}/<class>/`` or ``<class>/``."""
    root: str
    """Folder of the data set; its layout is documented with each reader."""
    split_file: str | None = None
    """Split file, absolute or relative to ``root``: a CSV with the header ``split,filename``, JSON of
    ``[path, label, name]`` by part, or a folder of ``train.txt`` ... with lines ``path,label`` (one such file is the
    training part). None: the official parts. A part that the file does not have is absent, except for the official
    test part."""
    few_shot_folder: str | None = None
    """Folder of prepared shots ``<class>/<file>``, absolute or relative to ``root`` (such as
    ``real_train_fewshot/seed0``), used as the training part; None: the training part of the lists."""
    level: str = "variant"
    """FGVC aircraft: 100 classes by ``variant``, or 70 by ``family``."""
    classes_file: str = "classes.txt"
    """imagenet_100: file of the classes in label order, a WordNet id and optionally a name a line, under ``root``."""
    domain_word: str | None = None
    """Domain of the images, for prompts, with a trailing space; None: the default of the data set."""
    concept: str | None = None
    """High-level concept of the classes; None: the default of the data set, an empty string: none."""
    mirrorable: bool = True
    """Whether horizontal flips preserve the class."""
    cache: str | None = None
    """Cache folder of decoded validation and test images (N * image_size^2 * 3 bytes); None decodes on every read.
    Training images are always decoded on every read, since few of many are used."""
    num_workers: int = 8
    """Decoding threads."""
    progress: bool = True

    def __post_init__(self) -> None:
        check_settings(self.name, NAMES, self.root, self.num_workers)
        if self.level not in ("variant", "family"):
            raise ValueError(f"level must be variant or family, got {self.level!r}")
        if self.level != "variant" and self.name != "fgvc_aircraft":
            raise ValueError(
                f"level must be variant for {self.name}, got {self.level!r}; only fgvc_aircraft has levels"
            )
        if self.domain_word and not self.domain_word.endswith(" "):
            raise ValueError(f"domain_word must end with a space, got {self.domain_word!r}")
        if self.split_file is not None and Path(self.split_file).suffix not in ("", ".csv", ".json", ".txt"):
            raise ValueError(f"split_file must be .csv, .json, .txt or a folder of lists, got {self.split_file!r}")


def load_classification_files(
    config: ClassificationFilesConfig, preprocessing: Preprocessing, splits: Sequence[str] = ("train", "val", "test")
) -> ClassificationData:
    """Load the requested parts and check that every image exists; images are decoded lazily unless cached.

    The test part is always loaded; a part that the data set does not have is None. The fingerprint covers the loaded
    parts.

    Raises:
        ValueError: Anything missing or malformed, with its path and what was expected; an image in two parts.
        OSError: No room for the cache.
    """
    root = require_root(config.root, config.name)
    wanted = tuple(part for part in SPLITS if part in (*check_splits(splits), "test"))
    lists = _read_lists(config, root, wanted)
    check_disjoint(
        config.name,
        {part: listed.images for part, listed in lists.parts.items() if isinstance(listed.images, list)},
    )
    sizes = {part: _sizes(listed) for part, listed in lists.parts.items()}
    domain = DOMAINS[config.name]
    loaded = {part: _split(config, part, listed, preprocessing) for part, listed in lists.parts.items()}
    if "test" not in loaded:
        raise ValueError(f"{root}: {config.name} has no test part here")
    return ClassificationData(
        name=config.name,
        classes=lists.classes,
        train=loaded.get("train"),
        val=loaded.get("val"),
        test=loaded["test"],
        image_size=preprocessing.image_size,
        fingerprint=_fingerprint(config.name, root, lists, sizes),
        domain_word=domain.word if config.domain_word is None else config.domain_word,
        concept=domain.concept if config.concept is None else config.concept or None,
        prompt_names=lists.prompt_names,
        prepared_shots=config.few_shot_folder is not None and "train" in loaded,
        sort_case_insensitive=domain.sort_case_insensitive,
        mirrorable=config.mirrorable,
    )


def _read_lists(config: ClassificationFilesConfig, root: Path, wanted: tuple[Split, ...]) -> ImageLists:
    prepared = config.few_shot_folder is not None and "train" in wanted
    read = _reader(config)
    official_parts = tuple(part for part in wanted if not (part == "train" and prepared))
    if config.split_file is None:
        lists = read(root, official_parts)
        parts = dict(lists.parts)
    else:
        path = root / config.split_file
        if path.suffix in (".csv", ".json"):
            lists = read(root, SPLITS)
            if any(isinstance(part.images, np.ndarray) for part in lists.parts.values()):
                raise ValueError(f"{config.name} stores its images in one file, so split_file must be null")
            divided = read_split_file(path, lists)
        else:
            lists = read(root, ("test",))
            divided = read_text_lists(path, root, len(lists.classes))
        parts = {part: divided[part] for part in official_parts if part in divided}
        parts.setdefault("test", lists.parts["test"])
    if prepared:
        parts["train"] = read_few_shots(root / str(config.few_shot_folder), lists.classes)
    return ImageLists(
        classes=lists.classes,
        parts={part: parts[part] for part in SPLITS if part in parts},
        prompt_names=lists.prompt_names,
    )


def _reader(config: ClassificationFilesConfig) -> _Reader:
    if config.name == "fgvc_aircraft":
        return lambda root, parts: torchvision_sets.read_fgvc_aircraft(root, parts, config.level)
    if config.name == "imagenet_100":
        return lambda root, parts: read_imagenet_100(root, parts, root / config.classes_file)
    return _READERS[config.name]


def _sizes(listed: ImageList) -> np.ndarray:
    """Return the file size of each image in bytes, int64 ``(N,)``."""
    if isinstance(listed.images, np.ndarray):
        return np.full(len(listed), listed.images[0].nbytes, dtype=np.int64)
    return file_table(listed.images)[0]


def _split(
    config: ClassificationFilesConfig, part: Split, listed: ImageList, preprocessing: Preprocessing
) -> ClassificationSplit:
    size, resize, interpolation = preprocessing.image_size, preprocessing.resize, preprocessing.interpolation
    images: ImageSource
    if isinstance(listed.images, np.ndarray):
        images = ArrayImages(listed.images)
        if listed.images.shape[1] != size:
            images = ResizedImages(images, size, resize=resize, interpolation=interpolation)
    else:
        files = FileImages(
            listed.images, size, resize=resize, interpolation=interpolation, num_workers=config.num_workers
        )
        images = files
        if config.cache is not None and part != "train":
            images = cache_images(files, config.cache, progress=config.progress)
    return ClassificationSplit(images=images, labels=listed.labels)


def _fingerprint(name: str, root: Path, lists: ImageLists, sizes: dict[Split, np.ndarray]) -> str:
    """Return the SHA-256 of classes, image file names and sizes, and labels, independent of the location."""
    prefix = f"{root}/"

    def chunks() -> Iterator[bytes]:
        yield json.dumps([name, lists.classes]).encode()
        for part, listed in lists.parts.items():
            yield f"\0{part}\0".encode()
            if isinstance(listed.images, np.ndarray):
                yield bytes.fromhex(bytes_sha256([np.ascontiguousarray(listed.images).data]))
            else:
                yield "\0".join(path.removeprefix(prefix) for path in listed.images).encode()
            yield sizes[part].tobytes() + listed.labels.tobytes()

    return bytes_sha256(chunks())
