#!/usr/bin/env python3
"""Attack Ringway at full speed, and see that others notice nothing.

README.md next to this file says what is measured and how to read it.
"""

import argparse
import contextlib
import http.client
import multiprocessing
import os
import shutil
import signal
import socketserver
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.dont_write_bytecode = True
from attacks import ATTACKS, PROCESSES  # noqa: E402


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402
from harness import ROOT  # noqa: E402

RATE = 200  # requests of the good client in a second
FACTOR, FLOOR_MS, MAX_GROWTH_MIB = 5, 5, 64
BIG, SMALL = b"b" * 2**22, b"s" * 256
PATIENCE = 10  # seconds for anything that should take far less
FAMILIES = ("ringway_http2_glitches_total", "ringway_connections_aborted_total")
FORK = multiprocessing.get_context("fork")
RINGWAY = """\
listeners:
  - { name: http, address: 127.0.0.1:@HTTP@ }
  - { name: https, address: 127.0.0.1:@HTTPS@, tls: { certificates: [{ chain_file: @CHAIN@, key_file: @KEY@ }] } }
admin: { address: 127.0.0.1:@ADMIN@ }
limits: { header_timeout: 3s, body_idle_timeout: 5s, write_timeout: 5s }
access_log: { format: "off" }
pools:
  app:
    nodes: [{ id: node, address: 127.0.0.1:@NODE@ }]
  attacked:
    nodes: [{ id: node, address: 127.0.0.1:@ATTACKED@ }]
routes:
  - { name: cached, path_prefix: /cached, pool: attacked, hash_on: [uri], cache: {} }
  - { name: attacked, path_prefix: /attack, pool: attacked, hash_on: [uri] }
  - { name: site, path_prefix: /, pool: app, hash_on: [uri] }
"""


class Node(socketserver.StreamRequestHandler):
    """Answers on kept connections, and counts the requests that belong to an attack."""

    disable_nagle_algorithm = True

    def handle(self):
        with contextlib.suppress(OSError):
            while line := self.rfile.readline():
                self.answer(line.split()[1])

    def answer(self, path):
        head = b"".join(iter(self.rfile.readline, b"\r\n")).lower()
        if b"attack" in path:
            with self.server.seen.get_lock():
                self.server.seen.value += 1
        if b"content-length:" in head:
            self.rfile.read(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        elif b"transfer-encoding:" in head:
            while self.rfile.read(1):  # no attack ends such a body
                pass
            return
        body = BIG if path.endswith((b"/big", b"/read")) else SMALL
        self.wfile.write(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\n"
                         b"Content-Length: %d\r\n\r\n" % len(body))
        self.wfile.write(body)


class NodeServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 1024


def take_precedence():
    """A client and a node have machines of their own; here they must not wait for the proxy's processor, where root
    may say so."""
    with contextlib.suppress(PermissionError):
        os.nice(-15)


def serve_node(port, seen):
    take_precedence()
    # Threads that a flood keeps busy must not hold the good client's up for long.
    sys.setswitchinterval(0.0005)
    with NodeServer(("127.0.0.1", port), Node) as server:
        server.seen = seen
        server.serve_forever()


def be_good(port, seconds):
    """Ask about 200 times a second over one connection; returns all times in ms, and the failures."""
    take_precedence()
    times, failures = [], 0
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(client):
        ask(client)  # to connect is not measured
        last = due = time.monotonic()
        end = due + seconds
        while due < end:
            time.sleep(max(0, due - time.monotonic()))
            # A request that had to wait for the answer before it counts from when it was due.
            begun = due if last > due else time.monotonic()
            try:
                ask(client)
            except (OSError, http.client.HTTPException):
                failures += 1
                client.close()
            last = time.monotonic()
            times.append((last - begun) * 1000)
            due += 1 / RATE
    return times, failures


def ask(client):
    client.request("GET", "/good")
    response = client.getresponse()
    if response.status != 200 or response.read() != SMALL:
        raise http.client.HTTPException(f"status {response.status} or a wrong body")


def p99(times):
    return statistics.quantiles(times, n=100)[98]


def be_hostile(name, ports, seconds, process):
    # An attacker has a machine of its own; here it must not keep the others from theirs.
    os.nice(19)
    return ATTACKS[name].run(ports, time.monotonic() + seconds, process)


class Task:
    """A function that runs in a process of its own, so that no other holds it up."""

    def __init__(self, stack, function, *arguments):
        self.receiver, sender = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self.work, args=(sender, function, arguments), daemon=True)
        self.process.start()
        sender.close()
        stack.callback(self.process.kill)

    @staticmethod
    def work(sender, function, arguments):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sender.send(function(*arguments))

    def result(self, timeout):
        with contextlib.suppress(EOFError):
            if self.receiver.poll(timeout):
                return self.receiver.recv()
        raise harness.BenchError("a process of the benchmark failed or did not end")


