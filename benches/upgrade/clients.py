"""The load of the upgrade benchmark, but for wrk: clients that know exactly how a request failed, and the node of the payments.

Each function that is given `over` runs in a process of its own until that event, and returns what it has counted.
"""

import collections
import contextlib
import http.server
import random
import select
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

PATIENCE = 30  # seconds for an answer
BODY = b"x" * 1024  # of every GET
# How a request can fail.
FAILURES = ("refused", "reset", "short", "timeout", "wrong answer", "other")


class Unexpected(Exception):
    """A request that failed: how, and what is known about it."""


class Client:
    """A connection on a plain socket, so that each way to fail shows as itself."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")

    def ask(self, request):
        """Returns the status, the fields, and the body."""
        self.socket.sendall(request)
        first = self.line()
        fields = dict(iter(lambda: self.field(), None))
        length = int(fields.get("content-length", -1))
        body = self.stream.read(max(length, 0))
        if length < 0 or len(body) != length:
            raise Unexpected("short", f"{len(body)} of {length} bytes after {first!r}")
        return int(first.split()[1]), fields, body

    def field(self):
        name, colon, value = self.line().decode("latin-1").partition(":")
        return (name.lower(), value.strip()) if colon else None

    def line(self):
        line = self.stream.readline()
        if not line.endswith(b"\n"):
            raise Unexpected("short", f"the end of the connection after {line!r}")
        return line

    def is_closed(self):
        """Whether the proxy has closed it while it was idle. A client that looks first loses no request."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def close(self):
        self.stream.close()
        self.socket.close()


class Tally(collections.Counter):
    """Counts of what happened, with the first few failures in words; for many threads."""

    def __init__(self):
        super().__init__()
        self.lock, self.words = threading.Lock(), []

    def add(self, name, words=None):
        with self.lock:
            self[name] += 1
            if words and len(self.words) < 5:
                self.words.append(f"{name}: {words}")

    @contextlib.contextmanager
    def judging(self, what):
        """Counts a failure of what is done within by its kind."""
        try:
            yield
        except Unexpected as error:
            self.add(error.args[0], f"{what}: {error.args[1]}")
        except OSError as error:
            kinds = {ConnectionRefusedError: "refused", ConnectionResetError: "reset", BrokenPipeError: "reset",
                     ConnectionAbortedError: "reset", TimeoutError: "timeout", socket.timeout: "timeout"}
            self.add(kinds.get(type(error), "other"), f"{what}: {error!r}")

    def result(self):
        """All counts, the failures first, and the words."""
        return dict.fromkeys(FAILURES, 0) | self, self.words


def browse(over, port):
    """GETs until it is over: new connections, busy kept ones, and kept ones that are idle now and then."""
    tally = Tally()
    visitors = [("new", 0.002), ("new", 0.002), ("kept", 0.001), ("kept", 0.02), ("kept", 0.4)]
    with ThreadPoolExecutor(len(visitors)) as pool:
        for each in [pool.submit(visit, over, port, tally, *visitor) for visitor in visitors]:
            each.result()
    return tally.result()


def visit(over, port, tally, kind, pause):
    fields = b"Connection: close\r\n" if kind == "new" else b""
    request, client, served = b"GET /page HTTP/1.1\r\nHost: bench\r\n" + fields + b"\r\n", None, 0
    while not over.is_set():
        stays = False
        with tally.judging(f"{kind} connection, {served} answers before"):
            if client and client.is_closed():
                tally.add("closed while idle")
                client.close()
                client = None
            if not client:
                served = 0
                client = Client(port)
            status, answer, body = client.ask(request)
            if status != 200 or body != BODY:
                raise Unexpected("wrong answer", f"{status}, {body[:200]!r}")
            served += 1
            tally.add(f"{kind} requests")
            stays = answer.get("connection", "").lower() != "close"
            if kind == "kept" and not stays:
                tally.add("told to close")
        if client and not stays:
            client.close()
            client = None
        time.sleep(random.uniform(0, 2 * pause))


def shop(over, port):
    """Payments until it is over; each key is sent twice at once, and half of them once more, later on."""
    tally, results = Tally(), {}
    with ThreadPoolExecutor(12) as pool:
        for each in [pool.submit(buy, over, port, tally, results, pool) for _ in range(4)]:
            each.result()
    differ = [key for key, bodies in results.items() if len(set(bodies)) > 1]
    for key in differ:
        tally.add("keys with different answers", key)
    return tally.result(), list(results)


def buy(over, port, tally, results, pool):
    later = collections.deque()
    while not over.is_set():
        key = uuid.uuid4().hex
        results[key] = []
        for each in [pool.submit(pay, port, tally, results, key) for _ in range(2)]:
            each.result()
        if random.random() < 0.5:
            later.append(key)
        if len(later) > 10:  # by then often another process
            pay(port, tally, results, later.popleft())
    for key in later:
        pay(port, tally, results, key)


def pay(port, tally, results, key):
    """One payment, repeated for as long as another of the same key runs."""
    request = (f"POST /pay HTTP/1.1\r\nHost: bench\r\nAuthorization: x\r\nIdempotency-Key: {key}\r\nConnection: close\r\n"
               f"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{{\"amount\":42}}").encode()
    deadline = time.monotonic() + PATIENCE
    with tally.judging(f"payment {key}"):
        while True:
            tally.add("requests")
            with contextlib.closing(Client(port)) as client:
                status, fields, body = client.ask(request)
            if status != 409 or b"request-in-progress" not in body:
                break
            tally.add("conflicts")
            if time.monotonic() > deadline:
                raise Unexpected("timeout", "still running")
            time.sleep(0.03)
        if status not in (200, 201):
            raise Unexpected("wrong answer", f"{status}, {body[:300]!r}")
        if fields.get("idempotent-replayed") == "true":
            tally.add("replays")
        results[key].append(body)


class Bank(http.server.BaseHTTPRequestHandler):
    """The node of the payments: tells how often each key has run, and answers each run differently."""

    protocol_version, wbufsize = "HTTP/1.1", -1

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.runs[self.headers["Idempotency-Key"]] += 1
        time.sleep(random.choice((0, 0.02, 0.3)))
        body = uuid.uuid4().hex.encode()
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class BankServer(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Bank)
        self.lock, self.runs = threading.Lock(), collections.Counter()


def serve_bank(over, server):
    """Returns how often each key has run."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    over.wait()
    return dict(server.runs)
