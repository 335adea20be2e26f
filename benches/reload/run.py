#!/usr/bin/env python3
"""Reload Ringway's configuration again and again under load, and see that nothing breaks.

README.md next to this file says what is measured and how to read it.
"""

import argparse
import contextlib
import http.client
import json
import random
import socket
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402
from harness import ROOT, BenchError, fill, free_ports, stop  # noqa: E402

STAYERS = ("node-1", "node-2", "node-3", "node-4")
GUESTS = ("node-5", "node-6")
KEYS, SOME_KEYS, CHECKS = 1000, 200, 10
CONNECTIONS = 32
WARM_RELOADS, MAX_GROWTH_MIB, P99_GOAL_MS = 20, 8, 5
PATIENCE = 10  # seconds for anything that should take far less
PIECE, MIB = 65536, 2**20

# Templates are filled by replacing @WORDS@, as nginx uses both $ and braces.
NGINX_NODE = """\
    server { listen 127.0.0.1:@PORT@; location / { add_header X-Node @ID@; return 200 "@BODY@"; } }
"""
RINGWAY = """\
listeners:
  - { name: http, address: 127.0.0.1:@HTTP@ }
admin: { address: 127.0.0.1:@ADMIN@ }
limits: { connections: 1000, drain_timeout: 1s }
access_log: { format: "off" }
pools:
  slow:
    nodes:
      - { id: slow, address: 127.0.0.1:@SLOW@, weight: 1 }
  wide:
    ring: { virtual_nodes: 256 }
    nodes:
@WIDE@
  app:
    nodes:
@NODES@
routes:
  - { name: chat, path_prefix: /chat, pool: slow, hash_on: [uri] }
  - { name: big, path_prefix: /big, pool: slow, hash_on: [uri] }
  - { name: wide, path_prefix: /wide, pool: wide, hash_on: [uri] }
  - { name: site, path_prefix: /, pool: app, hash_on: [uri] }
"""
NODE = "      - { id: @ID@, address: 127.0.0.1:@PORT@, weight: @WEIGHT@, state: @STATE@ }"
# What a good file gets appended; the first is an unknown key, the second no YAML.
BROKEN = ("surprise: 1\n", "routes: [ {\n")
# The guests and their weights in one good file after another.
VISITS = ({"node-5": 1}, {"node-5": 1, "node-6": 1}, {"node-5": 3, "node-6": 2}, {"node-6": 1}, {})
# wrk counts a status above 399 as an error; no route here redirects.
WRK_SCRIPT = """\
local requests, last = {}, 0
function init()
  for i = 1, @KEYS@ do requests[i] = wrk.format("GET", "/key/" .. (i - 1)) end
end
function request()
  last = last % @KEYS@ + 1
  return requests[last]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "p99_ms": %.2f, "bad_statuses": %d, "socket_errors": %d}\\n',
    summary.requests, latency:percentile(99) / 1000, e.status,
    e.connect + e.read + e.write + e.timeout))
end
"""
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
FAILURES = (OSError, http.client.HTTPException, BenchError)


class Proxy:
    """A proxy of its own for each phase, so that none colours the next."""

    def __init__(self, stack, args, ports, base):
        self.ports, self.config, self.log = ports, base / "ringway.yaml", base / "ringway.log"
        self.config.write_text(self.settings())
        command = [args.ringway, "run", "--config", self.config]
        self.process = start(stack, command, self.log)
        self.wait_stayers()

    def wait_stayers(self):
        wait_nodes(self.ports["http"], set(STAYERS), self.process, self.log)

    def settings(self, guests=(), wide_nodes=1, last_weight=1):
        """The file's text with the stayers, these guests, and so many nodes in the other pool."""
        real = [*STAYERS, *GUESTS][:wide_nodes]
        wide = [self.node(name) for name in real]
        wide += [fill(NODE, ID=f"node-{i}", PORT=1, STATE="down",
                      WEIGHT=last_weight if i == wide_nodes else 1)
                 for i in range(len(real) + 1, wide_nodes + 1)]
        weights = dict.fromkeys(STAYERS, 1) | dict(guests)
        nodes = [self.node(name, weight) for name, weight in weights.items()]
        return fill(RINGWAY, HTTP=self.ports["http"], ADMIN=self.ports["admin"],
                    SLOW=self.ports["slow"], WIDE="\n".join(wide), NODES="\n".join(nodes))

    def node(self, name, weight=1):
        return fill(NODE, ID=name, PORT=self.ports[name], WEIGHT=weight, STATE="up")

    def rewrite(self, text):
        """Rename over the file, as careful editors do: nobody sees half a file."""
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.config)

    def ask(self, method, path):
        client = http.client.HTTPConnection("127.0.0.1", self.ports["admin"], timeout=PATIENCE)
        with contextlib.closing(client):
            client.request(method, path)
            response = client.getresponse()
            text = response.read().decode(errors="replace")
        if response.status != 200:
            raise BenchError(f"{method} {path} answered {response.status}: {text}")
        return text

    def reload(self, text):
        """Rewrite the file and wait until it is in force; returns how long that took, in ms."""
        begun = time.monotonic()
        self.rewrite(text)
        self.ask("POST", "/api/reload")
        return (time.monotonic() - begun) * 1000

    def reload_counts(self):
        lines = [line for line in self.ask("GET", "/metrics").splitlines()
                 if line.startswith("ringway_config_reloads_total{")]
        return {line.split('"')[1]: int(float(line.split()[-1])) for line in lines}

    def rss_mib(self):
        return round(harness.rss_mib(self.process.pid), 1)


