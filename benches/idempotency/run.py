#!/usr/bin/env python3
"""Measure what it costs to run requests once.

    run.py                       # pass, first and replay, side by side
    run.py --fsync-delay 5       # the same on a disk whose every sync takes 5 ms longer
    run.py --records 1000000     # and with so many records in the store
    run.py --store postgres      # the same with a PostgreSQL of its own, beside its statements driven bare
    run.py --store redis         # the same with a Redis of its own, beside its scripts driven bare
    run.py --smoke               # does the script work?

Three kinds of POST go to one Ringway before one nginx: `pass` has no key, `first`
has a new key each time, `replay` repeats keys that have run. Measured are requests
a second and the user and system time of the Ringway process, all its threads
included, divided by the requests that wrk completed. In the same run a plain loop
commits one row at a time to an SQLite file in the same folder (WAL, synchronous
FULL): the rate that one commit a request would give.

What each figure should be is printed as a goal, reached or not: on a disk whose syncs cost next to nothing a
shared commit cannot win ten times, and does with --fsync-delay.

With --records it fills the store, and tells how long the proxy takes to start, what
a replay costs then, and how much memory the process has more than before.

With --store postgres or redis it starts a server in the same folder (Redis with every
write on its disk before the answer). In the same run pgbench, or one connection of this
script, drives the same statements or scripts bare, as many claims and results together
as the proxy has sent; and single claims, which tell what a commit takes.

It needs Linux, Python 3.9 and the Debian packages wrk, nginx, gcc for --fsync-delay,
postgresql for --store postgres and redis-server for --store redis. The store is in a folder under target/, which must be on a disk. Exit
codes: 0 done, 1 a broken run or failed requests, 2 wrong usage, 3 a program is
missing.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("pass", "first", "replay")
READY_SECONDS = 60

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402
from harness import ROOT  # noqa: E402

ORIGIN = """\
    server {
        listen 127.0.0.1:@PORT@; default_type application/json;
        location / { return 201 '{"id":"ch_1","status":"succeeded","amount":4200,"currency":"eur"}'; }
    }
"""
RINGWAY = """\
workers: @WORKERS@
listeners: [{ name: http, address: "127.0.0.1:@PORT@" }]
admin: { address: "127.0.0.1:@ADMIN@" }
access_log: { format: "off" }
idempotency_store: @STORE@
pools:
  app:
    nodes: [{ id: origin, address: "127.0.0.1:@ORIGIN@" }]
routes:
  - { name: pay, path_prefix: /, pool: app, hash_on: [path], idempotency: {} }
"""
WRK_SCRIPT = """\
local kind, prefix, keys, number = nil, nil, 0, 0
local fields = { ["Authorization"] = "Bearer 0123456789abcdef", ["Content-Type"] = "application/json" }
local body = '{"amount":4200,"currency":"eur","source":"tok_visa","description":"order 1234"}'
function init(args) kind, prefix, keys = args[1], args[2], tonumber(args[3]) end
function request()
  if kind == "first" then fields["Idempotency-Key"] = prefix .. number end
  if kind == "replay" then fields["Idempotency-Key"] = prefix .. (number % keys) end
  number = number + 1
  return wrk.format("POST", "/charges", fields, body)
end
function done(summary)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "duration_us": %d, "errors": %d}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout))
end
"""
# Every sync takes longer, as on a slower disk.
SLOW_SYNC = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
static int slow(const char *name, int file) {
    usleep(DELAY_US);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}
int fsync(int file) { return slow("fsync", file); }
int fdatasync(int file) { return slow("fdatasync", file); }
"""


def single_commits(folder, seconds):
    """Commits a second, one row each."""
    database = sqlite3.connect(folder / "single.db", isolation_level=None)
    with contextlib.closing(database):
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE t (a BLOB)")
        count, begin = 0, time.monotonic()
        while time.monotonic() - begin < seconds:
            database.execute("INSERT INTO t VALUES (zeroblob(500))")
            count += 1
        return count / (time.monotonic() - begin)


