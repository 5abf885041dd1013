"""HAProxy behind the wrapper: Ray's real template rewritten, checked by HAProxy, and run in front of a small server."""

import http.client
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve.deployment import haproxy, haproxy_wrapper
from serve.deployment.haproxy_wrapper import rewrite

pytestmark = pytest.mark.skipif(not haproxy.is_available(), reason="HAProxy is not installed")

SLOW_S = 1.0
BACKEND = f"""
import http.server, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(b"ok")

    def do_POST(self):
        left = int(self.headers["Content-Length"])
        while left > 0:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        time.sleep({SLOW_S} if self.path == "/slow" else 0)
        self.reply(sys.argv[2].encode())

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer.handle_error = lambda *args: None  # killed clients
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def rendered(folder, *, servers=(), path_prefix="/", port=18000, **settings):
    """Path of the configuration that Ray's own code writes, for one application."""
    pytest.importorskip("jinja2")
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        is_head=True,
        has_received_routes=True,
        has_received_servers=True,
        **{"maxconn": haproxy.max_connections(), "enable_so_reuseport": True} | settings,
    )
    backend = BackendConfig(
        name="http-tenfold",
        path_prefix=path_prefix,
        app_name="tenfold",
        servers=[ServerConfig(name=f"server{server}", host="127.0.0.1", port=server) for server in servers],
    )
    api = HAProxyApi(config, {backend.name: backend}, config_file_path=str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    return Path(api.config_file_path)


def section(text, title):
    """Lines of one section without comments."""
    lines = text.splitlines()
    start = lines.index(title) + 1
    end = next((n for n in range(start, len(lines)) if lines[n][:1].strip()), len(lines))
    return [line.strip() for line in lines[start:end] if line.strip() and not line.strip().startswith("#")]


@pytest.fixture
def own_environment(tmp_path, monkeypatch):
    """The wrapper's variables as ``prepare_environment`` sets them, and its launcher."""
    binary = haproxy._binary()
    monkeypatch.setenv(haproxy_wrapper.BINARY, binary)
    monkeypatch.setenv(haproxy_wrapper.HOST_FILE, str(tmp_path / "host"))
    return haproxy.write_launcher(tmp_path)


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=20, check=False)


def test_each_change_of_rays_configuration(tmp_path):
    before = rendered(tmp_path, servers=[18001]).read_text()
    after = rewrite(before, 7, "0.0.0.0")
    [control] = [line for line in section(after, "global") if line.startswith("stats socket")]
    assert " mode 600 " in control
    defaults = section(after, "defaults")
    assert {"timeout http-request 7000ms", "timeout http-keep-alive 30s", "option http-buffer-request"} <= {*defaults}
    # HAProxy takes the last one.
    assert [line for line in defaults if line.startswith("timeout http-keep-alive")][-1].endswith(" 30s")
    assert not any(line.startswith("errorfile") for line in defaults)
    errors = {int(line.split()[2]): line for line in defaults if line.startswith("http-error status")}
    assert errors.keys() >= {400, 403, 408, 413, 429, 500, 502, 503, 504}
    for line in errors.values():
        assert json.loads(line.split("'")[1]).keys() == {"error"}
        assert "content-type application/json" in line
    assert errors[503].endswith("hdr Retry-After 1")
    assert "within 7 s" in errors[408]
    assert section(after, "frontend prometheus")[0] == "bind 127.0.0.1:9101"
    assert section(after, "listen stats")[0] == "bind 127.0.0.1:8404"
    frontend = section(after, "frontend http_frontend")
    assert frontend[0] == "bind 0.0.0.0:18000"
    assert "bind 127.0.0.1:18000" in section(rewrite(before), "frontend http_frontend")
    assert f"sc0_conn_cur gt {int(0.75 * haproxy.max_connections())} }}" in frontend[3]
    [missing] = section(after, "backend default_backend")
    assert "status 404 content-type application/json" in missing
    # Everything else is as it was.
    assert section(after, "backend http-tenfold") == section(before, "backend http-tenfold")
    assert rewrite(after) == after


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (" mode 666 ", " mode 660 ", "'mode 666' in its line, got 'stats socket"),
        ("errorfile 503", "http-error 503", "one line 'errorfile 503' in section 'defaults', got 0"),
        ("bind :9101", "bind [::]:9101", "'bind :' in its line, got 'bind [::]:9101'"),
        ("listen stats", "listen status", "got 'listen status' as well"),
        ("backend default_backend", "backend default", "one section 'backend default_backend', got 0"),
        ("bind 127.0.0.1:18000", "bind 127.0.0.1:18000 ssl", "'bind HOST:PORT'"),
        ("maxconn ", "max-connections ", "one line 'maxconn' in section 'global', got 0"),
    ],
)
def test_a_changed_template_is_told(tmp_path, old, new, told):
    text = rendered(tmp_path).read_text()
    assert old in text
    with pytest.raises(ValueError, match="Ray's HAProxy configuration must have") as error:
        rewrite(text.replace(old, new))
    assert told in str(error.value)


