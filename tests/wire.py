"""A server that follows a script byte by byte: what no well-behaved HTTP server can be made to do."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Conversation = Callable[[socket.socket], None]
"""What the far side does with one connection."""


class Wire:
    """A server on a free port that holds one scripted conversation per connection, then closes it."""

    def __init__(self, *conversations: Conversation) -> None:
        self._conversations = list(conversations)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connection_count = 0
        self.closed = threading.Semaphore(0)
        """Can be acquired once for each connection that has been closed."""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        for conversation in self._conversations:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connection_count += 1
            with connection, suppress(OSError):
                connection.settimeout(5)
                conversation(connection)
            self.closed.release()

    def close(self) -> None:
        """Listen no more, and wait for the conversation that is under way."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def serving(*conversations: Conversation) -> Iterator[Wire]:
    wire = Wire(*conversations)
    try:
        yield wire
    finally:
        wire.close()


def request_of(connection: socket.socket) -> bytes:
    """Read one whole request: head, and a body of its Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += _some(connection)
    return head + b"\r\n\r\n" + body


def _some(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    if not piece:
        raise ConnectionError("the client closed")
    return piece


def answer(body: bytes, *head: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *head]
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def saying(reply: bytes) -> Conversation:
    """Read the request, reply, close."""

    def conversation(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(reply)

    return conversation


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