def start_proxy(stack, ports, folder, args):
    """Starts the proxy; gives it and the seconds until it answered."""
    folder.mkdir(exist_ok=True)
    config = folder / "ringway.yaml"
    store = f'{{ path: "{folder / "data" / "store.db"}" }}'
    if args.store == "postgres":
        store = f'{{ kind: postgres, url_file: "{args.url_file}", identity_file: "{folder / "store.id"}" }}'
    if args.store == "redis":
        store = f'{{ kind: redis, address: "127.0.0.1:{args.store_port}", identity_file: "{folder / "store.id"}" }}'
    config.write_text(harness.fill(RINGWAY, PORT=ports["ringway"], ADMIN=ports["admin"], WORKERS=args.workers,
                                ORIGIN=ports["origin"], STORE=store))
    begin = time.monotonic()
    server = harness.start(stack, "ringway", [args.binary.absolute(), "run", "--config", config], folder)
    while time.monotonic() - begin < READY_SECONDS and server.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            ask(ports["ringway"], "ready")
            return server, time.monotonic() - begin
        time.sleep(0.005)
    raise harness.BenchError(f"ringway is not ready:\n{server.log.read_text(errors='replace')[-4000:]}")


def ask(port, key):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(client):
        client.request("POST", "/charges", "{}", {"Idempotency-Key": key, "Authorization": "x"})
        status = client.getresponse().status
        if status != 201:
            raise harness.BenchError(f"{key}: status {status}")


