#!/usr/bin/env python3
"""Measure what it costs to run requests once.

    run.py                       # pass, first and replay, side by side
    run.py --fsync-delay 5       # the same on a disk whose every sync takes 5 ms longer
    run.py --records 1000000     # and with so many records in the store
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

It needs Linux, Python 3.9 and the Debian packages wrk, nginx, and gcc for
--fsync-delay. The store is in a folder under target/, which must be on a disk. Exit
codes: 0 done, 1 a broken run or failed requests, 2 wrong usage, 3 a program is
missing.
"""

import argparse
import contextlib
import http.client
import json
import os
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
idempotency_store: { path: "@STORE@" }
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
    config.write_text(harness.fill(RINGWAY, PORT=ports["ringway"], ADMIN=ports["admin"], WORKERS=args.workers,
                                ORIGIN=ports["origin"], STORE=folder / "data" / "store.db"))
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
    harness.require("wrk", "nginx", str(args.binary.absolute()), *(["gcc"] if args.fsync_delay else []))
    try:
        good = bench(args)
    except (harness.BenchError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    if not good:
        sys.exit("error: failed requests")


if __name__ == "__main__":
    main()
