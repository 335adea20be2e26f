#!/usr/bin/env python3
"""Compare the CPU cost of one cache hit in Ringway, nginx, Varnish and HAProxy.

    run.py                                  # all four servers, all four cases
    run.py --servers nginx,varnish,haproxy  # without Ringway
    run.py --smoke                          # does the script work?

Measured is the user and system time of all processes of a server, divided by
the requests that wrk completed, with keep-alive, no access log, and one worker
(Varnish: one thread pool). The cases are objects of 1 KiB and of 1 MiB, each as
one object and as many different ones in a fixed shuffled order. Each case starts
new servers and fetches every object once through each. An nginx is the origin;
if it sees over 0.1 % of a server's measured requests, the run fails.

It needs Linux, Python 3.9 and the Debian packages wrk, nginx, varnish, haproxy,
gcc; not root. All files are in /dev/shm. Exit codes: 0 done, 1 a broken run,
failed requests or too few hits, 2 wrong usage, 3 a program is missing.
"""

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("ringway", "nginx", "varnish", "haproxy", "nginx-sendfile")
CASES = ("1k-one", "1k-many", "1m-one", "1m-many")
SIZES = {"1k": 1024, "1m": 2**20}
MIN_HIT_RATIO, READY_SECONDS = 0.999, 15

# The load benchmark's way to start, stop and measure processes.
sys.dont_write_bytecode = True
SPEC = importlib.util.spec_from_file_location("load", ROOT / "benches/load/run.py")
load = sys.modules["load"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(load)

# Templates are filled by replacing @WORDS@, as nginx uses both $ and braces.
NGINX = """\
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events { worker_connections @CONNECTIONS@; }
http {
    access_log off; default_type text/plain; sendfile @SENDFILE@;
    keepalive_requests 1000000000; keepalive_timeout 3600s;
    client_body_temp_path client_body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
@SERVER@
}
"""
# Every request adds the two bytes "x\n" to the log, so that its size counts them.
NGINX_ORIGIN = """\
    log_format tick x;
    server {
        listen 127.0.0.1:@PORT@; root @FOLDER@; access_log @FOLDER@/ticks tick;
        add_header Cache-Control max-age=3600;
        location ~ ^/(1.)/ { try_files /$1 =404; }
    }
"""
NGINX_CACHE = """\
    proxy_cache_path cache levels=1:2 keys_zone=hits:64m max_size=4g inactive=1d use_temp_path=off;
    server {
        listen 127.0.0.1:@PORT@;
        location / {
            proxy_pass http://127.0.0.1:@ORIGIN@; proxy_http_version 1.1;
            proxy_set_header Host $http_host; proxy_cache hits;
        }
    }
"""
# The defaults would be max-age 60 s and max-object-size total-max-size / 256.
HAPROXY = """\
global
    nbthread 1
    maxconn @CONNECTIONS@
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
cache hits
    total-max-size 1024
    max-object-size 8388608
    max-age 3600
frontend http
    bind 127.0.0.1:@PORT@
    default_backend app
backend app
    filter cache hits
    http-request cache-use hits
    http-response cache-store hits
    server origin 127.0.0.1:@ORIGIN@
"""
RINGWAY = """\
workers: 1
listeners: [{ name: http, address: "127.0.0.1:@PORT@" }]
admin: { address: "127.0.0.1:@ADMIN@" }
access_log: { format: "off" }
cache: { memory: 1GiB, max_object: 8MiB }
pools:
  app:
    nodes: [{ id: origin, address: "127.0.0.1:@ORIGIN@" }]
routes:
  - { name: site, path_prefix: /, pool: app, hash_on: [uri], cache: { default_ttl: 60s } }
"""
CONFIGS = {
    "origin": NGINX.replace("@SERVER@", NGINX_ORIGIN), "ringway": RINGWAY, "haproxy": HAPROXY,
    "nginx": NGINX.replace("@SERVER@", NGINX_CACHE), "varnish": "",  # has only arguments
    "nginx-sendfile": NGINX.replace("@SERVER@", NGINX_CACHE),
}
# What Varnish logs to shared memory for a hit; the others do not log either.
VSL = ("Begin End Timestamp Link Hit ReqStart ReqMethod ReqURL ReqProtocol ReqHeader ReqUnset "
       "ReqAcct RespProtocol RespStatus RespReason RespHeader RespUnset VCL_use VCL_call "
       "VCL_return")
# The requests are built once, so that wrk only picks the next string. They are
# shuffled, as the order of the warm-up may also be their order in memory.
WRK_SCRIPT = """\
local requests, last = {}, 0
function init(args)
  math.randomseed(1)
  for i = 1, tonumber(args[2]) do
    requests[i] = wrk.format("GET", args[1] .. (i - 1))
    local j = math.random(i)
    requests[i], requests[j] = requests[j], requests[i]
  end
end
function request() last = last % #requests + 1; return requests[last] end
function done(summary)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "duration_us": %d, "bytes": %d, "errors": %d}\\n',
    summary.requests, summary.duration, summary.bytes,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def command(name, ports, config, args):
    if name == "ringway":
        return [args.binary.absolute(), "run", "--config", config]
    if name == "haproxy":
        return ["haproxy", "-db", "-f", config]
    if name != "varnish":
        return load.nginx_command(config)
    # A thread stays with a busy connection: with fewer threads than connections,
    # some of these would never be served.
    threads = args.connections + 16
    mask = ",".join(f"-{tag}" for tag in VSL.split())
    return ["varnishd", "-j", "none", "-F", "-n", config.parent / "work", "-T", "none",
            "-a", f"127.0.0.1:{ports[name]}", "-b", f"127.0.0.1:{ports['origin']}",
            "-s", "malloc,1G", "-p", "thread_pools=1", "-p", f"thread_pool_min={threads}",
            "-p", f"thread_pool_max={threads}", "-p", f"vsl_mask={mask}"]


def start(stack, name, ports, folder, args):
    """Start a server and wait until it answers."""
    folder.mkdir()
    config = folder / "config"
    config.write_text(load.fill(
        CONFIGS[name], PORT=ports[name], ORIGIN=ports["origin"], ADMIN=ports["admin"],
        FOLDER=folder, SENDFILE="on" if name == "nginx-sendfile" else "off",
        CONNECTIONS=4 * args.connections + 256))
    for kind, size in SIZES.items():  # only the origin needs them
        (folder / kind).write_text("x" * size)
    server = load.start(stack, name, command(name, ports, config, args), folder)
    server.port = ports[name]
    deadline, problem = time.monotonic() + READY_SECONDS, None
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            fetch(server, ["/1k/ready"], SIZES["1k"])
            return server
        except load.BenchError as error:
            problem = error
        time.sleep(0.1)
    output = server.log.read_text(errors="replace")[-4000:]
    raise load.BenchError(f"{name} is not ready: {problem}\n{output}")


def fetch(server, paths, size):
    """GET each path over one connection; all answers must have the right size."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    with contextlib.closing(client):
        for path in paths:
            try:
                client.request("GET", path)
                response = client.getresponse()
                answer = (response.status, len(response.read()))
            except (OSError, http.client.HTTPException) as error:
                raise load.BenchError(f"{server.name}: {path}: {error!r}") from None
            if answer != (200, size):
                raise load.BenchError(f"{server.name}: {path}: status and length are {answer}")


def warm(server, case, origin_count):
    """Bring every object into the cache, and see that each one came from the origin."""
    before, begin = origin_count(), time.monotonic()
    fetch(server, (f"{case.prefix}{i}" for i in range(case.objects)), case.size)
    fetched = origin_count() - before
    print(f"{case.name} {server.name}: the origin answered {fetched} requests for "
          f"{case.objects} object(s), {time.monotonic() - begin:.1f} s", file=sys.stderr)
    if fetched < case.objects:
        raise load.BenchError(f"{server.name}: not every object came from the origin")
    for pid in load.family(server.process.pid):
        # nginx's cache loader would work and exit mid-round; a new cache needs none.
        if b"cache loader" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.01)


