"""Models small enough to check by hand, saved as real bundles; replicas import them by name."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from serve.settings import ServedModel
from tenfold.bundle import PROBE_FILE, Bundle, load_bundle, save_bundle, save_trained
from tenfold.tasks import OutsideFlag, Signature, Slot, classification, concepts, multi_label
from tenfold.types import Preprocessing, Task

LOADER = "tests.serving.stand_ins:load_predictor"
EXPLAINING_LOADER = "tests.serving.stand_ins:load_explaining_predictor"
OPEN_LOADER = "tests.serving.stand_ins:load_open_predictor"
CONCEPT_LOADER = "tests.serving.stand_ins:load_concept_predictor"
CLASSES = ("red", "green", "blue")
SIZE = 8
POISON = 251
"""An image whose first value is this makes the predictor raise, if the bundle says so."""
TEMPLATE = "a thing that is {}."
LOGIT_SCALE = 10.0
UNTIL = "until "
CONCEPTS = ("segment_top", "segment_low", "loop", "prime", "plain", "clouds", "stripes")
CONCEPT_GROUPS = {"segments": (0, 1), "loop": (2,), "kind": (3,), "background": (4, 5, 6)}
NUMBERS = ("three", "five", "eight", "nine")
"""Classes of the concept bottleneck."""
CHECKSUM_BYTES = 16


class ColourPredictor:
    """Logits are a linear map of the mean colour; the output ``batch_size`` counts the images of the call."""

    def __init__(self, bundle: Bundle) -> None:
        self.signature = bundle.metadata.signature
        self._weight = bundle.tensors()["weight"]
        self._delay_s = float(bundle.config["delay_s"])
        self._poisonable = bool(bundle.config["poisonable"])

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        time.sleep(self._delay_s)
        if self._poisonable and bool((images[:, 0, 0, 0] == POISON).any()):
            raise ValueError("a poisoned image")
        logits = images.double().mean(dim=(1, 2)).div(255).float() @ self._weight
        batch_size = torch.full((len(images), 1), float(len(images)))
        probs = logits.softmax(dim=1) if self.signature.task is Task.CLASSIFICATION else logits.sigmoid()
        return {"probs": probs, "logits": logits, "batch_size": batch_size}


class ExplainingPredictor(ColourPredictor):
    """The map scores each pixel by its evidence for the class; ``calls`` records what ran, on how many images."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.calls: list[tuple[str, int]] = []

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        self.calls.append(("predict", len(images)))
        return super().__call__(images)

    def explain(self, images: Tensor, labels: Tensor | None = None) -> Mapping[str, Tensor]:
        self.calls.append(("explain", len(images)))
        outputs = super().__call__(images)
        explained = outputs["logits"].argmax(dim=1) if labels is None else labels
        maps = torch.stack([colour_map(image, self._weight[:, k]) for image, k in zip(images, explained, strict=True)])
        return {**outputs, "attributions": maps, "explained": explained}


