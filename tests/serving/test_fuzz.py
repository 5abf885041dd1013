"""Fuzz that reaches the models: valid requests to every stand-in, with at most one thing bent.

The default suite tries a few hundred; ``TENFOLD_FUZZ_CASES=10000 pytest -s -m slow tests/serving/test_fuzz.py`` tries
that many over both protocols and prints what came of them.
"""

import asyncio
import base64
import io
import json
import math
import os
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from serve.protocols.bodies import IMAGE_TYPES
from serve.protocols.v2 import DATATYPES, DTYPES, JSON_LENGTH_HEADER
from serve.tasks import table
from tenfold.tasks import ATTRIBUTIONS, EXPLAIN, EXPLAINED, IMAGES, LEVEL, LOWER, UPPER, Signature
from tenfold.types import Preprocessing
from tests.serving.local import LocalService
from tests.serving.stand_ins import served
from tests.serving.test_golden_replies import ALL, MODELS
from tests.serving.test_toy_kind import LOADER, MODULE, make_toy_bundle
from tests.serving.v2_client import decode_response, join_texts

CASES = int(os.environ.get("TENFOLD_FUZZ_CASES", "0"))
DEADLINE_S = 5.0
MAX_SENTENCE = 2100
MAX_GROWTH_MIB = 150
KNOWN = tuple(name for name in ALL if name != "faulty")
"""Models of the golden replies, without the one that breaks on purpose."""
STATUSES = {200, 400, 404, 405, 413, 415, 422}
TOKENS = {
    "<nested lists>": b"[" * 20_000 + b"]" * 20_000,
    "<nested objects>": b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    "<list without end>": b"[" * 20_000,
    "<digits>": b"9" * 5_000,
    "<float>": b"-1e999",
    "<many>": b"[" + b"1," * 5_000 + b"1]",
    "<bare word>": b"undefined",
    "<no UTF-8>": b'"\xff\xfe"',
}
"""Stand for JSON that ``json.dumps`` does not write."""
WILD: tuple[Any, ...] = (
    10**400, -(10**400), 2**63, -(2**63) - 1, 2**31, 256, -1, 0, 1, 1.5, 1e308, -1e308, 1e-320, math.nan, math.inf,
    -math.inf, True, False, None, "", " ", "x", "1", "NaN", "true", "\ud800", "\udfff\ud800", "\x00", "ä😀", "x" * 600,
    "\u202e\n\t", [], {}, [[]], [1, [2]], {"a": 1}, {"": None}, *TOKENS,
)  # fmt: skip
WILD_TEXTS = (
    *("", " ", "0", "-1", "1.0", "1e3", "+1", "1_0", "٣", "²", "9" * 5000, "NaN", "inf", "true", "null", "[1", "{}"),
    *("a,b;q=x", "ä猫", "\x7f", "a" * 5000, "image/png;q=nan", "*/*", "../..", "%", "\\", "'\"", "gzip", "chunked"),
)
CONTENT_TYPES = (
    *(
        "",
        "application/json; charset=utf-16",
        "APPLICATION/JSON",
        "text/plain",
        "application/octet-stream",
        "image/jpg",
    ),
    *("image/webp", "image/gif", "multipart/form-data", "multipart/form-data; boundary=", "application/json;;=;", "x"),
    *('multipart/form-data; boundary="a\\"b"', "multipart/form-data; boundary=" + "b" * 300, "multipart/mixed; a=b"),
    *("multipart/form-data; boundary=fuzz; charset=nonsense", "application/x-www-form-urlencoded", "/", "image/png, x"),
)


# -- requests


