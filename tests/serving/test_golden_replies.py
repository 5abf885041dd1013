"""Recorded replies of the HTTP application: a change of its code must leave every byte of them as it is.

``python -m tests.serving.test_golden_replies --record`` writes ``golden_replies.json`` anew.

Decimal fractions may differ by 1e-6, because float32 rounds differently on another processor, and PNGs are compared by
their pixels. All other bytes count, also white space and the order of keys.
"""

import base64
import io
import json
import math
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tenfold
from serve.clients.local import LocalModel
from serve.contract import RefusedError
from serve.http.keys import Keys
from tenfold.bundle import save_trained
from tenfold.tasks import OutsideFlag, Pixels, Slot, regression
from tenfold.types import Preprocessing, Task
from tests.serving.local import LocalService
from tests.serving.stand_ins import (
    EXPLAINING_LOADER,
    SIZE,
    ColourPredictor,
    OpenPredictor,
    colour_map,
    make_bundle,
    make_open_bundle,
    served,
)

RECORDING = Path(__file__).with_name("golden_replies.json")
HERE = "tests.serving.test_golden_replies"
REQUEST_ID = "golden-1"
TOLERANCE = 1e-6
KEY = "a-key-for-tests"
HEADERS = re.compile(
    r"content-type|x-request-id|tenfold-.*|retry-after|www-authenticate|inference-header-content-length|allow|location"
)


# -- models whose arithmetic is exact, or nearly so


class SteadyOpenPredictor(OpenPredictor):
    """Leaves out the count of encoded lists, which depends on earlier requests."""

    def classify(self, embeddings, prototypes):
        return {
            name: value for name, value in super().classify(embeddings, prototypes).items() if name != "num_encoded"
        }


class ExplainingOpenPredictor(SteadyOpenPredictor):
    """Has an open vocabulary and maps of its own classes."""

    def explain(self, images, labels=None):
        outputs = self(images)
        explained = outputs["logits"].argmax(dim=1) if labels is None else labels
        maps = [colour_map(image, self._prototypes[k]) for image, k in zip(images, explained, strict=True)]
        return {**outputs, "attributions": torch.stack(maps), "explained": explained}


FLAG = OutsideFlag(score="predictive_entropy", threshold=0.5, false_positive_rate=0.05)
DOUBTS = ("predictive_entropy", "mutual_information", "variation_ratio", "outside")


class DoubtingPredictor(ColourPredictor):
    """Scores its uncertainty by brightness, and flags bright images."""

    def __call__(self, images):
        score = images.double().mean(dim=(1, 2, 3)).div(256).float()
        doubt = {"predictive_entropy": score, "mutual_information": score / 2, "variation_ratio": score / 4}
        return {**super().__call__(images), **doubt, "outside": (score > FLAG.threshold).float()}


class FaultyPredictor(ColourPredictor):
    """Gives NaN, or one probability too few, if the first value of the images says so."""

    def __call__(self, images):
        outputs, first = super().__call__(images), int(images[0, 0, 0, 0])
        if first == 251:
            outputs = {name: value * math.nan for name, value in outputs.items()}
        return {**outputs, "probs": outputs["probs"][:, :2]} if first == 252 else outputs


def _molecule(features, positions, n_atoms):
    if int(n_atoms.max()) > features.shape[1]:
        raise ValueError(f"n_atoms must be at most {features.shape[1]}, got {int(n_atoms.max())}")
    return (features.sum(dim=(1, 2)) + positions.sum(dim=(1, 2)) + n_atoms)[:, None]


def _schema(name, shape, dtype="float32", max_value=None):
    return Slot(name=name, dtype=dtype, shape=shape, image=Pixels(max_value=max_value) if max_value else None)


_ATOMS = (_schema("features", (-1, 15)), _schema("positions", (-1, 3)), _schema("n_atoms", (), "int64"))
REGRESSIONS = {
    "series": ((_schema("input", (2, -1)),), ("x [m]", "y [m]"), lambda input: 2 * input.flip(1)),
    "table": ((_schema("input", (3,)),), ("bone",), lambda input: input.sum(dim=1, keepdim=True)),
    "table-3": ((_schema("input", (3,), "int64"),), ("bone",), lambda input: input.sum(dim=1, keepdim=True).float()),
    "counts": ((_schema("counts", (4,), "uint8"),), ("sum", "first"), lambda counts: counts[:, :2].float() / 2),
    "molecule": (_ATOMS, ("energy [eV]",), _molecule),
    "image": (
        (_schema("input", (3, -1, -1), max_value=1.0),),
        ("red", "green", "blue"),
        lambda input: input.repeat_interleave(2, 2).repeat_interleave(2, 3),
    ),
    "grey": ((_schema("input", (1, -1, -1), max_value=256.0),), ("grey",), lambda input: 128 - input / 2),
    "measure": (
        (_schema("input", (3, -1, -1), max_value=255.0),),
        ("width", "height"),
        lambda input: torch.tensor([[float(input.shape[3]), float(input.shape[2])]]).expand(len(input), 2),
    ),
}
"""Inputs, targets and mean of each kind of regression."""


class StandInRegressor:
    """Its parts of the std are fixed shares, and its interval is as many stds wide as four times the level."""

    def __init__(self, kind):
        inputs, targets, self._mean = REGRESSIONS[kind]
        shape = {"series": (2, -1), "image": (3, -1, -1), "grey": (1, -1, -1)}.get(kind, (len(targets),))
        self.signature = regression(targets, inputs, shape, ("aleatoric", "epistemic"))

    def __call__(self, **inputs):
        mean = self._mean(**inputs)
        std = mean.abs() / 2 + 1
        return {"mean": mean, "std": std, "aleatoric": std * 0.75, "epistemic": std * 0.25}

    def interval(self, outputs, level):
        half = outputs["std"] * (2 * level)
        return outputs["mean"] - half, outputs["mean"] + half


def load_open_predictor(bundle, device="cpu"):
    return SteadyOpenPredictor(bundle)


def load_both_predictor(bundle, device="cpu"):
    return ExplainingOpenPredictor(bundle)


def load_doubting_predictor(bundle, device="cpu"):
    return DoubtingPredictor(bundle)


def load_faulty_predictor(bundle, device="cpu"):
    return FaultyPredictor(bundle)


def load_regressor(bundle, device="cpu"):
    return StandInRegressor(bundle.config["kind"])


def make_regression_bundle(folder, kind):
    """Save a stand-in with probes of two examples, whose open axes have length 4."""
    predictor = StandInRegressor(kind)
    shapes = {
        one.name: (2, *(4 if length < 0 else length for length in one.shape)) for one in predictor.signature.inputs
    }
    probes = {
        one.name: torch.ones(shapes[one.name], dtype=getattr(torch, one.dtype)) for one in predictor.signature.inputs
    }
    return save_trained(
        folder,
        predictor,
        probes,
        config={"kind": kind},
        tensors={"none": torch.zeros(1)},
        method="stand_in",
        metrics={},
        data_name="none",
        data_fingerprint="0" * 64,
    )


_CUT = Preprocessing(image_size=SIZE, resize="crop", interpolation="bicubic")
MODELS = {
    "colour": (make_bundle, {}, {"version": "1"}),
    "tints": (make_bundle, {"seed": 1, "explains": True}, {"version": "3", "loader": EXPLAINING_LOADER}),
    "scripts": (
        make_bundle,
        {"seed": 2, "classes": ("größe\n", "猫", "a b"), "explains": True},
        {"loader": EXPLAINING_LOADER},
    ),
    "many": (
        make_bundle,
        {"seed": 2, "classes": tuple(f"c{k}" for k in range(12)), "explains": True},
        {"loader": EXPLAINING_LOADER},
    ),
    "cut": (make_bundle, {"task": Task.CLASSIFICATION, "preprocessing": _CUT}, {}),
    "open": (make_open_bundle, {"scores": ("batch_size",)}, {"loader": f"{HERE}:load_open_predictor"}),
    "both": (
        make_open_bundle,
        {"scores": ("batch_size",), "explains": True},
        {"loader": f"{HERE}:load_both_predictor"},
    ),
    "doubt": (
        make_bundle,
        {"task": Task.CLASSIFICATION, "scores": DOUBTS, "flag": FLAG},
        {"loader": f"{HERE}:load_doubting_predictor"},
    ),
    "faulty": (make_bundle, {}, {"loader": f"{HERE}:load_faulty_predictor"}),
    **{
        kind: (make_regression_bundle, {"kind": kind}, {"version": "2", "loader": f"{HERE}:load_regressor"})
        for kind in REGRESSIONS
    },
    # Versions that follow in a roll-out.
    "tints-4": (
        make_bundle,
        {"size": 5, "seed": 3, "classes": ("cyan", "pink"), "explains": True},
        {"loader": EXPLAINING_LOADER},
    ),
}
ALL = tuple(name for name in MODELS if "-" not in name)


# -- services


class Services:
    """Services by name, built when first asked for."""

    def __init__(self, folder):
        self._folder = folder
        self._bundles = {}
        self._kept = {}

    def __getitem__(self, name):
        build, is_kept = SERVICES[name]
        if not is_kept:
            return build(self)
        if name not in self._kept:
            self._kept[name] = build(self)
        return self._kept[name]

    def serve(self, *names, is_warm=True, versions=(), **options):
        """Serve models; a warm service has heard from all of them what they can do."""
        service = LocalService([self._served(name, dict(versions)) for name in names], raises=False, **options)
        if is_warm:
            service.http.get("/v2/health/ready")
        return service

    def rolling(self, name, *, to, version="4", flips=False):
        """Serve a model that was replaced since the application has heard of it."""
        service = self.serve(name)
        new = LocalModel(self._served(to, {to: (name, version)}))
        old = LocalModel(self._served(name, {}))
        service.clients[name].become(*((new, old) if flips else (new,)))
        return service

    def _served(self, name, versions):
        make, settings, options = MODELS[name]
        if name not in self._bundles:
            self._bundles[name] = make(self._folder / name, **settings)
        served_name, version = versions.get(name, (name, options.get("version", "1")))
        return served(self._bundles[name], served_name, **options | {"version": version})


