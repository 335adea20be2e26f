#!/usr/bin/env python3
"""Compare the CPU cost of one request through Ringway, nginx and HAProxy.

README.md next to this file says what is measured and how to read it.
"""

import argparse
import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODES = ("node-1", "node-2", "node-3")
NAMES = ("ringway", "nginx", "haproxy")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GOAL = 1.1
READY_SECONDS = 10
STOP_SECONDS = 3
BODY = "x" * 1024
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)

# Templates are filled by replacing @WORDS@, as nginx uses both $ and braces.
# keepalive_timeout is long, as a node must not close the connections that a
# proxy keeps idle while the other proxies have their turn.
NGINX = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events { worker_connections @CONNECTIONS@; }
http {
    access_log off;
    default_type text/plain;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    client_body_temp_path client_body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
@SERVERS@
}
"""
NGINX_NODE = """\
    server {
        listen 127.0.0.1:@PORT@;
        location / { add_header X-Node @ID@; return 200 "@BODY@"; }
    }
"""
NGINX_PROXY = """\
    upstream app {
        hash $request_uri consistent;
@NODES@
        keepalive 128;
        keepalive_requests 1000000000;
    }
    server {
        listen 127.0.0.1:@PORT@;
        location / {
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
        }
    }
"""
# weight 10 gives each node 160 points on the ring, as many as nginx places.
# The pool options match nginx's: 128 idle connections, kept for 60 s.
HAPROXY = """\
global
    nbthread 1
    maxconn @CONNECTIONS@
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend http
    bind 127.0.0.1:@PORT@
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    default_backend app
backend app
    balance uri
    hash-type consistent
    http-reuse always
    default-server weight 10 pool-max-conn 128 pool-purge-delay 60s
@NODES@
"""
RINGWAY = """\
workers: 1
listeners:
  - { name: http, address: 127.0.0.1:@PORT@ }
admin: { address: 127.0.0.1:@ADMIN@ }
access_log: { format: "off" }
pools:
  app:
    nodes:
@NODES@
routes:
  - { name: site, path_prefix: /, pool: app, hash_on: [uri] }
"""
# For each proxy its configuration, and the line of one node in it.
CONFIGS = {
    "ringway": (RINGWAY, "      - { id: @ID@, address: 127.0.0.1:@PORT@ }"),
    "nginx": (NGINX.replace("@SERVERS@", NGINX_PROXY), "        server 127.0.0.1:@PORT@;"),
    "haproxy": (HAPROXY, "    server @ID@ 127.0.0.1:@PORT@"),
}
# The requests are built once, so that wrk only picks the next string.
# done() prints wrk's own totals; its text report would round them.
WRK_SCRIPT = """\
local URIS = 1000
local requests, last = {}, 0
function init()
  for i = 1, URIS do requests[i] = wrk.format("GET", "/obj/" .. (i - 1)) end
end
function request()
  last = last % URIS + 1
  return requests[last]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "errors": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class BenchError(Exception):
    """The run cannot go on; the message is for the user."""


@dataclass
class Server:
    name: str
    process: subprocess.Popen
    log: Path


def fill(template, **values):
    for word, value in values.items():
        template = template.replace(f"@{word}@", str(value))
    return template


def die_with_parent():
    """Even if this script is killed outright, its children get SIGTERM."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start(stack, name, command, folder):
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=die_with_parent)
    stack.callback(stop, process)
    return Server(name, process, log)


def stop(process):
    """End a process and its group, which is its own (start_new_session)."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
            return


def exit_on_signal(signum, _frame):
    # A second Ctrl-C must not interrupt the cleanup that the first one began.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + signum)


