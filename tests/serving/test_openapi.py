"""The OpenAPI document: valid, and kept by the replies to requests that schemathesis makes from it.

``TENFOLD_FUZZ_CASES=4000 pytest -s -m slow tests/serving/test_openapi.py`` tries about that many over every model.
"""

import base64
import json
import os
import resource
import time
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.tasks import table
from tests.serving.local import LocalService, encoded, random_image
from tests.serving.stand_ins import served
from tests.serving.test_golden_replies import ALL, MODELS
from tests.serving.test_toy_kind import LOADER, MODULE, make_toy_bundle

CASES = int(os.environ.get("TENFOLD_FUZZ_CASES", "0"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = "tints|table|toy"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.MODULES, "toy", MODULE)
        models = [served(make_toy_bundle(folder / "toy"), "toy", loader=LOADER)]
        for name in ALL:
            if name != "faulty":  # which breaks on purpose
                make, of_bundle, options = MODELS[name]
                models.append(served(make(folder / name, **of_bundle), name, **options))
        yield LocalService(models, raises=False)


@pytest.fixture(scope="module")
def document(service):
    return service.http.get("/openapi.json").json()


def conforms(service, num_cases: int, mode: GenerationMode, only: str = "") -> Counter[int]:
    """Try so many requests for each operation; returns the statuses."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", service.http.app)
    schema = schema.include(path_regex=rf"/({only})(/infer)?$") if only else schema
    seen: Counter[int] = Counter()
    for found in schema.get_all_operations():

        @settings(
            max_examples=num_cases,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(found.ok().as_strategy(generation_mode=mode))
        def ask(case):
            started = time.perf_counter()
            reply = case.call()
            assert time.perf_counter() - started < 10
            seen[reply.status_code] += 1
            case.validate_response(reply, checks=CHECKS)

        try:
            ask()
        except Unsatisfiable:  # nothing can be wrong with a request without parameters
            assert mode is GenerationMode.NEGATIVE
    service.traces.clear()
    return seen


@pytest.mark.parametrize("mode", GenerationMode)
def test_replies_are_as_documented(service, mode):
    seen = conforms(service, 4, mode, FEW)
    assert seen.total() >= 6
    assert mode is GenerationMode.NEGATIVE or seen[200]


@pytest.mark.slow
@pytest.mark.skipif(not CASES, reason="TENFOLD_FUZZ_CASES says how many")
@pytest.mark.parametrize("mode", GenerationMode)
def test_many_replies_are_as_documented(service, document, mode):
    operations = sum(len(item) for item in document["paths"].values())
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    seen = conforms(service, max(1, CASES // 2 // operations), mode)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{mode}: {dict(seen)} in {time.perf_counter() - started:.0f} s, peak memory + {growth:.0f} MiB")
    assert seen.total() > CASES // 8


def test_the_document_is_valid(document):
    validate(document)


def test_generators_of_clients_find_nothing_unusual(document):
    text = json.dumps(document)
    assert "prefixItems" not in text
    for path, item in document["paths"].items():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                assert parameter["in"] != "path" or parameter["schema"]["type"] == "string", path
    explain = document["paths"]["/predict/tints"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert explain["properties"]["explain"]["anyOf"][0] == {"type": "boolean"}
    names = [each["operationId"] for item in document["paths"].values() for each in item.values()]
    assert len(set(names)) == len(names)


def test_every_refusal_is_documented(document):
    for path, item in document["paths"].items():
        if "post" in item:
            refusals = item["post"]["responses"].keys() - {"200"}
            assert refusals == {"400", "401", "404", "408", "413", "415", "422", "500", "502", "503", "504"}, path
    ready = document["paths"]["/v2/models/{model}/ready"]["get"]["responses"]["400"]
    assert "ready" in ready["content"]["application/json"]["schema"]["properties"]


def test_the_version_is_a_part_of_the_path_only(service, document):
    [model] = document["paths"]["/v2/models/{model}"]["get"]["parameters"]
    assert model["name"] == "model"
    assert service.http.get("/v2/models/tints/versions/9").status_code == 404
    assert service.http.get("/v2/models/tints/versions/3/ready").json() == {"name": "tints", "ready": True}


@pytest.mark.parametrize("explain", [True, False, "overlay", "true"])
def test_explain_takes_what_its_schema_says(service, explain):
    body = {"image": encoded_text(), "explain": explain}
    reply = service.http.post("/predict/tints", json=body)
    assert ("explanation" in reply.json()) is bool(explain), reply.text


def encoded_text():
    return base64.b64encode(encoded(random_image())).decode()
