#!/usr/bin/env python3
"""Count what one request costs: instructions, allocations and readings of the clock (valgrind's callgrind), and
system calls (strace).

    run.py                    # all cases, held against table.json: the gate
    run.py --bless            # writes what it found into table.json
    run.py --cases hit,pass   # some cases
    run.py --only strace      # what one of the two tools counts

Counts do not depend on how busy a machine is, as times do. README.md in benches/ says how they are taken, and what
may grow by how much. Exit codes: 0 within the table, 1 over it or a broken run, 2 wrong usage, 3 a program is missing.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402
from harness import BenchError  # noqa: E402
from traffic import Http1, Http2, OneRequest, Origin, Session, tls_context  # noqa: E402

TABLE = Path(__file__).with_name("table.json")
KINDS = ("instructions", "allocations", "clock reads", "system calls")
# What a case may grow by before the gate fails: a share of its instructions; of the others not one a request.
# What TLS costs depends on chance; how often the threads of a store wake each other depends on how soon they run, and
# how much of a large answer a socket takes at a time on TCP's windows, which shrink while a connection rests.
GROWTH, TLS_GROWTH, LOOKUP_GROWTH, UNSTEADY_GROWTH, WINDOWS_GROWTH, WHOLE = 0.03, 0.08, 0.08, 0.15, 0.5, 0.5
# How often a case that seems to have grown is counted; the least is believed, for a cost that is real comes each time.
TRIES = 3
# By these the threads of a store wake each other; how often depends on how soon they run. All other reading and
# writing, of sockets and files, goes by other calls.
WAKING = ("epoll_wait", "futex", "read", "sched_yield", "write")
IDLE_SECONDS = 5
FIELDS = b"Host: localhost\r\nUser-Agent: counts/1\r\nAccept: */*\r\n"
# What the C library and the allocator would otherwise choose by the machine or by chance.
PINNED = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-ERMS,-FSRM,-RTM:glibc.cpu.x86_shstk=off",
    "LD_BIND_NOW": "1", "LC_ALL": "C", "RUST_LOG": "warn",
}

CONFIG = """\
workers: 1
listeners:
  - { name: http, address: "127.0.0.1:@HTTP@" }
  - { name: https, address: "127.0.0.1:@HTTPS@", tls: { certificates: [{ chain_file: "@CHAIN@", key_file: "@KEY@" }] } }
admin: { address: "127.0.0.1:@ADMIN@" }
limits: { requests_per_connection: 0 }
access_log: { format: "off" }
pools:
  app:
    nodes: [{ id: origin, address: "127.0.0.1:@ORIGIN@" }]
routes:
@ROUTES@"""
ROUTES = """\
  - { name: hit, path_prefix: /hit, pool: app, hash_on: [uri], cache: {} }
  - { name: large, path_prefix: /large, pool: app, hash_on: [uri], cache: {} }
  - { name: limited, path_prefix: /limited, pool: app, hash_on: [uri], rate_limit: { requests: 1000000, per: 1s } }
  - { name: site, path_prefix: /, pool: app, hash_on: [uri] }
"""
# Apart from the others, for a store writes signs of life in its own time.
PAY_ROUTES = """\
  - { name: pay, path_prefix: /pay, pool: app, hash_on: [uri], idempotency: { scope: [] } }
idempotency_store: { path: "@FOLDER@/store.db" }
"""
CAUSAL_ROUTES = """\
  - { name: causal, path_prefix: /hit, pool: app, hash_on: [uri], cache: {}, consistency: { level: causal, groups: ["{host}/{path:1}"] } }
