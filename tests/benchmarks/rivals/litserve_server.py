"""LitServe with batching: one HTTP process and one inference worker, joined by its fast queue (ZeroMQ).

``--json`` takes LitServe's own way in and out, JSON with the image as base64, in place of the shared codec.
"""

import argparse
import base64
from typing import Annotated

import litserve
import numpy as np
from fastapi import Depends, Request, Response

from tests.benchmarks.rivals.codec import INFER_PATH, JSON_LENGTH_HEADER, decode_images, encode_outputs
from tests.benchmarks.rivals.network import BATCH_WAIT_S, MAX_BATCH_SIZE, NUM_CLASSES, SIZE, Predictor


async def read_infer(request: Request) -> tuple[bytes, str]:
    return await request.body(), request.headers[JSON_LENGTH_HEADER]


class JsonAPI(litserve.LitAPI):
    """The network behind JSON."""

    def setup(self, device: str) -> None:
        self._predictor = Predictor()

    def decode_request(self, request: dict) -> np.ndarray:
        return np.frombuffer(base64.b64decode(request["image"]), np.uint8).reshape(1, SIZE, SIZE, 3)

    def batch(self, inputs: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
        return np.concatenate(inputs), [len(images) for images in inputs]

    def predict(self, batch: tuple[np.ndarray, list[int]]) -> tuple[np.ndarray, list[int]]:
        return self._predictor(batch[0]), batch[1]

    def unbatch(self, output: tuple[np.ndarray, list[int]]) -> list[np.ndarray]:
        return np.split(output[0], np.cumsum(output[1])[:-1])

    def encode_response(self, output: np.ndarray) -> dict:
        probs, logits = output.reshape(2, NUM_CLASSES).tolist()
        return {"probs": probs, "logits": logits}


class InferAPI(JsonAPI):
    """The network behind the shared codec."""

    def decode_request(self, request: Annotated[tuple, Depends(read_infer)]) -> np.ndarray:
        return decode_images(*request)

    def encode_response(self, output: np.ndarray) -> Response:
        content, headers = encode_outputs(output)
        return Response(content, headers=headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kind = JsonAPI if options.json else InferAPI
    api = kind(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_WAIT_S, api_path=INFER_PATH)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
