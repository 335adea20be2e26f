#!/usr/bin/env python3
"""What strong reads and writes by a quorum cost, and what they do when nodes are down.

    run.py                # 5,000 requests of each kind, 3 rounds of 3 s
    run.py --smoke        # 200 of each, a round of 1 s: does the script work?
    run.py --delay 5      # links to the Redis servers of 5 ms each way (default: 1)

One proxy before an nginx keeps the stamps of its strong routes on three Redis servers, two of which must answer. One
client measures, a request at a time: a plain hit, a strong hit, a pass, a write; and beside them the commands of a check
as the proxy sends them, sent bare to all three servers until two have answered. It does so on loopback, and over links
that delay, on which the round trips of a write can be counted: its time beyond that of a pass, in round trips. wrk
measures the CPU time of the proxy for plain and for strong hits. Then one server is killed, and another one. It needs
Linux, nginx, redis-server and wrk, not root. Exit codes: 0 done, 1 a broken run, 2 wrong usage, 3 a program is missing.
"""

import argparse
import asyncio
import contextlib
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402

NODES, READ = 3, 2
ORIGIN = """\
    server {
        listen 127.0.0.1:@PORT@;
        location / { add_header Cache-Control max-age=3600; return 200 "an object of some length"; }
    }
"""
RINGWAY = """\
workers: 1
listeners: [{ name: http, address: "127.0.0.1:@HTTP@" }]
admin: { address: "127.0.0.1:@ADMIN@" }
access_log: { format: "off" }
fleet: { id: bench, lease: 2s, redis: { nodes: [@NODES@] } }
pools:
  app:
    nodes: [{ id: origin, address: "127.0.0.1:@ORIGIN@" }]
routes:
  - { name: strong, path_prefix: /strong, pool: app, hash_on: [uri], cache: {}, consistency: { level: strong, verify: quorum, settle: 1s } }
  - { name: plain, path_prefix: /plain, pool: app, hash_on: [uri], cache: {} }
  - { name: pass, path_prefix: /, pool: app, hash_on: [uri] }
"""


