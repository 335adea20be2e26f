#!/usr/bin/env python3
"""Compare what one request costs in Ringway, nginx, HAProxy, Varnish, Envoy and a bare proxy: CPU time, latency, memory.

    run.py                            # every scenario and every proxy that is here
    run.py --scenarios pass,tls-pass  # some scenarios
    run.py --proxies ringway,nginx    # some proxies
    run.py --smoke                    # one round of one second: does the script work?
    run.py --markdown FILE --svg FILE --json FILE

README.md in benches/ says what is measured and how to read it. Exit codes: 0 done, 1 failed requests or a broken run,
2 wrong usage, 3 a program is missing.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
from harness import BenchError  # noqa: E402

# One core has the proxy; the load and the origin share the other one.
PROXY_CORE, LOAD_CORE = "1", "0"
MIN_HIT_RATIO = 0.999
LATENCY_RATE, LATENCY_CLIENTS = 4000, 16
WRK_SCRIPT = """\
local requests, last, kind, number, prefix = {}, 0, nil, 0, nil
local fields = { ["Authorization"] = "Bearer 0123456789abcdef", ["Content-Type"] = "application/json" }
local body = '{"amount":4200,"currency":"eur","source":"tok_visa","description":"order 1234"}'
function init(args)
  kind, prefix = args[1], args[2]
  local more = kind == "close" and { ["Connection"] = "close" } or {}
  math.randomseed(1)
  -- Built once, and shuffled: the order of the warm-up may also be their order in memory.
  for i = 1, tonumber(args[3]) do
    requests[i] = wrk.format("GET", prefix .. (i - 1), more)
    local j = math.random(i)
    requests[i], requests[j] = requests[j], requests[i]
  end
end
function request()
  if kind == "first" or kind == "replay" then
    number = number + 1
    fields["Idempotency-Key"] = kind == "first" and prefix .. number or "again-" .. number % 1000
    return wrk.format("POST", "/pay/1", fields, body)
  end
  last = last % #requests + 1
  return requests[last]
end
function done(summary)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "bytes": %d, "read": %d, "errors": %d}\\n', summary.requests, summary.bytes,
    e.read, e.connect + e.write + e.status + e.timeout))