def stat_fields(pid):
    """Fields of /proc/PID/stat from the state on (the name may hold spaces)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid):
    """The process and all its descendants, as sorted pids."""
    children = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            children.setdefault(int(stat_fields(entry.name)[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return sorted(found)


def cpu_ns(pid):
    """CPU time of all threads of a process, those that have ended included."""
    try:
        # The clock that clock_getcpuclockid(3) names: nanoseconds, not 10 ms ticks.
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        user, system = stat_fields(pid)[11:13]
        return (int(user) + int(system)) * 10**9 // os.sysconf("SC_CLK_TCK")


def rss_mib(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def free_ports(names):
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in names}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def nginx_command(config):
    return ["nginx", "-p", f"{config.parent}/", "-c", config, "-e", "stderr"]


def start_nodes(stack, ports, folder, connections):
    servers = "".join(fill(NGINX_NODE, ID=node, PORT=ports[node], BODY=BODY) for node in NODES)
    config = folder / "config"
    config.write_text(fill(NGINX, SERVERS=servers, CONNECTIONS=connections))
    server = start(stack, "nodes", nginx_command(config), folder)
    for node in NODES:
        wait_ready(server, ports[node], {node})


def start_proxy(stack, name, ports, folder, args, connections):
    template, line = CONFIGS[name]
    nodes = "\n".join(fill(line, ID=node, PORT=ports[node]) for node in NODES)
    config = folder / "config"
    config.write_text(fill(template, NODES=nodes, PORT=ports[name], ADMIN=ports["admin"],
                           CONNECTIONS=connections))
    command = {
        "ringway": [args.ringway, "run", "--config", config],
        "nginx": nginx_command(config),
        "haproxy": ["haproxy", "-db", "-f", config],
    }[name]
    server = start(stack, name, command, folder)
    wait_ready(server, ports[name], set(NODES))
    return server


def probe(port, deadline):
    """Fetch 100 URIs and return the nodes that answered, all with the right body."""
    nodes = set()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as client:
        for i in range(100):
            client.request("GET", f"/obj/{i}")
            response = client.getresponse()
            if response.status != 200 or response.read() != BODY.encode():
                raise BenchError(f"status {response.status} or a wrong body")
            if time.monotonic() > deadline:
                raise BenchError("the answers are too slow")
            nodes.add(response.getheader("X-Node"))
    return nodes


def wait_ready(server, port, expected):
    """Wait until exactly the expected nodes answer: a proxy must use its ring."""
    deadline = time.monotonic() + READY_SECONDS
    problem = "no answer"
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            seen = probe(port, deadline)
            if seen == expected:
                return
            problem = f"answers came from {seen}, not {expected}"
        except (OSError, http.client.HTTPException, BenchError) as error:
            problem = repr(error)
        time.sleep(0.1)
    if server.process.poll() is not None:
        problem = f"exited with {server.process.returncode}"
    output = server.log.read_text(errors="replace")[-4000:]
    raise BenchError(f"{server.name} is not ready: {problem}\n{output}")


def run_wrk(script, port, connections, seconds):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s",
               "-s", script, f"http://127.0.0.1:{port}"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=seconds + 30, start_new_session=True,
                              preexec_fn=die_with_parent)
    except subprocess.TimeoutExpired:
        raise BenchError("wrk did not end in time") from None
    if done.returncode != 0:
        raise BenchError(f"wrk failed:\n{done.stdout}{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    if result["requests"] == 0:
        raise BenchError(f"no request was answered:\n{done.stdout}")
    return result


def measure(server, port, script, args):
    pids = family(server.process.pid)
    before = sum(map(cpu_ns, pids))
    result = run_wrk(script, port, args.connections, args.seconds)
    if server.process.poll() is not None or family(server.process.pid) != pids:
        raise BenchError(f"{server.name}: its processes changed during a measurement")
    cpu = sum(map(cpu_ns, pids)) - before
    return {
        "cpu_us": cpu / 1000 / result["requests"],
        "rps": result["requests"] / (result["duration_us"] / 1e6),
        "p50_ms": result["p50_us"] / 1000,
        "p99_ms": result["p99_us"] / 1000,
        "errors": result["errors"],
        "rss_mib": sum(map(rss_mib, pids)),
    }


def bench(args):
    """Run everything; returns a list of measurements for each proxy's name."""
    # Room for clients and nodes, yet small, as it shows in the RSS of nginx.
    connections = 4 * args.connections + 256
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-bench-")))
        for name in ("nodes", *args.only):
            (base / name).mkdir()
        script = base / "requests.lua"
        script.write_text(WRK_SCRIPT)
        ports = free_ports([*NODES, *args.only, "admin"])
        start_nodes(stack, ports, base / "nodes", connections * len(args.only))
        servers = [start_proxy(stack, name, ports, base / name, args, connections)
                   for name in args.only]
        for name in args.only:
            if run_wrk(script, ports[name], args.connections, 1)["errors"]:
                raise BenchError(f"{name}: failed requests in the warm-up")
        results = {name: [] for name in args.only}
        for number in range(args.rounds):
            # Another proxy begins each round, so that no place in it is favoured.
            first = number % len(servers)
            for server in servers[first:] + servers[:first]:
                one = measure(server, ports[server.name], script, args)
                results[server.name].append(one)
                print(f"round {number + 1}/{args.rounds} {server.name}: "
                      f"{one['cpu_us']:.2f} us/request", file=sys.stderr)
        return results