@dataclass
class Draft:
    """A valid request, not yet encoded."""

    protocol: str
    model: str
    path: str
    method: str = "POST"
    query: list[tuple[str, str]] = field(default_factory=list)
    headers: list[tuple[str, str]] = field(default_factory=list)
    tree: Any = None
    """The JSON; None: there is none."""
    raw: list[bytes] | None = None
    """Raw tensors behind the JSON; None: no binary extension."""
    file: bytes = b""
    """The image file, which is the body, or a part of the form."""
    parts: list[tuple[str, bytes]] | None = None
    """Heads and data of the form's parts."""
    indent: int | None = None
    json_length: Callable[[int], str] = str
    finish: Callable[[bytes], bytes] = lambda body: body
    """Last change of the body."""
    cuts: tuple[int, ...] = ()
    """Where the body is cut into messages."""
    raw_query: bytes | None = None
    bend: str = "none"

    def encoded(self) -> "Request":
        headers = list(self.headers)
        if self.parts is not None:
            body = b"".join(b"--fuzz\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in self.parts)
            body += b"--fuzz--\r\n"
        elif self.tree is None:
            body = self.file
        else:
            body = json.dumps(self.tree, indent=self.indent).encode()
            for token, text in TOKENS.items():
                body = body.replace(json.dumps(token).encode(), text)
            if self.raw is not None:
                headers.append((JSON_LENGTH_HEADER, self.json_length(len(body))))
                body += b"".join(self.raw)
        body = self.finish(body)
        query = "&".join(f"{quote(name)}={quote(text)}" for name, text in self.query).encode()
        if not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("content-length", str(len(body))))
        return Request(
            draft=self,
            query=query if self.raw_query is None else self.raw_query,
            headers=[(name.lower().encode(), text.encode("latin-1", "replace")) for name, text in headers],
            body=body,
        )


@dataclass(frozen=True)
class Request:
    draft: Draft
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def __repr__(self) -> str:
        draft = self.draft
        told = [draft.bend, draft.method, draft.path, self.query[:300], [(n, v[:200]) for n, v in self.headers]]
        return f"Request({', '.join(map(repr, told))}, {self.body[:2000]!r})"


# -- valid ones


@st.composite
def valid(draw, signatures, protocol):
    model = draw(st.sampled_from(sorted(signatures)))
    return (_plain if protocol == "plain" else _v2)(draw, model, *signatures[model])


def _values(draw, signature: Signature, num: int) -> dict[str, np.ndarray]:
    """Inputs that every request brings, first axis ``num``."""
    random = np.random.default_rng(draw(st.integers(0, 999)))
    length = draw(st.integers(1, 3))
    scale = draw(st.sampled_from([1.0, 1.0, 100.0, 1e-30, 1e20]))
    found: dict[str, np.ndarray] = {}
    for slot in signature.required:
        shape = (num, *(length if axis < 0 else axis for axis in slot.shape))
        if slot.dtype == "text":
            found[slot.name] = np.array(draw(st.lists(_texts, min_size=num, max_size=num)), object)
        elif "int" in slot.dtype:
            found[slot.name] = random.integers(0, 250 if slot.dtype == "uint8" else 2, shape).astype(slot.dtype)
        else:
            found[slot.name] = (scale * random.normal(size=shape)).astype(slot.dtype)
    return found


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_names = _texts.filter(str.strip)
_vocabularies = st.none() | st.lists(_names, min_size=1, max_size=3, unique=True)


