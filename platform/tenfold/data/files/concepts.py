"""Concept data from disk: CUB-200-2011, Animals with Attributes 2 and CelebA.

Shapes: N images, K concepts, C classes.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tenfold.data.concepts import PARTS, ConceptData, ConceptSplit, Part, balanced_binary_concepts
from tenfold.data.files import cub_concepts
from tenfold.data.files.checks import check_settings, require_root
from tenfold.data.files.readers import cub
from tenfold.data.files.readers.awa2 import IMAGES, read_awa2
from tenfold.data.files.readers.celeba import read_celeba
from tenfold.data.images import FileImages, cache_images, file_table
from tenfold.hashing import bytes_sha256
from tenfold.types import ImageSource, Preprocessing

_LOG = logging.getLogger(__name__)

_NO_PICKLES = (
    "pickles are never read, and the split of the published ones came from the order of a folder and an unseeded "
    "shuffle, so it cannot be had again"
)
_MAX_CELEBA_CONCEPTS = 8  # 256 classes
_CELEBA_TRAIN, _CELEBA_TEST = 0.7, 0.2  # the rest is validation


@dataclass(frozen=True, kw_only=True)
class ConceptFilesConfig:
    """Location of a data set, and what each of them can be asked for."""

    name: str
    """Fixed by each data set; selects it."""
    root: str
    """Folder of the data set; its layout is documented with each reader."""
    costs: dict[str, float] | None = None
    """Cost of asking a group of concepts by its name, or a concept where there are no groups; one that is left out
    costs 1. None: all cost 1."""
    mirrorable: bool = True
    """Whether horizontal flips preserve concepts and class."""
    cache: str | None = None
    """Cache folder of decoded images (N * side^2 * 3 bytes for each size) and of CUB's attributes as parsed; None
    decodes and parses anew."""
    num_workers: int = 8
    """Decoding threads."""
    progress: bool = True

    def _check(self, name: str) -> None:
        check_settings(self.name, (name,), self.root, self.num_workers)
        if any(not 0 < cost < np.inf for cost in (self.costs or {}).values()):
            raise ValueError(f"costs must be positive, got {self.costs}")


@dataclass(frozen=True, kw_only=True)
class CubConceptsConfig(ConceptFilesConfig):
    """CUB-200-2011: 112 concepts in 28 groups, 200 classes."""

    name: str = "cub_concepts"
    """Fixed; selects this data set."""
    concepts: Literal["class", "image", "uncertain"] = "class"
    """Truth of an image: ``class``, what most training images of its class show; ``image``, its own labels, where
    negatives that are not visible are marked as not known; ``uncertain``, its own labels, and as value of training and
    correction the probability that the annotators' certainty stands for."""
    val_fraction: float = 0.2
    """Share of the official training list that becomes validation, drawn class by class."""
    split_seed: int = 0
    """Seed of that draw."""
    split_file: str | None = None
    """Text file of the ids of the validation images, one a line, as in ``images.txt``, absolute or relative to
    ``root``; all of them must be in the official training list, whose others are for training. None: drawn."""

    def __post_init__(self) -> None:
        self._check("cub_concepts")
        if self.concepts not in ("class", "image", "uncertain"):
            raise ValueError(f"concepts must be class, image or uncertain, got {self.concepts!r}")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie strictly between 0 and 1, got {self.val_fraction}")
        _check_seed(self.split_seed)
        if self.split_file is not None and Path(self.split_file).suffix in (".pkl", ".pickle"):
            raise ValueError(
                f"split_file must be a text file of image ids, got {self.split_file!r}; {_NO_PICKLES}; leave it out to "
                f"draw a split"
            )


@dataclass(frozen=True, kw_only=True)
class Awa2Config(ConceptFilesConfig):
    """Animals with Attributes 2: 85 concepts that follow from the 50 classes, without groups."""

    name: str = "awa2"
    """Fixed; selects this data set."""

    def __post_init__(self) -> None:
        self._check("awa2")


