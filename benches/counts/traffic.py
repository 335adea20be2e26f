"""The other two ends of a counted request: a serial client that sends fixed bytes, and an origin that answers with them."""

import collections
import contextlib
import socket
import ssl
import struct
import threading

SO_RCVBUFFORCE = 33
SMALL, LARGE = b"x" * 1024, b"x" * 2**20
CACHED = b'Cache-Control: max-age=86400\r\nETag: "fixed"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'


def answer(fields, body):
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n%sContent-Length: %d\r\n\r\n%s" % (fields, len(body), body)


# What the origin says to a path that begins like this; the first one that fits.
ANSWERS = [
    (b"/large", answer(CACHED, LARGE)),
    (b"/hit", answer(CACHED, SMALL)),
    (b"/", answer(b"", SMALL)),
]


class Origin:
    """A node with one thread a connection; counts its requests by path."""

    def __init__(self):
        self.seen = collections.Counter()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                more = connection.recv(65536)
                if not more:
                    return
                received += more
            head, _, received = received.partition(b"\r\n\r\n")
            length = content_length(head)
            while len(received) < length:
                received += connection.recv(65536)
            received = received[length:]
            path = head.split(b" ", 2)[1]
            self.seen[path] += 1
            connection.sendall(next(said for prefix, said in ANSWERS if path.startswith(prefix)))


def content_length(head):
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    return 0


class Http1:
    """A connection that has one request on its way at a time."""

    def __init__(self, port, tls=None):
        self.socket = socket.socket()
        # Room for a whole answer: how the kernel cuts it must not depend on when it is read.
        with contextlib.suppress(PermissionError):
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")

    def ask(self, request, rest=lambda: None):
        """Sends a request; returns the status and the length of the body. Of a large answer it reads what is there
        whenever the proxy has come to rest, so that what the proxy can write at a time is no matter of chance."""
        self.socket.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            more = self.socket.recv(1 << 20)
            if not more:
                raise ConnectionError("the connection ended before an answer")
            received += more
        head, _, body = received.partition(b"\r\n\r\n")
        self.head = head
        status, expected, length = int(head.split(b" ", 2)[1]), content_length(head), len(body)
        if status == 304:
            return status, 0
        while length < expected:
            rest()
            more = len(self.socket.recv(1 << 20))
            if not more:
                raise ConnectionError("the connection ended in an answer's body")
            length += more
        return status, length

    def close(self):
        self.socket.close()


class Session(Http1):
    """A connection whose client sends back the cookie that it was given."""

    cookie = b""

    def ask(self, request, rest=lambda: None):
        if self.cookie:
            request = request.replace(b"\r\n\r\n", b"\r\nCookie: %s\r\n\r\n" % self.cookie, 1)
        found = super().ask(request, rest)
        for line in self.head.split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name.lower() == b"set-cookie":
                self.cookie = value.partition(b";")[0]
        return found


class OneRequest:
    """A new connection for each request, which asks for its end."""

    def __init__(self, port, tls=None):
        self.port, self.tls = port, tls

    def ask(self, request, rest=lambda: None):
        client = Http1(self.port, self.tls)
        try:
            # Whether it is accepted before the request is here, or closes before the proxy looks, is no chance either.
            rest()
            answered = client.ask(request)
            if client.socket.recv(1):
                raise ConnectionError("bytes behind the answer")
            rest()
            return answered
        finally:
            client.close()

    def close(self):
        pass


DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
MOST = 2**31 - 1


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Http2:
    """A connection in the clear with one stream at a time. Its windows are open, so that it has no frames to send
    but requests; field blocks hold no Huffman coding and leave the dynamic table alone."""

    def __init__(self, port, _tls=None):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream, self.received = 1, b""
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, MOST))
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MOST - 65535)))

    def ask(self, path, _rest=None):
        def text(value):
            return bytes([len(value)]) + value
        # :method GET, :scheme http, then :path, :authority, user-agent and accept as literals (RFC 7541 6.2.2).
        block = b"\x82\x86\x04" + text(path) + b"\x01" + text(b"localhost")
        block += b"\x0f\x2b" + text(b"counts/1") + b"\x0f\x04" + text(b"*/*")
        stream, length, status = self.stream, 0, None
        self.stream += 2
        self.socket.sendall(frame(HEADERS, END_STREAM | END_HEADERS, stream, block))
        while True:
            kind, flags, of, payload = self.frame()
            if kind == SETTINGS and not flags & ACK:
                self.socket.sendall(frame(SETTINGS, ACK, 0))
            if kind in (GOAWAY, RST_STREAM):
                raise ConnectionError(f"frame {kind} in place of an answer")
            if of != stream:
                continue
            if kind == HEADERS:
                # An indexed :status of 200 is the static table's entry 8.
                status = 200 if payload[:1] == b"\x88" or b"\x88" in payload[:4] else 0
            if kind == DATA:
                length += len(payload)
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                return status, length

    def frame(self):
        head = self.exactly(9)
        size = int.from_bytes(head[:3], "big")
        return head[3], head[4], int.from_bytes(head[5:9], "big") & MOST, self.exactly(size)

    def exactly(self, count):
        while len(self.received) < count:
            more = self.socket.recv(1 << 20)
            if not more:
                raise ConnectionError("the connection ended")
            self.received += more
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def close(self):
        self.socket.close()


def tls_context():
    """TLS 1.3 with the suite that the proxy takes first, whoever made the client's library."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return context