def test_haproxy_accepts_it_and_it_is_rewritten_once(tmp_path, own_environment):
    path = rendered(tmp_path, servers=[18001])
    original = path.read_text()
    assert haproxy_wrapper.MARK not in original
    checked = run(own_environment, "-c", "-f", path)
    assert checked.returncode == 0, checked.stderr
    rewritten = path.read_text()
    assert rewritten == rewrite(original)
    assert run(own_environment, "-c", "-f", path).returncode == 0
    assert path.read_text() == rewritten


def test_versions_are_those_of_haproxy(own_environment):
    for flag in ("-v", "-vv"):
        assert run(own_environment, flag).stdout.startswith("HAProxy version")


def test_a_refusal_of_the_wrapper_is_told(tmp_path, own_environment, monkeypatch):
    path = rendered(tmp_path)
    path.write_text(path.read_text().replace("listen stats", "listen status"))
    refused = run(own_environment, "-c", "-f", path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("HAProxy was not started: Ray's HAProxy configuration must have no listeners but")
    monkeypatch.setenv(haproxy_wrapper.REQUEST_TIMEOUT, "soon")
    assert "must be seconds in 0.1..3600, got 'soon'" in run(own_environment, "-c", "-f", path).stderr
    monkeypatch.delenv(haproxy_wrapper.BINARY)
    assert "must be the path of HAProxy, got none" in run(own_environment, "-v").stderr


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Nothing of Serve set; HAProxy's folder is made in pytest's."""
    prefixes = ("RAY_SERVE_", "TENFOLD_HAPROXY_", "RAY_ADDRESS")
    own = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    make = tempfile.mkdtemp
    monkeypatch.setattr(os, "environ", own)
    monkeypatch.setattr(haproxy, "_ray_runs", lambda: False)
    monkeypatch.setattr(haproxy.tempfile, "mkdtemp", lambda prefix, dir: make(prefix=prefix, dir=tmp_path))
    return own


def test_the_environment_names_the_wrapper_and_keeps_what_is_set(environment):
    own = {"RAY_SERVE_HAPROXY_MAXCONN": "77", "RAY_SERVE_HAPROXY_RETRIES": "0"}
    binary = haproxy._binary()
    environment |= own | {"RAY_SERVE_HAPROXY_BINARY_PATH": binary}
    assert haproxy.prepare_environment() is True
    launcher = Path(environment["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert launcher.parent.stat().st_mode & 0o777 == 0o700
    assert environment["TENFOLD_HAPROXY_BINARY"] == binary
    assert own.items() <= environment.items()
    before = dict(environment)
    assert haproxy.prepare_environment() is True
    assert environment == before
    assert haproxy.is_available()


def test_the_public_host_is_haproxys_alone(environment):
    assert haproxy.listen_on("0.0.0.0") == "0.0.0.0"  # no HAProxy
    assert haproxy.prepare_environment() is True
    assert (haproxy.listen_on("0.0.0.0"), haproxy.listening_host()) == ("127.0.0.1", "0.0.0.0")
    assert (haproxy.listen_on("127.0.0.1"), haproxy.listening_host()) == ("127.0.0.1", None)
    environment["RAY_ADDRESS"] = "192.0.2.1:6379"  # HAProxy runs elsewhere
    assert haproxy.listen_on("0.0.0.0") == "0.0.0.0"


def test_a_ray_that_runs_already_gets_no_public_host(environment, monkeypatch):
    monkeypatch.setattr(haproxy, "_ray_runs", lambda: True)
    assert haproxy.prepare_environment() is True
    assert haproxy.listen_on("0.0.0.0") == "0.0.0.0"


@pytest.mark.parametrize(
    ("files", "connections"), [(1024, 209), (20_000, 7800), (2**20, 20_000), (-1, 20_000), (64, 100)]
)
def test_connections_follow_the_limit_of_open_files(monkeypatch, files, connections):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert haproxy.max_connections() == connections


def test_ray_reads_the_environment_and_haproxy_accepts_the_result(environment, tmp_path):
    haproxy.prepare_environment()
    code = "import sys, pathlib; from tests.serving.test_haproxy import rendered_as_deployed as render; "
    command = [sys.executable, "-c", code + "render(pathlib.Path(sys.argv[1]))", str(tmp_path)]
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "platform")])
    done = subprocess.run(command, env=environment | {"PYTHONPATH": paths}, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0
    launcher, path = environment["RAY_SERVE_HAPROXY_BINARY_PATH"], tmp_path / "haproxy.cfg"
    checked = subprocess.run([launcher, "-c", "-f", path], env=environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    text = path.read_text()
    assert f"maxconn {haproxy.max_connections()}" in section(text, "global")
    expected = {"timeout client 30s", "retry-on conn-failure empty-response", "retries 2", "option redispatch 1"}
    assert expected <= {*section(text, "defaults")}


def rendered_as_deployed(folder):
    """Render in a process whose environment was prepared: Ray reads it on import."""
    from ray.serve._private.constants import RAY_SERVE_HAPROXY_BINARY_PATH, RAY_SERVE_HAPROXY_MAXCONN

    assert os.path.basename(RAY_SERVE_HAPROXY_BINARY_PATH) == "haproxy"
    rendered(folder, servers=[18001], maxconn=RAY_SERVE_HAPROXY_MAXCONN)


class Proxy:
    """HAProxy, started through the launcher, in front of servers in processes of their own."""

    def __init__(self, folder, launcher, num_servers=1, host=None, **settings):
        self.ports = [haproxy.free_port("127.0.0.1") for _ in range(num_servers + 3)]
        self.port, self.stats_port, self.metrics_port, *servers = self.ports
        self.servers = [self.start_server(port) for port in servers]
        for port in servers:
            wait_for(lambda port=port: is_open(port))
        if host:
            (folder / "host").write_text(host)
        path = rendered(
            folder,
            servers=servers,
            port=self.port,
            stats_port=self.stats_port,
            metrics_port=self.metrics_port,
            **settings,
        )
        self.arguments = ["-db", "-f", str(path), "-dR"]
        self.process = subprocess.Popen([launcher, *self.arguments], stderr=subprocess.PIPE)
        wait_for(lambda: is_open(self.port))

    @staticmethod
    def start_server(port):
        return subprocess.Popen([sys.executable, "-I", "-S", "-c", BACKEND, str(port), str(port)])

    def ask(self, path="/", method="GET", body=None, timeout_s=10.0):
        """Status, headers, body of a reply on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body)
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read()
        finally:
            connection.close()

    def stop(self):
        for process in (self.process, *self.servers):
            process.kill()
            process.wait()


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, limit_s=10):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listeners(port):
    """Addresses, in hexadecimal, that listen on an IPv4 or IPv6 port."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                found.append(address.rpartition(":")[0])
    return found


def error_of(reply, status):
    assert reply[0] == status, reply
    assert reply[1]["content-type"] == "application/json"
    told = json.loads(reply[2])
    assert told.keys() == {"error"}
    return told["error"]


@pytest.fixture
def start(tmp_path, own_environment, monkeypatch):
    """Starts a ``Proxy`` with a request timeout of 2 s."""
    monkeypatch.setenv(haproxy_wrapper.REQUEST_TIMEOUT, "2")
    started = []

    def proxy(**options):
        started.append(Proxy(tmp_path, own_environment, **options))
        return started[-1]

    yield proxy
    for one in started:
        one.stop()


@pytest.fixture
def many_files():
    """The limit of open files raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read_to_end(connection, timeout_s):
    connection.settimeout(timeout_s)
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