class OpenPredictor:
    """Cosine similarity of the mean colour and text embeddings, which count the letters r, g and b.

    The output ``num_encoded`` counts the class lists encoded so far, ``batch_size`` the images that shared the pass. A
    text with ``unreadable`` is refused, one with ``broken`` breaks the model, and encoding ``UNTIL`` plus a path waits
    until that file exists.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.signature = bundle.metadata.signature
        self._delay_s = float(bundle.config["delay_s"])
        self._prototypes = bundle.tensors()["prototypes"]
        self._num_encoded = 0
        self._batch_size = 0

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        return self.classify(self.embed(images), self._prototypes)

    def embed(self, images: Tensor) -> Tensor:
        time.sleep(self._delay_s)
        self._batch_size = len(images)
        return colour_of(images)

    def prototypes_of(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        texts = [text for of_class in prompts.values() for text in of_class]
        if any("unreadable" in text for text in texts):
            raise ValueError("a text must be readable, got unreadable")
        if any("broken" in text for text in texts):
            raise RuntimeError("the text tower broke down at /secret/path")
        for text in texts:
            if text.startswith(UNTIL):
                wait_for_file(Path(text.removeprefix(UNTIL)))
        self._num_encoded += 1
        return colours_of_texts(prompts)

    def classify(self, embeddings: Tensor, prototypes: Tensor) -> Mapping[str, Tensor]:
        logits = LOGIT_SCALE * embeddings @ prototypes.T
        told = torch.tensor([[float(self._num_encoded), float(self._batch_size)]]).expand(len(embeddings), 2)
        return {
            "probs": logits.softmax(dim=1),
            "logits": logits,
            "num_encoded": told[:, :1],
            "batch_size": told[:, 1:],
        }


class ConceptPredictor:
    """Logits of the concepts are a linear map of the mean colours of an image's quarters, those of the classes a linear
    map of the concepts.

    A correction moves the other concepts of its group towards where it went. The group with the largest entropy among
    its free concepts is asked next. ``calls`` records what ran, on how many rows.
    """

    def __init__(self, signature: Signature, weight: Tensor, head: Tensor) -> None:
        self.signature = signature
        self.calls: list[tuple[str, int]] = []
        self._weight, self._head = weight, head
        self._digest = hashlib.sha256(weight.numpy().tobytes() + head.numpy().tobytes()).digest()
        about = signature.about
        members = about["groups"] or {name: [name] for name in about["concepts"]}
        self._groups = torch.tensor(
            [[float(name in members[group]) for name in about["concepts"]] for group in about["questions"]]
        ).double()

    def __call__(
        self,
        images: Tensor | None = None,
        *,
        predictions: Tensor | None = None,
        state: Tensor | None = None,
        **corrections: Tensor | None,
    ) -> Mapping[str, Tensor]:
        seen = predictions if images is None else images
        return self.respond(self.encode(seen) if seen is not None else self.unpack(state), **corrections)

    def encode(self, images: Tensor) -> Tensor:
        self.calls.append(("encode", len(images)))
        if images.ndim == 2:
            return images.double().clamp(1e-6, 1 - 1e-6).logit().float()
        if bool((images[:, 0, 0, 0] == POISON).any()):
            raise ValueError("a poisoned image")
        half = images.shape[1] // 2
        quarters = images.double().div(255).unfold(1, half, half).unfold(2, half, half).mean(dim=(4, 5))
        return (quarters.flatten(1) @ self._weight.double()).float()

    def pack(self, encoded: Tensor) -> Tensor:
        rows = [row.numpy().tobytes() for row in encoded]
        packed = b"".join(row + self._checksum(row) for row in rows)
        return torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(len(rows), -1)

    def unpack(self, states: Tensor) -> Tensor:
        self.calls.append(("unpack", len(states)))
        rows = [row.numpy().tobytes() for row in states]
        for number, row in enumerate(rows):
            if self._checksum(row[:-CHECKSUM_BYTES]) != row[-CHECKSUM_BYTES:]:
                raise ValueError(f"state {number} must come unchanged from an answer of this version of the model")
        body = bytearray(b"".join(row[:-CHECKSUM_BYTES] for row in rows))
        return torch.frombuffer(body, dtype=torch.float32).view(len(rows), -1)

    def respond(
        self,
        encoded: Tensor,
        concept_values: Tensor | None = None,
        concept_mask: Tensor | None = None,
        concept_unknown: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        self.calls.append(("respond", len(encoded)))
        before = encoded.double().sigmoid()
        zeros = torch.zeros_like(before)
        values, mask, unknown = (
            zeros if given is None else given.double() for given in (concept_values, concept_mask, concept_unknown)
        )
        moved = (mask * (values - before)) @ (self._groups.T @ self._groups)
        concepts = torch.where(mask == 1, values, (encoded.double() + moved).sigmoid())
        logits = (concepts - 0.5) @ self._head.double()
        free = (1 - mask) * (1 - unknown)
        doubt = -(concepts * concepts.clamp_min(1e-9).log() + (1 - concepts) * (1 - concepts).clamp_min(1e-9).log())
        gain, question = ((free * doubt) @ self._groups.T).max(dim=1)
        question = torch.where(free.sum(1) > 0, question, -1)
        outputs = {
            "probs": logits.softmax(1), "logits": logits, "concept_probs": before, "concepts": concepts,
            "next_gain": torch.where(question < 0, 0.0, gain),
        }  # fmt: skip
        return {**{name: values.float() for name, values in outputs.items()}, "next_concept": question}

    def explain(self, images: Tensor, concepts: Tensor) -> Tensor:
        assert not torch.is_inference_mode_enabled()  # gradients would fail
        self.calls.append(("explain", len(images)))
        colours = self._weight.view(4, 3, -1).sum(0)
        return torch.stack([colour_map(image, colours[:, k]) for image, k in zip(images, concepts, strict=True)])

    def _checksum(self, row: bytes) -> bytes:
        return hashlib.sha256(self._digest + row).digest()[:CHECKSUM_BYTES]


def wait_for_file(path: Path) -> None:
    """Announce the wait with a file beside ``path``, then wait for ``path``."""
    path.with_suffix(".waiting").touch()
    deadline = time.monotonic() + 30
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} did not appear")
        time.sleep(0.02)


def colour_map(image: Tensor, weight: Tensor) -> Tensor:
    """Map ``(S, S)`` in [0, 1]: the pixels of ``(S, S, 3)`` projected on a class's weight ``(3,)``."""
    scores = image.float() @ weight
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else torch.zeros_like(scores)