class Slow(socketserver.BaseRequestHandler):
    """One request for each connection: an echo tunnel or the paced body of /big."""

    def handle(self):
        with contextlib.suppress(OSError), self.request.makefile("rb") as stream:
            head = b"".join(iter(stream.readline, b"\r\n")).lower()
            if b"upgrade: websocket" in head:
                self.request.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + UPGRADE + b"\r\n")
                for data in iter(lambda: stream.read1(4096), b""):
                    self.request.sendall(data)
            elif head.startswith(b"get /big"):
                self.send_big(self.server.size, self.server.seconds)

    def send_big(self, size, seconds):
        self.request.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
                             b"Content-Length: %d\r\n\r\n" % size)
        begun = time.monotonic()
        for number in range(size // PIECE):
            sleep_until(begun + seconds * number * PIECE / size)
            self.request.sendall(piece(number))


def sleep_until(due):
    time.sleep(max(0, due - time.monotonic()))


def piece(number):
    """A piece of /big; all differ, so that a lost or doubled one shows."""
    return random.Random(number).randbytes(PIECE)


def start(stack, command, log=None):
    """Start a program; its output goes to the log or, without one, to a pipe."""
    with log.open("wb") if log else contextlib.nullcontext(subprocess.PIPE) as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True,
                                   preexec_fn=harness.die_with_parent)
    stack.callback(stop, process)
    return process


def start_slow(stack, port, args):
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer.daemon_threads = True
    server = stack.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", port), Slow))
    # Longer than the load, which must end while the download still goes on.
    server.size, server.seconds = args.big_mib * MIB, args.seconds + 2
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)


def start_nodes(stack, ports, base):
    config, log = base / "nginx.conf", base / "nodes.log"
    servers = [fill(NGINX_NODE, ID=node, PORT=ports[node], BODY="x" * 1024)
               for node in STAYERS + GUESTS]
    config.write_text(fill(harness.NGINX, SERVERS="".join(servers)))
    process = start(stack, ["nginx", "-p", f"{base}/", "-c", config, "-e", "stderr"], log)
    for node in STAYERS + GUESTS:
        wait_nodes(ports[node], {node}, process, log)


