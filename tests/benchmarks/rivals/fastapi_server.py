"""Plain FastAPI and uvicorn: one process, each request predicted alone in the event loop."""

import argparse

import uvicorn
from fastapi import FastAPI, Request, Response

from tests.benchmarks.rivals.codec import INFER_PATH, JSON_LENGTH_HEADER, decode_images, encode_outputs
from tests.benchmarks.rivals.network import Predictor


def build() -> FastAPI:
    app, predictor = FastAPI(), Predictor()

    @app.post(INFER_PATH)
    async def infer(request: Request) -> Response:
        images = decode_images(await request.body(), request.headers[JSON_LENGTH_HEADER])
        content, headers = encode_outputs(predictor(images))
        return Response(content, headers=headers)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(build(), host="127.0.0.1", port=parser.parse_args().port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
