#!/usr/bin/env python3
"""Purge 100,000 tagged objects at once, and watch what it costs.

    run.py            # 100,000 objects
    run.py --smoke    # 1,000: does the script work?

An nginx is the origin and tags every object. Measured are the time until the purge is answered (from then on no request
gets what was purged), the CPU time that the proxy used until then and until all of it has left memory, and how long
requests for an object beside them took meanwhile. It needs Linux and nginx, not root. Exit codes: 0 done, 1 a broken
run or a purged object served, 2 wrong usage, 3 a program is missing.
"""

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402

SMALL, BESIDE = "x" * 1024, "y" * 2048
ORIGIN = """\
    server {
        listen 127.0.0.1:@PORT@; add_header Cache-Control max-age=3600;
        location /tagged/ { add_header Cache-Tag bench; add_header Cache-Control max-age=3600; return 200 "@SMALL@"; }
        location / { return 200 "@BESIDE@"; }
    }
"""
RINGWAY = """\
workers: 1
listeners: [{ name: http, address: "127.0.0.1:@HTTP@" }]
admin: { address: "127.0.0.1:@ADMIN@" }
access_log: { format: "off" }
cache: { memory: 1GiB }
pools:
  app:
    nodes: [{ id: origin, address: "127.0.0.1:@ORIGIN@" }]
routes:
  - { name: site, path_prefix: /, pool: app, hash_on: [uri], cache: {} }
"""


def entries(admin):
    return json.loads(harness.fetch(admin, "GET", "/api/status")[2])["cache"]["entries"]


def fill_cache(port, count):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(client):
        for number in range(count):
            client.request("GET", f"/tagged/{number}")
            response = client.getresponse()
            if response.status != 200 or response.read() != SMALL.encode():
                raise harness.BenchError(f"/tagged/{number}: status {response.status}, or a wrong body")


def watch(port, latencies, done):
    """Asks for the object beside them over and over, and notes how long it took."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(client):
        while not done.is_set():
            begin = time.monotonic()
            client.request("HEAD", "/beside")
            response = client.getresponse()
            response.read()
            latencies.append((time.monotonic() - begin, "hit" in response.headers["cache-status"]))


def start(stack, folder, args):
    """The origin and the proxy; returns the proxy and its ports."""
    ports = harness.free_ports(["ORIGIN", "HTTP", "ADMIN"])
    for name in ("origin", "ringway"):
        (folder / name).mkdir()
    site = harness.fill(ORIGIN, PORT=ports["ORIGIN"], SMALL=SMALL, BESIDE=BESIDE)
    config = folder / "origin/config"
    config.write_text(harness.fill(harness.NGINX, SERVERS=site))
    origin = harness.start(stack, "origin", harness.nginx_command(config), folder / "origin")
    harness.wait_for(lambda: harness.fetch(ports["ORIGIN"], "GET", "/")[0] == 200, "the origin does not answer", origin)
    config = folder / "ringway/config"
    config.write_text(harness.fill(RINGWAY, **ports))
    server = harness.start(stack, "ringway", [args.binary, "run", "--config", config], folder / "ringway")
    harness.wait_for(lambda: harness.fetch(ports["HTTP"], "GET", "/beside")[0] == 200, "ringway does not answer", server)
    return server, ports


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=harness.binary, default=harness.DEFAULT_BINARY)
    parser.add_argument("--objects", type=harness.positive, default=100_000)
    parser.add_argument("--smoke", action="store_true", help="1,000 objects")
    args = parser.parse_args()
    objects = 1_000 if args.smoke else args.objects
    harness.end_well()
    harness.require("nginx", str(args.binary))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        folder.chmod(0o755)  # nginx workers are another user
        server, ports = start(stack, folder, args)
        fill_cache(ports["HTTP"], objects)

        def cpu():
            return sum(map(harness.cpu_ns, harness.family(server.process.pid))) / 1e6

        latencies, done = [], threading.Event()
        watcher = threading.Thread(target=watch, args=(ports["HTTP"], latencies, done))
        before, held = cpu(), entries(ports["ADMIN"])
        watcher.start()
        begin, busy = time.monotonic(), cpu()
        status = harness.fetch(ports["ADMIN"], "POST", "/api/cache/purge", '{"tag": "bench"}')[0]
        took, used = time.monotonic() - begin, cpu() - busy
        fresh = "hit" not in harness.fetch(ports["HTTP"], "GET", f"/tagged/{objects - 1}")[1]["cache-status"]
        while entries(ports["ADMIN"]) > held / 2 and time.monotonic() < begin + 30:
            time.sleep(0.01)
        swept, total = time.monotonic() - begin, cpu() - before
        done.set()
        watcher.join()
    if status != 200 or not fresh or not all(hit for _, hit in latencies):
        sys.exit(f"the purge answered {status}; purged objects were {'not ' * fresh}served")
    slowest = max(latency for latency, _ in latencies)
    print(f"{held} entries; the purge was answered after {took * 1e3:.1f} ms and {used:.1f} ms of CPU")
    print(f"all had left memory after {swept * 1e3:.0f} ms; the proxy used {total:.0f} ms of CPU in all")
    print(f"{len(latencies)} requests meanwhile, the slowest took {slowest * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