def memory(pid):
    """Resident bytes that are the process's own: the store's pages in its file are the kernel's."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def measure(server, port, script, kind, prefix, args, seconds=None):
    words = ["wrk", "-t1", f"-c{args.connections}", f"-d{seconds or args.seconds}s", "--timeout", "20s", "-s", script,
             f"http://127.0.0.1:{port}", "--", kind, prefix, str(args.keys)]
    cpu = -harness.cpu_ns(server.process.pid)
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True,
                          timeout=args.seconds + 60, start_new_session=True, preexec_fn=harness.die_with_parent)
    cpu += harness.cpu_ns(server.process.pid)
    result = json.loads(done.stdout.splitlines()[-1])
    if server.process.poll() is not None or not result["requests"]:
        raise harness.BenchError(f"{kind}: no answers:\n{done.stdout}")
    return {"cpu_us": cpu / 1000 / result["requests"], "rps": result["requests"] / (result["duration_us"] / 1e6),
            "errors": result["errors"]}


def rounds(server, port, script, args, kinds=KINDS):
    """Measures each kind in turn, so that all meet the same noise."""
    for kind in kinds:
        # Not counted; for `replay` it is what runs the keys.
        measure(server, port, script, kind, f"warm-{os.getpid()}-", args, args.seconds)
    results = {kind: [] for kind in kinds}
    for number in range(args.rounds):
        for kind in kinds:
            prefix = f"warm-{os.getpid()}-" if kind == "replay" else f"{kind}-{os.getpid()}-{time.monotonic_ns()}-"
            one = measure(server, port, script, kind, prefix, args)
            results[kind].append(one)
            print(f"round {number + 1}/{args.rounds} {kind}: {one['cpu_us']:.2f} us, {one['rps']:.0f}/s", file=sys.stderr)
    return {kind: {key: statistics.median(one[key] for one in each) for key in ("cpu_us", "rps")}
            | {"errors": sum(one["errors"] for one in each)} for kind, each in results.items()}


def fill(path, count):
    """Adds records as if so many requests had run."""
    database = sqlite3.connect(path, isolation_level=None)
    with contextlib.closing(database):
        database.execute("PRAGMA synchronous = OFF")
        now = int(time.time() * 1000)
        rows = ((os.urandom(32), 1, 1, number, 10000, now, now + 86_400_000 + number % 3_600_000, os.urandom(32), "default",
                 "POST", "127.0.0.1", "/charges", os.urandom(16).hex(), 201, b"content-type: application/json\r\n" * 4,
                 b"x" * 300, b"") for number in range(count))
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO records (id, state, holder, number, lease, created, expires, fingerprint, namespace, method,"
            " authority, path, key, status, fields, body, trailers) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)
        database.execute("UPDATE extent SET records = records + ?", [count])
        database.execute("COMMIT")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def bench(args):
    good = True
    with contextlib.ExitStack() as stack:
        if args.store != "sqlite":
            return bench_remote(stack, args)
        (ROOT / "target").mkdir(exist_ok=True)
        folder = args.folder or ROOT / "target"
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-idempotency-", dir=folder)))
        base.chmod(0o755)  # as root, nginx runs its workers as another user
        script = base / "requests.lua"
        script.write_text(WRK_SCRIPT)
        ports = harness.free_ports(["origin", "admin", "ringway"])
        (base / "origin").mkdir()
        config = base / "origin" / "config"
        config.write_text(harness.fill(harness.NGINX, SERVERS=harness.fill(ORIGIN, PORT=ports["origin"])))
        harness.start(stack, "origin", harness.nginx_command(config), base / "origin")
        if args.fsync_delay:
            slow = base / "slow.so"
            subprocess.run(["gcc", "-shared", "-fPIC", f"-DDELAY_US={args.fsync_delay * 1000}", "-xc", "-", "-o", slow],
                           input=SLOW_SYNC, text=True, check=True)
            os.environ["LD_PRELOAD"] = str(slow)
            words = [sys.executable, __file__, "--single-commits", str(base), "--seconds", str(args.seconds)]
            single = float(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
        else:
            single = single_commits(base, args.seconds)
        server, started = start_proxy(stack, ports, base / "ringway", args)
        os.environ.pop("LD_PRELOAD", None)
        results = rounds(server, ports["ringway"], script, args)
        plain = results["pass"]["cpu_us"]
        print(f"\nmedians of {args.rounds} x {args.seconds} s, {args.connections} connections, {args.workers} worker(s); "
              f"one commit at a time: {single:.0f}/s")
        print(f"{'kind':>8} {'CPU us/request':>15} {'of pass':>8} {'requests/s':>11} {'of one commit':>14} {'errors':>7}")
        for kind, one in results.items():
            print(f"{kind:>8} {one['cpu_us']:15.2f} {one['cpu_us'] / plain:8.2f} {one['rps']:11.0f} "
                  f"{one['rps'] / single:14.1f} {one['errors']:7}")
            good = good and not one["errors"]
        goal("a replay costs at most 1.5 of a pass", results["replay"]["cpu_us"] <= 1.5 * plain)
        goal("a first request costs at most 3 of a pass", results["first"]["cpu_us"] <= 3 * plain)
        goal("5000 first requests a second", results["first"]["rps"] >= 5000 or bool(args.fsync_delay))
        goal("10 times the rate of one commit a request", results["first"]["rps"] >= 10 * single)
        if args.records:
            good = with_records(stack, ports, base, script, server, args) and good
    return good


BARE = """\
\\set r random(1, 1000000000000000)
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on;
INSERT INTO ringway_records (id, state, holder, number, lease, created, touched, expires, fingerprint, namespace, method,
    authority, path, key)
    SELECT decode(md5(:r::text || g) || md5(g::text || :r), 'hex'), 0, :r, g, 10000, now(), now(), now() + interval '1 day',
        decode(repeat('5e', 32), 'hex'), 'default', 'POST', '127.0.0.1:8080', '/charges', 'first-1234-' || :r || g
    FROM generate_series(1, @BATCH@) g ON CONFLICT (id) DO NOTHING;
COMMIT;
"""
BARE_RESULT = """\
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on;
UPDATE ringway_records r SET state = 1, status = 201, fields = repeat('x', 150)::bytea, body = repeat('y', 70)::bytea,
    trailers = '', touched = now(), expires = now() + interval '1 day'
    FROM generate_series(1, @BATCH@) g
    WHERE r.id = decode(md5(:r::text || g) || md5(g::text || :r), 'hex') AND r.holder = :r AND r.number = g AND r.state = 0;
