"""The cast: an origin, cache nodes before it, and Ringway before them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402
from harness import BenchError, fill  # noqa: E402

STAYERS = [f"node-{n}" for n in range(1, 6)]
GUEST = "node-6"
NODES = [*STAYERS, GUEST]
PATIENCE = 10  # seconds for anything that should take far less

# Templates are filled by replacing @WORDS@, as nginx uses both $ and braces.
NGINX = """\
@USER@
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events { worker_connections 2048; }
http {
    keepalive_requests 1000000000; keepalive_timeout 3600s; access_log off;
    client_body_temp_path client_body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    log_format payment "$request_uri";
@SERVER@
}
"""
# Whatever a node has forwarded is written down here: what ran twice stands here twice.
ORIGIN = """\
    server {
        listen 127.0.0.1:@PORT@;
        location /pay/ { access_log payments.log payment; return 200 "paid"; }
        location / { return 200 "@BODY@"; }
    }
"""
NODE = """\
    proxy_cache_path cache keys_zone=cache:10m inactive=1h max_size=1g;
    upstream origin { server 127.0.0.1:@ORIGIN@; keepalive 64; keepalive_requests 1000000000; }
    limit_req_zone $server_name zone=work:1m rate=@RATE@r/s;
    server {
        listen 127.0.0.1:@PORT@;
        server_name node;
        add_header X-Node @ID@ always;
        add_header X-Key $request_uri always;
        add_header X-Cache $upstream_cache_status always;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location = /healthz { return 204; }
        location /pay/ { proxy_pass http://origin; }
        # A node that takes its time: so many requests a second, the others wait their turn.
        location /work/ { limit_req zone=work burst=100000; proxy_cache cache; proxy_cache_valid 200 1h; proxy_pass http://origin; }
        location / { proxy_cache cache; proxy_cache_valid 200 1h; proxy_pass http://origin; }
    }
"""
RINGWAY = """\
listeners:
  - { name: http, address: 127.0.0.1:@HTTP@ }
admin: { address: 127.0.0.1:@ADMIN@ }
limits: { drain_timeout: 1s }
access_log: { format: "off" }
pools:
  app:
    ring: { virtual_nodes: 1024, seed: rebalance@BOUND@ }
    health_check: { interval: 500ms, timeout: 500ms, healthy_after: 1, unhealthy_after: 2 }
    outlier_ejection: { consecutive_failures: 5, base_time: 1s }
    retries: {}
    nodes:
@NODES@
routes:
  - { name: payments, path_prefix: /pay, pool: app, hash_on: [path] }
  - { name: site, path_prefix: /, pool: app, hash_on: [path] }
# @NOTE@
"""
RINGWAY_NODE = "      - { id: @ID@, address: 127.0.0.1:@PORT@, weight: @WEIGHT@ }"


def start_nginx(stack, name, server, port, base):
    folder = base / name
    folder.mkdir(exist_ok=True)
    config = folder / "config"
    # Workers of another user could not write into the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(fill(NGINX, SERVER=server, USER=user))
    started = harness.start(stack, name, harness.nginx_command(config), folder)
    wait(lambda: ask(port, "GET", "/healthz")[0] < 500, f"{name} does not answer", started)
    return started


def wait(holds, problem, server=None):
    harness.wait_for(holds, problem, server, PATIENCE)


def ask(port, method, path, body=None):
    status, _, text = harness.fetch(port, method, path, body, timeout=PATIENCE)
    return status, text.decode(errors="replace")


class Cluster:
    """Everything that serves; the proxy's file says which nodes are in it."""

    def __init__(self, stack, args, base, rate, bound=None):
        self.stack, self.args, self.base, self.bound = stack, args, base, bound
        base.mkdir()
        self.ports = harness.free_ports(["origin", "http", "admin", *NODES])
        self.nodes = {}
        self.origin = start_nginx(stack, "origin", fill(ORIGIN, PORT=self.ports["origin"], BODY="x" * 1024),
                                  self.ports["origin"], base)
        self.rate = rate
        for name in NODES:
            self.start_node(name)
        self.weights = dict.fromkeys(STAYERS, 1)
        self.config = base / "ringway.yaml"
        self.write()
        folder = base / "ringway"
        folder.mkdir()
        self.proxy = harness.start(stack, "ringway", [args.ringway, "run", "--config", self.config], folder)
        wait(lambda: ask(self.ports["http"], "GET", "/warm")[0] == 200, "ringway does not answer", self.proxy)

    def start_node(self, name):
        server = fill(NODE, ID=name, PORT=self.ports[name], ORIGIN=self.ports["origin"], RATE=self.rate)
        self.nodes[name] = start_nginx(self.stack, name, server, self.ports[name], self.base)

    def kill_node(self, name):
        """SIGKILL for its master and its worker, which closes all their sockets at once."""
        process = self.nodes[name].process
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def write(self, note=""):
        lines = [fill(RINGWAY_NODE, ID=name, PORT=self.ports[name], WEIGHT=weight)
                 for name, weight in self.weights.items()]
        bound = f", bounded_load: {self.bound}" if self.bound else ""
        text = fill(RINGWAY, HTTP=self.ports["http"], ADMIN=self.ports["admin"], NODES="\n".join(lines),
                    BOUND=bound, NOTE=note or "as it was")
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.config)

    def reload(self, note=""):
        """Rewrites the file and waits until it is in force."""
        self.write(note)
        status, said = ask(self.ports["admin"], "POST", "/api/reload")
        if status != 200:
            raise BenchError(f"the reload was refused: {said}")

    def set_state(self, name, state):
        status, said = ask(self.ports["admin"], "POST", f"/api/pools/app/nodes/{name}/{state}")
        if status != 200:
            raise BenchError(f"{name} {state}: {said}")

    def pool(self):
        """The nodes as the admin API shows them, by id."""
        pools = json.loads(ask(self.ports["admin"], "GET", "/api/pools")[1])
        return {node["id"]: node for node in pools[0]["nodes"]}

    def metric(self, name):
        """The sum of a metric's series."""
        page = ask(self.ports["admin"], "GET", "/metrics")[1]
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))

    def failed(self):
        """Requests that were not answered with 2xx, by route."""
        failed = {"site": 0, "payments": 0}
        for line in ask(self.ports["admin"], "GET", "/metrics")[1].splitlines():
            if line.startswith("ringway_requests_total{") and 'code="2' not in line:
                route = line.split('route="')[1].split('"')[0]
                failed[route] = failed.get(route, 0) + float(line.rsplit(" ", 1)[1])
        return failed

    def foretell(self, keys, without=(), with_=()):
        """What `ringway ring` says of the file as it is, or after a change."""
        command = [self.args.ringway, "ring", "--config", self.config, "--json", "--keys", keys]
        command += [word for node in without for word in ("--without", node)]
        command += [word for node in with_ for word in ("--with", node)]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    def payments_run_twice(self):
        """Payments that the origin has seen more than once, and all that it has seen."""
        log = self.base / "origin/payments.log"
        lines = log.read_text().split() if log.exists() else []
        return len(lines) - len(set(lines)), len(lines)

    def start_wrk(self, mix, seconds, out, seed, prefix="/", connections=None):
        args = self.args
        folder = self.base / f"wrk-{seed}"
        folder.mkdir()
        command = ["wrk", "-t1", f"-c{connections or args.connections}", f"-d{seconds}s", "--timeout", "5s",
                   "-s", Path(__file__).with_name("load.lua"), f"http://127.0.0.1:{self.ports['http']}", "--",
                   mix, str(args.keys), str(args.exponent), prefix, str(seed), str(out)]
        return harness.start(self.stack, "wrk", command, folder)


def wrk_result(server, seconds):
    try:
        server.process.wait(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        raise BenchError("wrk did not end in time") from None
    output = server.log.read_text()
    if server.process.returncode != 0:
        raise BenchError(f"wrk failed:\n{output}")
    return json.loads(output.splitlines()[-1])