def _v2(draw, model: str, signature: Signature, version: str) -> Draft:
    num = draw(st.integers(1, 3))
    inputs = _values(draw, signature, num)
    params: dict[str, Any] = {}
    outputs = [slot.name for slot in signature.always]
    if "prompt_template" in signature.about and (classes := draw(_vocabularies)):
        if draw(st.booleans()):
            inputs["classes"] = np.array(classes, object)
        else:
            prompts = draw(st.lists(_names, min_size=len(classes), max_size=4).filter(lambda p: len(p) >= len(classes)))
            inputs["prompts"] = np.array(prompts, object)
            inputs["prompt_classes"] = np.array(
                [classes[min(k, len(classes) - 1)] for k in range(len(prompts))], object
            )
    elif signature.gives(ATTRIBUTIONS) and draw(st.booleans()):
        params[EXPLAIN] = True
        outputs += [ATTRIBUTIONS, EXPLAINED]
        if draw(st.booleans()):
            one = st.integers(0, len(signature.columns) - 1) | st.sampled_from(signature.columns)
            params["explain_class"] = draw(one | st.lists(one, min_size=num, max_size=num))
    if signature.gives(UPPER) and draw(st.booleans()):
        params[LEVEL] = draw(st.sampled_from([0.5, 0.9, "0.25", 1e-9, 0.9999999999999999]))
        outputs += [LOWER, UPPER]
    if signature.kind == "toy":
        outputs.append("written")
        if draw(st.booleans()):
            params["case"] = draw(st.sampled_from(["upper", "lower"]))
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    ways = draw(st.sampled_from([[True], [False], [True, False]]))
    for name, values in inputs.items():
        dtype = "text" if values.dtype.kind == "O" else str(values.dtype)
        tensor: dict[str, Any] = {"name": name, "datatype": DATATYPES[dtype], "shape": list(values.shape)}
        if draw(st.sampled_from(ways)):
            raw.append(join_texts(values.ravel().tolist()) if dtype == "text" else values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = (values if draw(st.booleans()) else values.ravel()).tolist()
        tensors.append(tensor)
    tree: dict[str, Any] = {"inputs": tensors}
    if draw(st.booleans()):
        tree["id"] = draw(_texts)
    if draw(st.booleans()):
        params["binary_data_output"] = draw(st.booleans())
    if params or draw(st.booleans()):
        tree["parameters"] = params
    if draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(outputs), min_size=1, max_size=3, unique=True))
        flags = [draw(st.sampled_from([None, True, False])) for _ in chosen]
        tree["outputs"] = [
            {"name": name} if flag is None else {"name": name, "parameters": {"binary_data": flag}}
            for name, flag in zip(chosen, flags, strict=True)
        ]
    path = f"/v2/models/{model}" + (f"/versions/{version}" if draw(st.booleans()) else "") + "/infer"
    is_raw = bool(raw) or draw(st.booleans())
    kind = "application/octet-stream" if is_raw else "application/json"
    return Draft("v2", model, path, headers=[("content-type", kind)], tree=tree, raw=raw if is_raw else None)


def _file(draw, kind: str) -> bytes:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 4)).astype(np.uint8)
    mode = draw(st.sampled_from(["RGB", "RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"]))
    image = Image.fromarray(pixels[..., :3])
    if mode == "I;16" and kind == "png":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA" and kind != "jpeg":
        image = Image.fromarray(pixels)
    elif mode in ("L", "P", "1") or (mode == "CMYK" and kind == "jpeg"):
        image = image.convert(mode if kind == "png" or mode in ("L", "CMYK") else "L")
    buffer = io.BytesIO()
    image.save(buffer, kind.upper())
    return buffer.getvalue()


def _plain(draw, model: str, signature: Signature, version: str) -> Draft:
    slots = signature.required
    forms = ["body", "form", "base64"] if any(slot.image for slot in slots) else []
    forms += [] if isinstance(slots[0].image, Preprocessing) else ["inputs"]
    form = draw(st.sampled_from(forms))
    draft = Draft("plain", model, f"/predict/{model}")
    said: dict[str, Any] = {}
    told: list[tuple[str, str]] = []
    explains = False
    if signature.kind == "labels":
        if draw(st.booleans()):
            told.append(("top", str(draw(st.integers(1, 20)))))
        classes = draw(_vocabularies) if "prompt_template" in signature.about and form != "body" else None
        if classes:
            of_class = st.lists(_names, min_size=1, max_size=3)
            said |= (
                {"classes": classes} if draw(st.booleans()) else {"prompts": {name: draw(of_class) for name in classes}}
            )
        elif signature.gives(ATTRIBUTIONS) and (explains := draw(st.booleans())):
            told.append((EXPLAIN, draw(st.sampled_from(["true", "overlay", "True"]))))
            if draw(st.booleans()):
                told.append(("explain_class", draw(st.sampled_from([*signature.columns, "0"]))))
    elif signature.gives(UPPER) and draw(st.booleans()):
        told.append((LEVEL, draw(st.sampled_from(["0.5", "0.9", "1e-3", "0.9999999999999999"]))))
    elif signature.kind == "toy" and draw(st.booleans()):
        told.append(("case", draw(st.sampled_from(["upper", "lower"]))))
    gives_picture = explains or model in ("image", "grey")
    if gives_picture and draw(st.booleans()):
        draft.headers.append(("accept", draw(st.sampled_from(["image/png", "image/png, application/json;q=0.5"]))))
        if model in ("image", "grey"):
            draft.query.append(("show", draw(st.sampled_from(["mean", "std"]))))
    in_body = [draw(st.booleans()) and name != "top" and form != "body" for name, _ in told]
    draft.query += [one for one, inside in zip(told, in_body, strict=True) if not inside]
    own = {name: text for (name, text), inside in zip(told, in_body, strict=True) if inside}
    kind = draw(st.sampled_from(["png", "jpeg", "webp"]))
    if form != "inputs":
        draft.file = _file(draw, kind)
    if form == "body":
        draft.headers.append(("content-type", f"image/{kind}"))
    elif form == "form":
        draft.headers.append(("content-type", "multipart/form-data; boundary=fuzz"))
        head = 'Content-Disposition: form-data; name="image"; filename="a"'
        if draw(st.booleans()):
            head += f"\r\nContent-Type: image/{kind}"
        draft.parts = [(head, draft.file)]
        for name, value in {**said, **own}.items():
            text = value if isinstance(value, str) else json.dumps(value)
            draft.parts.append((f'Content-Disposition: form-data; name="{name}"', text.encode()))
    else:
        draft.headers.append(("content-type", "application/json"))
        if form == "base64":
            draft.tree = {"image": base64.b64encode(draft.file).decode()}
        else:
            values = _values(draw, signature, 1)
            draft.tree = {"inputs": {name: each[0].tolist() if each.ndim > 1 else each.tolist()[0]
                                     for name, each in values.items()}}  # fmt: skip
        draft.tree |= said | own
    return draft


