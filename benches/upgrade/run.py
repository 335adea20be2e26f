#!/usr/bin/env python3
"""Replace the binary of a running Ringway again and again under load, and see that nobody notices.

README.md next to this file says what is done and what must hold.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = 30  # seconds for anything that should take far less
POLL = 0.01
CONTEXT = multiprocessing.get_context("fork")

sys.dont_write_bytecode = True
import clients  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402
from harness import ROOT  # noqa: E402

# `metrics` is there so that its socket is handed over, too.
RINGWAY = """\
listeners:
  - { name: http, address: "127.0.0.1:@HTTP@" }
admin: { address: "127.0.0.1:@ADMIN@" }
metrics: { address: "127.0.0.1:@METRICS@" }
limits: { drain_timeout: 10s }
access_log: { format: "off" }
idempotency_store: { kind: sqlite, path: "@STORE@" }
pools:
  site:
    nodes: [{ id: site, address: "127.0.0.1:@SITE@" }]
  bank:
    nodes: [{ id: bank, address: "127.0.0.1:@BANK@" }]
routes:
  - { name: pay, path: /pay, pool: bank, hash_on: [path], idempotency: {} }
  - { name: site, path_prefix: /, pool: site, hash_on: [uri] }
"""
WRK_SCRIPT = """\
wrk.headers["Connection"] = @CONNECTION@
function done(summary)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}\\n',
    summary.requests, e.connect, e.read, e.write, e.timeout, e.status))