def summarize(rounds):
    summary = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    summary["errors"] = sum(one["errors"] for one in rounds)
    summary["cpu_us_min"] = min(one["cpu_us"] for one in rounds)
    summary["cpu_us_max"] = max(one["cpu_us"] for one in rounds)
    return summary


def table(summaries):
    rows = [("proxy", "CPU us/request", "min..max", "requests/s", "p50 ms", "p99 ms",
             "errors", "RSS MiB", "ringway CPU / this")]
    own = summaries.get("ringway")
    for name, s in summaries.items():
        rows.append((name, f"{s['cpu_us']:.2f}", f"{s['cpu_us_min']:.2f}..{s['cpu_us_max']:.2f}",
                     f"{s['rps']:.0f}", f"{s['p50_ms']:.2f}", f"{s['p99_ms']:.2f}",
                     str(s["errors"]), f"{s['rss_mib']:.1f}",
                     f"{own['cpu_us'] / s['cpu_us']:.2f}" if own else "-"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def goal_line(summaries):
    goal = f"goal: ringway <= {GOAL} x better of nginx and haproxy (CPU per request)"
    if any(name not in summaries for name in NAMES):
        return f"{goal}: not judged, it takes all three"
    limit = GOAL * min(summaries[name]["cpu_us"] for name in ("nginx", "haproxy"))
    cpu = summaries["ringway"]["cpu_us"]
    verdict = "held" if cpu <= limit else "not held"
    return f"{goal}: {verdict} ({cpu:.2f} us, limit {limit:.2f} us)"


def check_programs(args):
    # nginx is always needed, as it plays the nodes.
    needed = {"wrk", "nginx", *args.only} - {"ringway"}
    missing = [name for name in sorted(needed) if shutil.which(name) is None]
    for name in missing:
        print(f"{name} is missing; the Debian package {name} brings it", file=sys.stderr)
    if "ringway" in args.only and not os.access(args.ringway, os.X_OK):
        print(f"{args.ringway} is missing; cargo build --release makes it", file=sys.stderr)
        missing.append("ringway")
    if missing:
        sys.exit(3)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def proxy_names(text):
    names = list(dict.fromkeys(text.split(",")))
    if not set(names) <= set(NAMES):
        raise argparse.ArgumentTypeError(f"choose from {', '.join(NAMES)}")
    return names


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ringway", type=lambda text: Path(text).absolute(), metavar="PATH",
        default=ROOT / "target/release/ringway", help="its binary (default: %(default)s)")
    add("--rounds", type=positive, default=5, metavar="N", help="default: %(default)s")
    add("--seconds", type=positive, default=4, metavar="S",
        help="length of one measurement (default: %(default)s)")
    add("--connections", type=positive, default=64, metavar="C", help="default: %(default)s")
    add("--only", type=proxy_names, default=list(NAMES), metavar="NAME[,NAME]",
        help=f"the proxies to measure, of {', '.join(NAMES)}")
    add("--smoke", action="store_true",
        help="1 round of 1 second: proves that the script works, no more")
    add("--json", type=Path, metavar="FILE", help="also write every measurement to FILE")
    args = parser.parse_args()
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json: there is no folder {args.json.parent}")
    if args.smoke:
        args.rounds = args.seconds = 1
    return args


def main():
    args = parse_args()
    # Users other than root often lack the sbin folders in their PATH.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin"
    check_programs(args)
    for signum in SIGNALS:
        signal.signal(signum, exit_on_signal)
    try:
        results = bench(args)
    except BenchError as error:
        sys.exit(f"error: {error}")
    summaries = {name: summarize(rounds) for name, rounds in results.items()}
    print(f"medians of {args.rounds} x {args.seconds} s, {args.connections} connections")
    print(table(summaries))
    print(goal_line(summaries))
    if args.json:
        settings = {key: getattr(args, key) for key in ("rounds", "seconds", "connections")}
        document = {"settings": settings, "medians": summaries, "rounds": results}
        args.json.write_text(json.dumps(document, indent=2) + "\n")
    if any(summary["errors"] for summary in summaries.values()):
        sys.exit("error: there were failed requests")


if __name__ == "__main__":
    main()