class Proxy:
    """A proxy of its own for each attack, so that none colours the next."""

    def __init__(self, stack, args, files, nodes, base):
        self.ports = harness.free_ports(["http", "https", "admin"])
        config, log = base / "ringway.yaml", base / "ringway.log"
        config.write_text(harness.fill(RINGWAY, NODE=nodes["node"], ATTACKED=nodes["attacked"], HTTP=self.ports["http"],
                               HTTPS=self.ports["https"], ADMIN=self.ports["admin"], **files))
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [args.ringway, "run", "--config", config], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True)
        stack.callback(self.stop)
        self.wait(log)

    def wait(self, log):
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.ports['http']}/good", timeout=1).close()
                return
            time.sleep(0.05)
        raise harness.BenchError(f"ringway does not answer\n{log.read_text(errors='replace')[-4000:]}")

    def stop(self):
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(signum)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=1)  # nothing here is worth draining

    def memory(self, field):
        """VmRSS is what it has now, VmHWM the most that it ever had; in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) / 1024

    def metrics(self):
        """The two families that tell of attacks; a binary that has none of them is fine."""
        url = f"http://127.0.0.1:{self.ports['admin']}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
                for line in lines if line.startswith(FAMILIES)}


def measure(name, args, proxy, seen, stack):
    """One attack; returns the numbers that are judged."""
    port, patience = proxy.ports["http"], args.seconds + 60
    quiet, failed = Task(stack, be_good, port, args.quiet_seconds).result(patience)
    before, counts, seen.value = proxy.memory("VmRSS"), proxy.metrics(), 0
    good = Task(stack, be_good, port, args.seconds)
    attackers = [Task(stack, be_hostile, name, proxy.ports, args.seconds, process)
                 for process in range(PROCESSES)]
    sent = [each.result(patience) for each in attackers]
    busy, more_failed = good.result(patience)
    if proxy.process.poll() is not None:
        raise harness.BenchError(f"{name}: the proxy ended with {proxy.process.returncode}")
    changes = {series: value - counts.get(series, 0) for series, value in proxy.metrics().items()}
    return {
        "quiet": p99(quiet), "busy": p99(busy), "worst": max(busy), "failed": failed + more_failed,
        "answers": len(busy), "before": before, "peak": proxy.memory("VmHWM"), "seen": seen.value,
        "sent": sum(each["sent"] for each in sent),
        "connections": sum(each["connections"] for each in sent),
        "changes": {series: int(value) for series, value in changes.items() if value},
    }


def judge(name, found, args):
    """What must hold, by what to say where it does not."""
    checks = {
        # Two seconds are mostly the beginning of an attack, and too few answers for a percentile.
        "p99": args.smoke or found["busy"] <= max(FACTOR * found["quiet"], FLOOR_MS),
        "memory": found["peak"] - found["before"] <= MAX_GROWTH_MIB,
        "node": found["seen"] <= ATTACKS[name].allowed(found),
        "failed requests": not found["failed"],
        # Without these the run would prove nothing.
        "too few good requests": found["answers"] >= RATE * args.seconds * 0.9,
        "no attack": found["sent"] > 0,
    }
    return [text for text, holds in checks.items() if not holds]


def report(name, found, broken):
    limit = max(FACTOR * found["quiet"], FLOOR_MS)
    print(f"{name:<14}  p99 {found['quiet']:5.2f} -> {found['busy']:6.2f} ms (limit {limit:5.2f}, "
          f"worst {found['worst']:6.1f})  memory {found['before']:5.1f} -> {found['peak']:5.1f} MiB  "
          f"sent {found['sent']:>8} on {found['connections']:>6} connections, node saw {found['seen']}"
          f"  {'NOT HELD: ' + ', '.join(broken) if broken else 'held'}", flush=True)
    for series, change in sorted(found["changes"].items()):
        print(f"{'':<14}  {series} +{change}", flush=True)


def certificate(base):
    chain, key = base / "edge.pem", base / "edge.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "30", "-keyout", key, "-out", chain, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
    key.chmod(0o600)
    return {"CHAIN": chain, "KEY": key}


def bench(args):
    """Run all attacks; returns the names of those that were noticed."""
    failed = []
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-hostile-")))
        files, seen = certificate(base), FORK.Value("q", 0)
        # What is asked of the attacked one in earnest must not hold up the good client's.
        nodes = harness.free_ports(["node", "attacked"])
        for port in nodes.values():
            Task(stack, serve_node, port, seen)
        for name in args.only:
            for _ in range(args.tries):
                with contextlib.ExitStack() as inner:
                    proxy = Proxy(inner, args, files, nodes, base)
                    found = measure(name, args, proxy, seen, inner)
                broken = judge(name, found, args)
                report(name, found, broken)
                if broken != ["p99"]:  # all else is no noise of the machine
                    break
            failed += [name] if broken else []
    return failed


def check_programs(args):
    missing = []
    if not os.access(args.ringway, os.X_OK):
        missing.append(f"{args.ringway} is missing; cargo build --release makes it")
    if shutil.which("openssl") is None:
        missing.append("openssl is missing; the Debian package openssl brings it")
    for tool in sorted({ATTACKS[name].tool for name in args.only} - {""}):
        if shutil.which(tool) is not None:
            continue
        if os.environ.get("RINGWAY_REQUIRE_TOOLS"):
            missing.append(f"{tool} is missing; the Debian package {tool} brings it")
        else:
            print(f"{tool} is not installed: its attacks are skipped")
            args.only = [name for name in args.only if ATTACKS[name].tool != tool]
    if missing:
        print("\n".join(missing), file=sys.stderr)
        sys.exit(3)


def attack_names(text):
    names = list(dict.fromkeys(text.split(",")))
    if not set(names) <= set(ATTACKS):
        raise argparse.ArgumentTypeError(f"choose from {', '.join(ATTACKS)}")
    return names


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    default = os.environ.get("RINGWAY_BINARY", ROOT / "target/release/ringway")
    add("--ringway", type=lambda text: Path(text).absolute(), metavar="PATH", default=Path(default),
        help="its binary (default: RINGWAY_BINARY, else %(default)s)")
    add("--seconds", type=int, default=10, metavar="N", help="of each attack (default: %(default)s)")
    add("--only", type=attack_names, default=list(ATTACKS), metavar="NAME[,NAME]",
        help=f"of {', '.join(ATTACKS)}")
    add("--tries", type=int, default=1, metavar="N",
        help="of an attack that holds but for the p99 (default: %(default)s)")
    add("--smoke", action="store_true", help="2 seconds of each attack, whose p99 is not judged")
    args = parser.parse_args()
    if args.smoke:
        args.seconds = 2
    if args.seconds < 1 or args.tries < 1:
        parser.error("at least 1 second and 1 try")
    args.quiet_seconds = min(args.seconds, 3)
    return args


def main():
    args = parse_args()
    check_programs(args)
    harness.end_well()
    try:
        failed = bench(args)
    except (harness.BenchError, OSError) as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: these were noticed: {', '.join(failed)}")
    print("all held")


if __name__ == "__main__":
    main()