def test_thousands_of_half_sent_headers_do_not_stop_others(start, many_files):
    proxy = start()
    num_connections = min(5000, int(0.7 * haproxy.max_connections()), many_files - 200)
    attackers = []
    try:
        for _ in range(num_connections):
            attackers.append(socket.create_connection(("127.0.0.1", proxy.port), timeout=5))
            attackers[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Half: ")
        for _ in range(20):
            assert proxy.ask()[0] == 200
        # A byte now and then does not help.
        attackers[0].sendall(b"a")
        replies = Counter(read_to_end(one, 30).partition(b"\r\n")[0] for one in attackers)
        assert replies == {b"HTTP/1.1 408 Request Time-out": num_connections}
    finally:
        for one in attackers:
            one.close()


def test_a_silent_connection_and_a_dribbled_body_are_cut(start):
    proxy = start()
    silent = socket.create_connection(("127.0.0.1", proxy.port))
    dribbling = socket.create_connection(("127.0.0.1", proxy.port))
    begun = time.monotonic()
    dribbling.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(3):
        dribbling.sendall(b"x")
        time.sleep(0.5)
    reply = read_to_end(dribbling, 30)
    assert time.monotonic() - begun > 1.5
    assert b"content-type: application/json" in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2]) == {"error": "the request must arrive within 2 s"}
    read_to_end(silent, 30)
    for one in (silent, dribbling):
        one.close()


