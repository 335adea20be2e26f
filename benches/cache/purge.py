#!/usr/bin/env python3
"""Purge 100,000 tagged objects at once, and watch what it costs.

    purge.py            # 100,000 objects
    purge.py --smoke    # 1,000: does the script work?

An nginx is the origin and tags every object. Measured are the time until the purge
is answered (from then on no request gets what was purged), the CPU time that the
proxy used until then and until all of it has left memory, and how long requests for
an object beside them took meanwhile. It needs Linux, Python 3.9 and nginx, not root.
Exit codes: 0 done, 1 a broken run or a purged object served, 2 wrong usage.
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

import run
from run import load

# The object beside them has another size, and so another tag.
TAGS = "add_header Cache-Control max-age=3600; add_header Cache-Tag $uri_tag;"
MAP = "map $request_uri $uri_tag { ~^/1k/ bench; default other; }"


def call(port, method, path, body=None):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(client):
        client.request(method, path, body)
        response = client.getresponse()
        return response.status, response.read(), response.headers


def entries(admin):
    return json.loads(call(admin, "GET", "/api/status")[1])["cache"]["entries"]


def watch(server, latencies, done):
    """Ask for the object beside them over and over, and note how long it took."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    with contextlib.closing(client):
        while not done.is_set():
            begin = time.monotonic()
            client.request("HEAD", "/1m/beside")
            response = client.getresponse()
            response.read()
            latencies.append((time.monotonic() - begin, "hit" in response.headers["cache-status"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=run.ROOT / "target/release/ringway")
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--smoke", action="store_true", help="1,000 objects")
    args = parser.parse_args()
    args.connections = 64
    objects = 1_000 if args.smoke else args.objects
    run.CONFIGS["origin"] = run.CONFIGS["origin"].replace(
        "    log_format", f"    {MAP}\n    log_format").replace("add_header Cache-Control max-age=3600;", TAGS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        folder.chmod(0o755)  # nginx workers are another user
        ports = load.free_ports(("origin", "ringway", "admin"))
        run.start(stack, "origin", ports, folder / "origin", args)
        server = run.start(stack, "ringway", ports, folder / "ringway", args)
        run.fetch(server, (f"/1k/{i}" for i in range(objects)), run.SIZES["1k"])
        run.fetch(server, ["/1m/beside"], run.SIZES["1m"])
        cpu = lambda: sum(map(load.cpu_ns, load.family(server.process.pid))) / 1e6
        latencies, done = [], threading.Event()
        watcher = threading.Thread(target=watch, args=(server, latencies, done))
        before, held = cpu(), entries(ports["admin"])
        watcher.start()
        begin, busy = time.monotonic(), cpu()
        status = call(ports["admin"], "POST", "/api/cache/purge", '{"tag": "bench"}')[0]
        took, used = time.monotonic() - begin, cpu() - busy
        fresh = "hit" not in call(server.port, "GET", f"/1k/{objects - 1}")[2]["cache-status"]
        while entries(ports["admin"]) > held / 2 and time.monotonic() < begin + 30:
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
