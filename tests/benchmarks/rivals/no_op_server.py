"""Ray Serve with a deployment that reads the body and computes nothing: the floor that Serve sets."""

import argparse
import logging

from serve.deployment.haproxy import prepare_environment
from tenfold.engine import cluster
from tests.benchmarks.rivals.codec import INFER_PATH
from tests.benchmarks.rivals.processes import wait_for_stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    prepare_environment()
    cluster.start(num_cpus=4)
    from ray import serve  # reads the environment on import
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(max_ongoing_requests=64, max_queued_requests=256, ray_actor_options={"num_cpus": 0.2})
    class NoOp:
        async def __call__(self, request: Request) -> Response:
            await request.body()
            return Response(b"ok", media_type="application/octet-stream")

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(NoOp.bind(), name="no-op", route_prefix=INFER_PATH)
    wait_for_stop()
    serve.shutdown()
    cluster.stop()


if __name__ == "__main__":
    main()