# -- what is bent: each takes ``draw`` and a draft, and changes it


def nothing(draw, draft):
    pass


def white_space(draw, draft):
    draft.indent = draw(st.integers(0, 3))


def unknown_member(draw, draft):
    if isinstance(draft.tree, dict):
        draft.tree[draw(st.sampled_from(["x", "ä", "Image", "\x00", "\ud800"]))] = draw(st.sampled_from([1, None, []]))


def unknown_header(draw, draft):
    name = draw(st.sampled_from(["x-y", "cookie", "origin", "te", "expect", "range", "if-match", "x-forwarded-for"]))
    draft.headers.insert(0, (name, draw(st.sampled_from(WILD_TEXTS))))


def unknown_word(draw, draft):
    draft.query.insert(0, (draw(st.sampled_from(["x", "", "Level", "ä"])), draw(st.sampled_from(WILD_TEXTS))))


def pieces(draw, draft):
    draft.cuts = tuple(sorted(draw(st.lists(st.integers(0, 600), max_size=4))))


def request_id(draw, draft):
    draft.headers += [("x-request-id", draw(st.sampled_from([*WILD_TEXTS, "abc-1"]))) for _ in range(2)]


def accept(draw, draft):
    draft.headers.insert(0, ("accept", draw(st.sampled_from(WILD_TEXTS))))


def numbers(draw, draft):
    """Change a number of a tensor or of an input by a little."""
    place = _place(draw, draft.tree, lambda value: type(value) in (int, float))
    if place is not None:
        parent, key = place
        parent[key] = parent[key] + draw(st.sampled_from([-1, 1, 0.5, 1e-9]))


def json_value(draw, draft):
    """Replace, delete, rename, repeat or wrap one value of the JSON."""
    place = _place(draw, draft.tree)
    if place is None:
        return body_bytes(draw, draft)
    parent, key = place
    way = draw(st.sampled_from(["replace", "replace", "delete", "wrap", "rename", "text", "again"]))
    if way == "replace":
        parent[key] = draw(st.sampled_from(WILD))
    elif way == "delete":
        del parent[key]
    elif way == "wrap":
        parent[key] = [parent[key]]
    elif way == "text":
        parent[key] = str(parent[key])
    elif isinstance(parent, list):
        parent.insert(0, parent[key])
    elif way == "rename":
        parent[draw(st.sampled_from(["", "NAME", "\ud800", "x" * 3000, "inputs", "data"]))] = parent.pop(key)
    else:
        twice = Twice(parent)
        twice.again = (key, parent[key])
        _replace(draft, parent, twice)
    return None


class Twice(dict):
    """An object that is written with one key twice."""

    again: tuple[str, Any] = ("", None)

    def items(self):
        return [*super().items(), self.again]


