#!/usr/bin/env python3
"""Measure what a step of a saga costs.

    run.py                       # one client after the other, the log in SQLite
    run.py --connections 16      # sagas side by side share commits
    run.py --store postgres      # the log in a PostgreSQL of its own
    run.py --smoke               # does the script work?

A saga of three steps runs before one nginx, which answers for the three services. Measured are the user and system
time of the Ringway process, all its threads included, over N sagas, divided by their steps; and the commits of the
store for a saga, which should be n + 2 for n steps. Both figures are printed beside their goals.

With SQLite the commits are counted by the calls that write (claim, append), each with a commit of its own while one
client asks; with PostgreSQL by its own count of transactions, upkeep and heartbeats included.

It needs Linux, Python 3.9 and the Debian packages nginx, and postgresql for --store postgres. Exit codes: 0 done, 1 a
broken run or failed requests, 3 a program is missing.
"""

import argparse
import contextlib
import http.client
import importlib.util
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402
from harness import ROOT  # noqa: E402

STEPS = 3
CPU_GOAL_US = 100
SERVICES = """\
daemon off; worker_processes 1; pid nginx.pid; error_log stderr;
events { worker_connections 1024; }
http {
    access_log off;
    keepalive_requests 1000000;
    server {
        listen 127.0.0.1:@PORT@; default_type application/json;
        location / { return 201 '{"id":"n-1","amount":4.20}'; }
    }
}
"""
RINGWAY = """\
workers: 1
listeners: [{ name: http, address: "127.0.0.1:@PORT@" }]
admin: { address: "127.0.0.1:@ADMIN@" }
access_log: { format: "off" }
idempotency_store: @STORE@
pools:
  services: { nodes: [{ id: services-1, address: "127.0.0.1:@SERVICES@" }] }
routes:
  - name: checkout
    path: /checkout
    methods: [POST]
    idempotency: { required: true }
    saga:
      steps:
        - name: reserve
          request: { pool: services, path: /reserve, body: { items: "${request.body.items}" } }
          compensate: { pool: services, path: "/reserve/${steps.reserve.key}/undo" }
        - name: charge
          request: { pool: services, path: /charges, body: { amount: "${request.body.amount}" } }
          compensate: { pool: services, path: "/charges/${steps.charge.key}/undo" }
        - name: ship
          request: { pool: services, path: /shipments, body: { order: "${request.body.order}" } }
      respond: { status: 201, body: { shipment: "${steps.ship.body.id}" } }
"""


def database(stack, base):
    """A PostgreSQL in a folder of the bench, as benches/idempotency starts one."""
    file = ROOT / "benches/idempotency/run.py"
    spec = importlib.util.spec_from_file_location("idempotency_bench", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (base / "server").mkdir()
    return module.Database(stack, base)


def ask(client, key):
    body = '{"items":["pen","ink"],"amount":4.20,"order":1234}'
    client.request("POST", "/checkout", body, {"Idempotency-Key": key, "Authorization": "Bearer alice"})
    response = client.getresponse()
    response.read()
    if response.status != 201:
        raise harness.BenchError(f"{key}: status {response.status}")


def run_sagas(port, prefix, count, connections):
    """Runs so many sagas over so many connections."""
    failed = []

    def work(number):
        try:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
                for saga in range(number, count, connections):
                    ask(client, f"{prefix}-{saga}")
        except (OSError, http.client.HTTPException, harness.BenchError) as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise harness.BenchError(str(failed[0]))


def writes(admin):
    """The calls of the store that have committed something for a saga."""
    text = harness.fetch(admin, "GET", "/metrics")[2].decode()
    found = re.findall(r'^ringway_store_duration_seconds_count\{op="(claim|append)",store="idempotency"\} (\d+)', text, re.M)
    return sum(int(count) for _, count in found)


def bench(stack, args, base):
    ports = harness.free_ports(["ringway", "admin", "services"])
    folder = base / "services"
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(harness.fill(SERVICES, PORT=ports["services"]))
    harness.start(stack, "nginx", harness.nginx_command(config), folder)
    server = database(stack, base) if args.store == "postgres" else None
    store = f'{{ path: "{base / "data" / "store.db"}" }}'
    if server:
        url = base / "url"
        url.write_text(f"postgres://ringway@127.0.0.1:{server.port}/postgres?sslmode=disable")
        url.chmod(0o600)
        store = f'{{ kind: postgres, url_file: "{url}", identity_file: "{base / "store.id"}" }}'
    config = base / "ringway.yaml"
    config.write_text(harness.fill(RINGWAY, PORT=ports["ringway"], ADMIN=ports["admin"], SERVICES=ports["services"],
                                   STORE=store))
    proxy = harness.start(stack, "ringway", [args.binary.absolute(), "run", "--config", config], base)

    def is_ready():
        with contextlib.suppress(harness.BenchError):
            run_sagas(ports["ringway"], "ready", 1, 1)
            return True
        return False

    harness.wait_for(is_ready, "ringway does not answer", proxy)
    run_sagas(ports["ringway"], "warm", args.sagas // 4 + 1, args.connections)
    cpu, commits = [], []
    for each in range(args.rounds):
        before = writes(ports["admin"]), server.commits() if server else 0
        spent = -harness.cpu_ns(proxy.process.pid)
        run_sagas(ports["ringway"], f"round-{each}", args.sagas, args.connections)
        spent += harness.cpu_ns(proxy.process.pid)
        cpu.append(spent / 1000 / args.sagas / STEPS)
        made = server.commits() - before[1] if server else writes(ports["admin"]) - before[0]
        commits.append(made / args.sagas)
    return statistics.median(cpu), statistics.median(commits)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, positive, shown = parser.add_argument, harness.positive, "default: %(default)s"
    add("--binary", type=harness.binary, default=ROOT / "target/release/ringway", help=shown)
    add("--rounds", type=positive, default=5, help=shown)
    add("--sagas", type=positive, default=1000, help=f"of one round ({shown})")
    add("--connections", type=positive, default=1, help=shown)
    add("--store", choices=("sqlite", "postgres"), default="sqlite", help=shown)
    add("--smoke", action="store_true", help="1 round of 20 sagas: proves only that it works")
    args = parser.parse_args()
    if args.smoke:
        args.rounds, args.sagas = 1, 20
    return args


def goal(what, reached):
    return f"{what}: {'reached' if reached else 'NOT reached'}"


def main():
    args = parse_args()
    harness.end_well()
    harness.require("nginx", str(args.binary))
    target = ROOT / "target"
    target.mkdir(exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sagas-", dir=target)))
            # The user of PostgreSQL looks for its folder below.
            base.chmod(0o755)
            cpu, commits = bench(stack, args, base)
    except (harness.BenchError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.store}, {args.connections} at a time, {args.rounds} rounds of {args.sagas} sagas of {STEPS} steps")
    print(f"  CPU of the proxy       {cpu:7.1f} us a step    "
          + goal(f"goal: at most {CPU_GOAL_US}", cpu <= CPU_GOAL_US))
    print(f"  commits of the store   {commits:7.2f} a saga     "
          + goal(f"goal: n + 2 = {STEPS + 2}", commits <= STEPS + 2 + 0.05))


if __name__ == "__main__":
    main()
