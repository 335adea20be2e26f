"""Connections of clients that send one request and stay: in the clear, over TLS, and of HTTP/2."""

import socket
import ssl

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, END_STREAM, END_BOTH, ACK = 4, 1, 1, 5, 1


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def over_http1(stream, path):
    """Sends a request and reads the whole answer."""
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    got = b""
    while b"\r\n\r\n" not in got:
        got += received(stream)
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += received(stream)
    return stream


def over_http2(stream, path):
    """The same on one stream of a new connection of HTTP/2."""
    # Names of the static table; values without Huffman coding.
    block = b"\x82\x86" + b"\x04" + text(path) + b"\x01" + text("127.0.0.1")
    stream.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0) + frame(HEADERS, END_BOTH, 1, block))
    got = b""
    while True:
        while len(got) < 9 or len(got) < 9 + int.from_bytes(got[:3], "big"):
            got += received(stream)
        length, kind, flags, number = int.from_bytes(got[:3], "big"), got[3], got[4], int.from_bytes(got[5:9], "big")
        got = got[9 + length:]
        if number == 1 and kind in (0, HEADERS) and flags & END_STREAM:
            return stream


def frame(kind, flags, number, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + payload


def text(value):
    return bytes([len(value)]) + value.encode()


def received(stream):
    piece = stream.recv(65536)
    if not piece:
        raise ConnectionError("the proxy has closed a connection")
    return piece


def opener(kind, ports):
    """Gives a function that opens a connection, sends a request for a path on it, and returns it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return {
        "plain": lambda path: over_http1(connected(ports["http"]), path),
        "tls": lambda path: over_http1(context.wrap_socket(connected(ports["tls"])), path),
        "http2": lambda path: over_http2(connected(ports["http"]), path),
    }[kind]
