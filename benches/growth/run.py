#!/usr/bin/env python3
"""Measure how the cost of Ringway grows with what it holds.

    run.py                          # everything: about fifteen minutes
    run.py --only idle,objects      # some parts
    run.py --only churn --minutes 60
    run.py --smoke                  # does the script work?

README.md in the folder above says what each part measures, and what it should be. Each goal is printed, reached or
not. It needs Linux, Python 3.9 and the Debian packages wrk, nginx and openssl. Exit codes: 0 done, 1 a broken run,
2 wrong usage, 3 a program is missing.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clients  # noqa: E402
import harness  # noqa: E402
import picture  # noqa: E402
from harness import DEFAULT_BINARY, ROOT, BenchError, fill  # noqa: E402

PARTS = ("objects", "routes", "nodes", "connections", "idle", "sizes", "reload", "churn", "workers")
CONNECTIONS = 32
BASE = """\
workers: @WORKERS@
listeners:
  - { name: http, address: "127.0.0.1:@HTTP@" }
  - { name: tls, address: "127.0.0.1:@TLS@", tls: { certificates: [{ chain_file: "@CERT@", key_file: "@KEY@" }] } }
admin: { address: "127.0.0.1:@ADMIN@" }
access_log: { format: "off" }
limits: { connections: 50000, keep_alive_timeout: 1h }
cache: { memory: @MEMORY@ }
pools:
  app:
    nodes:
@NODES@
routes:
@ROUTES@
"""
CACHED = '  - { name: cached, path_prefix: /o/, pool: app, hash_on: [path], cache: {} }\n'
PLAIN = '  - { name: plain, path_prefix: /, pool: app, hash_on: [path] }\n'
# The length of the body stands in the path: /o/200/7.
ORIGIN = """\
    server {
        listen @PORT@; root @FOLDER@;
        location ~ ^/o/(\\d+)/ { add_header Cache-Control max-age=36000; add_header ETag $request_uri; try_files /$1 =404; }
        location / { return 200 "ok"; }
    }
"""
# Paths at random, or one after the other.
WRK_SCRIPT = """\
local form, count, serial = nil, 1, false
local number = 0
function init(args) form, count, serial = args[1], tonumber(args[2]), args[3] == "serial"; math.randomseed(tonumber(args[4])) number = tonumber(args[5]) end
function request()
  if serial then number = (number + 1) % count else number = math.random(0, count - 1) end
  return wrk.format("GET", string.format(form, number))
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "errors": %d, "p99_ms": %f}\\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(99) / 1000))
end
"""
SIZES = (0, 200, 1000, 10_000, 100_000)


class Proxy:
    """A running Ringway with its settings."""

    def __init__(self, stack, bench, name, nodes=1, routes=None, workers=1, memory="4GiB"):
        self.bench, self.ports = bench, harness.free_ports(["http", "tls", "admin"])
        folder = bench.base / name
        folder.mkdir()
        self.config, self.cache_memory = folder / "ringway.yaml", memory
        self.nodes, self.routes, self.workers = nodes, routes or CACHED + PLAIN, workers
        self.write()
        words = [bench.args.binary, "run", "--config", self.config]
        self.server = harness.start(stack, name, words, folder)
        harness.wait_for(lambda: self.get("/ready")[0] == 200, f"{name} is not ready", self.server, seconds=60)

    def write(self, comment=""):
        nodes = "".join(f'      - {{ id: n{n}, address: "127.0.{n // 250}.{n % 250 + 1}:{self.bench.origin}" }}\n'
                        for n in range(self.nodes))
        chain, key, _ = self.bench.certificate
        self.config.write_text(comment + fill(
            BASE, HTTP=self.ports["http"], TLS=self.ports["tls"], ADMIN=self.ports["admin"], CERT=chain, KEY=key,
            WORKERS=self.workers, MEMORY=self.cache_memory, NODES=nodes, ROUTES=self.routes))

    @property
    def pid(self):
        return self.server.process.pid

    def get(self, path):
        return harness.fetch(self.ports["http"], "GET", path)

    def load(self, form="/o/200/%d", count=1, serial=False, connections=CONNECTIONS, seconds=None, first=0):
        """Drives requests; gives the CPU time of one, in microseconds, with the number, the errors and the p99."""
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds or self.bench.args.seconds}s", "--timeout", "20s", "--latency",
                 "-s", self.bench.script, f"http://127.0.0.1:{self.ports['http']}", "--",
                 form, str(count), "serial" if serial else "random", str(random.randrange(1 << 30)), str(first)]
        cpu = -harness.cpu_ns(self.pid)
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True,
                              start_new_session=True, preexec_fn=harness.die_with_parent)
        cpu += harness.cpu_ns(self.pid)
        told = json.loads(done.stdout.splitlines()[-1])
        if not told["requests"]:
            raise BenchError(f"no answers from {self.server.name}\n{self.server.output()}")
        return told | {"cpu_us": cpu / 1000 / told["requests"]}

    def store(self, size, count):
        """Has the cache hold about so many objects, without those on their way at the end of a load; gives how many."""
        while (stored := int(self.gauge("ringway_cache_entries"))) < 0.97 * count:
            self.load(f"/o/{size}/%d", count, serial=True, seconds=max(1, min(20, count // 20_000)), first=stored)
        return stored

    def gauge(self, name):
        text = harness.fetch(self.ports["admin"], "GET", "/metrics", timeout=60)[2].decode()
        values = re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
        return sum(map(float, values))

    def memory(self):
        """Resident bytes that are the process's own, when nothing moves any more."""
        before, same = -1, 0
        while same < 3:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
            same = same + 1 if abs(now - before) < 65536 else 0
            before = now
            time.sleep(0.3)
        return before

    def settle(self):
        """An idle connection gives its buffers back after a second, and the allocator its pages when it is used next."""
        time.sleep(3)
        for _ in range(100):
            self.get("/o/200/0")
            time.sleep(0.01)

    def reload(self):
        """Reloads; gives the milliseconds that it took."""
        began = time.monotonic()
        status, _, body = harness.fetch(self.ports["admin"], "POST", "/api/reload", timeout=60)
        if status != 200:
            raise BenchError(f"reload: {status} {body[:500]}")
        return (time.monotonic() - began) * 1000


