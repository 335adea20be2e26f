#!/usr/bin/env python3
"""Compare the CPU cost of TLS and HTTP/2 with clients in Ringway, nginx and HAProxy.

README.md next to this file says what is measured and how to read it.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.dont_write_bytecode = True
import run as load  # noqa: E402
from run import BenchError, fill  # noqa: E402

NAMES = ("ringway", "nginx", "haproxy")
# Each case: the path that is asked for, the client, and Ringway's goals against the others.
CASES = {
    "tls-hit": ("/hit/1", "wrk", {"better": 0.95}),
    "tls-pass": ("/pass/1", "wrk", {"better": 0.95}),
    "h2-hit": ("/hit/1", "h2load", {"haproxy": 1.0, "nginx": 0.4}),
    "h2-pass": ("/pass/1", "h2load", {"haproxy": 1.2, "nginx": 0.95}),
    "handshake": ("/hit/1", "handshakes", {"nginx": 0.7}),
}

NODE = """\
    server {
        listen 127.0.0.1:@PORT@;
        location /hit/ { add_header Cache-Control max-age=3600; return 200 "@BODY@"; }
        location / { return 200 "@BODY@"; }
    }
"""
NGINX_EDGE = """\
    proxy_cache_path cache keys_zone=hits:10m;
    upstream app { server 127.0.0.1:@NODE@; keepalive 128; keepalive_requests 1000000000; }
    server {
        listen 127.0.0.1:@PORT@ ssl http2;
        ssl_certificate @CHAIN@; ssl_certificate_key @KEY@;
        ssl_protocols TLSv1.3; ssl_session_tickets on;
        http2_max_requests 1000000000;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        location /hit/ { proxy_cache hits; proxy_pass http://app; }
        location / { proxy_pass http://app; }
    }
"""
HAPROXY = """\
global
    nbthread 1
    maxconn 4096
    ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
cache hits
    total-max-size 64
    max-object-size 100000
frontend https
    bind 127.0.0.1:@PORT@ ssl crt @BOTH@ alpn h2,http/1.1
    option forwardfor
    http-request set-header X-Forwarded-Proto https
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    default_backend app
backend app
    http-request cache-use hits if { path_beg /hit/ }
    http-response cache-store hits
    http-reuse always
    default-server pool-max-conn 128 pool-purge-delay 60s
    server node 127.0.0.1:@NODE@
"""
RINGWAY = """\
workers: 1
listeners:
  - { name: https, address: 127.0.0.1:@PORT@, tls: { certificates: [{ chain_file: @CHAIN@, key_file: @KEY@ }], min_version: "1.3" } }
admin: { address: 127.0.0.1:@ADMIN@ }
limits: { requests_per_connection: 0 }
access_log: { format: "off" }
pools:
  app:
    nodes: [{ id: node, address: 127.0.0.1:@NODE@ }]
routes:
  - { name: hits, path_prefix: /hit, pool: app, hash_on: [uri], cache: {} }
  - { name: pass, path_prefix: /, pool: app, hash_on: [uri] }
"""
WRK_SCRIPT = """\
@CLOSE@
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "errors": %d}\\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def certificate(base):
    """A P-256 certificate, as most sites have it."""
    chain, key = base / "edge.pem", base / "edge.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-keyout", key, "-out", chain, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True)
    key.chmod(0o600)
    both = base / "both.pem"
    both.write_text(chain.read_text() + key.read_text())
    return {"CHAIN": chain, "KEY": key, "BOTH": both}


def start(stack, name, ports, base, files, args):
    folder = base / name
    folder.mkdir()
    # nginx's workers write their cache here, whoever they are.
    folder.chmod(0o777)
    values = {"PORT": ports[name], "NODE": ports["node"], "ADMIN": ports["admin"], "BODY": load.BODY, "CONNECTIONS": 4096}
    template = {
        "node": load.NGINX.replace("@SERVERS@", NODE.replace("@PORT@", str(ports["node"]))),
        "nginx": load.NGINX.replace("@SERVERS@", NGINX_EDGE),
        "haproxy": HAPROXY, "ringway": RINGWAY,
    }[name]
    config = folder / "config"
    config.write_text(fill(template, **values, **files))
    command = {"haproxy": ["haproxy", "-db", "-f", config], "ringway": [args.ringway, "run", "--config", config]}
    server = load.start(stack, name, command.get(name, load.nginx_command(config)), folder)
    wait(server, ports[name], "http" if name == "node" else "https")
    return server


