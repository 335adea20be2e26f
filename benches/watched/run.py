#!/usr/bin/env python3
"""Measure what a hit and a pass cost while somebody looks: the page with its live requests, `ringway tap` and `ringway top`.

    run.py            # ten rounds of two seconds: about three minutes
    run.py --smoke    # one short round: does the script work?

One proxy with one worker on one core is loaded by wrk on the other one; rounds without a reader and with all of them
alternate. The readers are the two commands and what an open page asks for, in its intervals. Printed is the CPU time of
the whole proxy per request, medians, and the ratio round by round. It needs Linux, two cores, nginx and wrk, not root.
Exit codes: 0 done, 1 a broken run, 2 wrong usage, 3 a program is missing.
"""

import argparse
import contextlib
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402

GOAL = 1.03
ORIGIN = """\
    server {
        listen 127.0.0.1:@PORT@; add_header Cache-Control max-age=3600;
        location / { return 200 "@BODY@"; }
    }
"""
RINGWAY = """\
workers: 1
listeners: [{ name: http, address: "127.0.0.1:@HTTP@" }]
admin: { address: "127.0.0.1:@ADMIN@" }
limits: { requests_per_connection: 0 }
access_log: { format: "off" }
pools:
  app:
    nodes: [{ id: origin, address: "127.0.0.1:@ORIGIN@" }]
routes:
  - { name: hit, path_prefix: /hit, pool: app, hash_on: [uri], cache: {} }
  - { name: pass, path_prefix: /pass, pool: app, hash_on: [uri] }
"""
# What the page asks for while its traffic view is open, and how often in seconds.
HISTORY = "/api/history?after="
POLLED = {"/api/status": 2, "/api/pools": 2, HISTORY: 2.5, "/api/top?by=url&measure=requests&limit=15": 3}
STREAMED = ("/api/events", "/api/tap")


class Page:
    """An open page: its streams, and what it asks for again and again."""

    def __init__(self, port):
        self.port, self.done, self.bytes, self.error = port, threading.Event(), 0, None
        self.streams = [self.open(path) for path in STREAMED]
        work = [(self.read, stream) for stream in self.streams] + [(self.poll,)]
        self.threads = [threading.Thread(target=call, args=args) for call, *args in work]
        for thread in self.threads:
            thread.start()

    def open(self, path):
        stream = socket.create_connection(("127.0.0.1", self.port))
        stream.sendall(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode())
        return stream

    def read(self, stream):
        with contextlib.closing(stream):
            while part := stream.recv(65536):
                self.bytes += len(part)
        if not self.done.is_set():
            self.error = "a stream has ended"

    def poll(self):
        due, newest = dict.fromkeys(POLLED, 0.0), 0
        while not self.done.wait(0.05):
            for path, every in POLLED.items():
                if time.monotonic() >= due[path]:
                    due[path] = time.monotonic() + every
                    status, _, body = harness.fetch(self.port, "GET", f"{path}{newest}" if path == HISTORY else path)
                    if status != 200:
                        self.error = f"{path} is not there"
                        return
                    newest = json.loads(body)["newest"] if path == HISTORY else newest

    def close(self):
        self.done.set()
        for stream in self.streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        if self.error or not self.bytes:
            raise harness.BenchError(self.error or "the page was shown nothing")


@contextlib.contextmanager
def watched(args, port):
    """All readers at once, on the core of the load."""
    admin = f"http://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        for command in (["tap", "--json"], ["top", "--watch", "--json"]):
            reader = subprocess.Popen(
                harness.on_cores("1", [args.binary, *command, "--admin", admin]), stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=harness.die_with_parent)
            stack.callback(harness.stop, reader)
            # Reads on, so that no full pipe slows it down.
            drain = threading.Thread(target=lambda reader=reader: reader.stdout.read(), daemon=True)
            drain.start()
        page = Page(port)
        stack.callback(page.close)
        time.sleep(0.3)
        yield


def load(args, port, path, seconds):
    """The number of requests that wrk got answered."""
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s", f"http://127.0.0.1:{port}{path}"]
    done = subprocess.run(harness.on_cores("1", command), capture_output=True, text=True, check=True, timeout=60)
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise harness.BenchError(done.stdout)
    return int(re.search(r"(\d+) requests in", done.stdout)[1])


def start(stack, folder, args):
    ports = harness.free_ports(["ORIGIN", "HTTP", "ADMIN"])
    for name in ("origin", "ringway"):
        (folder / name).mkdir()
    config = folder / "origin/config"
    site = harness.fill(ORIGIN, PORT=ports["ORIGIN"], BODY="x" * 1024)
    config.write_text(harness.fill(harness.NGINX, SERVERS=site))
    command = harness.on_cores("1", harness.nginx_command(config))
    origin = harness.start(stack, "origin", command, folder / "origin")
    harness.wait_for(lambda: harness.fetch(ports["ORIGIN"], "GET", "/")[0] == 200, "the origin does not answer", origin)
    config = folder / "ringway/config"
    config.write_text(harness.fill(RINGWAY, **ports))
    command = harness.on_cores("0", [args.binary, "run", "--config", config])
    server = harness.start(stack, "ringway", command, folder / "ringway")
    harness.wait_for(lambda: harness.fetch(ports["HTTP"], "GET", "/hit")[0] == 200, "ringway does not answer", server)
    return server, ports


def measure(args, server, ports, path):
    """CPU time in microseconds per request of the whole proxy."""
    before = harness.cpu_ns(server.process.pid)
    requests = load(args, ports["HTTP"], path, args.seconds)
    return (harness.cpu_ns(server.process.pid) - before) / 1e3 / requests


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=harness.binary, default=harness.DEFAULT_BINARY)
    parser.add_argument("--rounds", type=harness.positive, default=10)
    parser.add_argument("--seconds", type=harness.positive, default=2, help="of each measurement")
    parser.add_argument("--smoke", action="store_true", help="one round of a second")
    args = parser.parse_args()
    if args.smoke:
        args.rounds, args.seconds = 1, 1
    harness.end_well()
    harness.require("nginx", "wrk", "taskset", str(args.binary))
    costs = {(path, open_): [] for path in ("/hit", "/pass") for open_ in (False, True)}
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
            folder.chmod(0o755)  # nginx workers are another user
            server, ports = start(stack, folder, args)
            for path in ("/hit", "/pass"):
                load(args, ports["HTTP"], path, 1)
                for number in range(args.rounds):
                    for is_open in (False, True) if number % 2 == 0 else (True, False):
                        with watched(args, ports["ADMIN"]) if is_open else contextlib.nullcontext():
                            costs[path, is_open].append(measure(args, server, ports, path))
    except (harness.BenchError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    for path in ("/hit", "/pass"):
        closed, opened = costs[path, False], costs[path, True]
        ratios = [now / before for before, now in zip(closed, opened)]
        print(f"{path[1:]}: {statistics.median(closed):.2f} us without a reader, {statistics.median(opened):.2f} us with the "
              f"page, tap and top; round by round {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        print(f"goal: at most {GOAL}: {'reached' if statistics.median(ratios) <= GOAL else 'NOT reached'}")


if __name__ == "__main__":
    main()
