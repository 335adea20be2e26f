#!/usr/bin/env python3
"""How long a purge takes to the last of three proxies: healthy, after a cut of 30 s, and in a burst; and what the origin
gets while a proxy is cut off from the bus.

    run.py            # 1,000 purges, 3 cuts of 30 s, a burst of 10,000, a gap over 5,000 objects
    run.py --smoke    # 50 purges, a cut of 3 s, a burst of 500, a gap over 500: does the script work?
    run.py --nodes 3  # with three Redis servers, of which two must have an event

Three proxies before an nginx share a bus. A purge is sent to the first one; its answer comes once all three have applied
it, and a request to each then checks that what was purged is not served. The cut is of the third proxy's links to the
bus: measured is the time from its end until that proxy has heard every purge meanwhile. At the end the third proxy is
cut off again, and 32 clients ask it for the objects that it has stored, each of which must be validated: counted is what
reaches the origin in each second. It needs Linux, nginx and redis-server, not root. Exit codes: 0 done, 1 a broken run or
a purged object served, 2 wrong usage, 3 a program is missing.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness  # noqa: E402

PROXIES = 3
ORIGIN = """\
    server { listen 127.0.0.1:@PORT@; location / { add_header Cache-Control max-age=3600; return 200 "an object"; } }
"""
RINGWAY = """\
workers: 1
listeners: [{ name: http, address: "127.0.0.1:@HTTP@" }]
admin: { address: "127.0.0.1:@ADMIN@" }
access_log: { format: "off" }
fleet: { id: bench, redis: { nodes: [@NODES@] } }
pools:
  app:
    nodes: [{ id: origin, address: "127.0.0.1:@ORIGIN@" }]
routes:
  - { name: site, path_prefix: /, pool: app, hash_on: [uri], cache: {} }
