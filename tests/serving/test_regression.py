"""Regressors behind the endpoint: mean, std and the interval at the level of the request."""

import asyncio
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from serve.clients.local import LocalModel
from serve.contract import Call, Failure, RefusedError
from serve.http.desk import Desk
from serve.settings import ServeSettings
from tenfold.bundle import BundleError
from tests.serving.local import LocalService, encoded, refusal
from tests.serving.real_bundles import (
    IMAGE,
    LOADER,
    MOLECULE,
    SERIES,
    TABLE,
    draw_inputs,
    make_regression_bundle,
)
from tests.serving.stand_ins import make_bundle, served
from tests.serving.v2_client import encode_regression_request, outputs_of

OUTPUTS = {"mean", "std", "aleatoric", "epistemic"}
MODELS = {
    "series": (SERIES, ("x [m]", "y [m]"), {}),
    "table": (TABLE, ("bone",), {"num_members": 3, "uncertainty": "deep_ensemble"}),
    "image": (IMAGE, ("red", "green", "blue"), {}),
    "molecule": (MOLECULE, ("energy [eV]",), {}),
    "dropped": (TABLE, ("bone",), {"uncertainty": "mc_dropout", "dropout": 0.5, "num_passes": 4}),
    "noisy": (SERIES, ("x [m]", "y [m]"), {"uncertainty": "tta", "num_passes": 4}),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regressors")
    made = {
        name: make_regression_bundle(folder / name, schemas, targets, **settings)
        for name, (schemas, targets, settings) in MODELS.items()
    }
    models = [served(bundle, name, version="2", loader=LOADER) for name, (bundle, _) in made.items()]
    local = LocalService([*models, served(make_bundle(folder / "colour"))], max_values=2000, max_images=8)
    local.predictors = {name: predictor for name, (_, predictor) in made.items()}
    return local


def arrays(inputs):
    return {name: values.numpy() for name, values in inputs.items()}


def call_of(inputs, level=None):
    return Call(inputs=inputs, params={} if level is None else {"level": level})


def pieces_of(loaded, inputs, level=None):
    return asyncio.run(loaded.pieces(call_of(inputs, level)))


def infer(service, name, inputs, **said):
    body, headers = encode_regression_request(arrays(inputs), **said)
    return service.http.post(f"/v2/models/{name}/infer", content=body, headers=headers)


def predict(service, name, content, query=""):
    return service.http.post(f"/predict/{name}{query}", json=content)


# -- v2


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_v2_answers_as_the_predictor(service, name, binary):
    inputs = draw_inputs(MODELS[name][0])
    outputs = outputs_of(infer(service, name, inputs, binary=binary))
    assert set(outputs) == OUTPUTS
    for output, expected in service.predictors[name](**inputs).items():
        np.testing.assert_allclose(outputs[output], expected.numpy(), rtol=1e-5, atol=1e-6, err_msg=output)


@pytest.mark.parametrize("name", ["series", "table"])
def test_the_interval_is_that_of_the_level_asked_for(service, name):
    inputs = draw_inputs(MODELS[name][0])
    widths = []
    for level, quantile in ((0.5, 0.6744898), (0.9, 1.6448536), (0.99, 2.5758293)):
        reply = infer(service, name, inputs, level=level, binary=False)
        assert reply.json()["parameters"] == {"level": level}
        outputs = outputs_of(reply)
        half = (outputs["upper"] - outputs["lower"]) / 2
        np.testing.assert_allclose(half, quantile * outputs["std"], rtol=1e-5)
        np.testing.assert_allclose((outputs["upper"] + outputs["lower"]) / 2, outputs["mean"], rtol=1e-4, atol=1e-5)
        widths.append(half.mean())
    assert widths == sorted(widths)


def test_a_recalibrated_model_widens_its_intervals(tmp_path):
    expected = torch.linspace(0, 1, 101, dtype=torch.float64)
    bundle, _ = make_regression_bundle(
        tmp_path / "b", TABLE, ("bone",), calibrator=(expected, expected**2), recalibration="isotonic"
    )  # what should hold half of the targets holds a quarter
    service = LocalService([served(bundle, "table", loader=LOADER)])
    outputs = outputs_of(infer(service, "table", draw_inputs(TABLE), level=0.25))
    half = (outputs["upper"] - outputs["lower"]) / 2
    np.testing.assert_allclose(half, 0.6744898 * outputs["std"], rtol=1e-4)  # as wide as a Gaussian's for one half


def test_outputs_that_are_named_come_alone(service):
    body, _ = encode_regression_request(arrays(draw_inputs(TABLE)), binary=False, level=0.8)
    for named, expected in ((["std"], {"std", "lower", "upper"}), (["upper"], {"upper"})):
        request = json.loads(body) | {"outputs": [{"name": name} for name in named]}
        assert set(outputs_of(service.http.post("/v2/models/table/infer", json=request))) == expected


def test_the_metadata_says_what_is_taken_and_told(service):
    told = service.http.get("/v2/models/molecule").json()
    assert [(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]] == [
        ("features", "FP32", [-1, -1, 15]), ("positions", "FP32", [-1, -1, 3]), ("n_atoms", "INT64", [-1]),
    ]  # fmt: skip
    outputs = {one["name"]: one for one in told["outputs"]}
    assert outputs.keys() == {*OUTPUTS, "lower", "upper"}
    assert outputs["mean"]["shape"] == [-1, 1]
    assert outputs["lower"]["parameters"] == {"optional": True}
    assert told["parameters"] == {"task": "regression", "targets": ["energy [eV]"]}
    image = service.http.get("/v2/models/image").json()
    assert image["inputs"][0]["parameters"] == {"max_value": 1.0}
    assert {one["name"]: one["shape"] for one in image["outputs"]}["mean"] == [-1, 3, -1, -1]


BAD = {
    "datatype": ("INT64", None, None, "'input' must have datatype FP32, got 'INT64'"),
    "channels": (
        "FP32",
        [1, 4],
        [0.0] * 4,
        "'input' must be float32 [N,3], each length at least 1, got float32 [1, 4]",
    ),
    "axes": ("FP32", [3], [0.0] * 3, "'input' must be float32 [N,3]"),
    "empty": ("FP32", [0, 3], [], "the shape of 'input' must be a list of lengths, each at least 1, got [0, 3]"),
    "count": ("FP32", [1, 3], [0.0] * 2, "'data' of 'input' must hold 3 values for shape [1, 3], got [2]"),
    "words": ("FP32", [1, 3], ["a", "b", "c"], "'input' must hold numbers that float32 can hold"),
    "truth": ("FP32", [1, 3], [True, False, True], "'input' must hold numbers that float32 can hold, got bool"),
    "large": ("FP32", [1, 3], [1e300, 0, 0], "'input' must hold finite float32 numbers"),
    "ragged": ("FP32", [1, 3], [[1.0], [1.0, 2.0]], "'input' must be nested lists of one length in each axis"),
    "many": ("FP32", [9, 3], [0.0] * 27, "a request may have at most 8 examples, got 9"),
}


@pytest.mark.parametrize("case", BAD)
def test_tensors_that_are_not_the_models_are_refused(service, case):
    datatype, shape, data, message = BAD[case]
    tensor = {"name": "input", "datatype": datatype, "shape": shape or [1, 3], "data": data or [0.0] * 3}
    if data == []:
        tensor["data"] = []
    assert message in refusal(service.http.post("/v2/models/table/infer", json={"inputs": [tensor]}), 422)


def test_the_nan_of_raw_bytes_is_refused(service):
    inputs = draw_inputs(TABLE)
    inputs["input"][1, 1] = math.nan
    assert "'input' must hold finite float32 numbers" in refusal(infer(service, "table", inputs), 422)


@pytest.mark.parametrize("level", [0, 1, -0.5, "high", True, [0.9], math.inf])
def test_a_level_that_is_none_is_refused(service, level):
    body, _ = encode_regression_request(arrays(draw_inputs(TABLE)), binary=False)
    request = json.dumps(json.loads(body) | {"parameters": {"level": level}})  # with Infinity, which httpx won't write
    reply = service.http.post("/v2/models/table/infer", content=request)
    assert "'level' must be a number between 0 and 1, such as 0.9" in refusal(reply, 422)


def test_an_end_without_a_level_is_refused(service):
    body, _ = encode_regression_request(arrays(draw_inputs(TABLE)), binary=False)
    request = json.loads(body) | {"outputs": [{"name": "upper"}]}
    message = refusal(service.http.post("/v2/models/table/infer", json=request), 422)
    assert message == "'lower' and 'upper' need the interval's 'level' in the request's parameters"


def test_inputs_that_are_missing_or_do_not_belong_together_are_refused(service):
    inputs = draw_inputs(MOLECULE)
    message = refusal(infer(service, "molecule", {"features": inputs["features"]}), 422)
    assert message == "the inputs are features, positions, n_atoms, each once; got ['features']"
    message = refusal(infer(service, "molecule", inputs | {"n_atoms": inputs["n_atoms"][:2]}), 422)
    assert "all inputs must have one row for each example, got {'features': 3, 'positions': 3, 'n_atoms': 2}" in message
    message = refusal(infer(service, "molecule", inputs | {"n_atoms": torch.tensor([7, 1, 1])}), 422)
    assert "n_atoms" in message  # what the network itself refuses


def test_too_many_numbers_are_refused(service):
    message = refusal(infer(service, "series", draw_inputs(SERIES, num=1, length=1001)), 422)
    assert message == "the inputs of a request may hold at most 2000 numbers, got 2002"


def test_a_reply_that_would_be_too_large_is_refused(tmp_path):
    bundle, _ = make_regression_bundle(tmp_path / "b", SERIES, ("x", "y"))
    service = LocalService([served(bundle, "series", loader=LOADER)], max_reply_bytes=1000)
    inputs = draw_inputs(SERIES, num=1, length=20)
    assert set(outputs_of(infer(service, "series", inputs))) == OUTPUTS  # 640 raw bytes
    message = refusal(infer(service, "series", inputs, binary=False), 422)
    assert message.startswith("the reply would take up to 4000 bytes, and may take 1000; ask for fewer")
    content = {"inputs": {"input": inputs["input"][0].tolist()}}
    assert "or for raw bytes over v2" in refusal(predict(service, "series", content), 422)


# -- the plain protocol


def test_an_example_is_answered_target_by_target(service):
    inputs = draw_inputs(TABLE, num=1)
    reply = predict(service, "table", {"inputs": {"input": inputs["input"][0].tolist()}, "level": 0.9})
    assert reply.status_code == 200, reply.text
    told = reply.json()
    expected = service.predictors["table"](**inputs)
    lower, upper = service.predictors["table"].interval(expected, 0.9)
    assert (told["model"], told["version"], told["task"], told["level"]) == ("table", "2", "regression", 0.9)
    [target] = told["targets"]
    assert target.pop("name") == "bone"
    assert target == pytest.approx(
        {name: float(value[0, 0]) for name, value in (expected | {"lower": lower, "upper": upper}).items()}, rel=1e-5
    )


def test_without_a_level_there_is_no_interval(service):
    told = predict(service, "series", {"inputs": {"input": draw_inputs(SERIES)["input"][0].tolist()}}).json()
    assert "level" not in told
    assert [target["name"] for target in told["targets"]] == ["x [m]", "y [m]"]
    assert all(set(target) == {"name", *OUTPUTS} and len(target["mean"]) == 6 for target in told["targets"])


def test_several_inputs_and_whole_numbers(service):
    inputs = draw_inputs(MOLECULE, num=1)
    content = {"inputs": {name: value[0].tolist() for name, value in inputs.items()}}
    [target] = predict(service, "molecule", content, "?level=0.5").json()["targets"]
    assert target["mean"] == pytest.approx(float(service.predictors["molecule"](**inputs)["mean"]), rel=1e-5)
    content["inputs"]["n_atoms"] = 2.5
    message = refusal(predict(service, "molecule", content), 422)
    assert message == "'n_atoms' must hold whole numbers that int64 can hold, got float64"


def test_an_image_file_comes_back_larger(service):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    files = {"image": ("a.png", encoded(image), "image/png")}
    told = service.http.post("/predict/image?level=0.9", files=files).json()
    inputs = {"input": torch.from_numpy(image).permute(2, 0, 1)[None] / 255}
    expected = service.predictors["image"](**inputs)
    assert expected["mean"].shape == (1, 3, 10, 14)
    for channel, (target, name) in enumerate(zip(told["targets"], ("red", "green", "blue"), strict=True)):
        assert target["name"] == name
        np.testing.assert_allclose(target["mean"], expected["mean"][0, channel].numpy(), rtol=1e-4, atol=1e-5)
        assert np.all(np.array(target["lower"]) < np.array(target["upper"]))
    for query, shown in (("", "mean"), ("?show=std", "std")):
        reply = service.http.post(f"/predict/image{query}", files=files, headers={"accept": "image/png"})
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png"), reply.text
        seen = np.asarray(Image.open(io.BytesIO(reply.content)))
        assert seen.shape == (10, 14, 3)
        assert float(reply.headers["tenfold-std-mean"]) == pytest.approx(float(expected["std"].mean()), rel=1e-4)
        if shown == "mean":
            wanted = (255 * expected["mean"][0].clamp(0, 1)).round().permute(1, 2, 0).numpy()
            np.testing.assert_allclose(seen, wanted, atol=1)


@pytest.mark.parametrize(
    ("name", "content", "query", "message"),
    [
        ("table", {}, "", "the JSON needs an example's numbers by name under 'inputs', or a picture under 'image'"),
        ("table", {"inputs": [1, 2, 3]}, "", "'inputs' must be an object"),
        ("table", {"inputs": {"rows": [1, 2, 3]}}, "", "'inputs' must be input, got rows"),
        ("table", {"inputs": {"input": [1, 2]}}, "", "'input' must be float32 [N,3]"),
        ("table", {"inputs": {"input": [1, 2, 3]}}, "?level=2", "'level' must be a number between 0 and 1"),
        ("table", {"inputs": {"input": [1, 2, 3]}, "level": 0.5}, "?level=0.5", "'level' is given in the query and"),
        ("table", {"inputs": {"input": [1, 2, 3]}}, "?show=std", "'show' says what a picture shows"),
        ("table", {"inputs": {"input": [1, 2, 3]}}, "?explain=true", "model table does regression, which knows no"),
        ("table", {"inputs": {"input": [1, 2, 3]}}, "?top=1", "model table does regression, which knows no 'top'"),
        ("colour", {"image": ""}, "?level=0.9", "model colour does multi_label, which knows no 'level'"),
        ("table", {"image": "aGVsbG8="}, "", "model table takes no picture; send JSON with 'inputs': input"),
        ("image", {"image": "aGVsbG8="}, "", "JPEG, PNG or WEBP"),
    ],
)
def test_examples_that_can_not_be_used_are_refused(service, name, content, query, message):
    assert message in refusal(predict(service, name, content, query), 422)


def test_other_content_types_are_refused(service):
    reply = service.http.post("/predict/table", content=b"1,2,3", headers={"content-type": "text/csv"})
    assert "the content type text/csv is not accepted: send JSON with 'inputs'" in refusal(reply, 415)


def test_a_model_without_image_output_has_no_png(service):
    content = {"inputs": {"input": [1, 2, 3]}}
    reply = service.http.post("/predict/table", json=content, headers={"accept": "image/png"})
    assert "takes no picture" in refusal(reply, 422)


def test_the_list_of_models_says_what_they_take(service):
    listed = {model["name"]: model for model in service.http.get("/models").json()["models"]}
    assert listed["colour"]["image_size"] == 8
    assert listed["colour"]["inputs"] == []
    assert listed["table"]["image_size"] is None
    assert listed["image"]["inputs"] == [{"name": "input", "dtype": "float32", "shape": [3, -1, -1], "max_value": 1.0}]


# -- batches


@pytest.mark.parametrize("name", MODELS)
def test_what_is_answered_does_not_depend_on_the_rest_of_the_batch(service, name):
    loaded = service.clients[name].loaded
    requests = [arrays(draw_inputs(MODELS[name][0], num, seed=num)) for num in (2, 1, 3)]
    alone = [loaded.run(pieces_of(loaded, inputs, 0.9))[0] for inputs in requests]
    together = loaded.run([piece for inputs in requests for piece in pieces_of(loaded, inputs, 0.9)])
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys() == {*OUTPUTS, "lower", "upper"}
        for output in one:
            np.testing.assert_allclose(one[output], other[output], rtol=1e-4, atol=1e-6, err_msg=output)


def test_examples_of_several_lengths_share_a_batch(service):
    loaded = service.clients["series"].loaded
    pieces = [
        piece
        for length in (4, 6, 4, 9)
        for piece in pieces_of(loaded, arrays(draw_inputs(SERIES, num=2, length=length, seed=length)))
    ]
    results = loaded.run(pieces)
    assert [result["mean"].shape for result in results] == [(2, 2, 4), (2, 2, 6), (2, 2, 4), (2, 2, 9)]
    np.testing.assert_array_equal(results[0]["mean"], results[2]["mean"])


def test_large_examples_make_small_calls(tmp_path):
    bundle, _ = make_regression_bundle(tmp_path / "b", SERIES, ("x", "y"))
    model = LocalModel(served(bundle, "series", loader=LOADER, max_batch_size=8, max_batch_values=100))
    small, large, huge = (
        [(len(piece), piece.weight) for piece in pieces_of(model.loaded, arrays(inputs))]
        for inputs in (draw_inputs(SERIES, 20, 3), draw_inputs(SERIES, 5, 20), draw_inputs(SERIES, 2, 500))
    )
    assert small == [(8, 8), (8, 8), (4, 4)]
    assert large == [(2, 7), (2, 7), (1, 4)]  # 40 of 100 numbers each
    assert huge == [(1, 8), (1, 8)]


def test_one_request_that_the_network_refuses_spares_its_neighbours(service):
    loaded = service.clients["molecule"].loaded
    good, bad = arrays(draw_inputs(MOLECULE, 2)), arrays(draw_inputs(MOLECULE, 1))
    bad["n_atoms"][:] = 99
    results = loaded.run([*pieces_of(loaded, good), *pieces_of(loaded, bad)])
    assert isinstance(results[1], RefusedError)
    assert (results[1].status, "n_atoms" in results[1].sentence) == (422, True)
    np.testing.assert_allclose(results[0]["mean"], loaded.run(pieces_of(loaded, good))[0]["mean"], rtol=1e-5)


def test_what_breaks_down_is_a_failure(service, monkeypatch):
    loaded = service.clients["table"].loaded

    def broken(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loaded, "_predictor", broken)
    [result] = loaded.run(pieces_of(loaded, arrays(draw_inputs(TABLE))))
    assert result == Failure("RuntimeError: out of memory")


def test_a_model_that_differs_from_its_training_does_not_load(tmp_path, monkeypatch):
    bundle, predictor = make_regression_bundle(tmp_path / "b", TABLE, ("bone",))
    predictor.scale = 1.01
    monkeypatch.setattr("tenfold.catalog.load_predictor", lambda *_: predictor)
    with pytest.raises(BundleError, match=r"the predictor's \w+ differ by"):
        LocalModel(served(bundle, "table", loader=LOADER))


# -- roll-outs


def desk_of(service, became, was):
    """A desk that has heard of model ``was`` under the name ``m``, which has become another one since."""
    old = replace(asyncio.run(service.clients[was].describe()), name="m", version="1")
    return Desk({"m": service.clients[became]}, [old], ServeSettings())


def test_a_new_version_with_other_inputs_gets_the_request_in_its_form(service):
    desk = desk_of(service, "series", was="table")
    prepared = []

    async def make_call(description):
        prepared.append(description.signature.inputs)
        return call_of(arrays(draw_inputs(description.signature.inputs)), 0.9)

    answer, description, call = asyncio.run(desk.ask("m", None, make_call))
    assert prepared == [TABLE, SERIES]
    assert (answer.version, description) == ("2", asyncio.run(service.clients["series"].describe()))
    assert call.inputs["input"].shape == (3, 2, 6)
    assert answer.outputs["lower"].shape == (3, 2, 6)


def test_images_for_a_name_that_became_a_regression_are_refused(service):
    desk = desk_of(service, "series", was="colour")
    kinds = []

    async def make_call(description):
        kinds.append(description.signature.kind)
        return Call(inputs={"images": np.zeros((1, 8, 8, 3), np.uint8)})

    with pytest.raises(RefusedError, match="the inputs must be input, got images"):
        asyncio.run(desk.ask("m", None, make_call))
    assert kinds == ["labels", "regression"]