def _replace(draft, old, new):
    def replaced(node):
        if node is old:
            return new
        if type(node) is dict:
            return {key: replaced(value) for key, value in node.items()}
        return [replaced(value) for value in node] if isinstance(node, list) else node

    draft.tree = replaced(draft.tree)


def _place(draw, tree, fits=None):
    """A container of the JSON and a key or an index in it."""
    if not isinstance(tree, dict | list) or not tree:
        return None
    node = tree
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        inner = node[key]
        is_end = not isinstance(inner, dict | list) or not inner
        if is_end or (fits is None and draw(st.integers(0, 2)) == 0):
            return (node, key) if fits is None or fits(inner) else None
        node = inner


def tensor(draw, draft):
    """Change shape, datatype, size or number of tensors."""
    if draft.protocol != "v2":
        return json_value(draw, draft)
    tensors = draft.tree["inputs"]
    one = draw(st.sampled_from(tensors))
    way = draw(st.sampled_from(["shape", "axes", "datatype", "size", "both", "twice", "missing", "order", "name"]))
    if way == "shape":
        one["shape"][draw(st.integers(0, len(one["shape"]) - 1))] = draw(st.sampled_from(WILD))
    elif way == "axes":
        one["shape"] = draw(st.sampled_from([[], [1], [2**40, 2**40], [1] * 64, one["shape"] + [1], [2**32] * 30]))
    elif way == "datatype":
        one["datatype"] = draw(st.sampled_from([*DTYPES, "FP16", "BF16", "UINT64", "fp32", ""]))
    elif way == "size" and "parameters" in one:
        size = one["parameters"]["binary_data_size"]
        one["parameters"]["binary_data_size"] = draw(st.sampled_from([size - 1, size + 1, 2 * size, *WILD]))
    elif way == "both":
        one |= {"data": [1], "parameters": {"binary_data_size": 4}}
    elif way == "twice":
        tensors.append(one)
    elif way == "missing":
        tensors.remove(one)
    elif way == "order":
        tensors.reverse()
    else:
        one["name"] = draw(st.sampled_from(["mean", "IMAGES", IMAGES + " ", "classes", "prompts"]))
    return None


def raw_bytes(draw, draft):
    """Change, cut or lengthen raw tensors; some become NaN, others texts of wrong lengths."""
    if not draft.raw:
        return tensor(draw, draft)
    k = draw(st.integers(0, len(draft.raw) - 1))
    draft.raw[k] = _bent_bytes(draw, draft.raw[k])
    return None