"""


class Link:
    """A TCP proxy to a Redis server, which can be cut."""

    def __init__(self, port):
        self.target, self.is_cut, self.open = port, False, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            if self.is_cut:
                client.close()
                continue
            with contextlib.suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self.target))
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self.pump, args=pair, daemon=True).start()

    @staticmethod
    def pump(source, target):
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self, is_cut):
        self.is_cut = is_cut
        while is_cut and self.open:
            with contextlib.suppress(OSError):
                self.open.pop().shutdown(socket.SHUT_RDWR)


class Proxy:
    """A proxy of the fleet, with a link of its own to each node of the bus."""

    def __init__(self, stack, number, folder, args, origin, nodes):
        self.links = [Link(port) for port in nodes]
        listed = ", ".join(f'{{ id: r{at}, address: "127.0.0.1:{it.port}" }}' for at, it in enumerate(self.links))
        ports = harness.free_ports(["HTTP", "ADMIN"])
        self.http, self.admin = ports["HTTP"], ports["ADMIN"]
        own = folder / f"proxy{number}"
        own.mkdir()
        config = own / "config"
        config.write_text(harness.fill(RINGWAY, ORIGIN=origin, NODES=listed, **ports))
        command = [args.binary, "run", "--config", config]
        server = harness.start(stack, f"proxy{number}", command, own)
        harness.wait_for(lambda: harness.fetch(self.http, "GET", "/")[0] == 200, "a proxy does not answer", server)

    def fleet(self):
        return json.loads(harness.fetch(self.admin, "GET", "/api/fleet")[2])

    def knows_all(self):
        fleet = self.fleet()
        return not fleet["bus"]["open_gap"] and len(fleet["members"]) == PROXIES

    def metric(self, series):
        """The sum of all series whose names and labels begin like this."""
        page = harness.fetch(self.admin, "GET", "/metrics")[2]
        page = page.decode() if isinstance(page, bytes) else page
        return sum(int(float(line.split()[-1])) for line in page.splitlines() if line.startswith(series))

    def heard(self):
        return self.metric('ringway_fleet_events_total{direction="heard",kind="purge"}')

    def asked(self):
        """The requests that went to the origin, and those of them that passed by the cache."""
        return (self.metric("ringway_upstream_requests_total{"),
                self.metric('ringway_cache_requests_total{result="pass"'))

    def is_hit(self, path):
        return "hit" in harness.fetch(self.http, "GET", path)[1]["cache-status"]

    def purge(self, path):
        body = json.dumps({"url": path})
        return json.loads(harness.fetch(self.admin, "POST", "/api/cache/purge", body)[2])["heard_by"]


def ask_all(port, paths, first, step):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(client):
        for path in paths[first::step]:
            client.request("GET", path)
            client.getresponse().read()


def behind_a_gap(proxy, count):
    """Returns the requests a second of clients, and the most validations and requests that the origin got in a second."""
    paths = [f"/gap/{number}" for number in range(count)]
    ask_all(proxy.http, paths, 0, 1)
    for link in proxy.links:
        link.cut(True)
    harness.wait_for(lambda: proxy.fleet()["bus"]["open_gap"], "the gap is not noticed")
    seen, done = [(time.monotonic(), *proxy.asked())], threading.Event()

    def watch():
        while not done.wait(0.1):
            seen.append((time.monotonic(), *proxy.asked()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin, rounds = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        while time.monotonic() < begin + 3:
            list(pool.map(lambda first: ask_all(proxy.http, paths, first, 32), range(32)))
            rounds += 1
    elapsed = time.monotonic() - begin
    done.set()
    watcher.join()
    peaks = [(asked - before - (passed - passed_before), asked - before)
             for time_before, before, passed_before in seen
             for now, asked, passed in seen if 0.9 <= now - time_before <= 1.1]
    for link in proxy.links:
        link.cut(False)
    return rounds * count / elapsed, max((it[0] for it in peaks), default=0), max((it[1] for it in peaks), default=0)


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def healthy(proxies, count):
    """Returns the times of purges until the last proxy has applied each."""
    times = []
    for number in range(count):
        path = f"/{number % 100}"
        for proxy in proxies:
            proxy.is_hit(path)
        begin = time.monotonic()
        heard_by = proxies[0].purge(path)
        times.append(time.monotonic() - begin)
        if not heard_by["complete"]:
            raise harness.BenchError(f"a purge was not heard by all: {heard_by}")
        if any(proxy.is_hit(path) for proxy in proxies):
            raise harness.BenchError(f"{path} was served after all had heard of its purge")
    return times


def after_a_cut(proxies, seconds):
    """Returns the time from the end of a cut until the last proxy has heard all purges of that time."""
    last, before = proxies[-1], proxies[-1].heard()
    for link in last.links:
        link.cut(True)
    end, purged = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        proxies[0].purge(f"/{purged % 100}")
        purged += 1
        time.sleep(0.25)
    for link in last.links:
        link.cut(False)
    begin = time.monotonic()
    harness.wait_for(lambda: last.heard() - before >= purged, "the purges did not arrive")
    return time.monotonic() - begin


def burst(proxies, count):
    """Returns the time of a burst, and the time after it until the last proxy has heard all of it."""
    last, before = proxies[-1], proxies[-1].heard()
    begin = time.monotonic()

    def part(first):
        client = http.client.HTTPConnection("127.0.0.1", proxies[0].admin, timeout=30)
        with contextlib.closing(client):
            for number in range(first, count, 32):
                client.request("POST", "/api/cache/purge", json.dumps({"url": f"/burst/{number}"}))
                client.getresponse().read()

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(part, range(32)))
    sent = time.monotonic()
    harness.wait_for(lambda: last.heard() - before >= count, "the burst did not arrive", seconds=60)
    return sent - begin, time.monotonic() - sent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=harness.binary, default=harness.DEFAULT_BINARY)
    parser.add_argument("--nodes", type=harness.positive, default=1)
    parser.add_argument("--purges", type=harness.positive, default=1_000)
    parser.add_argument("--smoke", action="store_true", help="few purges, a short cut, a small burst")
    args = parser.parse_args()
    purges, cuts, seconds, burst_size = (50, 1, 3, 500) if args.smoke else (args.purges, 3, 30, 10_000)
    objects = 500 if args.smoke else 5_000
    harness.end_well()
    harness.require("nginx", "redis-server", str(args.binary))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        folder.chmod(0o755)  # nginx workers are another user
        (folder / "origin").mkdir()
        origin = harness.free_ports(["ORIGIN"])["ORIGIN"]
        config = folder / "origin/config"
        config.write_text(harness.fill(harness.NGINX, SERVERS=harness.fill(ORIGIN, PORT=origin)))
        server = harness.start(stack, "origin", harness.nginx_command(config), folder / "origin")
        harness.wait_for(lambda: harness.fetch(origin, "GET", "/")[0] == 200, "the origin does not answer", server)
        nodes = []
        for number in range(args.nodes):
            own = folder / f"redis{number}"
            own.mkdir()
            nodes.append(harness.free_ports(["REDIS"])["REDIS"])
            command = ["redis-server", "--port", str(nodes[-1]), "--bind", "127.0.0.1", "--save", "", "--dir", str(own)]
            harness.start(stack, f"redis{number}", command, own)
        proxies = [Proxy(stack, number, folder, args, origin, nodes) for number in range(PROXIES)]
        harness.wait_for(lambda: all(proxy.knows_all() for proxy in proxies), "the proxies do not find each other")
        doubts = [proxy.fleet()["bus"]["doubts"] for proxy in proxies]
        times = healthy(proxies, purges)
        pace, rest = burst(proxies, burst_size)
        if [proxy.fleet()["bus"]["doubts"] for proxy in proxies] != doubts:
            raise harness.BenchError("stored responses came in doubt without a fault")
        delays = [after_a_cut(proxies, seconds) for _ in range(cuts)]
        pressure, validations, asked = behind_a_gap(proxies[-1], objects)
    print(f"healthy: {purges} purges reached the last of {PROXIES} proxies in {percentile(times, 0.5) * 1e3:.1f} ms "
          f"(median), {percentile(times, 0.99) * 1e3:.1f} ms (p99)")
    print(f"burst: {burst_size} purges at {burst_size / pace:.0f} a second; the last proxy had the last one "
          f"{rest * 1e3:.0f} ms after its answer")
    print(f"after a cut of {seconds} s: the last proxy had all purges {max(delays) * 1e3:.0f} ms after its end (slowest of "
          f"{cuts})")
    print(f"a gap over {objects} objects at {pressure:.0f} requests a second: the origin got at most {validations} "
          f"validations in a second, and {asked} requests with those beyond their bound")


if __name__ == "__main__":
    try:
        main()
    except harness.BenchError as error:
        sys.exit(str(error))