def test_one_address_cannot_hold_all_connections(start, many_files):
    proxy = start(maxconn=40)
    held = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(30)]
    time.sleep(0.1)
    with pytest.raises((http.client.HTTPException, OSError)):
        proxy.ask()
    other = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5, source_address=("127.0.0.2", 0))
    other.request("GET", "/")
    assert other.getresponse().status == 200
    other.close()
    for one in held:
        one.close()


def test_pages_of_the_operator_are_on_loopback_and_the_endpoint_where_it_was_asked_to(start, tmp_path):
    proxy = start(host="0.0.0.0")
    loopback = ["0100007F"]
    assert (listeners(proxy.stats_port), listeners(proxy.metrics_port)) == (loopback, loopback)
    assert listeners(proxy.port) == ["00000000"]
    assert (tmp_path / "admin.sock").stat().st_mode & 0o777 == 0o600


def test_refusals_are_json_without_a_server(start):
    proxy = start(path_prefix="/app")
    assert "no application has this path" in error_of(proxy.ask("/none"), 404)
    proxy.servers[0].kill()
    proxy.servers[0].wait()
    for _ in range(4):  # before and after HAProxy has noticed
        reply = proxy.ask("/app", "POST", b"x")
        assert "try again" in error_of(reply, reply[0])
    assert reply[0] == 503
    assert reply[1]["retry-after"] == "1"


def test_requests_of_a_killed_server_are_answered_by_another(start):
    proxy = start(num_servers=2, retry_on=haproxy._LIMITS["RAY_SERVE_HAPROXY_RETRY_ON"], retries=2)
    with ThreadPoolExecutor(8) as pool:
        replies = [pool.submit(proxy.ask, "/slow", "POST", b"x" * 10_000) for _ in range(8)]
        time.sleep(SLOW_S / 2)
        os.kill(proxy.servers[0].pid, signal.SIGKILL)
        statuses = Counter((reply.result()[0], reply.result()[2].decode()) for reply in replies)
    assert statuses == {(200, str(proxy.ports[4])): 8}