def colour_of(images: Tensor) -> Tensor:
    """Mean colours as unit vectors ``(B, 3)``."""
    return normalize(images.double().mean(dim=(1, 2)) + 1.0, dim=1).float()


def colours_of_texts(prompts: Mapping[str, Sequence[str]]) -> Tensor:
    """Counts of r, g and b, averaged over the texts of each class: ``(K, 3)``."""
    counts = [[[text.count(letter) + 0.5 for letter in "rgb"] for text in texts] for texts in prompts.values()]
    return torch.stack([normalize(torch.tensor(of_class), dim=1).mean(dim=0) for of_class in counts])


def load_predictor(bundle: Bundle, device: str = "cpu") -> ColourPredictor:
    return ColourPredictor(bundle)


def load_explaining_predictor(bundle: Bundle, device: str = "cpu") -> ExplainingPredictor:
    return ExplainingPredictor(bundle)


def load_open_predictor(bundle: Bundle, device: str = "cpu") -> OpenPredictor:
    return OpenPredictor(bundle)


def load_concept_predictor(bundle: Bundle, device: str = "cpu") -> ConceptPredictor:
    return ConceptPredictor(bundle.metadata.signature, **bundle.tensors())


def colour_signature(
    task: Task,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    scores: Sequence[str | Slot] = (),
    explains: bool = False,
    flag: OutsideFlag | None = None,
) -> Signature:
    """Signature of a colour model, whose output ``batch_size`` comes before other scores."""
    outputs = [Slot(name="batch_size", dtype="float32", shape=(1,)), *scores]
    if task is Task.MULTI_LABEL:
        return multi_label(classes, preprocessing, scores=outputs, explains=explains)
    return classification(classes, preprocessing, scores=outputs, explains=explains, flag=flag)


def make_bundle(
    folder: Path,
    *,
    seed: int = 0,
    size: int = SIZE,
    delay_s: float = 0.0,
    poisonable: bool = False,
    shift: float = 0.0,
    classes: tuple[str, ...] = CLASSES,
    task: Task = Task.MULTI_LABEL,
    scale: float = 1.0,
    preprocessing: Preprocessing | None = None,
    **of_signature: object,
) -> Bundle:
    """Save a colour model; ``shift`` is added to the probe's logits, so that above the tolerance it fails the check."""
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(3, len(classes), generator=generator)
    images = torch.randint(0, 250, (4, size, size, 3), dtype=torch.uint8, generator=generator)
    logits = images.double().mean(dim=(1, 2)).div(255).float() @ weight
    return save_bundle(
        folder,
        config={"delay_s": delay_s, "poisonable": poisonable},
        tensors={"weight": weight},
        method="colour",
        signature=colour_signature(task, classes, preprocessing or Preprocessing(image_size=size), **of_signature),  # type: ignore[arg-type]
        metrics={"mAP": 0.5},
        data_name="none",
        data_fingerprint="0" * 64,
        files={PROBE_FILE: save({"images": images, "logits": logits + shift})},
    )