end
"""


@dataclass
class Scenario:
    """What is asked for: paths `prefix0` on, by which client and how."""

    name: str
    title: str
    prefix: str
    needs: frozenset
    objects: int = 1
    client: str = "wrk"
    kind: str = "get"
    tls: bool = False
    size: int = 1024
    seconds: float = 1.0

    def is_cached(self):
        return "cache" in self.needs


def scenario(name, title, prefix, *needs, **more):
    return Scenario(name, title, prefix, frozenset(needs), **more)


SCENARIOS = [
    scenario("hit", "hit 1 KiB", "/hit/", "cache"),
    scenario("hit-many", "hit, 10,000 objects", "/hit/", "cache", objects=10_000),
    scenario("pass", "pass over a ring of 3", "/pass/", "pass", objects=1000),
    scenario("tls-hit", "TLS 1.3 hit", "/hit/", "cache", "tls", tls=True),
    scenario("tls-pass", "TLS 1.3 pass", "/pass/", "pass", "tls", tls=True, objects=1000),
    scenario("h2-hit", "HTTP/2 hit", "/hit/", "cache", "tls", tls=True, client="h2load"),
    scenario("h2-pass", "HTTP/2 pass", "/pass/", "pass", "tls", tls=True, client="h2load"),
    scenario("hit-1m", "hit 1 MiB", "/large/", "cache", size=2**20),
    scenario("close-hit", "new connection, hit", "/hit/", "cache", kind="close"),
    scenario("close-pass", "new connection, pass", "/pass/", "pass", kind="close", objects=1000),
    scenario("handshake", "TLS handshake a request", "/pass/", "pass", "tls", tls=True, kind="close"),
    scenario("first", "idempotent, first time", "key-", "keys", kind="first"),
    scenario("replay", "idempotent, replay", "key-", "keys", kind="replay"),
]


@dataclass
class Proxy:
    """A running proxy and its ports."""

    name: str
    server: harness.Server
    ports: dict

    def port(self, wanted):
        return self.ports["TLS" if wanted.tls else "PLAIN"]

    def family(self):
        return harness.family(self.server.process.pid)


def fetch_all(proxy, wanted):
    """Fetches each object once; all must be right, and those of a pass must come from all three nodes."""
    # What is asked for over TLS is in the same cache.
    client, nodes = http.client.HTTPConnection("127.0.0.1", proxy.ports["PLAIN"], timeout=10), set()
    body = {1024: peers.SMALL, 2**20: peers.LARGE}[wanted.size]
    with contextlib.closing(client):
        for number in range(wanted.objects):
            try:
                client.request("GET", f"{wanted.prefix}{number}")
                response = client.getresponse()
                good = response.status == 200 and response.read() == body
            except (OSError, http.client.HTTPException) as error:
                raise BenchError(f"{proxy.name}: {wanted.prefix}{number}: {error!r}") from None
            if not good:
                raise BenchError(f"{proxy.name}: {wanted.prefix}{number}: status {response.status}, or a wrong body")
            nodes.add(response.getheader("X-Node"))
    if wanted.objects >= 100 and nodes != set(peers.NODES):
        raise BenchError(f"{proxy.name}: answers came from {nodes}")


def wait_ready(proxy, wants_tls):
    def answers():
        status, _, body = harness.fetch(proxy.ports["PLAIN"], "GET", "/pass/0")
        return status == 200 and body == peers.SMALL

    def accepts():
        with contextlib.closing(socket.create_connection(("127.0.0.1", proxy.ports["TLS"]))):
            return True

    harness.wait_for(answers, f"{proxy.name} does not answer", proxy.server)
    if wants_tls:
        harness.wait_for(accepts, f"{proxy.name} does not listen for TLS", proxy.server)
    for pid in proxy.family():
        # nginx's cache loader would work and exit in a round; a new cache needs none.
        with contextlib.suppress(OSError):
            if b"cache loader" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, 15)
                harness.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "nginx's cache loader does not end")


def ask(proxy, wanted, script, seconds, args, serial):
    """Loads a proxy; returns how many requests were answered."""
    scheme = "https" if wanted.tls else "http"
    url = f"{scheme}://127.0.0.1:{proxy.port(wanted)}"
    if wanted.client == "h2load":
        words = ["h2load", "-c16", "-m16", "-t1", f"-D{seconds}", "--warm-up-time=0", f"{url}{wanted.prefix}0"]
        said = run_client(words, seconds)
        counts = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded", said)
        if counts is None or counts[1] != counts[2] or int(counts[2]) == 0:
            raise BenchError(f"{proxy.name}, {wanted.name}: failed requests\n{said}")
        return int(counts[2])
    prefix = f"{wanted.prefix}{serial}-" if wanted.kind == "first" else wanted.prefix
    words = ["wrk", "-t1", f"-c{args.connections}", f"-d{seconds}s", "--timeout", "5s", "-s", script, url,
             "--", wanted.kind, prefix, str(wanted.objects)]
    result = json.loads(run_client(words, seconds).splitlines()[-1])
    # Where every answer ends its connection, wrk counts that among its read errors.
    errors = result["errors"] + (0 if wanted.kind == "close" else result["read"])
    short = wanted.kind in ("get", "close") and result["bytes"] < result["requests"] * wanted.size
    if result["requests"] == 0 or errors or short:
        raise BenchError(f"{proxy.name}, {wanted.name}: {result}")
    return result["requests"]


def run_client(words, seconds):
    done = subprocess.run(harness.on_cores(LOAD_CORE, words), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=seconds + 30, start_new_session=True, preexec_fn=harness.die_with_parent)
    if done.returncode != 0:
        raise BenchError(f"{words[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def measure(proxy, wanted, script, hits_asked, args, serial):
    """CPU time of one request, in microseconds: of all the proxy's processes and threads, user and system."""
    pids, before_asked = proxy.family(), hits_asked()
    before = sum(map(harness.cpu_ns, pids))
    done = ask(proxy, wanted, script, args.seconds, args, serial)
    if proxy.server.process.poll() is not None or proxy.family() != pids:
        raise BenchError(f"{proxy.name}: its processes changed in a measurement\n{proxy.server.output()}")
    cpu = (sum(map(harness.cpu_ns, pids)) - before) / 1000 / done
    if wanted.is_cached():
        time.sleep(0.1)  # the origin logs a request only after it has answered
        if hits_asked() - before_asked > done * (1 - MIN_HIT_RATIO):
            raise BenchError(f"{proxy.name}, {wanted.name}: the origin was asked {hits_asked() - before_asked} times")
    return cpu