@dataclass(frozen=True, kw_only=True)
class CelebAConfig(ConceptFilesConfig):
    """CelebA: the attributes closest to even are the concepts, each combination of them is a class; without groups."""

    name: str = "celeba"
    """Fixed; selects this data set."""
    num_concepts: int = 8
    """Attributes that the classes are made of, 1..8."""
    hidden_concepts: int = 0
    """How many of these the model is not told of: the last ones in the order of the list. 0 to ``num_concepts`` - 1."""
    subset_fraction: float = 1 / 12
    """Share of all images that is used, drawn at random; of these 70 % are for training, 20 % for test."""
    split_seed: int = 42
    """Seed of the one draw of images and parts."""

    def __post_init__(self) -> None:
        self._check("celeba")
        if not 1 <= self.num_concepts <= _MAX_CELEBA_CONCEPTS:
            raise ValueError(f"num_concepts must lie in 1..{_MAX_CELEBA_CONCEPTS}, got {self.num_concepts}")
        if self.hidden_concepts < 0:
            raise ValueError(f"hidden_concepts must be at least 0, got {self.hidden_concepts}")
        if self.hidden_concepts >= self.num_concepts:
            raise ValueError(
                f"hidden_concepts must be less than num_concepts, {self.num_concepts}, got {self.hidden_concepts}; the "
                f"model needs a concept"
            )
        if not 0 < self.subset_fraction <= 1:
            raise ValueError(f"subset_fraction must lie in (0, 1], got {self.subset_fraction}")
        _check_seed(self.split_seed)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"split_seed must be in 0..2^32 - 1, got {seed}")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Lists of one part."""

    names: list[str]
    """Paths of the images inside ``folder``."""
    folder: Path
    labels: np.ndarray
    concepts: np.ndarray
    known: np.ndarray | None = None
    certainty: np.ndarray | None = None

    def paths(self) -> list[str]:
        """Return the full paths of the images."""
        return [f"{self.folder}/{name}" for name in self.names]


def load_cub_concepts(
    config: CubConceptsConfig, preprocessing: Preprocessing, train_size: int | None = None
) -> ConceptData:
    """Load CUB-200-2011 with the published concepts, rebuilt from the official files.

    The votes of the classes count the official training list, validation images included. Groups of which no class (no
    image, unless ``concepts`` is ``class``) has two concepts are exclusive. Facts: how many of the published concepts
    the published rule itself keeps, those that at least 10 classes have, and how many of all attributes.

    Args:
        config: Settings of the data set.
        preprocessing: The network's; all images are resized by it.
        train_size: Side of the training images before random crops; None: the network's size.

    Raises:
        ValueError: Anything missing or malformed, with its path and line; ``train_size`` below 1.
        OSError: No room for the cache.
    """
    root = require_root(config.root, config.name)
    _refuse_pickles(root)
    lists = cub.read_cub_attributes(root, config.cache)
    if len(lists.attributes) != cub_concepts.NUM_ATTRIBUTES:
        raise ValueError(
            f"{root}: attributes.txt must name {cub_concepts.NUM_ATTRIBUTES} attributes, got {len(lists.attributes)}"
        )
    official = np.flatnonzero(lists.is_train)
    votes = cub_concepts.vote_by_class(
        lists.present[official], lists.certainty[official], lists.labels[official], len(lists.classes)
    )
    kept = np.array(cub_concepts.KEPT)
    facts = _rule_facts(votes, kept)
    class_concepts = votes[:, kept] if config.concepts == "class" else None
    present, certainty = lists.present[:, kept], lists.certainty[:, kept]
    truth: dict[str, np.ndarray] = {"concepts": present}
    if class_concepts is not None:
        truth["concepts"] = class_concepts[lists.labels]
    elif config.concepts == "image":
        truth["known"] = (present == 1) | (certainty > 1)
    else:
        truth["certainty"] = cub_concepts.soft_values(present, certainty)

    if config.split_file is None:
        val = cub_concepts.split_by_class(official, lists.labels, config.val_fraction, config.split_seed)
    else:
        val = cub_concepts.read_val_rows(root / config.split_file, lists.is_train)
    rows = {"train": np.setdiff1d(official, val), "val": val, "test": np.flatnonzero(~lists.is_train)}
    parts: dict[Part, _Part] = {
        part: _Part(
            names=[lists.names[row] for row in rows[part]],
            folder=lists.folder,
            labels=lists.labels[rows[part]],
            **{name: values[rows[part]] for name, values in truth.items()},
        )
        for part in PARTS
    }
    names = [lists.attributes[column] for column in kept]
    groups = cub_concepts.group_by_name(names)
    return _data(
        config,
        preprocessing,
        train_size,
        parts,
        concepts=names,
        classes=lists.classes,
        groups=groups,
        exclusive=_exclusive(groups, truth["concepts"] if class_concepts is None else class_concepts),
        class_concepts=class_concepts,
        facts=facts,
    )


def load_awa2(config: Awa2Config, preprocessing: Preprocessing, train_size: int | None = None) -> ConceptData:
    """Load Animals with Attributes 2; arguments and errors as in ``load_cub_concepts``."""
    root = require_root(config.root, config.name)
    lists = read_awa2(root)
    prefix = f"{root / IMAGES}/"
    parts: dict[Part, _Part] = {
        part: _Part(
            names=[str(path).removeprefix(prefix) for path in lists.parts[part].images],
            folder=root / IMAGES,
            labels=lists.parts[part].labels,
            concepts=lists.class_attributes[lists.parts[part].labels],
        )
        for part in PARTS
    }
    return _data(
        config,
        preprocessing,
        train_size,
        parts,
        concepts=lists.attributes,
        classes=lists.classes,
        class_concepts=lists.class_attributes,
    )


def load_celeba(config: CelebAConfig, preprocessing: Preprocessing, train_size: int | None = None) -> ConceptData:
    """Load CelebA; arguments and errors as in ``load_cub_concepts``.

    Concepts and classes are chosen on all images, before the draw. A class is named by its concepts, hidden ones
    included, such as ``01101001``.
    """
    root = require_root(config.root, config.name)
    lists = read_celeba(root)
    if config.num_concepts > len(lists.attributes):
        raise ValueError(
            f"num_concepts must be at most the {len(lists.attributes)} attributes of {root}, got {config.num_concepts}"
        )
    chosen, classes, _ = balanced_binary_concepts(torch.from_numpy(lists.present), config.num_concepts)
    labels = classes.numpy()
    _, first = np.unique(labels, return_index=True)
    bits = lists.present[first][:, chosen.numpy()]  # (C, num_concepts)
    shown = config.num_concepts - config.hidden_concepts
    order = np.random.default_rng(config.split_seed).permutation(len(labels))
    order = order[: int(len(order) * config.subset_fraction)]
    num_train, num_test = (int(len(order) * share) for share in (_CELEBA_TRAIN, _CELEBA_TEST))
    rows = {
        "train": order[:num_train],
        "test": order[num_train : num_train + num_test],
        "val": order[num_train + num_test :],
    }
    parts: dict[Part, _Part] = {
        part: _Part(
            names=[lists.names[row] for row in rows[part]],
            folder=lists.folder,
            labels=labels[rows[part]],
            concepts=bits[labels[rows[part]], :shown],
        )
        for part in PARTS
    }
    return _data(
        config,
        preprocessing,
        train_size,
        parts,
        concepts=[lists.attributes[column] for column in chosen.tolist()][:shown],
        classes=["".join(map(str, row)) for row in bits],
        class_concepts=np.ascontiguousarray(bits[:, :shown]),
    )


def _refuse_pickles(root: Path) -> None:
    if (root / cub.FOLDER).is_dir():
        return
    found = next((path for pattern in ("*.pkl", "*/*.pkl") for path in sorted(root.glob(pattern))), None)
    if found is not None:
        raise ValueError(
            f"root must be the folder that holds the official files, {cub.FOLDER}/ and attributes.txt, got {root} with "
            f"{found.relative_to(root)}; {_NO_PICKLES}"
        )


def _rule_facts(votes: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """Count what the published rule keeps of the published concepts, and of all attributes."""
    by_rule = votes.sum(0) >= cub_concepts.MIN_CLASSES
    facts = {"concepts_kept_by_rule": float(by_rule[kept].sum()), "attributes_kept_by_rule": float(by_rule.sum())}
    _LOG.info(
        "at least %d classes have %d of the %d published concepts, and %d of all %d attributes",
        cub_concepts.MIN_CLASSES,
        facts["concepts_kept_by_rule"],
        len(kept),
        facts["attributes_kept_by_rule"],
        votes.shape[1],
    )
    return facts


def _exclusive(groups: Mapping[str, tuple[int, ...]], concepts: np.ndarray) -> tuple[str, ...]:
    """Return the groups of several concepts of which no row of ``concepts`` has two."""
    return tuple(
        name for name, columns in groups.items() if len(columns) > 1 and (concepts[:, columns].sum(1) <= 1).all()
    )


def _data(
    config: ConceptFilesConfig,
    preprocessing: Preprocessing,
    train_size: int | None,
    parts: Mapping[Part, _Part],
    *,
    concepts: Sequence[str],
    classes: Sequence[str],
    groups: Mapping[str, tuple[int, ...]] | None = None,
    exclusive: tuple[str, ...] = (),
    class_concepts: np.ndarray | None = None,
    facts: Mapping[str, float] | None = None,
) -> ConceptData:
    """Check that every image exists, and put the data set together."""
    for part, listed in parts.items():
        if not listed.names:
            raise ValueError(f"{config.root}: the {part} part of {config.name} holds no image; increase its share")
    size = preprocessing.image_size
    sides = {"train": size if train_size is None else train_size, "val": size, "test": size}
    names = [config.name, list(concepts), list(classes), groups, exclusive]
    fingerprint = _fingerprint(names, class_concepts, parts)
    splits = {
        part: ConceptSplit(
            images=_images(config, preprocessing, listed, sides[part]),
            concepts=listed.concepts,
            labels=listed.labels,
            known=listed.known,
            certainty=listed.certainty,
        )
        for part, listed in parts.items()
    }
    return ConceptData(
        name=config.name,
        concepts=tuple(concepts),
        classes=tuple(classes),
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        image_size=size,
        fingerprint=fingerprint,
        groups=groups,
        exclusive=exclusive,
        costs=config.costs or {},
        class_concepts=class_concepts,
        mirrorable=config.mirrorable,
        facts=facts or {},
    )


def _images(config: ConceptFilesConfig, preprocessing: Preprocessing, part: _Part, side: int) -> ImageSource:
    files = FileImages(
        part.paths(),
        side,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        num_workers=config.num_workers,
    )
    return files if config.cache is None else cache_images(files, config.cache, progress=config.progress)


def _fingerprint(names: list[Any], class_concepts: np.ndarray | None, parts: Mapping[Part, _Part]) -> str:
    """Return the SHA-256 of names, lists, labels, concepts and file sizes, independent of the location."""

    def chunks() -> Iterator[bytes]:
        yield json.dumps(names).encode()
        yield b"" if class_concepts is None else class_concepts.tobytes()
        for part, listed in parts.items():
            yield f"\0{part}\0".encode() + "\0".join(listed.names).encode()
            yield file_table(listed.paths())[0].tobytes() + listed.labels.tobytes() + listed.concepts.tobytes()
            for name in ("known", "certainty"):
                values = getattr(listed, name)
                if values is not None:
                    yield f"\0{name}\0".encode() + values.tobytes()

    return bytes_sha256(chunks())