SERVICES = {
    "all": (lambda made: made.serve(*ALL), True),
    "cold": (lambda made: made.serve("colour", "tints", is_warm=False), True),
    "keys": (lambda made: made.serve("colour", keys=Keys({"anna": sha256(KEY.encode()).hexdigest()})), True),
    "small body": (lambda made: made.serve("colour", "table", max_body_bytes=400), True),
    "tight": (
        lambda made: made.serve(
            *("colour", "tints", "open", "series", "table", "image"),
            max_pixels=100,
            max_images=6,
            max_values=40,
            max_reply_bytes=200,
            max_classes=3,
            max_prompts=4,
            max_text_characters=10,
            max_attribution_bytes=1500,
        ),
        True,
    ),
    "no maps": (lambda made: made.serve("tints", max_attribution_bytes=200), True),
    "new and cold": (lambda made: made.serve("colour", "tints", "open", "table", is_warm=False), False),
    "new size": (lambda made: made.rolling("tints", to="tints-4"), False),
    "new version": (lambda made: made.rolling("colour", to="colour", version="2"), False),
    "new inputs": (lambda made: made.rolling("table", to="table-3"), False),
    "other inputs": (lambda made: made.rolling("table", to="series"), False),
    "new table": (lambda made: made.rolling("table", to="table", version="3"), False),
    "new task": (lambda made: made.rolling("colour", to="table"), False),
    "restless": (lambda made: made.rolling("tints", to="tints-4", flips=True), False),
    "restless inputs": (lambda made: made.rolling("table", to="table-3", flips=True), False),
}
"""How each service is built, and whether it is kept: no request to a kept one may change later replies."""


# -- cases

Stream = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Case:
    """One request; ``failures`` are raised by clients of models during it."""

    method: str
    path: str
    body: bytes | Stream | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    service: str = "all"
    failures: Mapping[str, Exception] = field(default_factory=dict)
    body_counts: bool = True


CASES: dict[str, Case] = {}


def add(group, cases):
    for name, case in cases.items():
        full = f"{group}: {name}"
        assert full not in CASES, full
        CASES[full] = case


def get(path, service="all", headers=None, **options):
    return Case("GET", path, headers=headers or {}, service=service, **options)


def post(path, content, service="all", headers=None, **options):
    """``content`` is a body with its headers."""
    body, own = content
    return Case("POST", path, body, {**own, **(headers or {})}, service, **options)