fleet: { secret_file: "@FOLDER@/fleet.key" }
"""
MANY_ROUTES = "".join(
    f"  - {{ name: r{number}, path_prefix: /r{number}, pool: app, hash_on: [uri] }}\n" for number in range(10_000))


def get(path, more=b""):
    return b"GET %s HTTP/1.1\r\n%s%s\r\n" % (path, FIELDS, more)


def post(path, more=b"", body=b"x" * 1024):
    return b"POST %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (path, FIELDS, more, len(body), body)


@dataclass
class Case:
    """A kind of request: how its n-th one is made, and what has to come of it."""

    name: str
    request: object
    client: type = Http1
    listener: str = "HTTP"
    count: int = 500
    expected: tuple = (200, 1024)
    # How often the origin is asked for each request.
    asked: int = 0
    growth: float = GROWTH
    # Kinds that are shown and fail nothing.
    ungated: tuple = ()
    # System calls that do not count.
    uncounted: tuple = ()
    # How often it is counted; the median is taken.
    repeats: int = 1
    routes: str = field(default=ROUTES, repr=False)
    # A stream of the admin listener that is read meanwhile.
    watched_by: bytes = b""
    # The case whose cost it may exceed by its growth, instead of its own in the table.
    like: str = ""


CLOSE = b"Connection: close\r\n"
CASES = [
    Case("hit", lambda _: get(b"/hit/1")),
    # In instructions of the proxy alone: with the kernel, a request costs about three times as much.
    Case("watched hit", lambda _: get(b"/hit/1"), watched_by=b"/api/tap?status=5xx", like="hit", growth=0.06,
         ungated=("allocations",)),
    # The same request as that of a causal hit, without its guarantee.
    Case("hit with a cookie", lambda _: get(b"/hit/1", b"Cookie: ringway-session=%s\r\n" % (b"a" * 108))),
    Case("causal hit", lambda _: get(b"/hit/1"), client=Session, routes=CAUSAL_ROUTES),
    Case("hit 1 MiB", lambda _: get(b"/large/1"), expected=(200, 2**20), count=80,
         growth=WINDOWS_GROWTH, ungated=("clock reads", "system calls"), repeats=3),
    Case("hit 304", lambda _: get(b"/hit/2", b'If-None-Match: "fixed"\r\n'), expected=(304, 0)),
    Case("pass", lambda _: get(b"/a"), asked=1),
    Case("pass with a body", lambda _: post(b"/b"), asked=1),
    Case("TLS hit", lambda _: get(b"/hit/3"), listener="HTTPS", growth=TLS_GROWTH),
    Case("HTTP/2 hit", lambda _: b"/hit/4", client=Http2),
    Case("HTTP/2 pass", lambda _: b"/c", client=Http2, asked=1),
    Case("hit, new connection", lambda _: get(b"/hit/5", CLOSE), client=OneRequest, count=200),
    Case("pass, new connection", lambda _: get(b"/d", CLOSE), client=OneRequest, count=200, asked=1),
    Case("idempotent, first", lambda n: post(b"/pay/1", b"Idempotency-Key: key-%09d\r\n" % n), asked=1, count=200,
         growth=UNSTEADY_GROWTH, ungated=("allocations", "clock reads"), uncounted=WAKING, routes=PAY_ROUTES),
    Case("idempotent, replay", lambda _: post(b"/pay/2", b"Idempotency-Key: key-again\r\n"), count=200,
         growth=LOOKUP_GROWTH, uncounted=WAKING, routes=PAY_ROUTES),
    Case("rate-limited", lambda _: get(b"/limited"), asked=1),
    Case("route 10,000", lambda _: get(b"/r9999/a"), asked=1, routes=MANY_ROUTES),
]


class Callgrind:
    """What all threads of the proxy do in user space, from one dump to the next."""

    name, kinds = "callgrind", KINDS[:3]
    # Functions whose calls are counted, where they are called by others than their own kind.
    CALLS = {
        "allocations": re.compile(r"_?mi_(?:\w+_)?(?:m|z|c|re)alloc"),
        "clock reads": re.compile(r"clock_gettime"),
    }

    def __init__(self, folder):
        self.folder, self.pid, self.dumps = folder, None, 0

    def command(self, command):
        return ["setarch", "-R", "valgrind", "--tool=callgrind", "--compress-strings=no",
                f"--callgrind-out-file={self.folder}/out", *command]

    def attach(self, process):
        self.pid = process.pid

    def begin(self):
        self.dump()

    def end(self):
        return self.dump()

    def dump(self):
        """Writes what was counted since the last dump; returns the sums."""
        self.dumps += 1
        done = subprocess.run(["callgrind_control", "--dump", str(self.pid)], capture_output=True, text=True, timeout=60)
        file = self.folder / f"out.{self.dumps}"
        harness.wait_for(file.exists, f"callgrind wrote no dump: {done.stdout}{done.stderr}")
        sums, function, called = dict.fromkeys(self.kinds, 0), "", ""
        for line in file.read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "fn":
                function = value
            elif name == "cfn":
                called = value
            elif name == "calls":
                for kind, calls in self.CALLS.items():
                    if calls.match(called) and not calls.match(function):
                        sums[kind] += int(value.split()[0])
            elif line.startswith("totals: "):
                sums["instructions"] = int(line.split()[1])
        return sums


class Strace:
    """System calls of all threads of the proxy, while strace is attached."""

    name, kinds = "strace", KINDS[3:]

    def __init__(self, folder):
        self.folder, self.pid, self.strace = folder, None, None

    def command(self, command):
        return command

    def attach(self, process):
        self.pid = process.pid

    def begin(self):
        self.strace = subprocess.Popen(
            ["strace", "-f", "-c", "-U", "calls,name", "-o", self.folder / "calls", "-p", str(self.pid)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=harness.die_with_parent)
        threads = len(os.listdir(f"/proc/{self.pid}/task"))

        def is_traced(task):
            return "TracerPid:\t0" not in Path(f"/proc/{self.pid}/task/{task}/status").read_text()

        harness.wait_for(lambda: all(map(is_traced, os.listdir(f"/proc/{self.pid}/task"))),
                         f"strace does not attach to {threads} threads")

    def end(self):
        self.strace.send_signal(signal.SIGINT)
        self.strace.wait(timeout=30)
        counts = re.findall(r"^ *(\d+) (\w+)$", (self.folder / "calls").read_text(), re.MULTILINE)
        return {name: int(count) for count, name in counts if name != "total"}


def free_running(tool, seconds):
    """What the proxy does a second without requests: its timers."""
    tool.begin()
    begin = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begin
    return {name: count / elapsed for name, count in tool.end().items()}


TOOLS = (Callgrind, Strace)


class Counter:
    """A proxy under one of the two tools, an origin behind it."""

    def __init__(self, stack, tool_type, routes, args):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-counts-")))
        self.origin, self.tool, self.asked_keys = Origin(), tool_type(folder), 0
        self.ports = harness.free_ports(["HTTP", "HTTPS", "ADMIN"])
        chain, key, _ = harness.certificate(folder)
        (folder / "fleet.key").write_text("0123456789abcdef" * 2)
        config = folder / "ringway.yaml"
        config.write_text(harness.fill(CONFIG, **self.ports, ORIGIN=self.origin.port, CHAIN=chain, KEY=key,
                                       ROUTES=harness.fill(routes, FOLDER=folder)))
        command = self.tool.command([args.ringway, "run", "--config", config])
        self.server = harness.start(stack, "ringway", command, folder, env={"PATH": os.environ["PATH"], **PINNED})
        self.tool.attach(self.server.process)
        harness.wait_for(lambda: harness.fetch(self.ports["ADMIN"], "GET", "/readyz", timeout=30)[0] == 200,
                         "the proxy does not start", self.server, seconds=120)
        self.threads = os.listdir(f"/proc/{self.server.process.pid}/task")
        self.idle = free_running(self.tool, IDLE_SECONDS)

    def median(self, case, factor):
        """The median of as many counts as the case wants."""
        counts = [self.count(case, factor) for _ in range(case.repeats)]
        return {name: statistics.median(count.get(name, 0) for count in counts) for name in set().union(*counts)}

    def count(self, case, factor):
        """The cost of one request, by system call or as `instructions`."""
        with contextlib.ExitStack() as stack:
            idle = self.watch(stack, case.watched_by) if case.watched_by else self.idle
            return self.count_watched(case, factor, idle)

    def watch(self, stack, path):
        """Reads a stream of the admin listener; what the proxy does for it while no request comes."""
        reader = stack.enter_context(socket.create_connection(("127.0.0.1", self.ports["ADMIN"])))
        reader.sendall(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path)
        if not reader.recv(4096).startswith(b"HTTP/1.1 200 "):
            raise BenchError(f"{path.decode()} is not there to be read")
        return free_running(self.tool, IDLE_SECONDS)

    def count_watched(self, case, factor, idle):
        tls = tls_context() if case.listener == "HTTPS" else None
        client = case.client(self.ports[case.listener], tls)
        count = max(1, int(case.count * factor))
        self.ask(client, case, count + 20)
        before = self.origin_asked()
        (few, short), (many, long) = self.phase(client, case, count), self.phase(client, case, 3 * count)
        asked = self.origin_asked() - before
        if asked != 4 * count * case.asked:
            raise BenchError(f"{case.name}: the origin was asked {asked} times for {4 * count} requests")
        client.close()
        names = {*few, *many}
        costs = {}
        for name in names:
            timers = idle.get(name, 0) * (long - short)
            costs[name] = (many.get(name, 0) - few.get(name, 0) - timers) / (2 * count)
        return costs

    def phase(self, client, case, count):
        """Asks so many times while the tool counts; what it has counted, and how long that took."""
        self.tool.begin()
        begin = time.monotonic()
        self.ask(client, case, count)
        elapsed = time.monotonic() - begin
        return self.tool.end(), elapsed

    def rest(self):
        """Waits until no thread of the proxy has anything to do: what a request costs must not depend on how soon it
        comes after the one before."""
        seen, deadline = 0, time.monotonic() + 30
        while seen < 2:
            states = {Path(f"/proc/{self.server.process.pid}/task/{thread}/stat").read_text().rpartition(")")[2][1]
                      for thread in self.threads}
            seen = seen + 1 if states == {"S"} else 0
            if time.monotonic() > deadline:
                raise BenchError(f"the proxy does not come to rest: its threads are {states}")

    def ask(self, client, case, count):
        for _ in range(count):
            self.rest()
            self.asked_keys += 1
            found = client.ask(case.request(self.asked_keys), self.rest)
            if found != case.expected:
                raise BenchError(f"{case.name}: status and length are {found}, not {case.expected}")

    def origin_asked(self):
        return sum(self.origin.seen.values())


def count_all(cases, tools, args):
    """Counts by case and kind; the system calls by name as one more."""
    found = {case.name: {} for case in cases}
    for tool_type in tools:
        for routes in dict.fromkeys(case.routes for case in cases):
            with contextlib.ExitStack() as stack:
                counter = Counter(stack, tool_type, routes, args)
                for case in (case for case in cases if case.routes == routes):
                    costs, counts = counter.median(case, args.factor), found[case.name]
                    if tool_type is Callgrind:
                        counts |= {kind: round(cost, 1) for kind, cost in costs.items()}
                        counts["instructions"] = round(costs["instructions"])
                    else:
                        counted = [cost for name, cost in costs.items() if name not in case.uncounted]
                        counts["system calls"] = round(sum(counted), 1)
                        counts["calls"] = {name: round(cost, 1) for name, cost in sorted(costs.items()) if cost >= 0.05}
                    print(f"{tool_type.name}: {case.name}", file=sys.stderr)
    return found


def count_again(cases, known, found, args):
    """Counts once more what has grown, in a process of its own; keeps the least of each kind."""
    grown = {(name, kind) for name, kind, *_, has_grown in verdicts(cases, known, found) if has_grown}
    again = [case for case in cases if case.name in known and any(name == case.name for name, _ in grown)]
    again += [case for case in cases if case.like and any(name == case.name for name, _ in grown)]
    tools = [tool for tool in TOOLS if any(kind in tool.kinds for _, kind in grown)]
    if not again:
        return False
    print(f"counted again: {', '.join(case.name for case in again)}", file=sys.stderr)
    for name, counts in count_all(again, tools, args).items():
        for kind in KINDS:
            if kind in counts and counts[kind] < found[name][kind]:
                found[name][kind] = counts[kind]
    return True


def compiler():
    return subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def verdicts(cases, known, found):
    """A row a case and kind: old, new, difference, and whether it has grown too much."""
    rows = []
    for case in cases:
        for kind in KINDS:
            new, old = found[case.name].get(kind), known.get(case.name, {}).get(kind)
            if case.like:
                old = found.get(case.like, known.get(case.like, {})).get(kind)
            if new is None:
                continue
            if old is None:
                rows.append((case.name, kind, "-", new, "not in the table", True))
                continue
            is_share = kind == "instructions" or case.growth in (UNSTEADY_GROWTH, WINDOWS_GROWTH)
            limit = max(old * (1 + case.growth), old + WHOLE) if is_share else old + WHOLE
            change = f"{100 * (new / old - 1):+.2f} %" if kind == "instructions" else f"{new - old:+.1f}"
            rows.append((case.name, kind, old, new, change, new > limit and kind not in case.ungated))
    return rows


def show(rows):
    head = ("case", "count a request", "table", "now", "change", "")
    lines = [head, *((*map(str, row[:5]), "GROWN" if row[5] else "") for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(text.ljust(width) if place < 2 else text.rjust(width)
                        for place, (text, width) in enumerate(zip(line, widths))).rstrip())


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ringway", type=harness.binary, default=harness.DEFAULT_BINARY, metavar="PATH",
        help="the release binary (default: %(default)s)")
    add("--cases", type=lambda text: text.split(","), metavar="NAME[,NAME]",
        help="of " + ", ".join(repr(case.name) for case in CASES if "," not in case.name)
        + "; or the beginning of names")
    add("--only", choices=[tool.name for tool in TOOLS], help="what one of the two tools counts")
    add("--bless", action="store_true", help="write what is found into table.json")
    add("--factor", type=float, default=1.0, metavar="F", help="send F times as many requests (default: 1)")
    return parser.parse_args()


def main():
    args = parse_args()
    harness.end_well()
    tools = [tool for tool in TOOLS if args.only in (None, tool.name)]
    harness.require(str(args.ringway), "openssl", "rustc", "strace", "valgrind", "callgrind_control", "setarch")
    cases = [case for case in CASES if args.cases is None or any(case.name.startswith(name) for name in args.cases)]
    if not cases:
        print(f"error: no case begins with any of {', '.join(map(repr, args.cases))}", file=sys.stderr)
        sys.exit(2)
    try:
        tables, version = json.loads(TABLE.read_text()) if TABLE.exists() else {}, compiler()
        if version not in tables and not args.bless:
            sys.exit(f"error: the table has no counts for rustc {version}; `{sys.argv[0]} --bless` writes them")
        found, known = count_all(cases, tools, args), tables.get(version, {})
        for _ in range(0 if args.bless else TRIES - 1):
            if not count_again(cases, known, found, args):
                break
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    rows = verdicts(cases, known, found)
    show(rows)
    if args.bless:
        table = tables.setdefault(version, {})
        for case in (case for case in cases if not case.like):
            table.setdefault(case.name, {}).update(found[case.name])
        TABLE.write_text(json.dumps(tables, indent=2) + "\n")
        return
    if any(grown for *_, grown in rows):
        sys.exit(f"error: a request costs more than the table says. Where that is worth it, `{sys.argv[0]} --bless` "
                 "writes the new counts, to be committed with the change")


if __name__ == "__main__":
    main()