class Bench:
    def __init__(self, stack, args):
        (ROOT / "target").mkdir(exist_ok=True)
        self.stack, self.args, self.goals = stack, args, []
        self.base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-growth-", dir=ROOT / "target")))
        self.base.chmod(0o755)  # as root, nginx runs its workers as another user
        self.script = self.base / "requests.lua"
        self.script.write_text(WRK_SCRIPT)
        self.certificate = harness.certificate(self.base)
        folder = self.base / "origin"
        folder.mkdir()
        for size in SIZES:
            (folder / str(size)).write_bytes(b"x" * size)
        self.origin = harness.free_ports(["origin"])["origin"]
        config = folder / "config"
        config.write_text(fill(harness.NGINX, SERVERS=fill(ORIGIN, PORT=self.origin, FOLDER=folder)))
        harness.start(stack, "origin", harness.nginx_command(config), folder)
        harness.wait_for(lambda: harness.fetch(self.origin, "GET", "/")[0] == 200, "the origin is not ready")

    def goal(self, what, found, limit):
        self.goals.append((what, found, limit))
        print(f"  goal: {what}: {found:.2f}, at most {limit:g}: {'reached' if found <= limit else 'NOT reached'}", flush=True)

    def grows(self, title, steps, measure):
        """Measures each step in turn, so that all meet the same noise; gives the medians by step."""
        found = {step: [] for step in steps}
        for _ in range(self.args.rounds):
            for step in steps:
                found[step].append(measure(step))
        medians = {step: statistics.median(values) for step, values in found.items()}
        print(f"{title}: " + ", ".join(f"{step:,}: {value:.2f} us" for step, value in medians.items()), flush=True)
        first = medians[steps[0]]
        self.goal(f"{title}, of the smallest", max(medians.values()) / first, 1.5)
        return medians

    def objects(self):
        steps = [1, 1000] if self.args.smoke else [1, 100, 10_000, 100_000, 1_000_000]
        with contextlib.ExitStack() as stack:
            proxy = Proxy(stack, self, "objects")
            proxy.store(200, steps[-1])
            return self.grows("CPU of a hit by objects", steps, lambda count: proxy.load(count=count)["cpu_us"])

    def routes(self):
        steps = [1, 100] if self.args.smoke else [1, 100, 1000, 10_000]
        with contextlib.ExitStack() as stack:
            proxies = {count: Proxy(stack, self, f"routes-{count}", routes=many_routes(count)) for count in steps}
            return self.grows("CPU of a hit by routes", steps,
                              lambda count: proxies[count].load("/o/200/r%d/", count)["cpu_us"])

    def nodes(self):
        steps = [3, 30] if self.args.smoke else [3, 30, 300, 1000]
        with contextlib.ExitStack() as stack:
            proxies = {count: Proxy(stack, self, f"nodes-{count}", nodes=count) for count in steps}
            return self.grows("CPU of a pass by nodes", steps,
                              lambda count: proxies[count].load("/p/%d", 100_000)["cpu_us"])

    def connections(self):
        steps = [1, 64] if self.args.smoke else [1, 100, 1000, 5000, 20_000]
        # A few files are open besides the connections.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500
        if steps[-1] > files:
            print(f"{steps[-1]:,} connections need a higher limit of open files (ulimit -n): {files:,} are measured")
            steps[-1] = files
        with contextlib.ExitStack() as stack:
            proxy = Proxy(stack, self, "connections")
            def cost(count):
                # wrk opens all of them before it measures.
                return proxy.load(connections=count, seconds=self.args.seconds + count // 1000)["cpu_us"]
            # With one connection each answer wakes the worker; the others come many at a time.
            return self.grows("CPU of a hit by connections", steps, cost)

    def idle(self):
        count, found = 100 if self.args.smoke else 4000, {}
        for kind, limit in (("plain", 6), ("tls", 24), ("http2", None)):
            with contextlib.ExitStack() as stack:
                proxy = Proxy(stack, self, f"idle-{kind}")
                proxy.get("/o/200/0")
                ask = clients.opener(kind, proxy.ports)
                # What the first connections cost the process once.
                with contextlib.ExitStack() as some:
                    for _ in range(50):
                        some.callback(ask("/o/200/0").close)
                proxy.settle()
                before = proxy.memory()
                for _ in range(count):
                    stack.callback(ask("/o/200/0").close)
                proxy.settle()
                found[kind] = (proxy.memory() - before) / count
                print(f"an idle {kind} connection after a request: {found[kind]:,.0f} bytes", flush=True)
                if limit:
                    self.goal(f"KiB of an idle {kind} connection", found[kind] / 1024, limit)
        return found

    def sizes(self):
        """Bytes of an object over its body, fields and URI."""
        found = {}
        for size in SIZES[:1] if self.args.smoke else SIZES:
            count = 5000 if self.args.smoke else min(200_000, 2_000_000_000 // (size + 1000))
            with contextlib.ExitStack() as stack:
                proxy = Proxy(stack, self, f"sizes-{size}")
                proxy.get(f"/o/{size}/0")
                proxy.load(f"/o/{size}/%d", 1)
                before = proxy.memory()
                count = proxy.store(size, count)
                _, fields, _ = proxy.get(f"/o/{size}/0")
                # As the bytes of a message have them; those that are made anew for every answer are not stored.
                made = ("age", "cache-status", "content-length", "connection")
                text = sum(len(name) + len(value) + 4 for name, value in fields.items() if name.lower() not in made)
                uri = len(f"http://127.0.0.1:{proxy.ports['http']}/o/{size}/{count // 2}")
                found[size] = (proxy.memory() - before) / count - size - text - uri
                print(f"an object of {size:,} bytes: {found[size]:,.0f} over body, fields ({text}) and URI ({uri})", flush=True)
                self.goal(f"bytes over an object of {size:,}", found[size], 450)
        return found

    def reload(self):
        found = {}
        cases = {"nodes": dict(nodes=30 if self.args.smoke else 1000),
                 "routes": dict(routes=many_routes(100 if self.args.smoke else 10_000))}
        for name, settings in cases.items():
            with contextlib.ExitStack() as stack:
                proxy = Proxy(stack, self, f"reload-{name}", **settings)
                form = "/p/%d" if name == "nodes" else "/o/200/r%d/"
                calm = proxy.load(form, 100)
                told = []
                thread = threading.Thread(target=lambda: told.append(proxy.load(form, 100, seconds=self.args.seconds + 2)))
                thread.start()
                took = []
                while thread.is_alive() and len(took) < 20:
                    proxy.write(f"# {len(took)}\n")
                    took.append(proxy.reload())
                thread.join()
                found[name] = {"median_ms": statistics.median(took), "longest_ms": max(took), "p99_ms": told[0]["p99_ms"],
                               "calm_p99_ms": calm["p99_ms"], "errors": told[0]["errors"]}
                print(f"a reload of many {name}: {found[name]['median_ms']:.0f} ms, at most {max(took):.0f} ({len(took)}); "
                      f"p99 of requests meanwhile {told[0]['p99_ms']:.1f} ms, else {calm['p99_ms']:.1f}; "
                      f"{told[0]['errors']} errors", flush=True)
        return found

    def churn(self):
        """Memory while objects, connections and configurations come and go."""
        with contextlib.ExitStack() as stack:
            # Full at the beginning, so that what is stored later takes the place of something.
            proxy = Proxy(stack, self, "churn", nodes=30, memory="64MiB")
            until, found = time.monotonic() + (4 if self.args.smoke else self.args.minutes * 60), []
            ask, serial = clients.opener("plain", proxy.ports), 0
            while time.monotonic() < until or len(found) < 4:
                serial += 1
                proxy.load(f"/o/1000/{serial}-%d", 1_000_000, seconds=1)
                proxy.load("/p/%d", 1000, connections=200, seconds=1)
                opened = [ask("/o/200/0") for _ in range(100 if self.args.smoke else 1000)]
                for each in opened:
                    each.close()
                proxy.nodes = 30 + serial % 5
                proxy.write(f"# {serial}\n")
                proxy.reload()
                found.append(proxy.memory() / 2**20)
            third = max(1, len(found) // 3)
            early, late = statistics.median(found[third:2 * third] or found), statistics.median(found[-third:])
            print(f"memory after churn: {early:.1f} MiB in the second third, {late:.1f} in the last ({len(found)} rounds)")
            self.goal("memory in the last third of the churn, of the second", late / early, 1.05)
            return found

    def workers(self):
        """How few long connections spread over two workers: the share of the busier one."""
        found = {}
        with contextlib.ExitStack() as stack:
            one, two = Proxy(stack, self, "one-worker"), Proxy(stack, self, "two-workers", workers=2)
            cost = self.grows("CPU of a hit by workers", [1, 2],
                              lambda count: (one if count == 1 else two).load(connections=64)["cpu_us"])
            for connections in (2, 4, 8, 16, 64):
                shares = [busiest(two, connections) for _ in range(2 if self.args.smoke else 15)]
                found[connections] = {"median": statistics.median(shares), "worst": max(shares),
                                      "alone": sum(share > 0.9 for share in shares) / len(shares)}
                print(f"{connections} long connections on two workers: the busier one has {found[connections]['median']:.0%} "
                      f"of the work (worst {max(shares):.0%}; all of it in {found[connections]['alone']:.0%} of "
                      f"{len(shares)} tries)", flush=True)
        return {"cpu_us": cost, "spread": found}


def many_routes(count):
    return "".join(f"  - {{ name: r{n}, path_prefix: /o/200/r{n}/, pool: app, hash_on: [path], cache: {{}} }}\n"
                   for n in range(count)) + PLAIN


def busiest(proxy, connections):
    """The share of the busier worker in the CPU time of both, over a second of hits."""
    def times():
        tasks = Path(f"/proc/{proxy.pid}/task").iterdir()
        return {task.name: sum(map(int, harness.stat_fields(f"{proxy.pid}/task/{task.name}")[11:13])) for task in tasks
                if (task / "comm").read_text().startswith("worker")}
    before = times()
    proxy.load(connections=connections, seconds=1)
    spent = [now - before.get(task, 0) for task, now in times().items()]
    return max(spent) / max(1, sum(spent))


def raise_open_files(wanted=50_000):
    """Raises the limit of open files, which root may also do above its hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (max(wanted, hard), hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, shown = parser.add_argument, "default: %(default)s"
    add("--binary", type=harness.binary, default=DEFAULT_BINARY, help=shown)
    add("--only", metavar="PARTS", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    add("--rounds", type=harness.positive, default=5, help=shown)
    add("--seconds", type=harness.positive, default=2, help=f"of one measurement ({shown})")
    add("--minutes", type=harness.positive, default=3, help=f"of churn ({shown})")
    add("--out", type=Path, help="folder for results.json and growth.svg")
    add("--smoke", action="store_true", help="small and short: proves only that it works")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(PARTS):
        parser.error(f"unknown part: {', '.join(unknown)}")
    if args.smoke:
        args.rounds = args.seconds = 1
    return args


def main():
    args = parse_args()
    harness.end_well()
    harness.require("wrk", "nginx", "openssl", str(args.binary))
    raise_open_files()
    result = {"machine": f"{os.cpu_count()} cores"}
    try:
        with contextlib.ExitStack() as stack:
            bench = Bench(stack, args)
            for part in args.only:
                result[part] = getattr(bench, part)()
    except (BenchError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "growth.svg").write_text(picture.svg(result))


if __name__ == "__main__":
    main()