def measure(server, script, case, origin_count, args):
    words = ["wrk", "-t1", f"-c{args.connections}", f"-d{args.seconds}s", "--timeout", "5s",
             "-s", script, f"http://127.0.0.1:{server.port}", "--", case.prefix, str(case.objects)]
    pids, misses = load.family(server.process.pid), -origin_count()
    cpu = -sum(map(load.cpu_ns, pids))
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          check=True, timeout=args.seconds + 30, start_new_session=True,
                          preexec_fn=load.die_with_parent)
    if server.process.poll() is not None or load.family(server.process.pid) != pids:
        raise load.BenchError(f"{server.name}: its processes changed during a measurement")
    cpu += sum(map(load.cpu_ns, pids))
    result = json.loads(done.stdout.splitlines()[-1])
    if result["requests"] == 0 or result["bytes"] < result["requests"] * case.size:
        raise load.BenchError(f"{server.name}: no answers, or too short ones:\n{done.stdout}")
    return result | {"cpu_us": cpu / 1000 / result["requests"],
                     "rps": result["requests"] / (result["duration_us"] / 1e6),
                     "misses": misses + origin_count()}


def bench(case, args):
    """Run one case; returns a list of measurements for each server's name."""
    with contextlib.ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="ringway-bench-", dir="/dev/shm")
        base = Path(stack.enter_context(folder))
        base.chmod(0o755)  # as root, nginx runs its workers as another user
        script = base / "requests.lua"
        script.write_text(WRK_SCRIPT)
        ports = load.free_ports(["origin", "admin", *args.servers])
        start(stack, "origin", ports, base / "origin", args)

        def origin_count():
            time.sleep(0.2)  # the origin logs a request only after it has sent the answer
            return (base / "origin" / "ticks").stat().st_size // 2

        servers = [start(stack, name, ports, base / name, args) for name in args.servers]
        for server in servers:
            warm(server, case, origin_count)
            measure(server, script, case, origin_count, args)  # a first one, not counted
        results = {name: [] for name in args.servers}
        for number in range(args.rounds):
            # Another server begins each round, so that no place in it is favoured.
            first = number % len(servers)
            for server in servers[first:] + servers[:first]:
                one = measure(server, script, case, origin_count, args)
                results[server.name].append(one)
                print(f"{case.name} round {number + 1}/{args.rounds} {server.name}: "
                      f"{one['cpu_us']:.2f} us/request", file=sys.stderr)
        return results