def map_keys(port, count):
    """The node that answers for each of the first keys, over one connection."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    nodes = []
    with contextlib.closing(client):
        for number in range(count):
            client.request("GET", f"/key/{number}")
            response = client.getresponse()
            if response.status != 200 or len(response.read()) != 1024:
                raise BenchError(f"/key/{number}: status {response.status} or a wrong body")
            nodes.append(response.getheader("X-Node"))
    return nodes


def wait_nodes(port, expected, process, log):
    """Wait until exactly the expected nodes answer."""
    deadline, problem = time.monotonic() + PATIENCE, "it ended"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            seen = set(map_keys(port, 100))
            if seen == expected:
                return
            problem = f"answers came from {sorted(seen)}, not {sorted(expected)}"
        except FAILURES as error:
            problem = repr(error)
        time.sleep(0.1)
    raise BenchError(f"{log.stem}: {problem}\n{log.read_text(errors='replace')[-4000:]}")


def start_wrk(stack, base, port, seconds):
    script = base / "requests.lua"
    script.write_text(fill(WRK_SCRIPT, KEYS=KEYS))
    return start(stack, ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "5s",
                         "-s", script, f"http://127.0.0.1:{port}"])


def wrk_result(process):
    try:
        output = process.communicate(timeout=60)[0].decode()
    except subprocess.TimeoutExpired:
        raise BenchError("wrk did not end in time") from None
    if process.returncode != 0:
        raise BenchError(f"wrk failed:\n{output}")
    return json.loads(output.splitlines()[-1])


def hold_tunnel(port, over):
    """Send a few bytes every 100 ms until the load is over; returns how often they came back."""
    echoes = 0
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET /chat HTTP/1.1\r\nHost: bench\r\n" + UPGRADE +
                       b"Sec-WebSocket-Version: 13\r\n"
                       b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        stream = client.makefile("rb")
        head = stream.readline() + b"".join(iter(stream.readline, b"\r\n"))
        if not head.startswith(b"HTTP/1.1 101 "):
            raise BenchError(f"no tunnel: {head!r}")
        while not over.wait(0.1):
            sent = b"echo %06d" % echoes
            client.sendall(sent)
            if (got := stream.read(len(sent))) != sent:
                raise BenchError(f"sent {sent!r}, got {got!r}")
            echoes += 1
    return echoes


def download(port, size, over):
    """Fetch /big and compare every byte; returns whether it was going on when the load ended."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(client):
        client.request("GET", "/big")
        response = client.getresponse()
        if response.status != 200 or response.getheader("Content-Length") != str(size):
            raise BenchError(f"status {response.status}, {response.getheaders()}")
        for number in range(size // PIECE):
            if response.read(PIECE) != piece(number):
                raise BenchError(f"wrong or missing bytes in {PIECE} from {number * PIECE}")
    return over.is_set()


def rewrite_all(proxy, args, pool):
    """Rewrite the file evenly over the load; returns the key maps taken meanwhile."""
    maps, good, begun = [], 0, time.monotonic()
    every = max(1, args.rewrites * 4 // 5 // CHECKS)
    for number in range(args.rewrites):
        sleep_until(begun + args.seconds * number / args.rewrites)
        text = proxy.settings(VISITS[good % len(VISITS)])
        if number % 5 == 4:
            proxy.rewrite(text + BROKEN[number // 5 % 2])
            continue
        good += 1
        if good % every or len(maps) == CHECKS:
            proxy.rewrite(text)
            continue
        proxy.reload(text)
        # In a thread, as it must not hold the rewrites up. They may overtake it,
        # but what is checked holds for every one of the files.
        maps.append(pool.submit(map_keys, proxy.ports["http"], SOME_KEYS))
    return maps


def load_phase(args, ports, base):
    with contextlib.ExitStack() as stack:
        proxy = Proxy(stack, args, ports, base)
        before = map_keys(ports["http"], KEYS)
        pool, over = stack.enter_context(ThreadPoolExecutor()), threading.Event()
        stack.callback(over.set)  # leaving the pool waits for its threads
        tunnel = pool.submit(hold_tunnel, ports["http"], over)
        big = pool.submit(download, ports["http"], args.big_mib * MIB, over)
        time.sleep(0.5)  # both are under way before the load begins
        wrk = start_wrk(stack, base, ports["http"], args.seconds)
        maps = rewrite_all(proxy, args, pool)
        result = wrk_result(wrk)
        over.set()
        proxy.rewrite(proxy.settings())
        proxy.wait_stayers()  # no POST: the proxy must find the last change by itself
        counts = proxy.reload_counts()
        moved = sum(a != b for a, b in zip(before, map_keys(ports["http"], KEYS)))
        echoes, outlasted = outcome(tunnel), outcome(big)
        return result | judge_maps(before, maps) | {
            "files_taken": counts["success"], "files_refused": counts["failure"],
            "keys_moved_before_after": moved, "tunnel_echoes": echoes,
            "download_mib": args.big_mib, "download_outlasted_load": outlasted}


def outcome(future):
    """What a thread returned, or as text what went wrong."""
    try:
        return future.result(timeout=60)
    except (*FAILURES, TimeoutError) as error:
        return f"broken: {error!r}"


def judge_maps(before, maps):
    found = [(was, now) for each in maps for was, now in zip(before, each.result())]
    return {"keys_looked_up_meanwhile": len(found),
            "keys_seen_at_guests": sum(now in GUESTS for _, now in found),
            "keys_moved_between_stayers": sum(now not in (was, *GUESTS) for was, now in found)}


def memory_phase(args, ports, base):
    with contextlib.ExitStack() as stack:
        proxy, times = Proxy(stack, args, ports, base), []
        texts = [proxy.settings(dict.fromkeys(GUESTS, 1)), proxy.settings()]
        for number in range(args.memory_reloads):
            if number == WARM_RELOADS:
                first = proxy.rss_mib()
            times.append(proxy.reload(texts[number % 2]))
            map_keys(ports["http"], 20)  # connections to nodes come and go as well
        last = proxy.rss_mib()
        return {"reloads": args.memory_reloads, f"rss_mib_after_{WARM_RELOADS}": first,
                "rss_mib_at_the_end": last, "growth_mib": round(last - first, 1),
                "reload_ms_median": round(statistics.median(times))}


def latency_phase(args, ports, base):
    with contextlib.ExitStack() as stack:
        proxy, times = Proxy(stack, args, ports, base), []
        # Another weight each time, so that the wide ring is never the same.
        texts = [proxy.settings(wide_nodes=1000, last_weight=weight) for weight in (1, 2)]
        proxy.reload(texts[1])
        wrk_result(start_wrk(stack, base, ports["http"], 1))  # warm-up
        quiet = wrk_result(start_wrk(stack, base, ports["http"], args.latency_seconds))
        wrk, begun = start_wrk(stack, base, ports["http"], args.latency_seconds), time.monotonic()
        for number in range(args.latency_seconds):
            sleep_until(begun + number + 0.5)
            times.append(proxy.reload(texts[number % 2]))
        busy = wrk_result(wrk)
        difference = round(busy["p99_ms"] - quiet["p99_ms"], 2)
        errors = sum(each["bad_statuses"] + each["socket_errors"] for each in (quiet, busy))
        return {"p99_ms_quiet": quiet["p99_ms"], "p99_ms_with_reloads": busy["p99_ms"],
                "p99_ms_difference": difference, "goal_held": difference <= P99_GOAL_MS,
                "failed_requests": errors, "reload_ms_max": round(max(times))}


def failures(load, memory, latency):
    """What must hold, by what to say where it does not."""
    echoes, outlasted = load["tunnel_echoes"], load["download_outlasted_load"]
    errors = load["bad_statuses"] + load["socket_errors"] + latency["failed_requests"]
    checks = {
        "requests failed": errors == 0,
        "keys moved": not load["keys_moved_before_after"] + load["keys_moved_between_stayers"],
        "the tunnel was harmed": isinstance(echoes, int) and echoes > 0,
        "the download was harmed or ended too early": outlasted is True,
        f"memory grew by more than {MAX_GROWTH_MIB} MiB": memory["growth_mib"] <= MAX_GROWTH_MIB,
        # Without these the run would prove nothing.
        "no file was taken or none refused": load["files_taken"] and load["files_refused"],
        "no key ever went to node-5 or node-6": load["keys_seen_at_guests"],
        "wrk got no answer": load["requests"],
    }
    return [text for text, holds in checks.items() if not holds]


def bench(args):
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-bench-")))
        ports = free_ports([*STAYERS, *GUESTS, "http", "admin", "slow"])
        start_nodes(stack, ports, base)
        start_slow(stack, ports["slow"], args)
        phases = {"load": load_phase, "memory": memory_phase, "latency": latency_phase}
        return {name: phase(args, ports, base) for name, phase in phases.items()}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ringway", type=lambda text: Path(text).absolute(), metavar="PATH",
        default=ROOT / "target/release/ringway", help="its binary (default: %(default)s)")
    add("--seconds", type=int, default=10, metavar="S", help="load (default: %(default)s)")
    add("--rewrites", type=int, default=100, metavar="N", help="default: %(default)s")
    add("--memory-reloads", type=int, default=1000, metavar="N", help="default: %(default)s")
    add("--smoke", action="store_true", help="all of it, but short: proves that the script works")
    add("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    args = parser.parse_args()
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {args.json.parent}")
    args.latency_seconds, args.big_mib = 5, 200
    if args.smoke:
        args.seconds, args.rewrites, args.memory_reloads = 3, 20, 60
        args.latency_seconds, args.big_mib = 2, 20
    if args.seconds < 2 or args.rewrites < 5 or args.memory_reloads <= WARM_RELOADS:
        parser.error(f"at least 2 seconds, 5 rewrites and {WARM_RELOADS + 1} memory reloads")
    return args


def main():
    args = parse_args()
    harness.end_well()
    harness.require("nginx", "wrk", str(args.ringway))
    try:
        results = bench(args)
    except FAILURES as error:
        sys.exit(f"error: {error}")
    for phase, numbers in results.items():
        for name, value in numbers.items():
            print(f"{phase:<8}  {name.replace('_', ' '):<26}  {value}")
    failed = failures(**results)
    if args.json:
        args.json.write_text(json.dumps(results | {"failures": failed}, indent=2) + "\n")
    if failed:
        sys.exit(f"error: {'; '.join(failed)}")
    print("all held")


if __name__ == "__main__":
    main()