def wanted(draw, draft):
    """Ask for strange outputs, parameters or forms of the reply."""
    if draft.protocol != "v2":
        return query(draw, draft)
    if draw(st.booleans()):
        names = ["mean", "probs", "lower", "upper", "attributions", "explained", "length", "", "\ud800"]
        chosen = draw(st.lists(st.sampled_from(names), max_size=4))
        draft.tree["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in chosen]
    else:
        name = draw(st.sampled_from([LEVEL, EXPLAIN, "explain_class", "case", "binary_data_output", "x"]))
        draft.tree.setdefault("parameters", {})[name] = draw(st.sampled_from(WILD))
    return None


def json_length(draw, draft):
    if draft.raw is None:
        return content_type(draw, draft)
    by = draw(st.sampled_from([-1, 1, 10**6]))
    text = draw(st.sampled_from(WILD_TEXTS))
    draft.json_length = (lambda length: str(length + by)) if draw(st.booleans()) else (lambda length: text)
    return None


def content_type(draw, draft):
    draft.headers = [one for one in draft.headers if one[0] != "content-type"]
    if draw(st.booleans()):
        kind = draw(st.sampled_from([*CONTENT_TYPES, *IMAGE_TYPES, "application/json"]))
        draft.headers.append(("content-type", kind))


def content_length(draw, draft):
    text = draw(st.sampled_from([*WILD_TEXTS, "5", "17000000", "16777216"]))
    draft.headers.append(("content-length", text))


def other_header(draw, draft):
    name = draw(st.sampled_from(["content-encoding", "transfer-encoding", JSON_LENGTH_HEADER, "authorization"]))
    draft.headers.append((name, draw(st.sampled_from(WILD_TEXTS))))


def query(draw, draft):
    """Repeat a word, give it another value, or write it strangely."""
    words = ["top", "explain", "explain_class", "level", "show", "case", "x"]
    name, text = draw(st.sampled_from(words)), draw(st.sampled_from(WILD_TEXTS))
    if draw(st.booleans()):
        draft.query += [(name, text)] * draw(st.integers(1, 2))
    else:
        strange = [
            "%ff=%ff",
            "a&&b",
            "=",
            "&",
            "top",
            "top=%00",
            "level=%31%2e",
            "x=" + "y" * 9000,
            "top=1;level=2",
            "%",
        ]
        draft.raw_query = draw(st.sampled_from(strange)).encode() + b"&" * draw(st.integers(0, 2))


def path(draw, draft):
    kinds = ["/", "/x", "%00", "%ff", "?", "/versions/9/infer", "%2f", "//", "\ud83d", "é", "x" * 5000]
    way = draw(st.sampled_from(["after", "model", "method", "version"]))
    if way == "after":
        draft.path += draw(st.sampled_from(kinds))
    elif way == "model":
        draft.path = draft.path.replace(draft.model, draw(st.sampled_from(["nothing", "", "..", "%00", "TABLE"])))
    elif way == "version":
        draft.path = f"/v2/models/{draft.model}/versions/{draw(st.sampled_from(['9', '', '%20', '1.0']))}/infer"
    else:
        draft.method = draw(st.sampled_from(["GET", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "X" * 50]))


def picture(draw, draft):
    """Damage the image file, or send another."""
    if not draft.file:
        return body_bytes(draw, draft)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(buffer, "GIF")
    header = struct.pack(">II", *draw(st.sampled_from([(2**31 - 1, 1), (60_000, 60_000), (0, 0), (4001, 4000)])))
    others = [b"", buffer.getvalue(), b"\xff\xd8\xff", b"RIFF\xff\xff\xff\xffWEBP", b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
    bent = draw(st.sampled_from([_bent_bytes(draw, draft.file), draft.file[:16] + header + draft.file[24:], *others]))
    if draft.parts is not None:
        draft.parts[0] = (draft.parts[0][0], bent)
    elif draft.tree is None:
        draft.file = bent
    else:
        extra = draw(st.sampled_from(["", "=", "\n", "data:image/png;base64,", "http://127.0.0.1/a.png"]))
        draft.tree["image"] = extra + base64.b64encode(bent).decode()
    return None


def form_part(draw, draft):
    """Repeat, rename, remove or damage a part of the form."""
    if draft.parts is None:
        return json_value(draw, draft)
    k = draw(st.integers(0, len(draft.parts) - 1))
    head, data = draft.parts[k]
    way = draw(st.sampled_from(["again", "gone", "head", "data", "extra", "many"]))
    if way == "again":
        draft.parts.append((head, data))
    elif way == "gone":
        del draft.parts[k]
    elif way == "data":
        draft.parts[k] = (head, _bent_bytes(draw, data))
    elif way == "extra":
        name = draw(st.sampled_from(["level", "explain", "classes", "prompts", "x", "input", "text", "top"]))
        text = draw(st.sampled_from([*map(str.encode, WILD_TEXTS), b"\xff", b"\x00", b'{"a":1,"a":1}', b"[" * 5000]))
        draft.parts.append((f'Content-Disposition: form-data; name="{name}"', text))
    elif way == "many":
        draft.parts += [(f'Content-Disposition: form-data; name="n{k}"', b"1") for k in range(20)]
    else:
        heads = [
            *("", "Content-Disposition: form-data", 'Content-Disposition: attachment; name="image"; filename="a"', ":"),
            *('Content-Disposition: form-data; name="classes"; filename="a"', "Content-Type: image/png", "x" * 9000),
            *(
                "Content-Disposition: form-data; name=\"image\"; filename*=UTF-8''%ff",
                head + "\r\nContent-Type: text/a",
            ),
            *(head + "\r\nContent-Transfer-Encoding: base64", head + "\r\n" + "a: b\r\n" * 50 + "c: d"),
        ]
        draft.parts[k] = (draw(st.sampled_from(heads)), data)
    return None


def body_bytes(draw, draft):
    draft.finish = _bent(draw)


def _bent_bytes(draw, data: bytes) -> bytes:
    return _bent(draw)(data)


def _bent(draw) -> Callable[[bytes], bytes]:
    """A change of bytes: one flipped, some inserted, cut, repeated or removed."""
    way = draw(st.sampled_from(["flip", "insert", "cut", "repeat", "remove", "append"]))
    share, other = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    extra = draw(
        st.binary(min_size=1, max_size=6) | st.sampled_from([b"\x00", b"\xff" * 4, b"\xed\xa0\x80", b"\r\n\r\n"])
    )

    def change(data: bytes) -> bytes:
        at = int(share * max(0, len(data) - 1))
        if way == "flip" and data:
            return data[:at] + bytes([data[at] ^ (other | 64)]) + data[at + 1 :]
        if way == "cut":
            return data[:at]
        if way == "repeat":
            return data[:at] + data[max(0, at - other) :]
        if way == "remove":
            return data[:at] + data[at + other :]
        return data + extra if way == "append" else data[:at] + extra + data[at:]

    return change


HARMLESS = (white_space, unknown_member, unknown_header, unknown_word, pieces, request_id, accept, numbers)
HOSTILE = (
    *(json_value, json_value, tensor, raw_bytes, wanted, json_length, content_type, content_length, other_header),
    *(query, path, picture, form_part, body_bytes),
)


@st.composite
def requests(draw, signatures, protocol):
    draft = draw(valid(signatures, protocol))
    bends = draw(st.sampled_from([HARMLESS, HARMLESS, HOSTILE, HOSTILE, HOSTILE, (nothing,)]))
    bend = draw(st.sampled_from(bends))
    bend(draw, draft)
    draft.bend = bend.__name__
    return draft.encoded()


# -- asking


@dataclass(frozen=True)
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    seconds: float

    def all(self, name: str) -> list[str]:
        return [text for key, text in self.headers if key == name]


async def send(app, request: Request) -> Reply:
    """Send a request as the ASGI server would, with headers and messages as they are."""
    draft = request.draft
    edges = [0, *(min(cut, len(request.body)) for cut in draft.cuts), len(request.body)]
    parts = [request.body[start:end] for start, end in pairwise(edges)]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    messages.reverse()
    told: list[dict[str, Any]] = []

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def tell(message):
        told.append(message)

    raw_path = draft.path.encode("utf-8", "surrogatepass")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": draft.method, "scheme": "http",
        "path": unquote(draft.path), "raw_path": raw_path, "query_string": request.query, "root_path": "",
        "headers": request.headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    started = time.perf_counter()
    async with asyncio.timeout(2 * DEADLINE_S):
        await app(scope, receive, tell)
    taken = time.perf_counter() - started
    start = told[0]
    headers = [(str(name, "latin-1"), str(text, "latin-1")) for name, text in start["headers"]]
    return Reply(start["status"], headers, b"".join(message.get("body", b"") for message in told[1:]), taken)


# -- what holds for every reply


def check(request: Request, reply: Reply) -> None:
    draft = request.draft
    assert reply.status in STATUSES | ({307} if draft.bend == "path" else set()), (reply.status, reply.body[:500])
    assert reply.seconds < DEADLINE_S, reply.seconds
    [told_id] = reply.all("x-request-id")
    if reply.status == 307:
        return
    assert reply.all("content-length") == [str(len(reply.body))]
    [kind] = reply.all("content-type")
    if reply.status != 200:
        assert kind == "application/json"
        _check_refusal(reply.body)
    elif draft.protocol == "v2":
        _check_outputs(reply)
    elif kind == "image/png":
        Image.open(io.BytesIO(reply.body)).load()
    else:
        assert kind == "application/json"
        _check_shown(strict(reply.body), told_id)


def strict(data: bytes) -> Any:
    """Parse JSON without NaN, infinity and duplicate keys."""

    def refuse(word):
        raise AssertionError(f"{word} in JSON")

    def unique(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(data.decode(), parse_constant=refuse, object_pairs_hook=unique)


def _check_refusal(body: bytes) -> None:
    told = strict(body)
    assert list(told) == ["error"], told
    sentence = told["error"]
    assert 0 < len(sentence) <= MAX_SENTENCE, (len(sentence), sentence[:300])
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert "object at 0x" not in sentence


def _check_outputs(reply: Reply) -> None:
    length = next(iter(reply.all(JSON_LENGTH_HEADER.lower())), None)
    head = strict(reply.body[: len(reply.body) if length is None else int(length)])
    assert {"model_name", "model_version", "outputs"} <= head.keys()
    sizes = [tensor.get("parameters", {}).get("binary_data_size", 0) for tensor in head["outputs"]]
    assert int(length or len(reply.body)) + sum(sizes) == len(reply.body)
    counts = set()
    for name, values in decode_response(reply.body, length).items():
        counts.add(len(values))
        if values.dtype.kind == "f":
            assert np.isfinite(values).all(), name
    assert len(counts) == 1


def _check_shown(told: dict[str, Any], told_id: str) -> None:
    assert told["request_id"] == told_id
    assert {"model", "version", "task"} <= told.keys()
    [answer] = [told[name] for name in ("labels", "targets", "outputs") if name in told]
    assert answer
    if "labels" in told:
        chances = [label["probability"] for label in answer]
        assert chances == sorted(chances, reverse=True)
        assert all(0 <= chance <= 1 for chance in chances)


# -- tests


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.MODULES, "toy", MODULE)
        models = [served(make_toy_bundle(folder / "toy"), "toy", version="2", loader=LOADER)]
        for name in KNOWN:
            make, of_bundle, options = MODELS[name]
            models.append(served(make(folder / name, **of_bundle), name, **options))
        yield LocalService(models, raises=False)


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


def fuzz(service, loop, protocol: str, num_cases: int, derandomize: bool) -> Counter[tuple[str, int]]:
    """Try so many requests; returns their number by what was bent and by status."""
    described = [service.desk.description(name) for name in service.desk.names()]
    signatures = {one.name: (one.signature, one.version) for one in described}
    seen: Counter[tuple[str, int]] = Counter()

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=derandomize,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(signatures, protocol))
    def ask(request):
        reply = loop.run(send(service.http.app, request))
        seen[request.draft.bend, reply.status] += 1
        check(request, reply)
        service.traces.clear()

    ask()
    return seen


def accepted(seen: Counter[tuple[str, int]]) -> float:
    return sum(count for (_, status), count in seen.items() if status == 200) / seen.total()


@pytest.mark.parametrize("protocol", ["plain", "v2"])
def test_no_request_is_more_than_refused(service, loop, protocol):
    seen = fuzz(service, loop, protocol, 300, derandomize=True)
    assert accepted(seen) >= 0.5, seen
    assert seen["nothing", 200] == sum(count for (bend, _), count in seen.items() if bend == "nothing")


@pytest.mark.slow
@pytest.mark.skipif(not CASES, reason="TENFOLD_FUZZ_CASES says how many")
@pytest.mark.parametrize("protocol", ["plain", "v2"])
def test_many_requests_are_no_more_than_refused(service, loop, protocol):
    fuzz(service, loop, protocol, 200, derandomize=True)  # what is built on first use stays
    before, started = peak_mib(), time.perf_counter()
    seen = fuzz(service, loop, protocol, CASES // 2, derandomize=False)
    growth = peak_mib() - before
    taken = time.perf_counter() - started
    print(f"\n{protocol}: {seen.total()} cases in {taken:.0f} s, {accepted(seen):.1%} accepted")
    print(f"peak memory {before:.0f} + {growth:.0f} MiB")
    print(tallies(seen))
    assert accepted(seen) >= 0.5
    assert growth < MAX_GROWTH_MIB


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tallies(seen: Counter[tuple[str, int]]) -> str:
    statuses: Sequence[int] = sorted({status for _, status in seen})
    lines = ["".join([f"{'':16}", *(f"{status:>7}" for status in statuses)])]
    for bend in [*sorted({bend for bend, _ in seen}), None]:
        counts = [sum(n for (b, s), n in seen.items() if s == status and bend in (b, None)) for status in statuses]
        lines.append("".join([f"{bend or 'all':16}", *(f"{count:>7}" for count in counts)]))
    return "\n".join(lines)