def report(case, results):
    """Print a case's table; returns whether all requests worked and nearly all were hits."""
    print(f"\n{case.name}: {case.objects} object(s) of {case.size} bytes")
    print(f"{'server':>14} {'CPU us/request':>15} {'(min)':>10} {'requests/s':>11} {'hits %':>8} "
          f"{'errors':>7}  ringway CPU / this")
    good, own = True, None
    for name in sorted(results, key=NAMES.index):  # ringway first
        rounds = results[name]
        requests, misses, errors = (sum(one[key] for one in rounds)
                                    for key in ("requests", "misses", "errors"))
        cpu, rps = (statistics.median(one[key] for one in rounds) for key in ("cpu_us", "rps"))
        own = cpu if name == "ringway" else own
        low, hits = min(one["cpu_us"] for one in rounds), max(0, 1 - misses / requests)
        print(f"{name:>14} {cpu:15.2f} {f'({low:.2f})':>10} {rps:11.0f} {100 * hits:8.3f} "
              f"{errors:7}  {f'{own / cpu:.2f}' if own else '-':>18}")
        good = good and not errors and hits >= MIN_HIT_RATIO
    return good


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, positive, shown = parser.add_argument, load.positive, "default: %(default)s"
    add("--binary", type=Path, default=ROOT / "target/release/ringway", help=shown)
    add("--servers", type=lambda text: text.split(","), default=NAMES[:4],
        help=f"of {','.join(NAMES)} (default: all but the last)")
    add("--cases", type=lambda text: text.split(","), default=CASES,
        help=f"of {','.join(CASES)} (default: all)")
    add("--rounds", type=positive, default=5, help=shown)
    add("--seconds", type=positive, default=4, help=f"of one measurement ({shown})")
    add("--connections", type=positive, default=64, help=shown)
    add("--objects", type=positive, help="in 1k-many (default: 100000; 1000 with --smoke)")
    add("--large-objects", type=positive, default=200,
        help=f"in 1m-many ({shown}: 100000 would take 100 GiB, and the caches have 1 GiB)")
    add("--smoke", action="store_true", help="1 round of 1 second: proves only that it works")
    args = parser.parse_args()
    if args.smoke:
        args.rounds = args.seconds = 1
    args.objects = args.objects or (1000 if args.smoke else 100_000)
    for chosen, known in ((args.servers, NAMES), (args.cases, CASES)):
        if not set(chosen) <= set(known) or len(set(chosen)) != len(chosen):
            parser.error(f"choose from {', '.join(known)}, each once")
    return args


def main():
    args = parse_args()
    os.umask(0o022)
    # Users other than root often lack the sbin folders in their PATH.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin"
    programs = {"ringway": str(args.binary.absolute()), "varnish": "varnishd", "haproxy": "haproxy"}
    needed = {"wrk", "nginx", *(programs.get(name, "nginx") for name in args.servers)}
    missing = [each for each in sorted(needed) if shutil.which(each) is None]
    if missing:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
        sys.exit(3)
    for signum in load.SIGNALS:
        signal.signal(signum, load.exit_on_signal)
    good = True
    print(f"medians of {args.rounds} x {args.seconds} s, {args.connections} connections")
    try:
        for name in args.cases:
            kind, _, number = name.partition("-")
            many = args.objects if kind == "1k" else args.large_objects
            case = SimpleNamespace(name=name, prefix=f"/{kind}/", size=SIZES[kind],
                                   objects=many if number == "many" else 1)
            good &= report(case, bench(case, args))
    except (load.BenchError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    if not good:
        sys.exit(f"error: failed requests, or fewer than {100 * MIN_HIT_RATIO} % hits")


if __name__ == "__main__":
    main()