COMMIT;
"""


class Database:
    """A server in a folder of the bench."""

    def __init__(self, stack, base):
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not versions:
            sys.exit("error: `initdb` is missing (Debian: postgresql)")
        self.programs, self.base, self.port = versions[-1], base, harness.free_ports(["postgres"])["postgres"]
        folder = base / "postgres"
        folder.mkdir()
        self.user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
        data = folder / "data"
        words = [*self.user, self.programs / "initdb", "-A", "trust", "-U", "ringway", "--locale=C", "-E", "UTF8", "-D", data]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        words = [*self.user, self.programs / "postgres", "-D", data, "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
                 "-c", f"unix_socket_directories={folder}"]
        harness.start(stack, "postgres", words, base / "server")
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until and self.ask("SELECT 1") != "1":
            time.sleep(0.05)

    def words(self, program, *more):
        return [program, "-h", "127.0.0.1", "-p", str(self.port), "-U", "ringway", *more, "postgres"]

    def ask(self, text):
        words = self.words("psql", "-X", "-A", "-t", "-q", "-c", text)
        return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()

    def commits(self):
        return int(self.ask("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'"))

    def drive(self, script, seconds):
        """Transactions a second of one connection, and the milliseconds that one run of the script takes."""
        file = self.base / "bare.sql"
        file.write_text(script)
        words = self.words(self.programs / "pgbench", "-n", "-c", "1", "-T", str(seconds), "-f", str(file))
        told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
        rate = float(next(line.split("=")[1].split()[0] for line in told.splitlines() if line.startswith("tps")))
        return rate, 1000 / rate


def claim_seconds(admin):
    """The sum and the number of the claims' durations so far."""
    client = http.client.HTTPConnection("127.0.0.1", admin, timeout=20)
    with contextlib.closing(client):
        client.request("GET", "/metrics")
        lines = client.getresponse().read().decode().splitlines()
    name = "ringway_store_duration_seconds"
    found = {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith(name) and 'op="claim"' in line
             and "_bucket" not in line}
    return found.get(f"{name}_sum", 0.0), found.get(f"{name}_count", 0.0)