def wait(server, port, scheme):
    context = ssl._create_unverified_context()
    deadline = time.monotonic() + 10
    while server.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            for path in ("/hit/1", "/pass/1"):
                with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}{path}", timeout=5,
                                            context=context if scheme == "https" else None) as answer:
                    if answer.read() != load.BODY.encode():
                        raise BenchError(f"{server.name} gives a wrong body")
            return
        time.sleep(0.05)
    raise BenchError(f"{server.name} does not answer\n{server.log.read_text(errors='replace')[-3000:]}")


def ask(case, port, base, seconds):
    """Loads a proxy; returns how many requests were answered, and how many failed."""
    path, client, _ = CASES[case]
    url = f"https://127.0.0.1:{port}{path}"
    if client == "h2load":
        command = ["h2load", "-c16", "-m16", "-t1", f"-D{seconds}", "--warm-up-time=0", url]
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout
        counts = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded", said)
        return int(counts[2]), int(counts[1]) - int(counts[2])
    script = base / f"{client}.lua"
    close = 'wrk.headers["Connection"] = "close"' if client == "handshakes" else ""
    script.write_text(fill(WRK_SCRIPT, CLOSE=close))
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "--timeout", "5s", "-s", script, url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout
    requests, errors = re.search(r'"requests": (\d+), "errors": (\d+)', said).groups()
    # Where every answer ends its connection, wrk counts that among its read errors.
    return int(requests), 0 if client == "handshakes" else int(errors)


def measure(server, case, port, base, seconds):
    pids = load.family(server.process.pid)
    before = sum(map(load.cpu_ns, pids))
    done, failed = ask(case, port, base, seconds)
    if not done or failed:
        raise BenchError(f"{server.name}, {case}: {done} answers, {failed} failures")
    return (sum(map(load.cpu_ns, pids)) - before) / 1000 / done


def bench(args):
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-edge-")))
        base.chmod(0o755)
        ports = load.free_ports(["node", "admin", *NAMES])
        files = certificate(base)
        start(stack, "node", ports, base, files, args)
        servers = [start(stack, name, ports, base, files, args) for name in NAMES]
        results = {}
        for case in args.cases:
            results[case] = {name: [] for name in NAMES}
            for number in range(args.rounds):
                # Another proxy begins each round, so that no place in it is favoured.
                first = number % len(servers)
                for server in servers[first:] + servers[:first]:
                    cpu = measure(server, case, ports[server.name], base, args.seconds)
                    results[case][server.name].append(cpu)
                    print(f"{case} {number + 1}/{args.rounds} {server.name}: {cpu:.1f} us", file=sys.stderr)
        return results


def table(results):
    lines = [f"{'CPU us/request':14} " + " ".join(f"{name:>18}" for name in NAMES) + "   goals"]
    for case, found in results.items():
        medians = {name: statistics.median(values) for name, values in found.items()}
        spans = [f"{medians[name]:7.1f} ({min(found[name]):.0f}..{max(found[name]):.0f})".rjust(18) for name in NAMES]
        goals = []
        for against, factor in CASES[case][2].items():
            other = min(medians["nginx"], medians["haproxy"]) if against == "better" else medians[against]
            ratio = medians["ringway"] / other
            goals.append(f"{ratio:.2f} of {'the ' if against == 'better' else ''}{against} (goal {factor}: "
                         f"{'held' if ratio <= factor else 'not held'})")
        lines.append(f"{case:14} " + " ".join(spans) + "   " + ", ".join(goals))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ringway", type=lambda text: Path(text).absolute(), metavar="PATH",
        default=load.ROOT / "target/release/ringway", help="its binary (default: %(default)s)")
    add("--cases", type=lambda text: text.split(","), default=list(CASES), metavar="NAME[,NAME]",
        help=f"of {', '.join(CASES)}")
    add("--rounds", type=load.positive, default=5, metavar="N", help="default: %(default)s")
    add("--seconds", type=load.positive, default=3, metavar="S", help="default: %(default)s")
    add("--smoke", action="store_true", help="1 round of 1 second: proves that the script works, no more")
    args = parser.parse_args()
    if args.smoke:
        args.rounds = args.seconds = 1
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin"
    missing = [name for name in ("wrk", "h2load", "nginx", "haproxy", "openssl") if shutil.which(name) is None]
    if missing:
        print("missing: " + ", ".join(missing), file=sys.stderr)
        sys.exit(3)
    for signum in load.SIGNALS:
        signal.signal(signum, load.exit_on_signal)
    try:
        print(table(bench(args)))
    except BenchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