def test_the_process_keeps_its_id_and_arguments_over_reloads(start, own_environment):
    proxy = start()
    commands = Path(f"/proc/{proxy.process.pid}/cmdline").read_text().split("\0")
    assert commands[:-1] == [haproxy._binary(), *proxy.arguments]
    failures = []
    stopped = threading.Event()

    def load():
        while not stopped.is_set():
            if proxy.ask()[0] != 200:
                failures.append(1)

    worker = threading.Thread(target=load)
    worker.start()
    old = proxy.process
    control = proxy.arguments[2].replace("haproxy.cfg", "admin.sock")
    begun = time.monotonic()
    proxy.process = subprocess.Popen([own_environment, *proxy.arguments, "-sf", str(old.pid), "-x", control])
    old.wait(10)
    assert time.monotonic() - begun < 5
    assert select.select([old.stderr], [], [], 1)
    stopped.set()
    worker.join()
    assert not failures
    assert proxy.ask()[0] == 200


@pytest.fixture(scope="module")
def deployed(request, tmp_path_factory):
    """One model behind two ingress replicas."""
    if not haproxy.prepare_environment():
        pytest.skip("HAProxy is switched off")
    request.getfixturevalue("ray_cluster")
    from serve.deployment.endpoint import deploy
    from serve.settings import ServeSettings
    from tests.serving.stand_ins import make_bundle, served

    model = served(make_bundle(tmp_path_factory.mktemp("bundle") / "colour", delay_s=0.05), num_cpus=0.1)
    with deploy([model], ServeSettings(port=0, ingress_replicas=2, drain_timeout_s=5)) as endpoint:
        yield endpoint


def asked(endpoint):
    """Status and content type of one small prediction over a connection of its own."""
    import httpx
    import numpy as np

    from tests.serving import v2_client
    from tests.serving.stand_ins import SIZE

    body, headers = v2_client.encode_request(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    reply = httpx.post(f"{endpoint.url}/v2/models/colour/infer", content=body, headers=headers, timeout=30)
    return reply.status_code, reply.headers["content-type"]


@pytest.mark.ray
def test_the_endpoint_is_behind_the_wrapper(deployed):
    folder = Path(os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent

    def is_rewritten():
        return [path.read_text().startswith(haproxy_wrapper.MARK) for path in folder.glob("*/haproxy.cfg")] == [True]

    deadline = time.monotonic() + 30
    while not is_rewritten():  # Ray writes a configuration shortly before it starts HAProxy with it
        assert time.monotonic() < deadline, "the configuration is Ray's own"
        time.sleep(0.2)
    for name in ("STATS_PORT", "METRICS_PORT"):
        assert listeners(int(os.environ[f"RAY_SERVE_HAPROXY_{name}"])) == ["0100007F"]
    # A port of each ingress replica, on the endpoint's host like the frontend.
    assert listeners(int(deployed.url.rpartition(":")[2])) == ["0100007F"]
    direct = [address for port in range(30_000, 30_100) for address in listeners(port)]
    assert direct
    assert {*direct} == {"0100007F"}


@pytest.mark.ray
def test_the_endpoint_answers_during_thousands_of_half_sent_headers(deployed, many_files):
    num_connections = min(5000, int(0.7 * haproxy.max_connections()), many_files - 200)
    port = int(deployed.url.rpartition(":")[2])
    attackers = []
    try:
        for _ in range(num_connections):
            attackers.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            attackers[-1].sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Half: ")
        for _ in range(5):
            begun = time.monotonic()
            assert asked(deployed)[0] == 200
            assert time.monotonic() - begun < 2
        limit_s = haproxy_wrapper.request_timeout_s() + 5
        replies = Counter(read_to_end(one, limit_s).partition(b"\r\n")[0] for one in attackers)
        assert replies == {b"HTTP/1.1 408 Request Time-out": num_connections}
    finally:
        for one in attackers:
            one.close()


@pytest.mark.ray
def test_no_request_fails_when_an_ingress_replica_is_killed(deployed):
    import ray
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address  # another Ray may run on the machine
    alive = list_actors(address=address, filters=[("state", "=", "ALIVE")], limit=1000)
    ingress = [actor.pid for actor in alive if "tenfold#ingress#" in (actor.name or "")]
    assert len(ingress) == 2
    with ThreadPoolExecutor(8) as pool:
        replies = [pool.submit(asked, deployed) for _ in range(200)]
        time.sleep(0.5)
        os.kill(ingress[0], signal.SIGKILL)
        statuses = Counter(reply.result()[0] for reply in replies)
    assert statuses == {200: 200}