def latency(proxy, path, folder, seconds):
    """The median and the 99th percentile at a fixed rate, in milliseconds."""
    log = folder / f"latency-{proxy.name}"
    log.unlink(missing_ok=True)
    run_client(["h2load", "--h1", f"-c{LATENCY_CLIENTS}", "-t1", f"-D{seconds}", f"--rps={LATENCY_RATE // LATENCY_CLIENTS}",
                "--warm-up-time=0", f"--log-file={log}", f"http://127.0.0.1:{proxy.ports['PLAIN']}{path}"], seconds)
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    if not rows or any(row[1] != "200" for row in rows):
        raise BenchError(f"{proxy.name}: failed requests at a fixed rate")
    times = sorted(int(row[2]) / 1000 for row in rows)
    return {"p50_ms": statistics.median(times), "p99_ms": times[len(times) * 99 // 100]}


def bench(args):
    """CPU times by scenario and proxy, one a round; latencies by path and proxy; memory by proxy."""
    chosen = [each for each in SCENARIOS if each.name in args.scenarios]
    if args.smoke:
        chosen = [replace(each, objects=min(each.objects, 200)) for each in chosen]
    cpu = {each.name: {} for each in chosen}
    with contextlib.ExitStack() as stack:
        # In memory, so that no disk has a part in it; but for the idempotency stores, which must be on one.
        base, disk = (Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-compare-", dir=folder)))
                      for folder in (args.folder, harness.ROOT / "target"))
        base.chmod(0o755)  # as root, nginx runs its workers as another user
        script = base / "requests.lua"
        script.write_text(WRK_SCRIPT)
        nodes, files = harness.free_ports(peers.NODES), harness.certificate(base)

        def on_core(core):
            return lambda command: harness.on_cores(core, command)

        hits_asked = peers.start_origin(stack, base / "origin", nodes, on_core(LOAD_CORE))
        proxies = []
        for name in args.proxies:
            ports = nodes | harness.free_ports(["PLAIN", "TLS", "ADMIN"])
            store = disk / f"{name}.db"
            server = peers.start_proxy(stack, name, base / name, ports, files, store, args, on_core(PROXY_CORE))
            (base / name).chmod(0o777)
            proxies.append(Proxy(name, server, ports))
            wait_ready(proxies[-1], "tls" in peers.ABILITIES[name])
        for wanted in chosen:
            able = [proxy for proxy in proxies if wanted.needs <= peers.ABILITIES[proxy.name]]
            for proxy in able:
                if wanted.kind in ("get", "close"):
                    fetch_all(proxy, wanted)
                ask(proxy, wanted, script, 1, args, "warm")
                cpu[wanted.name][proxy.name] = []
            for number in range(args.rounds):
                # Another proxy begins each round, so that no place in it is favoured.
                first = number % max(1, len(able))
                for proxy in able[first:] + able[:first]:
                    one = measure(proxy, wanted, script, hits_asked, args, number)
                    cpu[wanted.name][proxy.name].append(one)
                    print(f"{wanted.name} {number + 1}/{args.rounds} {proxy.name}: {one:.2f} us", file=sys.stderr)
        delays = {path: {proxy.name: latency(proxy, path, base, args.seconds) for proxy in proxies
                         if need in peers.ABILITIES[proxy.name]}
                  for path, need in (("/hit/0", "cache"), ("/pass/0", "pass"))}
        memory = {proxy.name: harness.pss_mib(proxy.family()) for proxy in proxies}
    return {"cpu_us": cpu, "latency": delays, "memory_mib": memory}


def chosen_from(known):
    def parse(text):
        names = text.split(",")
        if not set(names) <= set(known):
            raise ValueError
        return names
    return parse


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, shown, names = parser.add_argument, "default: %(default)s", [each.name for each in SCENARIOS]
    add("--ringway", type=harness.binary, default=harness.DEFAULT_BINARY, metavar="PATH", help=shown)
    add("--bare", type=harness.binary, default=harness.ROOT / "target/release/examples/bare", metavar="PATH",
        help=f"the bare proxy, of `cargo build --release --example bare` ({shown})")
    add("--scenarios", type=chosen_from(names), default=names, metavar="NAME[,NAME]", help=f"of {', '.join(names)}")
    add("--proxies", type=chosen_from(peers.ABILITIES), metavar="NAME[,NAME]",
        help=f"of {', '.join(peers.ABILITIES)} (default: all that are here)")
    add("--rounds", type=harness.positive, default=5, metavar="N", help=shown)
    add("--seconds", type=harness.positive, default=3, metavar="S", help=f"of one measurement ({shown})")
    add("--connections", type=harness.positive, default=64, metavar="N", help=f"of wrk ({shown})")
    add("--folder", default="/dev/shm", metavar="PATH", help=f"where the proxies keep their files ({shown})")
    add("--smoke", action="store_true", help="one round of one second: proves that the script works, no more")
    for kind in ("markdown", "svg", "json"):
        add(f"--{kind}", type=Path, metavar="FILE", help=f"also write the result as {kind}")
    args = parser.parse_args()
    if args.smoke:
        args.rounds = args.seconds = 1
    return args


def main():
    args = parse_args()
    os.umask(0o022)
    harness.end_well()
    harness.require("wrk", "h2load", "nginx", "openssl", "taskset")
    missing = peers.missing_programs(args.proxies or peers.ABILITIES, args)
    if args.proxies and missing or "ringway" in missing:
        harness.require(*missing.values())
    for name, program in missing.items():
        print(f"without {name}: {program} is not here", file=sys.stderr)
    args.proxies = [name for name in args.proxies or peers.ABILITIES if name not in missing]
    try:
        result = bench(args)
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    titles = {each.name: each.title for each in SCENARIOS}
    text = report.markdown(result, titles, args)
    print(text)
    for file, content in ((args.markdown, text), (args.svg, report.svg(result, titles)),
                          (args.json, json.dumps(result, indent=2) + "\n")):
        if file:
            file.write_text(content)


if __name__ == "__main__":
    main()
