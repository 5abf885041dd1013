"""BentoML with adaptive batching: one service, one worker, the shared codec as its input and output.

Metrics and tracing stay on as they are by default; the access log is off as everywhere in the benchmark.
"""

import argparse
import os
import sys
from typing import Any, ClassVar

import bentoml
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from tests.benchmarks.rivals.codec import INFER_PATH, JSON_LENGTH_HEADER, decode_images, encode_outputs
from tests.benchmarks.rivals.network import MAX_BATCH_SIZE, Predictor


class Images(bentoml.IODescriptor):
    """Input: the images of an infer request."""

    __root_input__: ClassVar[bool] = True

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> np.ndarray:
        return decode_images(await request.body(), request.headers[JSON_LENGTH_HEADER])


class Outputs(bentoml.IODescriptor):
    """Output: the reply with the share of one request."""

    @classmethod
    async def to_http_response(cls, obj: np.ndarray, serde: Any) -> Response:
        content, headers = encode_outputs(obj)
        return Response(content, headers=headers)


@bentoml.service(name="conv", workers=1, logging={"access": {"enabled": False}})
class Conv:
    """The network."""

    def __init__(self) -> None:
        self._predictor = Predictor()

    @bentoml.api(
        route=INFER_PATH, batchable=True, max_batch_size=MAX_BATCH_SIZE, input_spec=Images, output_spec=Outputs
    )
    def infer(self, images: np.ndarray) -> np.ndarray:
        return self._predictor(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    service = "tests.benchmarks.rivals.bentoml_server:Conv"
    address = ["--host", "127.0.0.1", "--port", str(parser.parse_args().port)]
    arguments = [sys.executable, "-m", "bentoml", "serve", service, *address]
    os.execv(sys.executable, arguments)  # the command that its users type, in place of this process


if __name__ == "__main__":
    main()