def make_open_bundle(
    folder: Path,
    *,
    delay_s: float = 0.0,
    size: int = SIZE,
    scores: Sequence[str] = ("num_encoded", "batch_size"),
    explains: bool = False,
    template: str | None = TEMPLATE,
) -> Bundle:
    """Save an open-vocabulary model; without a template it knows its own classes only."""
    prototypes = colours_of_texts(own_prompts(CLASSES))
    images = torch.randint(0, 250, (4, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return save_bundle(
        folder,
        config={"delay_s": delay_s},
        tensors={"prototypes": prototypes},
        method="zero_shot_colour",
        signature=classification(
            CLASSES,
            Preprocessing(image_size=size),
            scores=[Slot(name=name, dtype="float32", shape=(1,)) for name in scores],
            prompt_template=template,
            explains=explains,
        ),
        metrics={"accuracy": 0.5},
        data_name="none",
        data_fingerprint="0" * 64,
        files={PROBE_FILE: save({"images": images, "logits": LOGIT_SCALE * colour_of(images) @ prototypes.T})},
    )


def make_concept_bundle(
    folder: Path,
    *,
    seed: int = 0,
    size: int = SIZE,
    takes_images: bool = True,
    explains: bool = True,
    names: Sequence[str] = CONCEPTS,
    grouped: bool = True,
) -> Bundle:
    """Save a concept bottleneck of images, or of another model's predictions."""
    generator = torch.Generator().manual_seed(seed)
    signature = concepts(
        NUMBERS,
        names,
        Preprocessing(image_size=size) if takes_images else None,
        state_size=4 * len(names) + CHECKSUM_BYTES,
        groups=CONCEPT_GROUPS if grouped else None,
        exclusive=("background",) if grouped else (),
        costs={"background": 2.0} if grouped else None,
        explains=explains,
        about={"policy": "entropy"},
    )
    weight = torch.randn(12, len(names), generator=generator)
    head = 3 * torch.randn(len(names), len(NUMBERS), generator=generator)
    predictor = ConceptPredictor(signature, weight, head)
    first = signature.inputs[0]
    seen = torch.rand(4, *first.shape, generator=generator)
    seen = (250 * seen).to(torch.uint8) if takes_images else seen
    mask = torch.zeros(4, len(names), dtype=torch.uint8)
    mask[:, ::3] = 1
    corrections = {"concept_values": torch.ones(4, len(names)), "concept_mask": mask, "concept_unknown": 1 - mask}
    return save_trained(
        folder,
        predictor,
        [{first.name: seen}, {first.name: seen, **corrections}],
        config={},
        tensors={"weight": weight, "head": head},
        method="concept_colour",
        metrics={},
        data_name="none",
        data_fingerprint="0" * 64,
    )


def served(bundle: Bundle, name: str = "colour", version: str = "1", **options: object) -> ServedModel:
    fields = {"name": name, "version": version, "folder": str(bundle.folder), "loader": LOADER} | options
    return ServedModel(**fields)  # type: ignore[arg-type]


def own_prompts(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The prompts that a bare class name expands to."""
    return {name: (f"a thing that is {name}.",) for name in classes}


def expected_logits(folder: Path | str, images: Tensor) -> Tensor:
    """Logits that the predictor must return, computed without any serving code."""
    return ColourPredictor(load_bundle(folder))(images)["logits"]


def expected_map(folder: Path | str, image: Tensor, label: int) -> Tensor:
    """The map ``(S, S)`` that an ``ExplainingPredictor`` must return for an image ``(S, S, 3)`` and a class."""
    return colour_map(image, load_bundle(folder).tensors()["weight"][:, label])


def expected_open_probs(images: Tensor, prompts: Mapping[str, Sequence[str]]) -> Tensor:
    """Probabilities over the classes of a request, computed without any serving code."""
    return (LOGIT_SCALE * colour_of(images) @ colours_of_texts(prompts).T).softmax(dim=1)