class Client:
    """A kept connection, for one request at a time."""

    def __init__(self, port):
        self.host, self.link = f"127.0.0.1:{port}", socket.create_connection(("127.0.0.1", port), timeout=20)
        self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method, path):
        """The seconds until the answer, its status, and what the cache did."""
        length = "content-length: 0\r\n" if method == "POST" else ""
        begin = time.perf_counter()
        self.link.sendall(f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\n{length}\r\n".encode())
        text = self.link.recv(65536)
        while not (whole := re.match(rb"(?s)HTTP/1.1 (\d+).*?\r\n\r\n", text)) or len(text) < whole.end() + body_of(whole[0]):
            piece = self.link.recv(65536)
            if not piece:
                raise harness.BenchError(f"the proxy closed the connection after {text!r}")
            text += piece
        seconds = time.perf_counter() - begin
        did = re.search(rb"(?i)\r\ncache-status: ([^\r]*)", whole[0])
        return seconds, int(whole[1]), did[1].decode() if did else ""


def body_of(head):
    found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return int(found[1]) if found else 0


class Redis:
    """A server of the quorum."""

    def __init__(self, stack, number, folder):
        self.folder = folder / f"redis{number}"
        self.folder.mkdir()
        self.port = harness.free_ports(["REDIS"])["REDIS"]
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self.server = harness.start(stack, f"redis{number}", command, self.folder)
        harness.wait_for(lambda: self.call("PING") == b"+PONG\r\n", "a Redis server does not answer", self.server)

    def call(self, *words):
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as link:
            link.sendall(command(*words))
            return link.recv(65536)

    def kill(self):
        harness.stop(self.server.process)

    def watch(self, act):
        """The commands that reach the server during `act`, as they came."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as link:
            link.sendall(command("MONITOR"))
            link.recv(1024)
            act()
            self.call("ECHO", "end")
            text = b""
            while b'"ECHO" "end"' not in text:
                text += link.recv(65536)
        lines = [line for line in text.decode("latin-1").splitlines() if " lua] " not in line]
        found = [re.findall(r'"((?:[^"\\]|\\.)*)"', line.partition("] ")[2]) for line in lines]
        unquoted = [[word.encode("latin-1").decode("unicode_escape").encode("latin-1") for word in words] for words in found]
        return [words for words in unquoted if words and words[0].upper() not in (b"ECHO", b"PING")]


def command(*words):
    """A command as Redis takes it."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)])


def bare_reads(ports, commands, count):
    """The seconds of each read that goes to all servers and waits for READ of them."""
    links = [socket.create_connection(("127.0.0.1", port), timeout=20) for port in ports]
    for link in links:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    piece, times = b"".join(command(*words) for words in commands), []
    # The length of the replies is always the same.
    length = len(exchange(links[0], piece))
    behind = {link: 0 for link in links}
    for _ in range(count):
        begin, answered = time.perf_counter(), 0
        for link in links:
            link.sendall(piece)
            behind[link] += length
        while answered < READ:
            for link in select.select(links, [], [], 20)[0]:
                behind[link] -= len(link.recv(65536))
                answered += behind[link] == 0
        times.append(time.perf_counter() - begin)
        # The last ones are no part of the read.
        while late := [link for link in links if behind[link]]:
            for link in select.select(late, [], [], 20)[0]:
                behind[link] -= len(link.recv(65536))
    for link in links:
        link.close()
    return times


def exchange(link, piece):
    """The replies to some commands, when no more has come for a while."""
    link.sendall(piece)
    text = link.recv(65536)
    while select.select([link], [], [], 0.2)[0]:
        text += link.recv(65536)
    if b"-ERR" in text or b"-NOSCRIPT" in text:
        raise harness.BenchError(f"a Redis server refuses the commands of a check: {text!r}")
    return text


async def delay(pairs, seconds):
    """Passes bytes on from each port to another, later."""
    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                asyncio.get_running_loop().call_later(seconds, writer.write, piece)
        asyncio.get_running_loop().call_later(seconds, writer.close)

    def to(port):
        async def accepted(reader, writer):
            there = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        return accepted

    for listening, port in pairs:
        await asyncio.start_server(to(port), "127.0.0.1", listening)
    await asyncio.Event().wait()


def start_proxy(stack, folder, args, origin, ports):
    """Starts a proxy whose nodes are at these ports; gives its ports, once strong hits are served."""
    listed = ", ".join(f'{{ id: r{number}, address: "127.0.0.1:{port}" }}' for number, port in enumerate(ports))
    own = harness.free_ports(["HTTP", "ADMIN"])
    folder.mkdir()
    config = folder / "config"
    config.write_text(harness.fill(RINGWAY, ORIGIN=origin, NODES=listed, **own))
    server = harness.start(stack, folder.name, [args.binary, "run", "--config", config], folder)
    harness.wait_for(lambda: harness.fetch(own["HTTP"], "GET", "/plain")[0] == 200, "the proxy does not answer", server)
    wait_for_hits(own["HTTP"], server)
    return server, own["HTTP"], own["ADMIN"]


def wait_for_hits(port, server=None):
    """A node counts once its memory is old enough."""
    is_hit = lambda path: "; hit" in harness.fetch(port, "GET", path)[1]["cache-status"]  # noqa: E731
    harness.wait_for(lambda: is_hit("/strong") and is_hit("/plain"), "no strong hit came", server, seconds=30)


def latencies(port, method, path, count, must=""):
    """The seconds of each of so many requests, one at a time. A busy machine may let checks time out: others are left out,
    and told."""
    client, times, others = Client(port), [], []
    for _ in range(count):
        seconds, status, did = client.ask(method, path)
        if status == 200 and must in did:
            times.append(seconds)
        else:
            others.append(f"{status} `{did}`")
    if others:
        print(f"  {method} {path}: {len(others)} of {count} requests are left out, the last one with {others[-1]}")
    if len(others) > len(times):
        raise harness.BenchError(f"{method} {path}: most answers are not what is measured")
    return times


def p50(times):
    return statistics.median(times) * 1e3


def cpu_of_hits(server, port, path, seconds):
    """The proxy's CPU microseconds of a hit under load, and hits a second."""
    cpu = -harness.cpu_ns(server.process.pid)
    words = ["wrk", "-t1", "-c64", f"-d{seconds}s", f"http://127.0.0.1:{port}{path}"]
    told = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True,
                          timeout=seconds + 60, start_new_session=True, preexec_fn=harness.die_with_parent).stdout
    cpu += harness.cpu_ns(server.process.pid)
    requests = int(re.search(r"(\d+) requests in", told)[1])
    if "Non-2xx" in told or "Socket errors" in told:
        raise harness.BenchError(told)
    return cpu / 1e3 / requests, requests / seconds


def checks(port, node):
    """The commands that a check of one hit sends to a node."""
    client, found = Client(port), []

    def hit():
        if "; hit" not in client.ask("GET", "/strong")[2]:
            raise harness.BenchError("no hit to watch")

    # Between them pass the proxy's own: the shortest of several is that of the check alone.
    for _ in range(10):
        found.append(node.watch(hit))
    return min((commands for commands in found if commands), key=len)