def png(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(num_images=1, height=SIZE, width=SIZE, start=0):
    """Images of all kinds of values, uint8 ``(N, H, W, 3)``."""
    values = (start + 7 * np.arange(num_images * height * width * 3) ** 2 // 5) % 250
    return values.astype(np.uint8).reshape(num_images, height, width, 3)


def flat(*colour, size=SIZE):
    return np.full((size, size, 3), colour, np.uint8)


def body(data, content_type=None):
    return data, {} if content_type is None else {"content-type": content_type}


def told(value):
    """JSON with its content type; text stays as it is."""
    return body((value if isinstance(value, str) else json.dumps(value)).encode(), "application/json")


def form(*parts):
    """A form of ``(name, text)`` and ``(name, file name, content type, data)``."""
    pieces = []
    for name, *rest in parts:
        if len(rest) == 1:
            head, data = f'Content-Disposition: form-data; name="{name}"', rest[0].encode()
        else:
            head = f'Content-Disposition: form-data; name="{name}"; filename="{rest[0]}"'
            head += f"\r\nContent-Type: {rest[1]}" if rest[1] else ""
            data = rest[2]
        pieces.append(f"--golden\r\n{head}\r\n\r\n".encode() + data + b"\r\n")
    return body(b"".join(pieces) + b"--golden--\r\n", "multipart/form-data; boundary=golden")


RAMP = png(ramp()[0])
BASE64 = base64.b64encode(RAMP).decode()
AS_PNG = {"accept": "image/png"}
IMAGE = body(RAMP, "image/png")
FILE = ("image", "a.png", "image/png", RAMP)
GREY_FILE = ("image", "a.png", "image/png", png(flat(90, 90, 90)))
SMALL = png(ramp(1, 1, 2)[0])


def image_json(**said):
    return told({"image": BASE64, **said})


def images(num_images=1, start=0, **changes):
    values = ramp(num_images, start=start)
    tensor = {"name": "images", "datatype": "UINT8", "shape": [*values.shape], "data": values.ravel().tolist()}
    return without(tensor | changes)


def raw_images(num_images=1, **changes):
    return images(num_images, data=..., parameters={"binary_data_size": num_images * SIZE * SIZE * 3}, **changes)


def texts(name, elements, **changes):
    return without({"name": name, "datatype": "BYTES", "shape": [len(elements)], "data": elements} | changes)


def raw_texts(name, data, count):
    return texts(name, [None] * count, data=..., parameters={"binary_data_size": len(data)})


def join_texts(*elements):
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in elements)


def numbers(name, shape, data, datatype="FP32", **changes):
    return without({"name": name, "datatype": datatype, "shape": shape, "data": data} | changes)


def without(tensor):
    """Leave out the entries that are ``...``."""
    return {name: value for name, value in tensor.items() if value is not ...}


def v2(*tensors, raw=None, length=None, **said):
    """An infer request; with ``raw``, these bytes follow the JSON."""
    header = json.dumps({"inputs": [*tensors], **said}).encode()
    if raw is None and length is None:
        return body(header, "application/json")
    found = {"content-type": "application/octet-stream", "Inference-Header-Content-Length": length or str(len(header))}
    return header + (raw or b""), found


def chunks(num_bytes):
    def stream():
        for _ in range(num_bytes // 100):
            yield b"x" * 100

    return stream


def nested(tensor):
    return tensor | {"data": np.reshape(tensor["data"], tensor["shape"]).tolist()}


add(
    "server",
    {
        "models": get("/models"),
        "models of a cold service": get("/models", "new and cold"),
        "models, one of them down": get(
            "/models", "new and cold", failures={"open": RefusedError(503, "gone", "overload")}
        ),
        "models, one of them late": get("/models", "new and cold", failures={"tints": TimeoutError()}),
        "v2": get("/v2"),
        "live": get("/v2/health/live"),
        "ready": get("/v2/health/ready"),
        "ready, one model down": get("/v2/health/ready", failures={"open": RefusedError(503, "gone", "overload")}),
        "ready, one model late": get("/v2/health/ready", failures={"table": TimeoutError()}),
        "ready, one model broken": get("/v2/health/ready", failures={"table": RuntimeError("/secret/path")}),
        "live, one model down": get("/v2/health/live", failures={"open": RefusedError(503, "gone", "overload")}),
        "docs": get("/docs", body_counts=False),
        "redoc": get("/redoc", body_counts=False),
        "no path": get("/nowhere"),
        "root": get("/"),
        "path with a slash too many": get("/models/"),
        "path with two levels of models": post("/predict/a/b", IMAGE),
        "path with an escape": post("/predict/..%2f..%2fetc", IMAGE),
        "GET predict": get("/predict/colour"),
        "PUT predict": Case("PUT", "/predict/colour", b"x"),
        "POST models": post("/models", told({})),
        "POST v2": post("/v2", told({})),
        "HEAD models": Case("HEAD", "/models"),
        "OPTIONS predict": Case("OPTIONS", "/predict/colour"),
        "DELETE model": Case("DELETE", "/v2/models/colour"),
        "GET infer": get("/v2/models/colour/infer"),
        "POST model": post("/v2/models/colour", told({})),
        "POST ready": post("/v2/models/colour/ready", told({})),
        "request id of all characters": get("/v2", headers={"x-request-id": "aZ09._-" + "x" * 121}),
        "request id with a space": get("/v2", headers={"x-request-id": "a b"}),
        "request id that is empty": get("/v2", headers={"x-request-id": ""}),
        "request id too long": get("/v2", headers={"x-request-id": "x" * 129}),
        "request id made for a prediction": post("/predict/colour", IMAGE, headers={"x-request-id": "a/b"}),
    },
)
add(
    "metadata",
    {
        **{name: get(f"/v2/models/{name}") for name in ALL},
        "colour with version": get("/v2/models/colour/versions/1"),
        "table with version": get("/v2/models/table/versions/2"),
        "open of a cold service": get("/v2/models/open", "new and cold"),
        "table of a cold service": get("/v2/models/table/versions/2", "new and cold"),
        "of a cold model that is down": get(
            "/v2/models/open", "new and cold", failures={"open": RefusedError(503, "gone", "overload")}
        ),
        "unknown model": get("/v2/models/nothing"),
        "unknown version": get("/v2/models/colour/versions/9"),
        "unknown version of a regression": get("/v2/models/table/versions/9"),
        "version of an unknown model": get("/v2/models/nothing/versions/1"),
        "name with quotes and umlauts": get("/v2/models/it's%20%C3%A4"),
        "ready": get("/v2/models/colour/ready"),
        "ready with version": get("/v2/models/tints/versions/3/ready"),
        "ready, unknown model": get("/v2/models/nothing/ready"),
        "ready, unknown version": get("/v2/models/tints/versions/9/ready"),
        "not ready": get("/v2/models/colour/ready", failures={"colour": RefusedError(503, "gone", "overload")}),
        "not ready with version": get("/v2/models/colour/versions/1/ready", failures={"colour": TimeoutError()}),
        "ready, broken": get("/v2/models/colour/ready", failures={"colour": RuntimeError("/secret/path")}),
    },
)
_ANNA = {"authorization": f"Bearer {KEY}"}
add(
    "keys",
    {
        "none": get("/models", "keys"),
        "none for a prediction": post("/predict/colour", IMAGE, "keys"),
        "none for what is not there": get("/nowhere", "keys"),
        "none for the docs": get("/docs", "keys"),
        "none for health": get("/v2/health/live", "keys"),
        "none for readiness": get("/v2/health/ready", "keys"),
        "none for a model's readiness": get("/v2/models/colour/ready", "keys"),
        "bearer": get("/models", "keys", _ANNA),
        "bearer in capitals": get("/models", "keys", {"authorization": f"BEARER   {KEY} "}),
        "bearer for a prediction": post("/predict/colour", IMAGE, "keys", _ANNA),
        "x-api-key": get("/models", "keys", {"x-api-key": KEY}),
        "x-api-key that is empty": get("/models", "keys", {"x-api-key": ""}),
        "unknown bearer": get("/models", "keys", {"authorization": "Bearer wrong"}),
        "unknown x-api-key": get("/models", "keys", {"x-api-key": KEY + "x"}),
        "unknown bearer beside a known x-api-key": get(
            "/models", "keys", {"authorization": "Bearer wrong", "x-api-key": KEY}
        ),
        "empty bearer beside a known x-api-key": get("/models", "keys", {"authorization": "Bearer ", "x-api-key": KEY}),
        "basic": get("/models", "keys", {"authorization": f"Basic {KEY}"}),
        "too long": get("/models", "keys", {"x-api-key": "k" * 513}),
        "before the body's size": post(
            "/predict/colour", IMAGE, "keys", {"x-api-key": "wrong", "content-length": "many"}
        ),
    },
)
_HUGE = body(b"x" * 401, "image/png")
add(
    "body size",
    {
        "at the limit": post("/predict/colour", body(b"x" * 400, "image/png"), "small body"),
        "announced too large": post("/predict/colour", _HUGE, "small body"),
        "announced too large for a path that is not there": post("/nowhere", _HUGE, "small body"),
        "announced too large for v2": post("/v2/models/colour/infer", _HUGE, "small body"),
        "streamed too large": post("/predict/colour", (chunks(1000), {"content-type": "image/png"}), "small body"),
        "streamed too large in a form": post(
            "/predict/colour", (chunks(1000), {"content-type": "multipart/form-data; boundary=b"}), "small body"
        ),
        "streamed too large for v2": post("/v2/models/colour/infer", (chunks(1000), {}), "small body"),
        "streamed too large for a regression": post(
            "/predict/table", (chunks(1000), {"content-type": "application/json"}), "small body"
        ),
        "length is no number": post("/predict/colour", IMAGE, headers={"content-length": "many"}),
        "length is negative": post("/predict/colour", IMAGE, headers={"content-length": "-1"}),
    },
)
add(
    "failures",
    {
        "overload": post(
            "/predict/colour",
            IMAGE,
            failures={"colour": RefusedError(503, "full; try again", "overload", {"Retry-After": "2"})},
        ),
        "timeout": post(
            "/predict/colour", IMAGE, failures={"colour": RefusedError(504, "no answer in 30 s", "timeout")}
        ),
        "timeout of the server": post("/predict/colour", IMAGE, failures={"colour": TimeoutError("/secret/path")}),
        "broken": post("/predict/colour", IMAGE, failures={"colour": RuntimeError("/secret/path")}),
        "overload for v2": post(
            "/v2/models/colour/infer",
            v2(images()),
            failures={"colour": RefusedError(503, "full; try again", "overload", {"Retry-After": "2"})},
        ),
        "timeout for v2": post(
            "/v2/models/colour/infer", v2(images()), failures={"colour": RefusedError(504, "late", "timeout")}
        ),
        "broken for v2": post(
            "/v2/models/colour/infer", v2(images()), failures={"colour": RuntimeError("/secret/path")}
        ),
        "overload of a regression": post(
            "/predict/table",
            told({"inputs": {"input": [1, 2, 3]}}),
            failures={"table": RefusedError(503, "full", "overload", {"Retry-After": "1"})},
        ),
        "broken regression": post(
            "/predict/table", told({"inputs": {"input": [1, 2, 3]}}), failures={"table": RuntimeError("/secret/path")}
        ),
        "timeout of a regression for v2": post(
            "/v2/models/table/infer",
            v2(numbers("input", [1, 3], [1, 2, 3])),
            failures={"table": RefusedError(504, "late", "timeout")},
        ),
        "one model down, another answers": post(
            "/predict/tints", IMAGE, failures={"colour": RefusedError(503, "gone", "overload")}
        ),
        "broken texts": post("/predict/open", image_json(classes=["broken"])),
        "broken texts for v2": post("/v2/models/open/infer", v2(images(), texts("classes", ["broken"]))),
        "not a number": post("/predict/faulty", body(png(flat(251, 1, 1)), "image/png")),
        "not a number for v2": post("/v2/models/faulty/infer", v2(images(data=[251] * 192))),
        "not a number as bytes": post(
            "/v2/models/faulty/infer", v2(images(data=[251] * 192), parameters={"binary_data_output": True})
        ),
        "one probability too few": post("/predict/faulty", body(png(flat(252, 1, 1)), "image/png")),
        "one probability too few for v2": post("/v2/models/faulty/infer", v2(images(data=[252] * 192))),
    },
)
add(
    "predict",
    {
        "PNG": post("/predict/colour", IMAGE),
        "PNG with a parameter in its type": post("/predict/colour", body(RAMP, "IMAGE/PNG; q=1")),
        "JPEG": post("/predict/colour", body(png(flat(128, 128, 128), "JPEG"), "image/jpeg")),
        "JPEG as image/jpg": post("/predict/colour", body(png(flat(128, 128, 128), "JPEG"), "image/jpg")),
        "WEBP": post("/predict/colour", body(png(ramp()[0], "WEBP", lossless=True), "image/webp")),
        "resized": post("/predict/colour", body(png(ramp(1, 12, 10)[0]), "image/png")),
        "cropped": post("/predict/cut", body(png(ramp(1, 8, 16)[0]), "image/png")),
        "JSON": post("/predict/colour", image_json()),
        "JSON with other keys": post("/predict/colour", image_json(level=0.5, more={})),
        "JSON with nulls": post(
            "/predict/colour", image_json(explain=None, explain_class=None, classes=None, prompts=None)
        ),
        "form": post("/predict/colour", form(FILE)),
        "form with an untyped file": post("/predict/colour", form(("image", "a", "", RAMP))),
        "form with bytes": post("/predict/colour", form(("image", "a", "application/octet-stream", RAMP))),
        "form with a file of any name": post("/predict/tints", form(("explain", "a.png", "image/png", RAMP))),
        "form with other fields": post("/predict/colour", form(("level", "0.5"), FILE)),
        "top 1": post("/predict/colour?top=1", IMAGE),
        "top 2 of JSON": post("/predict/colour?top=2", image_json()),
        "top above all": post("/predict/colour?top=99", IMAGE),
        "top 0": post("/predict/colour?top=0", IMAGE),
        "top below 0": post("/predict/colour?top=-1", IMAGE),
        "top is no number": post("/predict/colour?top=x", IMAGE),
        "top is empty": post("/predict/colour?top=", IMAGE),
        "unknown query": post("/predict/colour?nothing=1", IMAGE),
        "doubt": post("/predict/doubt", body(png(flat(10, 20, 30)), "image/png")),
        "doubt, flagged": post("/predict/doubt?top=1", body(png(flat(200, 220, 240)), "image/png")),
        "PNG accepted without a map": post("/predict/colour", IMAGE, headers=AS_PNG),
        "classes of any script": post("/predict/scripts", IMAGE),
        "unknown model": post("/predict/nothing", IMAGE),
        "unknown model with a bad query": post("/predict/nothing?top=0", IMAGE),
        "level": post("/predict/colour?level=0.9", IMAGE),
        "show": post("/predict/colour?show=std", IMAGE),
        "no content type": post("/predict/colour", body(b"x")),
        "GIF": post("/predict/colour", body(b"GIF89a", "image/gif")),
        "urlencoded": post("/predict/colour", body(b"a=b", "application/x-www-form-urlencoded")),
        "no image under an image's type": post("/predict/colour", body(b"", "image/png")),
        "JPEG under PNG": post("/predict/colour", body(png(flat(1, 2, 3), "JPEG"), "image/png")),
        "PNG under WEBP": post("/predict/colour", body(RAMP, "image/webp")),
        "PNG under JPEG": post("/predict/colour", body(RAMP, "image/jpeg")),
        "only the first bytes": post("/predict/colour", body(RAMP[:8], "image/png")),
        "truncated": post("/predict/colour", body(RAMP[:-30], "image/png")),
        "animated": post(
            "/predict/colour",
            body(png(flat(1, 2, 3), save_all=True, append_images=[Image.fromarray(flat(9, 9, 9))]), "image/png"),
        ),
        "too many pixels": post("/predict/colour", body(png(ramp(1, 11, 10)[0]), "image/png"), "tight"),
        "JSON that is none": post("/predict/colour", told("")),
        "JSON that ends early": post("/predict/colour", told("{")),
        "JSON that is a list": post("/predict/colour", told([])),
        "JSON that is a number": post("/predict/colour", told(1)),
        "JSON that is null": post("/predict/colour", told(None)),
        "JSON with a byte order mark": post("/predict/colour", told("\ufeff{}")),
        "JSON that is no UTF-8": post("/predict/colour", body(b"\xff\xfe", "application/json")),
        "JSON nested too deeply": post("/predict/colour", told("[" * 100_000)),
        "JSON with a key twice": post("/predict/colour", told('{"image": "a", "image": "b"}')),
        "JSON with a key twice further in": post("/predict/colour", told('{"x": [{"a": 1, "b": 2, "a": 3}]}')),
        "JSON with a long key twice": post("/predict/colour", told(f'{{"{"k" * 99}": 1, "{"k" * 99}": 2}}')),
        "JSON without an image": post("/predict/colour", told({"picture": ""})),
        "JSON with an image that is no text": post("/predict/colour", told({"image": 3})),
        "JSON with an address": post("/predict/colour", told({"image": "https://example.org/a.png"})),
        "JSON with half of base64": post("/predict/colour", told({"image": "a"})),
        "JSON with an umlaut for base64": post("/predict/colour", told({"image": "ä"})),
        "JSON with an empty image": post("/predict/colour", told({"image": ""})),
        "JSON with a GIF": post("/predict/colour", told({"image": base64.b64encode(b"GIF89a").decode()})),
        "form without a file": post("/predict/colour", form(("image", "a"))),
        "form without anything": post("/predict/colour", form()),
        "form with two files": post("/predict/colour", form(FILE, FILE)),
        "form with a text file": post("/predict/colour", form(("image", "a.txt", "text/plain", b"a"))),
        "form with a JPEG under PNG": post(
            "/predict/colour", form(("image", "a.png", "image/png", png(flat(1, 2, 3), "JPEG")))
        ),
        "form with too many fields": post("/predict/colour", form(*[(f"x{k}", "1") for k in range(9)], FILE)),
        "form without a boundary": post("/predict/colour", body(b"x", "multipart/form-data")),
        "form with another boundary": post("/predict/colour", body(b"x", "multipart/form-data; boundary=golden")),
        "form with an empty file": post("/predict/colour", form(("image", "a", "", b""))),
    },
)
add(
    "explain",
    {
        "by query": post("/predict/tints?explain=true", IMAGE),
        "by query in capitals": post("/predict/tints?explain=True", IMAGE),
        "by JSON": post("/predict/tints", image_json(explain=True)),
        "by a word in JSON": post("/predict/tints", image_json(explain="true")),
        "by form": post("/predict/tints", form(FILE, ("explain", "true"))),
        "overlay by query": post("/predict/tints?explain=overlay&explain_class=blue", IMAGE),
        "overlay by JSON": post("/predict/tints", image_json(explain="overlay")),
        "overlay by form": post("/predict/tints?top=1", form(FILE, ("explain", "OVERLAY"), ("explain_class", "1"))),
        "false by query": post("/predict/tints?explain=false", IMAGE),
        "false by JSON": post("/predict/tints", image_json(explain=False)),
        "false by form": post("/predict/tints", form(FILE, ("explain", "false"))),
        "class by name": post("/predict/tints?explain=true&explain_class=green", IMAGE),
        "class by index in the query": post("/predict/tints?explain=true&explain_class=2", IMAGE),
        "class by index in JSON": post("/predict/tints", image_json(explain=True, explain_class=0)),
        "class by a list of one": post("/predict/tints", image_json(explain=True, explain_class=["blue"])),
        "class by form": post("/predict/tints", form(FILE, ("explain", "true"), ("explain_class", "red"))),
        "class in JSON, explain in the query": post("/predict/tints?explain=true", image_json(explain_class="blue")),
        "as PNG": post("/predict/tints?explain=true", IMAGE, headers=AS_PNG),
        "as PNG of another class": post("/predict/tints?explain=overlay&explain_class=0", IMAGE, headers=AS_PNG),
        "as PNG by form": post("/predict/tints", form(FILE, ("explain", "true")), headers=AS_PNG),
        "as PNG with weights": post(
            "/predict/tints?explain=true", IMAGE, headers={"accept": "application/json;q=0.5, image/png;q=0.9"}
        ),
        "as JSON with weights": post(
            "/predict/tints?explain=true", IMAGE, headers={"accept": "image/png;q=0.5, application/json"}
        ),
        "as JSON for any type": post("/predict/tints?explain=true", IMAGE, headers={"accept": "*/*"}),
        "as JSON for weight 0": post("/predict/tints?explain=true", IMAGE, headers={"accept": "image/png;q=0"}),
        "as JSON for a weight that is none": post(
            "/predict/tints?explain=true", IMAGE, headers={"accept": "image/png;q=x"}
        ),
        "class of any script": post("/predict/scripts?explain=true&explain_class=gr%C3%B6%C3%9Fe%0A", IMAGE),
        "class of any script as PNG": post(
            "/predict/scripts?explain=true&explain_class=%E7%8C%AB", IMAGE, headers=AS_PNG
        ),
        "map of nothing": post("/predict/tints?explain=true", form(GREY_FILE)),
        "map of nothing as overlay": post("/predict/tints?explain=overlay", form(GREY_FILE)),
        "own classes of an open vocabulary": post("/predict/both?explain=true", IMAGE),
        "word that is none": post("/predict/tints?explain=maybe", IMAGE),
        "empty word": post("/predict/tints", form(FILE, ("explain", ""))),
        "number": post("/predict/tints", image_json(explain=1)),
        "list": post("/predict/tints", image_json(explain=["true"])),
        "long word": post("/predict/tints", image_json(explain="x" * 200)),
        "class without explain": post("/predict/tints?explain_class=red", IMAGE),
        "class with explain=false": post("/predict/tints", form(FILE, ("explain", "false"), ("explain_class", "red"))),
        "twice in a form": post("/predict/tints", form(FILE, ("explain", "true"), ("explain", "false"))),
        "class twice in a form": post(
            "/predict/tints", form(FILE, ("explain", "true"), ("explain_class", "1"), ("explain_class", "1"))
        ),
        "in query and body": post("/predict/tints?explain=true", image_json(explain=True)),
        "class in query and body": post(
            "/predict/tints?explain=true&explain_class=1", form(FILE, ("explain_class", "1"))
        ),
        "unknown class": post("/predict/tints?explain=true&explain_class=teal", IMAGE),
        "unknown class of many": post("/predict/many?explain=true&explain_class=teal", IMAGE),
        "unknown class with a long name": post(f"/predict/tints?explain=true&explain_class={'x' * 500}", IMAGE),
        "unknown index": post("/predict/tints?explain=true&explain_class=7", IMAGE),
        "index below 0": post("/predict/tints", image_json(explain=True, explain_class=-1)),
        "two classes": post("/predict/tints", image_json(explain=True, explain_class=["red", "red"])),
        "class that is an object": post("/predict/tints", image_json(explain=True, explain_class={})),
        "class that is a fraction": post("/predict/tints", image_json(explain=True, explain_class=1.0)),
        "model without maps": post("/predict/colour?explain=true", IMAGE),
        "model without maps in a cold service": post("/predict/colour?explain=true", IMAGE, "cold"),
        "model with maps in a cold service": post("/predict/tints?explain=true", IMAGE, "cold"),
        "classes of the request": post("/predict/both?explain=true", image_json(classes=["crab"])),
        "classes of the request without maps": post("/predict/open?explain=true", image_json(classes=["crab"])),
        "classes of the request without open vocabulary": post(
            "/predict/tints?explain=true", image_json(classes=["crab"])
        ),
    },
)
_PROMPTS = {"warm": ["rrr", "r and a bit of g"], "cöld": ["bbb"]}
_WRONG_WORDS = {
    "no class": {"classes": []},
    "class twice": {"classes": ["a", "b", "a"]},
    "empty class": {"classes": ["a", ""]},
    "blank class": {"classes": [" \n"]},
    "class that is a number": {"classes": ["a", 3]},
    "class that is null": {"classes": ["a", None]},
    "class that is a boolean": {"classes": [True]},
    "class that is a list": {"classes": [["a"]]},
    "class that is an object": {"classes": [{}]},
    "class that is half a character": {"classes": ["\ud800"]},
    "classes that are a text": {"classes": "a,b"},
    "classes that are an object": {"classes": {"a": 1}},
    "classes that are a number": {"classes": 1.5},
    "classes and prompts": {"classes": ["a"], "prompts": {"a": ["b"]}},
    "no prompt": {"prompts": {}},
    "prompts that are a list": {"prompts": ["a"]},
    "prompts that are a boolean": {"prompts": False},
    "prompts of a class that are a text": {"prompts": {"a": "b"}},
    "prompts of a class that are null": {"prompts": {"a": None}},
    "prompts of a class that are none": {"prompts": {"a": []}},
    "prompt that is a number": {"prompts": {"a": ["b", 1.5]}},
    "prompt that is empty": {"prompts": {"a": ["b", ""]}},
    "prompts of an empty class": {"prompts": {"": ["b"]}},
    "unreadable class": {"classes": ["unreadable"]},
    "unreadable prompt": {"prompts": {"a": ["unreadable"]}},
}
_TOO_MUCH = {
    "too many classes": {"classes": list("abcd")},
    "too many classes of prompts": {"prompts": {name: ["b"] for name in "abcd"}},
    "too many prompts": {"prompts": {"a": ["b"] * 3, "b": ["c"] * 2}},
    "too long a class": {"classes": ["a" * 11]},
    "too long a prompt": {"prompts": {"a": ["b" * 11]}},
}


def words_form(said):
    return form(FILE, *((name, json.dumps(value)) for name, value in said.items()))


add(
    "words",
    {
        "none": post("/predict/open", IMAGE),
        "classes by JSON": post("/predict/open", image_json(classes=["crab", "gnu", "bee"])),
        "classes by form": post("/predict/open", words_form({"classes": ["crab", "gnu", "bee"]})),
        "prompts by JSON": post("/predict/open", image_json(prompts=_PROMPTS)),
        "prompts by form": post("/predict/open", words_form({"prompts": _PROMPTS})),
        "top": post("/predict/open?top=2", image_json(classes=["b", "r", "g"])),
        "at the limits": post("/predict/open", image_json(prompts={"a": ["r" * 10, "g"], "b": ["b", "b"]}), "tight"),
        "of a model without open vocabulary": post("/predict/colour", image_json(classes=["cat"])),
        "prompts of a model without open vocabulary": post("/predict/colour", words_form({"prompts": {"a": ["b"]}})),
        "form field that is no JSON": post("/predict/open", form(FILE, ("classes", "cat, dog"))),
        "prompts in a form that are no JSON": post("/predict/open", form(FILE, ("prompts", "cat"))),
        "form field that is null": post("/predict/open", form(FILE, ("classes", "null"))),
        "form field twice": post("/predict/open", form(FILE, ("classes", '["a"]'), ("classes", '["b"]'))),
        "form field that is the file": post("/predict/open", form(("classes", "a.png", "image/png", RAMP))),
        "form field with a key twice": post("/predict/open", form(FILE, ("prompts", '{"a": ["x"], "a": ["y"]}'))),
        "JSON with a key twice": post(
            "/predict/open", told(f'{{"image": "{BASE64}", "prompts": {{"a": ["x"], "a": ["y"]}}}}')
        ),
        **{name: post("/predict/open", image_json(**said)) for name, said in _WRONG_WORDS.items()},
        **{
            f"{name} by form": post("/predict/open", words_form(said))
            for name, said in list(_WRONG_WORDS.items())[:: len(_WRONG_WORDS) // 6]
        },
        **{name: post("/predict/open", image_json(**said), "tight") for name, said in _TOO_MUCH.items()},
    },
)


def infer(*tensors, model="colour", service="all", path="/infer", headers=None, **said):
    return post(f"/v2/models/{model}{path}", v2(*tensors, **said), service, headers)


def named(*names, **binary):
    """Outputs of these names; those in ``binary`` say whether they come as bytes."""
    return [
        {"name": name, **({"parameters": {"binary_data": binary[name]}} if name in binary else {})} for name in names
    ]


def raw_ramp(num_images=1):
    return ramp(num_images).tobytes()


_BYTES_OUT = {"binary_data_output": True}
add(
    "infer",
    {
        "JSON": infer(images()),
        "nested JSON": infer(nested(images(2))),
        "several images": infer(images(3, start=11)),
        "with version": infer(images(), path="/versions/1/infer"),
        "JSON without a content type": Case("POST", "/v2/models/colour/infer", v2(images())[0]),
        "id": infer(images(), id="r-1 ä"),
        "empty id": infer(images(), id=""),
        "id that is null": infer(images(), id=None),
        "more keys": infer(images(more=1), more=2, parameters={"more": 3}),
        "parameters that are null": infer(images(parameters=None), parameters=None, outputs=None),
        "bytes in": infer(raw_images(2), raw=raw_ramp(2)),
        "bytes in and out": infer(raw_images(2), raw=raw_ramp(2), parameters=_BYTES_OUT, id="r"),
        "bytes out": infer(images(2), parameters=_BYTES_OUT),
        "header length without bytes": infer(images(), raw=b""),
        "bytes of one output": infer(images(), outputs=named("batch_size", "logits", logits=True)),
        "bytes of the other outputs": infer(
            images(), outputs=named("logits", "batch_size", "probs", batch_size=False), parameters=_BYTES_OUT
        ),
        "outputs in order": infer(images(), outputs=named("probs", "batch_size", "logits")),
        "outputs in another order": infer(images(), outputs=named("batch_size", "logits", "probs")),
        "one output": infer(images(2), outputs=named("logits")),
        "an output twice": infer(images(), outputs=named("probs", "logits", "probs")),
        "no output": infer(images(), outputs=[]),
        "doubt": infer(images(), model="doubt"),
        "doubt as bytes": infer(images(2), model="doubt", outputs=named("outside", "logits"), parameters=_BYTES_OUT),
        "own classes of an open vocabulary": infer(images(2), model="open"),
        "at the limit": infer(images(6), service="tight"),
        "unknown output": infer(images(), outputs=named("probs", "prob")),
        "unknown model": infer(images(), model="nothing"),
        "unknown version": infer(images(), path="/versions/9/infer"),
        "content encoding": infer(images(), headers={"content-encoding": "gzip"}),
        "no JSON": post("/v2/models/colour/infer", told("{")),
        "empty body": post("/v2/models/colour/infer", body(b"")),
        "JSON list": post("/v2/models/colour/infer", told([])),
        "JSON text": post("/v2/models/colour/infer", told('"a"')),
        "JSON with a key twice": post("/v2/models/colour/infer", told('{"inputs": [], "inputs": []}')),
        "no UTF-8": post("/v2/models/colour/infer", body(b"\xff\xfe")),
        "no inputs": post("/v2/models/colour/infer", told({})),
        "inputs that are an object": post("/v2/models/colour/infer", told({"inputs": {}})),
        "input that is a number": post("/v2/models/colour/infer", told({"inputs": [3]})),
        "empty inputs": infer(),
        "unknown input": infer(images(name="image")),
        "unknown input beside the images": infer(images(), images(name="image")),
        "input without a name": infer(images(name=...)),
        "name that is a list": infer(images(name=["images"])),
        "images twice": infer(images(), images()),
        "many unknown inputs": infer(*[images(name=f"x{k}") for k in range(10)]),
        "only classes": infer(texts("classes", ["a"])),
        "another datatype": infer(images(datatype="FP32")),
        "no datatype": infer(images(datatype=...)),
        "another size": infer(images(shape=[1, 5, 5, 3])),
        "three axes": infer(images(shape=[8, 8, 3])),
        "no image": infer(images(shape=[0, 8, 8, 3], data=[])),
        "length below 0": infer(images(shape=[-1, 8, 8, 3])),
        "length that is a boolean": infer(images(shape=[True, 8, 8, 3])),
        "length that is a fraction": infer(images(shape=[1.0, 8, 8, 3])),
        "shape that is a text": infer(images(shape="1")),
        "no shape": infer(images(shape=...)),
        "too many images": infer(images(7), service="tight"),
        "too few values": infer(images(data=[1, 2])),
        "another nesting": infer(images(data=np.reshape(ramp(), (8, 8, 3)).tolist())),
        "value above 255": infer(images(data=[256] * 192)),
        "value below 0": infer(images(data=[-1] * 192)),
        "fractions": infer(images(data=[0.5] * 192)),
        "booleans": infer(images(data=[True] * 192)),
        "words": infer(images(data=["a"] * 192)),
        "very large values": infer(images(data=[10**30] * 192)),
        "ragged": infer(images(data=[[1], [1, 2]])),
        "data that is null": infer(images(data=None)),
        "data that is a text": infer(images(data="abc")),
        "no data": infer(images(data=...)),
        "parameters that are a number": infer(images(), parameters=3),
        "parameters of a tensor that are a number": infer(images(parameters=3)),
        "parameters of an output that are a list": infer(images(), outputs=[{"name": "probs", "parameters": [1]}]),
        "id that is a number": infer(images(), id=3),
        "outputs that are texts": infer(images(), outputs=["probs"]),
        "outputs that are a text": infer(images(), outputs="probs"),
        "output without a name": infer(images(), outputs=[{"parameters": {}}]),
        "data and bytes": infer(images(parameters={"binary_data_size": 192}), raw=raw_ramp()),
        "bytes that end early": infer(raw_images(), raw=raw_ramp()[:-1]),
        "bytes left over": infer(raw_images(), raw=raw_ramp() + b"x"),
        "bytes of another size": infer(images(data=..., parameters={"binary_data_size": 191}), raw=raw_ramp()[:-1]),
        "bytes that nobody claims": infer(images(), raw=b"abc"),
        "size that is a text": infer(images(data=..., parameters={"binary_data_size": "192"}), raw=raw_ramp()),
        "size below 0": infer(images(data=..., parameters={"binary_data_size": -1}), raw=raw_ramp()),
        "size that is a boolean": infer(images(data=..., parameters={"binary_data_size": True}), raw=b"x"),
        "size without a header length": infer(raw_images()),
        "header length above the body": infer(images(), length="99999"),
        "header length below 0": infer(images(), length="-1"),
        "header length that is a word": infer(images(), length="x"),
        "header length within the JSON": infer(images(), length="5"),
        "header length 0": infer(images(), length="0"),
    },
)
add(
    "infer explain",
    {
        "top class": infer(images(2), model="tints", parameters={"explain": True}),
        "with version": infer(images(), model="tints", path="/versions/3/infer", parameters={"explain": True}),
        "class by name": infer(images(), model="tints", parameters={"explain": True, "explain_class": "blue"}),
        "class by index": infer(images(), model="tints", parameters={"explain": True, "explain_class": 1}),
        "class by digits": infer(images(), model="tints", parameters={"explain": True, "explain_class": "1"}),
        "class by a list": infer(
            images(3),
            model="tints",
            outputs=named("explained", "attributions", attributions=True),
            parameters={"explain": True, "explain_class": ["blue", 0, "green"]},
        ),
        "class by a list of one": infer(
            images(2), model="tints", parameters={"explain": True, "explain_class": ["green"]}
        ),
        "bytes in and out": infer(
            raw_images(2), model="tints", raw=raw_ramp(2), parameters={"explain": True, **_BYTES_OUT}
        ),
        "by an output": infer(images(), model="tints", outputs=named("attributions")),
        "by outputs in another order": infer(images(2), model="tints", outputs=named("explained", "probs")),
        "beside an output": infer(images(), model="tints", outputs=named("probs"), parameters={"explain": True}),
        "maps as bytes beside an output": infer(
            images(),
            model="tints",
            outputs=named("batch_size", batch_size=False),
            parameters={"explain": True, **_BYTES_OUT},
        ),
        "maps in JSON beside bytes": infer(
            images(),
            model="tints",
            outputs=named("attributions", "probs", attributions=False),
            parameters=_BYTES_OUT,
        ),
        "explained as bytes": infer(images(2), model="tints", outputs=named("explained", explained=True)),
        "false": infer(images(), model="tints", parameters={"explain": False}),
        "false beside an output": infer(images(), model="tints", outputs=named("probs"), parameters={"explain": False}),
        "null": infer(images(), model="tints", parameters={"explain": None, "explain_class": None}),
        "own classes of an open vocabulary": infer(images(), model="both", parameters={"explain": True}),
        "map of nothing": infer(images(data=[90] * 192), model="tints", outputs=named("attributions", "explained")),
        "number": infer(images(), model="tints", parameters={"explain": 1}),
        "word": infer(images(), model="tints", parameters={"explain": "true"}),
        "false with the output": infer(
            images(), model="tints", outputs=named("attributions"), parameters={"explain": False}
        ),
        "class without explain": infer(images(), model="tints", parameters={"explain_class": "red"}),
        "class with false": infer(images(), model="tints", parameters={"explain": False, "explain_class": 0}),
        "unknown class": infer(images(), model="tints", parameters={"explain": True, "explain_class": "teal"}),
        "unknown class of many": infer(images(), model="many", parameters={"explain": True, "explain_class": ""}),
        "unknown index": infer(images(), model="tints", parameters={"explain": True, "explain_class": 3}),
        "index below 0": infer(images(), model="tints", parameters={"explain": True, "explain_class": -1}),
        "very large index": infer(images(), model="tints", parameters={"explain": True, "explain_class": 10**30}),
        "many digits": infer(images(), model="tints", parameters={"explain": True, "explain_class": "9" * 500}),
        "boolean": infer(images(), model="tints", parameters={"explain": True, "explain_class": True}),
        "fraction": infer(images(), model="tints", parameters={"explain": True, "explain_class": 1.0}),
        "null in a list": infer(images(2), model="tints", parameters={"explain": True, "explain_class": [0, None]}),
        "empty list": infer(images(2), model="tints", parameters={"explain": True, "explain_class": []}),
        "list too long": infer(images(2), model="tints", parameters={"explain": True, "explain_class": [0, 1, 2]}),
        "model without maps": infer(images(), model="colour", parameters={"explain": True}),
        "model without maps by an output": infer(images(), model="colour", outputs=named("explained")),
        "model without maps in a cold service": infer(
            images(), model="colour", service="cold", parameters={"explain": True}
        ),
        "classes of the request": infer(
            images(), texts("classes", ["crab"]), model="both", parameters={"explain": True}
        ),
        "classes of the request without maps": infer(
            images(), texts("classes", ["crab"]), model="open", parameters={"explain": True}
        ),
        "classes of the request without open vocabulary": infer(
            images(), texts("classes", ["crab"]), model="tints", parameters={"explain": True}
        ),
        "one map in JSON": infer(
            images(), model="tints", service="tight", outputs=named("explained"), parameters={"explain": True}
        ),
        "too many maps in JSON": infer(images(2), model="tints", service="tight", parameters={"explain": True}),
        "too many maps as bytes": infer(
            images(6), model="tints", service="tight", parameters={"explain": True, **_BYTES_OUT}
        ),
        "too large a map in JSON": infer(images(), model="tints", service="no maps", parameters={"explain": True}),
        "too large a map as bytes": infer(
            images(), model="tints", service="no maps", parameters={"explain": True, **_BYTES_OUT}
        ),
    },
)
_PAIR = join_texts("cat", "gröb")


def infer_words(*tensors, service="all", **said):
    return infer(images(), *tensors, model="open", service=service, **said)


def prompted(prompts, classes):
    return texts("prompts", prompts), texts("prompt_classes", classes)


add(
    "infer words",
    {
        "classes": infer_words(texts("classes", ["crab", "gnu", "bee", "ä"])),
        "classes before the images": infer(texts("classes", ["crab", "gnu"]), images(2), model="open"),
        "prompts": infer_words(*prompted(["rrr", "bbb", "r g"], ["warm", "cold", "warm"])),
        "prompts after their classes": infer_words(*reversed(prompted(["rrr", "bbb"], ["warm", "cold"]))),
        "classes as bytes": infer_words(raw_texts("classes", _PAIR, 2), raw=_PAIR),
        "bytes before bytes of the images": infer(
            *(raw_texts("classes", _PAIR, 2), raw_images()),
            model="open",
            raw=_PAIR + raw_ramp(),
            parameters=_BYTES_OUT,
        ),
        "bytes after bytes of the images": infer(
            *(raw_images(), raw_texts("prompts", _PAIR, 2), texts("prompt_classes", ["a", "b"])),
            model="open",
            raw=raw_ramp() + _PAIR,
            outputs=named("logits"),
        ),
        "of a model without open vocabulary": infer(images(), texts("classes", ["cat"])),
        "no class": infer_words(texts("classes", [])),
        "class twice": infer_words(texts("classes", ["a", "a"])),
        "class that is a number": infer_words(texts("classes", ["a", 1])),
        "empty class": infer_words(texts("classes", ["a", " "])),
        "half a character": infer_words(texts("classes", ["\ud800"])),
        "unreadable": infer_words(texts("classes", ["unreadable"])),
        "too many classes": infer_words(texts("classes", list("abcd")), service="tight"),
        "too many prompts": infer_words(*prompted(["x"] * 5, ["a"] * 5), service="tight"),
        "too many prompt classes": infer_words(texts("prompt_classes", ["a"] * 5), service="tight"),
        "too long a class": infer_words(texts("classes", ["a" * 11]), service="tight"),
        "too long a prompt": infer_words(*prompted(["a" * 11], ["a"]), service="tight"),
        "another count": infer_words(texts("classes", ["a"], shape=[2])),
        "two axes": infer_words(texts("classes", ["a"], shape=[1, 1])),
        "count below 0": infer_words(texts("classes", ["a"], shape=[-1])),
        "count that is a boolean": infer_words(texts("classes", ["a"], shape=[True])),
        "no shape": infer_words(texts("classes", ["a"], shape=...)),
        "another datatype": infer_words(texts("prompts", ["a"], datatype="UINT8")),
        "no data": infer_words(texts("classes", ["a"], data=...)),
        "classes twice": infer_words(texts("classes", ["a"]), texts("classes", ["a"])),
        "prompts alone": infer_words(texts("prompts", ["a"])),
        "prompt classes alone": infer_words(texts("prompt_classes", ["a"])),
        "prompts of another length": infer_words(*prompted(["a"], ["a", "b"])),
        "prompt class that is a list": infer_words(*prompted(["a"], [["a"]])),
        "prompt that is a number": infer_words(*prompted([3], ["a"])),
        "no prompt": infer_words(*prompted([], [])),
        "classes and prompts": infer_words(*prompted(["a"], ["a"]), texts("classes", ["a"])),
        "bytes of too few texts": infer_words(raw_texts("classes", b"\1\0\0\0a", 2), raw=b"\1\0\0\0a"),
        "bytes that end early": infer_words(raw_texts("classes", b"\1\0", 1), raw=b"\1\0"),
        "text beyond the bytes": infer_words(raw_texts("classes", b"\t\0\0\0a", 1), raw=b"\t\0\0\0a"),
        "text without UTF-8": infer_words(raw_texts("classes", b"\1\0\0\0\xff", 1), raw=b"\1\0\0\0\xff"),
        "bytes left over": infer_words(raw_texts("classes", b"\1\0\0\0abc", 1), raw=b"\1\0\0\0abc"),
    },
)


def example(model, inputs, query="", service="all", headers=None, **said):
    return post(f"/predict/{model}{query}", told({"inputs": inputs, **said}), service, headers)


_ROW = {"input": [0.5, 2, -4]}
_MOLECULE = {
    "features": [[0.25] * 15, [0.5] * 15],
    "positions": [[1, 2, 3], [-1, -2, -3.5]],
    "n_atoms": 2,
}
_WRONG_LEVELS = {
    "0": 0,
    "1": 1,
    "below 0": -0.5,
    "word": "high",
    "boolean": True,
    "list": [0.9],
    "object": {},
    "infinite": math.inf,
    "not a number": math.nan,
    "long": "x" * 200,
}
add(
    "regress",
    {
        "table": example("table", _ROW),
        "table with other keys": example("table", _ROW, explain=True, more=1),
        "level by JSON": example("table", _ROW, level=0.9),
        "level by text in JSON": example("table", _ROW, level="0.25"),
        "level by query": example("table", _ROW, "?level=0.5"),
        "level that is null": example("table", _ROW, "?level=0.5", level=None),
        "series": example("series", {"input": [[1, 2, 3], [-1, 0.5, 0]]}),
        "series with a level": example("series", {"input": [[1], [2]]}, level=0.75),
        "whole numbers": example("counts", {"counts": [1, 2, 255, 0]}),
        "several inputs": example("molecule", _MOLECULE, "?level=0.5"),
        "numbers of an image": example("image", {"input": [[[0, 0.5]], [[1, 0.25]], [[0.125, 1]]]}),
        "image": post("/predict/image", body(SMALL, "image/png")),
        "image of one channel": post("/predict/grey", body(SMALL, "image/png")),
        "image by form": post("/predict/image", form(("image", "a.png", "image/png", SMALL))),
        "image by form with a level": post(
            "/predict/image", form(("level", "0.5"), ("image", "a.png", "image/png", SMALL))
        ),
        "image by JSON": post(
            "/predict/image?level=0.9", told({"image": base64.b64encode(png(flat(255, 0, 51, size=1))).decode()})
        ),
        "JPEG": post("/predict/grey", body(png(flat(128, 128, 128, size=2), "JPEG"), "image/jpeg")),
        "numbers from an image": post("/predict/measure", body(SMALL, "image/png")),
        "as PNG": post("/predict/image", body(SMALL, "image/png"), headers=AS_PNG),
        "mean as PNG": post("/predict/image?show=mean", body(SMALL, "image/png"), headers=AS_PNG),
        "std as PNG": post("/predict/image?show=std", body(SMALL, "image/png"), headers=AS_PNG),
        "as PNG of one channel": post("/predict/grey", body(SMALL, "image/png"), headers=AS_PNG),
        "std as PNG of one channel": post("/predict/grey?show=std", body(SMALL, "image/png"), headers=AS_PNG),
        "as PNG with a level": post("/predict/image?level=0.5", body(SMALL, "image/png"), headers=AS_PNG),
        "numbers as PNG": example("image", {"input": [[[0, 2]], [[1, -1]], [[0.5, 0.25]]]}, headers=AS_PNG),
        "as JSON with weights": post(
            "/predict/measure", body(SMALL, "image/png"), headers={"accept": "image/png;q=0.1, application/json;q=0.2"}
        ),
        "small enough a reply": example("table", _ROW, service="tight"),
        "top": example("table", _ROW, "?top=1"),
        "explain": example("table", _ROW, "?explain=true"),
        "explain_class": example("table", _ROW, "?explain_class=1"),
        "show without a PNG": example("table", _ROW, "?show=std"),
        "show that is unknown": example("image", _ROW, "?show=max", headers=AS_PNG),
        "show that is long": example("image", _ROW, f"?show={'x' * 200}", headers=AS_PNG),
        "PNG of a table": example("table", _ROW, headers=AS_PNG),
        "PNG of a measure": post("/predict/measure", body(SMALL, "image/png"), headers=AS_PNG),
        "no content type": post("/predict/table", body(b"x")),
        "CSV": post("/predict/table", body(b"1,2,3", "text/csv")),
        "image for a table": post("/predict/table", IMAGE),
        "image for a molecule": post("/predict/molecule", IMAGE),
        "image in JSON for a table": post("/predict/table", told({"image": BASE64})),
        "no image under an image's type": post("/predict/image", body(b"x", "image/png")),
        "image that ends early": post("/predict/image", body(RAMP[:8], "image/png")),
        "image in JSON that is none": post("/predict/image", told({"image": "aGVsbG8="})),
        "image in JSON that is an address": post("/predict/image", told({"image": "https://example.org/a.png"})),
        "image in JSON that is a number": post("/predict/image", told({"image": 1})),
        "too many pixels": post("/predict/image", body(png(ramp(1, 11, 10)[0]), "image/png"), "tight"),
        "too many values of an image": post("/predict/image", body(png(ramp(1, 4, 4)[0]), "image/png"), "tight"),
        "form without a file": post("/predict/image", form(("level", "0.5"))),
        "form with the level twice": post("/predict/image", form(("level", "0.5"), ("level", "0.5"), FILE)),
        "form with a wrong level": post("/predict/image", form(("level", "high"), FILE)),
        "no JSON": post("/predict/table", told("{")),
        "JSON list": post("/predict/table", told([1, 2, 3])),
        "neither inputs nor image": post("/predict/table", told({})),
        "inputs and image": post("/predict/image", told({"inputs": _ROW, "image": BASE64})),
        "inputs that are a list": example("table", [1, 2, 3]),
        "no inputs": example("table", {}),
        "unknown input": example("table", {"rows": [1, 2, 3]}),
        "missing inputs": example("molecule", {"features": [[1] * 15]}),
        "one input too many": example("table", {**_ROW, "more": [1]}),
        "another length": example("table", {"input": [1, 2]}),
        "another number of axes": example("table", {"input": 1}),
        "another number of channels": example("series", {"input": [[1, 2]]}),
        "no values": example("series", {"input": [[], []]}),
        "ragged": example("series", {"input": [[1, 2], [1]]}),
        "words": example("table", {"input": ["a", "b", "c"]}),
        "booleans": example("table", {"input": [True, False, True]}),
        "null": example("table", {"input": None}),
        "not finite": example("table", {"input": [math.nan, 1, 2]}),
        "beyond float32": example("table", {"input": [1e300, 1, 2]}),
        "fraction for whole numbers": example("molecule", {**_MOLECULE, "n_atoms": 2.5}),
        "beyond int64": example("molecule", {**_MOLECULE, "n_atoms": 2**63}),
        "beyond uint8": example("counts", {"counts": [1, 2, 256, 0]}),
        "below uint8": example("counts", {"counts": [-1, 2, 3, 0]}),
        "what the network refuses": example("molecule", {**_MOLECULE, "n_atoms": 9}),
        "too many values": example("series", {"input": [[0] * 21] * 2}, service="tight"),
        "too large a reply": example("series", {"input": [[1, 2], [3, 4]]}, service="tight"),
        "reply that is infinite": example("table", {"input": [3e38, 3e38, 0]}),
        "level in query and body": example("table", _ROW, "?level=0.5", level=0.5),
        "wrong level by query": example("table", _ROW, "?level=2"),
        "empty level by query": example("table", _ROW, "?level="),
        **{f"level: {name}": example("table", _ROW, level=value) for name, value in _WRONG_LEVELS.items()},
    },
)


def infer_table(*tensors, model="table", **said):
    return infer(*tensors, model=model, **said)


def rows(num=1, **changes):
    return without(numbers("input", [num, 3], [0.5 * k for k in range(3 * num)]) | changes)


def raw_rows(num=1):
    return struct.pack(f"<{3 * num}f", *(0.5 * k for k in range(3 * num)))


def series(length):
    return numbers("input", [1, 2, length], [0.5 * k for k in range(2 * length)])


_ATOM_TENSORS = (
    numbers("features", [2, 1, 15], [0.25] * 30),
    numbers("positions", [2, 1, 3], [0.5] * 6),
    numbers("n_atoms", [2], [1, 0], "INT64"),
)
_RAW_ATOMS = struct.pack("<q", 1)
add(
    "infer regression",
    {
        "JSON": infer_table(rows()),
        "nested JSON": infer_table(nested(rows(2))),
        "with version": infer_table(rows(), path="/versions/2/infer"),
        "id": infer_table(rows(), id="r"),
        "several examples": infer_table(rows(3)),
        "bytes in": infer_table(rows(2, data=..., parameters={"binary_data_size": 24}), raw=raw_rows(2)),
        "bytes in and out": infer_table(
            rows(2, data=..., parameters={"binary_data_size": 24}),
            raw=raw_rows(2),
            parameters={**_BYTES_OUT, "level": 0.9},
            id="r",
        ),
        "level": infer_table(rows(2), parameters={"level": 0.9}),
        "level as text": infer_table(rows(), parameters={"level": "0.5"}),
        "level beside an output": infer_table(rows(), outputs=named("std"), parameters={"level": 0.5}),
        "level with one end": infer_table(rows(), outputs=named("upper", "mean"), parameters={"level": 0.5}),
        "ends as bytes": infer_table(
            rows(), outputs=named("upper", "lower", lower=False), parameters={"level": 0.5, **_BYTES_OUT}
        ),
        "outputs in another order": infer_table(rows(), outputs=named("epistemic", "mean")),
        "bytes of one output": infer_table(rows(), outputs=named("mean", "std", std=True)),
        "series": infer_table(series(3), model="series"),
        "image": infer_table(numbers("input", [1, 3, 1, 2], [0, 0.5, 1, 0.25, 0.125, 1]), model="image"),
        "several inputs": infer_table(*_ATOM_TENSORS, model="molecule"),
        "several inputs in another order": infer_table(*reversed(_ATOM_TENSORS), model="molecule"),
        "bytes of one input": infer_table(
            numbers("n_atoms", [1], ..., "INT64", parameters={"binary_data_size": 8}),
            numbers("features", [1, 1, 15], [1] * 15),
            numbers("positions", [1, 1, 3], [1] * 3),
            model="molecule",
            raw=_RAW_ATOMS,
        ),
        "whole numbers": infer_table(numbers("counts", [1, 4], [1, 2, 3, 4], "UINT8"), model="counts"),
        "whole numbers as bytes": infer_table(
            numbers("counts", [2, 4], ..., "UINT8", parameters={"binary_data_size": 8}),
            model="counts",
            raw=bytes(range(8)),
        ),
        "at the limit": infer_table(rows(6), service="tight", outputs=named("mean")),
        "unknown output": infer_table(rows(), outputs=named("median")),
        "unknown version": infer_table(rows(), path="/versions/9/infer"),
        "content encoding": infer_table(rows(), headers={"content-encoding": "br"}),
        "no JSON": post("/v2/models/table/infer", told("{")),
        "no inputs": post("/v2/models/table/infer", told({})),
        "images": infer_table(images()),
        "missing inputs": infer_table(_ATOM_TENSORS[0], model="molecule"),
        "input twice": infer_table(rows(), rows()),
        "input without a name": infer_table(rows(name=...)),
        "id that is a number": infer_table(rows(), id=1),
        "parameters that are a list": infer_table(rows(), parameters=[1]),
        "outputs that are an object": infer_table(rows(), outputs={"name": "mean"}),
        "another datatype": infer_table(rows(datatype="INT64")),
        "no datatype": infer_table(rows(datatype=...)),
        "another length": infer_table(numbers("input", [1, 4], [0] * 4)),
        "another number of axes": infer_table(numbers("input", [3], [0] * 3)),
        "no example": infer_table(numbers("input", [0, 3], [])),
        "empty shape": infer_table(rows(shape=[])),
        "shape that is a text": infer_table(rows(shape="1,3")),
        "length that is a boolean": infer_table(rows(shape=[True, 3])),
        "too few values": infer_table(rows(data=[0, 1])),
        "another nesting": infer_table(rows(data=[[0], [1], [2]])),
        "words": infer_table(rows(data=["a", "b", "c"])),
        "booleans": infer_table(rows(data=[True, False, True])),
        "beyond float32": infer_table(rows(data=[1e300, 0, 0])),
        "ragged": infer_table(rows(data=[[1], [1, 2]])),
        "no data": infer_table(rows(data=...)),
        "data that is null": infer_table(rows(data=None)),
        "data and bytes": infer_table(rows(parameters={"binary_data_size": 12}), raw=raw_rows()),
        "bytes of another size": infer_table(rows(data=..., parameters={"binary_data_size": 8}), raw=raw_rows()[:8]),
        "bytes that end early": infer_table(rows(data=..., parameters={"binary_data_size": 12}), raw=raw_rows()[:8]),
        "bytes that nobody claims": infer_table(rows(), raw=b"abcd"),
        "not a number as bytes": infer_table(
            rows(data=..., parameters={"binary_data_size": 12}), raw=struct.pack("<3f", 0, math.nan, 1)
        ),
        "fractions for whole numbers": infer_table(
            *_ATOM_TENSORS[:2], numbers("n_atoms", [2], [1, 0.5], "INT64"), model="molecule"
        ),
        "beyond uint8": infer_table(numbers("counts", [1, 4], [1, 2, 3, 256], "UINT8"), model="counts"),
        "another number of examples": infer_table(
            *_ATOM_TENSORS[:2], numbers("n_atoms", [1], [1], "INT64"), model="molecule"
        ),
        "what the network refuses": infer_table(
            *_ATOM_TENSORS[:2], numbers("n_atoms", [2], [1, 7], "INT64"), model="molecule"
        ),
        "end without a level": infer_table(rows(), outputs=named("upper")),
        "too many examples": infer_table(rows(7), service="tight"),
        "too many values": infer_table(series(21), model="series", service="tight"),
        "too large a reply in JSON": infer_table(series(2), model="series", service="tight"),
        "small enough as bytes": infer_table(series(2), model="series", service="tight", parameters=_BYTES_OUT),
        "too large a reply as bytes": infer_table(series(7), model="series", service="tight", parameters=_BYTES_OUT),
        "reply that is infinite": infer_table(rows(data=[3e38, 3e38, 0])),
        "reply that is infinite as bytes": infer_table(rows(data=[3e38, 3e38, 0]), parameters=_BYTES_OUT),
        **{f"level: {name}": infer_table(rows(), parameters={"level": value}) for name, value in _WRONG_LEVELS.items()},
    },
)
add(
    "roll-out",
    {
        "prediction": post("/predict/tints", IMAGE, "new size"),
        "explanation": post("/predict/tints?explain=true&explain_class=pink", IMAGE, "new size", AS_PNG),
        "class that is gone": post("/predict/tints?explain=true&explain_class=blue", IMAGE, "new size"),
        "images of the old size": infer(images(), model="tints", service="new size"),
        "old version": infer(images(), service="new version", path="/versions/1/infer"),
        "any version": infer(images(), service="new version"),
        "metadata of the old version": get("/v2/models/colour/versions/1", "new version"),
        "example in a form that both take": example("table", {"input": [1, 2, 3]}, service="new inputs"),
        "example in the old form": example("table", _ROW, service="new inputs"),
        "example of another shape": example("table", _ROW, service="other inputs"),
        "tensors in the old form": infer_table(rows(), service="new inputs"),
        "tensors of another shape": infer_table(rows(), service="other inputs"),
        "regression": example("table", _ROW, service="new table", level=0.5),
        "old version of a regression": infer_table(rows(), service="new table", path="/versions/2/infer"),
        "any version of a regression": infer_table(rows(), service="new table"),
        "another task": post("/predict/colour", IMAGE, "new task"),
        "without end": post("/predict/tints", IMAGE, "restless"),
        "refusal without end": post("/predict/tints?explain=true&explain_class=teal", IMAGE, "restless"),
        "without end for a regression": example("table", {"input": [1, 2, 3]}, service="restless inputs"),
    },
)


# -- replies

_NEW_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_OVERLAY = re.compile(r'"overlay":"([^"]*)"')
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LENGTH = "inference-header-content-length"


def ask(services, case):
    """Send the request of a case and return its reply in the form of the recording."""
    service = services[case.service]
    content = case.body() if callable(case.body) else case.body
    for name, failure in case.failures.items():
        service.clients[name].failure = failure
    try:
        reply = service.http.request(
            case.method,
            case.path,
            content=content,
            headers={"x-request-id": REQUEST_ID, **case.headers},
            follow_redirects=False,
        )
    finally:
        for name in case.failures:
            service.clients[name].failure = None
    headers = {name: value for name, value in reply.headers.items() if HEADERS.fullmatch(name)}
    return {
        "status": reply.status_code,
        "headers": {name: _NEW_ID.sub("<new id>", value) for name, value in sorted(headers.items())},
        **(_readable(reply.content, headers) if case.body_counts else {}),
    }


def _readable(content, headers):
    """The body as text; raw tensors and pixels in base64."""
    if headers.get("content-type") == "image/png":
        return {"pixels": _pixels(content)}
    length = int(headers.get(_LENGTH, len(content)))
    text = _OVERLAY.sub(lambda found: f'"overlay":"{_pixels(base64.b64decode(found[1]))}"', content[:length].decode())
    text = _NEW_ID.sub("<new id>", text).replace(f'"version":"{tenfold.__version__}"', '"version":"<tenfold>"')
    raw = {"raw": base64.b64encode(content[length:]).decode()} if _LENGTH in headers else {}
    return {"body": text, **raw}


def _pixels(data):
    image = Image.open(io.BytesIO(data))
    return f"{image.format} {image.mode} {image.width}x{image.height} {base64.b64encode(image.tobytes()).decode()}"


def differences(got, expected):
    """Name the parts of a reply that differ from the recording."""
    got, expected = {**got, **got["headers"]}, {**expected, **expected["headers"]}
    parts = (got.keys() | expected.keys()) - {"headers"}
    return sorted(part for part in parts if not _same(part, got, expected))


def _same(part, got, expected):
    if part not in got or part not in expected:
        return False
    if got[part] == expected[part]:
        return True
    if part == "raw":
        return _same_tensors(got, expected)
    if part == _LENGTH:  # of a JSON with other digits; that it is right shows in the body, which is cut there
        return True
    # Headers have six digits.
    return isinstance(got[part], str) and _same_text(
        got[part], expected[part], TOLERANCE if part == "body" else 10 * TOLERANCE
    )


def _same_text(got, expected, tolerance):
    """Whether texts are equal up to the last digits of their decimal fractions."""
    if _NUMBER.split(got) != _NUMBER.split(expected):
        return False
    pairs = zip(_NUMBER.findall(got), _NUMBER.findall(expected), strict=True)
    return all(one == other or _is_close(one, other, tolerance) for one, other in pairs)


def _is_close(one, other, tolerance):
    are_fractions = all({".", "e", "E"} & set(text) for text in (one, other))
    return are_fractions and math.isclose(float(one), float(other), rel_tol=tolerance, abs_tol=tolerance / 10)


def _same_tensors(got, expected):
    """Whether raw tensors are equal, FP32 up to its last digits."""
    one, other = (base64.b64decode(reply["raw"]) for reply in (got, expected))
    if len(one) != len(other):
        return False
    start = 0
    for tensor in json.loads(expected["body"])["outputs"]:
        end = start + tensor.get("parameters", {}).get("binary_data_size", 0)
        values = [
            np.frombuffer(raw[start:end], "<f4" if tensor["datatype"] == "FP32" else "<i8") for raw in (one, other)
        ]
        if not np.allclose(*values, rtol=TOLERANCE, atol=TOLERANCE / 10, equal_nan=True):
            return False
        start = end
    return start == len(one)


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    return Services(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def recording():
    return json.loads(RECORDING.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_the_reply_is_the_recorded_one(services, recording, name):
    got, expected = ask(services, CASES[name]), recording[name]
    if differs := differences(got, expected):
        assert got == expected, f"differs in {', '.join(differs)}"


def test_the_recording_holds_these_cases_only(recording):
    assert recording.keys() == CASES.keys()


def record():
    with tempfile.TemporaryDirectory() as folder:
        made = Services(Path(folder))
        replies = {name: ask(made, CASES[name]) for name in sorted(CASES)}
    RECORDING.write_text(json.dumps(replies, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit(f"usage: python -m {HERE} --record")
    record()