end
"""
# Binaries that do not start: what they are, their content (none: the good binary's), their mode, and
# what the configuration file gets appended. A shell that takes the garbage for a script finds no such command.
BAD = (
    ("a script that fails at once", b"#!/bin/sh\nexit 1\n", 0o755, ""),
    ("a broken configuration", None, 0o755, "surprise: 1\n"),
    ("a file that is not executable", None, 0o644, ""),
    ("a script that ends after 0.3 s", b"#!/bin/sh\nsleep 0.3\n", 0o755, ""),
    ("garbage", b"\x7fELF" + b"\xff" * 4096, 0o755, ""),
)


class Proxy:
    """The proxy, whichever process it is at the moment. Only the first one is our child."""

    def __init__(self, stack, args, ports, base):
        self.good, self.ports, self.admin_failures = args.ringway, ports, []
        self.binary, self.config, self.log = base / "ringway", base / "ringway.yaml", base / "output.log"
        self.settings = harness.fill(RINGWAY, STORE=base / "data/store.db",
                                  **{name.upper(): port for name, port in ports.items()})
        self.install()
        stack.callback(self.end_all)  # once the first process has been told to stop
        self.pid = harness.start(stack, "ringway", [str(self.binary), "run", "--config", str(self.config)],
                              base).process.pid
        self.wait("the proxy's start", self.serving)
        self.admin_failures.clear()  # there was nobody yet

    def install(self, content=None, mode=0o755, more=""):
        """Put a binary and a configuration in place, by rename: nobody sees half a file."""
        settings = (self.settings + more).encode()
        if not self.config.exists() or self.config.read_bytes() != settings:
            place(self.config, settings, 0o644)
        place(self.binary, content or self.good.read_bytes(), mode)

    def pids(self):
        """All processes of the binary in our folder: old ones, new ones and those that fail to start.
        One that has ended has no command line, even if nobody waits for it."""
        found, name = [], os.fsencode(self.binary)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if name in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def wait(self, what, condition):
        """Poll until the condition gives something; returns that."""
        deadline, polls = time.monotonic() + PATIENCE, 0
        while not (found := condition()):
            polls += 1
            late = time.monotonic() > deadline
            if late or polls % 50 == 0 and not self.pids():
                why = f"not within {PATIENCE} s, running: {self.pids()}" if late else "the proxy has ended"
                raise harness.BenchError(f"{what}: {why}\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(POLL)
        return found

    def ask(self, listener, path):
        """An answer of the proxy's own, or nothing where there was none: these sockets are handed over, too."""
        client = http.client.HTTPConnection("127.0.0.1", self.ports[listener], timeout=PATIENCE)
        with contextlib.closing(client):
            try:
                client.request("GET", path)
                response = client.getresponse()
                if response.status == 200:
                    return response.read().decode()
                problem = f"status {response.status}"
            except (OSError, http.client.HTTPException) as error:
                problem = repr(error)
        self.admin_failures.append(f"{listener} {path}: {problem}")
        return ""

    def serving(self):
        return json.loads(self.ask("admin", "/api/status") or '{"pid": 0}')["pid"]

    def failed_upgrades(self):
        name = 'ringway_upgrades_total{result="failure"} '
        lines = self.ask("metrics", "/metrics").splitlines()
        return max((float(line[len(name):]) for line in lines if line.startswith(name)), default=0)

    def upgrade(self):
        """An upgrade that must succeed; returns the ms until the new process served."""
        self.install()
        begun, old = time.monotonic(), self.pid
        os.kill(old, signal.SIGUSR2)
        self.pid = self.wait("a new process", lambda: (pid := self.serving()) not in (0, old) and pid)
        took = (time.monotonic() - begun) * 1000
        self.wait(f"the end of {old}, replaced by {self.pid}", lambda: self.pids() == [self.pid])
        return took

    def fail(self, what, content, mode, more):
        """An upgrade that must fail and leave the old process as it was; returns the ms until it was counted."""
        self.install(content, mode, more)
        begun, before = time.monotonic(), self.failed_upgrades()
        os.kill(self.pid, signal.SIGUSR2)
        self.wait(f"the failure of {what}", lambda: self.failed_upgrades() > before)
        took = (time.monotonic() - begun) * 1000
        self.wait(f"the end of {what}", lambda: self.pids() == [self.pid])
        if (serving := self.wait("the status", self.serving)) != self.pid:
            raise harness.BenchError(f"after {what} {serving} serves, not {self.pid}")
        self.install()
        return took

    def rss_mib(self):
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024, 1)

    def listening(self):
        """How many descriptors of the process are listening sockets: one that is passed on and forgotten would add up."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes, count = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}, 0
        for each in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # a connection that has ended meanwhile
                count += os.readlink(f"/proc/{self.pid}/fd/{each}") in inodes
        return count

    def end(self):
        """A drain, as after every upgrade: the last process must end by itself."""
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while self.pids():
            if time.monotonic() > deadline:
                raise harness.BenchError(f"SIGTERM did not end {self.pids()}")
            time.sleep(POLL)

    def end_all(self):
        """Leave nothing behind. A process that ends may just have started another, so look again."""
        while left := self.pids():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL)


def spawn(stack, task, *args):
    """Run a task in a process of its own until the returned function is called, which gives its result."""
    over, (ours, theirs) = CONTEXT.Event(), CONTEXT.Pipe(duplex=False)

    def child():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which ends us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        harness.die_with_parent()
        theirs.send(task(over, *args))

    def finish():
        over.set()
        with contextlib.suppress(EOFError):
            if ours.poll(2 * PATIENCE):
                return ours.recv()
        raise harness.BenchError(f"{task.__name__} gave no result")

    process = CONTEXT.Process(target=child, daemon=True)
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(process.kill)
    return finish


def place(path, data, mode):
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.chmod(mode)
    fresh.replace(path)


def start_wrk(stack, base, port, name, connection):
    """Runs until it is interrupted; returns a function that does so and gives its counts."""
    script = base / f"{name}.lua"
    script.write_text(harness.fill(WRK_SCRIPT, CONNECTION=connection))
    words = ["wrk", "-t1", "-c2", "-d24h", "--timeout", "10s", "-s", script, f"http://127.0.0.1:{port}/page"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                               start_new_session=True, preexec_fn=harness.die_with_parent)
    stack.callback(harness.stop, process)

    def finish():
        process.send_signal(signal.SIGINT)
        try:
            output = process.communicate(timeout=PATIENCE)[0]
            return json.loads(output.splitlines()[-1])
        except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
            raise harness.BenchError(f"{name} gave no result: {error!r}") from None
    return finish


def start_site(stack, base, port):
    (base / "site").mkdir()
    config = base / "site/config"
    site = f"    server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"{clients.BODY.decode()}\"; }} }}"
    config.write_text(harness.fill(harness.NGINX, SERVERS=site))
    server = harness.start(stack, "site", harness.nginx_command(config), base / "site")
    harness.wait_for(lambda: harness.fetch(port, "GET", "/")[2] == clients.BODY, "the site does not answer", server)


def bench(args):
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-upgrade-")))
        base.chmod(0o755)  # as root, nginx runs its workers as another user
        ports = harness.free_ports(["http", "admin", "metrics", "site"])
        with clients.BankServer() as server:
            ports["bank"] = server.server_address[1]
            bank = spawn(stack, clients.serve_bank, server)
        start_site(stack, base, ports["site"])
        proxy = Proxy(stack, args, ports, base)
        payments, visits = (spawn(stack, each, ports["http"]) for each in (clients.shop, clients.browse))
        wrks = {name: start_wrk(stack, base, ports["http"], name, connection)
                for name, connection in (("wrk kept", "nil"), ("wrk new", '"close"'))}
        upgrades = {"succeeded": [], "failed": [], "listening": []}
        try:
            upgrade_all(proxy, args, upgrades)
            problem = None
        except (harness.BenchError, OSError) as error:  # what the load has seen may tell why
            problem = str(error)
        counts = {name: finish() for name, finish in wrks.items()}
        counts["python"], words = visits()
        (counts["payments"], more), keys = payments()
        runs = bank()
        if not problem:
            proxy.end()
        counts["payments"] |= {"keys": len(keys), "keys_run_once": sum(runs.get(key) == 1 for key in keys),
                               "runs": sum(runs.values())}
        results = {"upgrade": summary(upgrades) | {"admin_failures": len(proxy.admin_failures)}} | counts
        return results, [*words, *more, *proxy.admin_failures[:5]], problem


def upgrade_all(proxy, args, upgrades):
    """Every second one with a binary that does not start, another kind each time."""
    time.sleep(args.seconds)
    upgrades |= {"pid_first": proxy.pid, "rss_mib_first": proxy.rss_mib()}
    for number in range(args.upgrades):
        if number % 2 == 0:
            upgrades["succeeded"].append(proxy.upgrade())
            upgrades["listening"].append(proxy.listening())
        else:
            upgrades["failed"].append(proxy.fail(*BAD[number // 2 % len(BAD)]))
        if number % 10 == 9:
            print(f"{number + 1}/{args.upgrades} upgrades", file=sys.stderr)
    if args.upgrades:
        time.sleep(args.seconds)
    upgrades |= {"pid_last": proxy.pid, "rss_mib_last": proxy.rss_mib()}


def summary(upgrades):
    """The times as a count, a median and a maximum, and the first and last number of sockets."""
    result = dict(upgrades)
    for name in ("succeeded", "failed"):
        result[name] = len(upgrades[name])
        if times := upgrades[name]:
            result |= {f"{name}_ms_median": round(statistics.median(times)), f"{name}_ms_max": round(max(times))}
    result["listening"] = upgrades["listening"][:1] + upgrades["listening"][-1:]
    return result


def broken(results):
    """What did not hold, in words."""
    upgrade, payments = results["upgrade"], results["payments"]
    for name in ("wrk kept", "wrk new"):
        bad = {kind: count for kind, count in results[name].items() if kind != "requests" and count}
        if bad or not results[name]["requests"]:
            yield f"{name}: {bad or 'no answers'}"
    for name in ("python", "payments"):
        if bad := {kind: results[name][kind] for kind in clients.FAILURES if results[name][kind]}:
            yield f"{name}: {bad}"
    if upgrade["admin_failures"]:
        yield f"{upgrade['admin_failures']} failed requests to the admin and metrics listeners"
    if upgrade["listening"] and upgrade["listening"][0] < upgrade["listening"][-1]:
        yield "listening sockets add up from process to process"
    if not payments["keys"] == payments["keys_run_once"] == payments["runs"]:
        yield f"{payments['keys']} payments, {payments['keys_run_once']} run once, {payments['runs']} runs"
    if payments.get("keys with different answers"):
        yield f"{payments['keys with different answers']} keys with different answers"
    # Without these the run would prove nothing.
    for name, each in (("python", "new requests"), ("python", "kept requests"), ("payments", "keys"),
                       ("payments", "replays"), ("payments", "conflicts")):
        if not results[name].get(each):
            yield f"{name}: no {each}"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, shown = parser.add_argument, "default: %(default)s"
    binary = os.environ.get("RINGWAY_BINARY", ROOT / "target/release/ringway")
    add("--ringway", type=lambda text: Path(text).absolute(), metavar="PATH", default=str(binary), help=f"its binary ({shown})")
    add("--upgrades", type=int, default=100, metavar="N", help=f"half of them fail ({shown})")
    add("--seconds", type=harness.positive, default=3, metavar="S", help=f"of load before and after them ({shown})")
    add("--smoke", action="store_true", help="6 upgrades: all of it, but short")
    add("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    args = parser.parse_args()
    if args.smoke:
        args.upgrades, args.seconds = 6, 1
    return args


def main():
    args = parse_args()
    harness.end_well()
    harness.require("wrk", "nginx", str(args.ringway))
    try:
        results, words, problem = bench(args)
    except (harness.BenchError, OSError) as error:
        sys.exit(f"error: {error}")
    for part, numbers in results.items():
        for name, value in numbers.items():
            print(f"{part:<9} {name.replace('_', ' '):<28} {value}")
    failed = [*broken(results), *([problem] if problem else [])]
    if args.json:
        args.json.write_text(json.dumps(results | {"failures": failed}, indent=2) + "\n")
    if failed:
        sys.exit("\n".join([*words, f"error: {'; '.join(failed)}"]))
    print("all held")


if __name__ == "__main__":
    main()