def times(port, nodes, ports, commands, count):
    """Each kind's median, in milliseconds."""
    return {
        "plain hit": p50(latencies(port, "GET", "/plain", count, "; hit")),
        "strong hit": p50(latencies(port, "GET", "/strong", count, "; hit")),
        "bare read": p50(bare_reads(ports, commands, count)),
        "pass": p50(latencies(port, "POST", "/pass", count // 2)),
        "write": p50(latencies(port, "POST", "/strong/other", count // 2)),
    }


def shown(where, found):
    print(f"{where}: " + ", ".join(f"{kind} {one:.3f} ms" for kind, one in found.items()))


def outage(port, admin, seconds):
    """What reads and writes get for some seconds: shares answered, and their slowest percent."""
    until, client, found = time.monotonic() + seconds, Client(port), {}
    while time.monotonic() < until:
        for method, path in (("GET", "/strong"), ("GET", "/strong"), ("POST", "/strong/other")):
            found.setdefault(method, []).append(client.ask(method, path))
    for method, answers in found.items():
        good = sum(status == 200 for _, status, _ in answers)
        hits = sum("; hit" in did for _, _, did in answers)
        refused = sum(status == 503 for _, status, _ in answers)
        late = sorted(one for one, _, _ in answers)[int(len(answers) * 0.99)]
        print(f"  {method}: {len(answers)} requests, {100 * good / len(answers):.2f} % with 200 ({hits} hits), {refused} "
              f"refused; median {p50([one for one, _, _ in answers]):.3f} ms, p99 {late * 1e3:.1f} ms")
    return found


def goal(what, reached):
    print(f"goal: {what}: {'reached' if reached else 'NOT reached'}")


def bench(args, stack):
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
    folder.chmod(0o755)  # nginx workers are another user
    count, seconds = (200, 1) if args.smoke else (args.requests, 3)
    (folder / "origin").mkdir()
    origin = harness.free_ports(["ORIGIN"])["ORIGIN"]
    config = folder / "origin/config"
    config.write_text(harness.fill(harness.NGINX, SERVERS=harness.fill(ORIGIN, PORT=origin)))
    server = harness.start(stack, "origin", harness.nginx_command(config), folder / "origin")
    harness.wait_for(lambda: harness.fetch(origin, "GET", "/")[0] == 200, "the origin does not answer", server)
    nodes = [Redis(stack, number, folder) for number in range(NODES)]
    ports = [node.port for node in nodes]
    server, port, admin = start_proxy(stack, folder / "proxy", args, origin, ports)
    commands = checks(port, nodes[0])
    near = times(port, nodes, ports, commands, count)
    shown("loopback, medians", near)
    cost = {"/plain": [], "/strong": []}
    for _ in range(1 if args.smoke else 3):
        for path, found in cost.items():
            found.append(cpu_of_hits(server, port, path, seconds))
    plain, strong = (statistics.median(cpu for cpu, _ in cost[path]) for path in ("/plain", "/strong"))
    rate = statistics.median(rate for _, rate in cost["/strong"])
    print(f"CPU of a hit: plain {plain:.2f} us, strong {strong:.2f} us ({strong / plain:.2f}), {rate:.0f} strong hits/s")

    listening = list(harness.free_ports([str(number) for number in range(NODES)]).values())
    (folder / "links").mkdir()
    words = [sys.executable, __file__, "--delay", str(args.delay), "--links",
             ",".join(f"{here}:{there}" for here, there in zip(listening, ports))]
    harness.start(stack, "links", words, folder / "links")
    harness.wait_for(lambda: socket.create_connection(("127.0.0.1", listening[-1])).close() or True, "no links")
    _, far_port, _ = start_proxy(stack, folder / "far", args, origin, listening)
    far = times(far_port, nodes, listening, commands, max(50, count // 10))
    shown(f"links of {args.delay} ms each way, medians", far)
    trips = (far["write"] - far["pass"]) / far["bare read"]
    print(f"a strong hit takes {near['strong hit'] / near['bare read']:.2f} of a bare read on loopback, and "
          f"{far['strong hit'] / far['bare read']:.2f} over these links; a write takes {trips:.2f} round trips")

    nodes[2].kill()
    time.sleep(1)
    print("one of three nodes down for a second:")
    found = outage(port, admin, 1 if args.smoke else 10)
    alive = sum(status == 200 for answers in found.values() for _, status, _ in answers)
    share = alive / sum(map(len, found.values()))
    nodes[1].kill()
    print("two of three nodes down:")
    found = outage(port, admin, 1 if args.smoke else 5)
    slowest = max(one for answers in found.values() for one, _, _ in answers)
    goal("a strong hit takes at most 1.3 of a bare read over the links", far["strong hit"] <= 1.3 * far["bare read"])
    goal("a strong hit costs at most 2.5 of the CPU time of a plain one", strong <= 2.5 * plain)
    goal("a write takes at most 3 round trips", trips <= 3)
    goal("99.9 % are answered with one node down", share >= 0.999)
    goal("with two nodes down each answer comes within 300 ms", slowest <= 0.3)
    if any(status not in (200, 503) for answers in found.values() for _, status, _ in answers):
        raise harness.BenchError("an answer that is neither 200 nor 503")
    if any(status == 200 for _, status, _ in found["POST"]):
        raise harness.BenchError("a write was forwarded without a quorum")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=harness.binary, default=harness.DEFAULT_BINARY)
    parser.add_argument("--requests", type=harness.positive, default=5_000)
    parser.add_argument("--delay", type=float, default=1, metavar="MS", help="of the links, each way")
    parser.add_argument("--smoke", action="store_true", help="few requests, short rounds")
    parser.add_argument("--links", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.links:
        pairs = [tuple(map(int, pair.split(":"))) for pair in args.links.split(",")]
        asyncio.run(delay(pairs, args.delay / 1e3))
    harness.end_well()
    harness.require("nginx", "redis-server", "wrk", str(args.binary))
    with contextlib.ExitStack() as stack:
        bench(args, stack)


if __name__ == "__main__":
    try:
        main()
    except harness.BenchError as error:
        sys.exit(str(error))