class RedisServer:
    """A server in a folder of the bench, whose every write is on its disk before it answers."""

    def __init__(self, stack, base):
        self.port = harness.free_ports(["redis"])["redis"]
        folder = base / "redis"
        folder.mkdir()
        words = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
                 "--appendonly", "yes", "--appendfsync", "always"]
        harness.start(stack, "redis", words, base / "server")
        harness.wait_for(lambda: self.call("PING") == b"+PONG\r\n", "the server is not ready")

    def call(self, *words):
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as link:
            link.sendall(command(*words))
            return link.recv(1 << 20)

    def batches(self):
        """The calls of scripts so far, and the pieces in which they came."""
        calls = re.search(rb"cmdstat_evalsha:calls=(\d+)", self.call("INFO", "commandstats"))
        reads = re.search(rb"total_reads_processed:(\d+)", self.call("INFO", "stats"))
        return int(calls[1]) if calls else 0, int(reads[1])

    def drive(self, batch, seconds, completes=True):
        """Claims, and their results, a second of one connection that sends so many together."""
        names = {name: self.load(name, flags) for name, flags in (("claim", ""), ("complete", " flags=allow-oom"))}
        store = self.call("GET", "ringway:default:store").split(b"\r\n")[1]
        common = ("EVALSHA", names["claim"], "1", "ringway:default:store", store)
        result = ("EVALSHA", names["complete"], "1", "ringway:default:store", store)
        pieces = []
        for _ in range(400):
            ids = [os.urandom(32) for _ in range(batch)]
            token = os.urandom(16).hex()
            claims = b"".join(command(*common, each, token, b"f" * 32, "0", "10000", "86400000", "default", "POST",
                                      "127.0.0.1:8080", "/charges", f"first-1234-{each.hex()[:12]}", "bench/1") for each in ids)
            pieces.append((claims, batch * len(b"*2\r\n:1\r\n$-1\r\n")))
            if completes:
                ends = b"".join(command(*result, each, token, "1", "86400000", "201", b"x" * 150, b"y" * 70, "") for each in ids)
                pieces.append((ends, batch * len(b":1\r\n")))
        done, begin = 0, time.monotonic()
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while done < len(pieces) and time.monotonic() - begin < seconds:
                sent, length = pieces[done]
                link.sendall(sent)
                while length > 0:
                    got = link.recv(1 << 20)
                    if got.startswith(b"-"):
                        raise harness.BenchError(f"the server refuses: {got[:200]}")
                    length -= len(got)
                done += 1
        # A first request is a claim and a result.
        return done * batch / (2 if completes else 1) / (time.monotonic() - begin)

    def load(self, name, flags):
        folder = ROOT / "src/idempotency/redis/scripts"
        text = f"#!lua{flags}\n" + (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
        return self.call("SCRIPT", "LOAD", text).split(b"\r\n")[1]

    def trip(self):
        """The milliseconds of a round trip."""
        ping, count = command("PING"), 2000
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            begin = time.monotonic()
            for _ in range(count):
                link.sendall(ping)
                link.recv(64)
            return (time.monotonic() - begin) * 1000 / count


def command(*words):
    """A command as Redis takes it."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)])


def bench_remote(stack, args):
    """PostgreSQL or Redis, beside its own commands driven bare."""
    (ROOT / "target").mkdir(exist_ok=True)
    base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-idempotency-", dir=args.folder or ROOT / "target")))
    base.chmod(0o755)
    script = base / "requests.lua"
    script.write_text(WRK_SCRIPT)
    ports = harness.free_ports(["origin", "admin", "ringway"])
    for name in ("origin", "server"):
        (base / name).mkdir()
    config = base / "origin" / "config"
    config.write_text(harness.fill(harness.NGINX, SERVERS=harness.fill(ORIGIN, PORT=ports["origin"])))
    harness.start(stack, "origin", harness.nginx_command(config), base / "origin")
    is_postgres = args.store == "postgres"
    engine = Database(stack, base) if is_postgres else RedisServer(stack, base)
    args.store_port = engine.port
    if is_postgres:
        args.url_file = base / "store.url"
        args.url_file.write_text(f"postgres://ringway@127.0.0.1:{engine.port}/postgres?sslmode=disable")
        args.url_file.chmod(0o600)
    server, _ = start_proxy(stack, ports, base / "ringway", args)
    for number in range(10):
        ask(ports["ringway"], f"ready-{number}")
    # The proxy's own transactions, or pipelines, tell how many claims and results share one.
    before = engine.commits() if is_postgres else engine.batches()
    first = measure(server, ports["ringway"], script, "first", f"count-{os.getpid()}-", args)
    time.sleep(1.5)  # the server's statistics come late
    if is_postgres:
        batch = max(1, round(2 * first["rps"] * args.seconds / max(1, engine.commits() - before)))
    else:
        calls, reads = (now - then for now, then in zip(engine.batches(), before))
        batch = max(1, round(calls / max(1, reads)))
    results = rounds(server, ports["ringway"], script, args)
    # One client at a time: what a claim and a replay take.
    alone = argparse.Namespace(**{**vars(args), "connections": 1})
    if is_postgres:
        bare = engine.drive(harness.fill(BARE + BARE_RESULT, BATCH=batch), args.seconds)[0] * batch
        _, commit = engine.drive(harness.fill(BARE, BATCH=1), args.seconds)
        _, trip = engine.drive("SELECT 1;", args.seconds)
    else:
        bare, commit = engine.drive(batch, args.seconds), 1000 / engine.drive(1, args.seconds, completes=False)
        trip = engine.trip()
    began = claim_seconds(ports["admin"])
    measure(server, ports["ringway"], script, "first", f"alone-{os.getpid()}-", alone)
    ended = claim_seconds(ports["admin"])
    claim = 1000 * (ended[0] - began[0]) / max(1.0, ended[1] - began[1])
    latency = {kind: 1000 / measure(server, ports["ringway"], script, kind, f"warm-{os.getpid()}-", alone)["rps"]
               for kind in ("pass", "replay")}
    plain = results["pass"]["cpu_us"]
    print(f"\nmedians of {args.rounds} x {args.seconds} s, {args.connections} connections, {args.workers} worker(s); "
          f"the same commands bare, {batch} together: {bare:.0f}/s")
    print(f"{'kind':>8} {'CPU us/request':>15} {'of pass':>8} {'requests/s':>11} {'of bare':>8} {'errors':>7}")
    for kind, one in results.items():
        print(f"{kind:>8} {one['cpu_us']:15.2f} {one['cpu_us'] / plain:8.2f} {one['rps']:11.0f} "
              f"{one['rps'] / bare:8.2f} {one['errors']:7}")
    print(f"one client: a claim takes {claim:.2f} ms, a bare commit {commit:.2f}, a round trip {trip:.3f}, "
          f"a pass {latency['pass']:.3f}, a replay {latency['replay']:.3f}")
    goal("first requests at half the rate of bare commands", results["first"]["rps"] >= 0.5 * bare)
    goal("a claim takes at most two commits", claim <= 2 * commit)
    goal("a replay costs at most 1.5 of a pass", results["replay"]["cpu_us"] <= 1.5 * plain)
    goal("a replay takes at most 1.5 of a pass and a round trip", latency["replay"] <= 1.5 * latency["pass"] + trip)
    return not any(one["errors"] for one in results.values())


def with_records(stack, ports, base, script, server, args):
    stop(server)
    fill(base / "ringway" / "data" / "store.db", args.records)
    empty = base / "empty"
    other, _ = start_proxy(stack, ports, empty, args)
    measure(other, ports["ringway"], script, "replay", "r-", args)
    before = memory(other.process.pid)
    stop(other)
    server, started = start_proxy(stack, ports, base / "ringway", args)
    results = rounds(server, ports["ringway"], script, args)
    more = (memory(server.process.pid) - before) / 2**20
    print(f"\nwith {args.records} records ({(base / 'ringway' / 'data' / 'store.db').stat().st_size / 2**20:.0f} MiB): "
          f"started in {started:.2f} s, {more:.0f} MiB more memory than with none")
    for kind, one in results.items():
        print(f"{kind:>8} {one['cpu_us']:15.2f} {one['cpu_us'] / results['pass']['cpu_us']:8.2f} {one['rps']:11.0f} "
              f"{'':>14} {one['errors']:7}")
    goal("a start with all records takes under a second", started < 1)
    goal("they take under 100 MiB of memory", more < 100)
    return not any(one["errors"] for one in results.values())


def goal(what, reached):
    print(f"goal: {what}: {'reached' if reached else 'NOT reached'}")


def stop(server):
    server.process.terminate()
    server.process.wait(timeout=60)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, positive, shown = parser.add_argument, harness.positive, "default: %(default)s"
    add("--binary", type=Path, default=ROOT / "target/release/ringway", help=shown)
    add("--rounds", type=positive, default=5, help=shown)
    add("--seconds", type=positive, default=3, help=f"of one measurement ({shown})")
    add("--connections", type=positive, default=64, help=shown)
    add("--workers", type=positive, default=1, help=shown)
    add("--keys", type=positive, default=1000, help=f"that `replay` repeats ({shown})")
    add("--records", type=positive, help="measure with so many records in the store, too")
    add("--store", choices=("sqlite", "postgres", "redis"), default="sqlite", help=shown)
    add("--fsync-delay", type=positive, metavar="MS", help="make every sync of a file take longer")
    add("--folder", type=Path, help="where the store is (default: target/)")
    add("--smoke", action="store_true", help="1 round of 1 second: proves only that it works")
    add("--single-commits", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.rounds = args.seconds = 1
        args.records = args.records or 1000
    return args


def main():
    args = parse_args()
    if args.single_commits:
        print(single_commits(args.single_commits, args.seconds))
        return
    harness.end_well()
    harness.require("wrk", "nginx", str(args.binary.absolute()), *(["gcc"] if args.fsync_delay else []),
                    *(["redis-server"] if args.store == "redis" else []))
    try:
        good = bench(args)
    except (harness.BenchError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    if not good:
        sys.exit("error: failed requests")


if __name__ == "__main__":
    main()
