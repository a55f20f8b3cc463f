"""A websocket client for measurements: a thousand of them cost little beside what is measured."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable
from http.cookies import SimpleCookie
from time import monotonic
from typing import Any

from django.conf import settings

#: What a frame carries (RFC 6455, 5.2).
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
#: The address at which servers listen here.
HOST = "127.0.0.1"

#: What hears of each message: the socket, the moment (monotonic), the message.
Listener = Callable[["Socket", float, dict[str, Any]], None]


class Refused(ConnectionError):
    """The server answered the handshake otherwise, or ended it."""


class Socket(asyncio.Protocol):
    """One open websocket; ``cookies`` sign its user in."""

    def __init__(self, path: str, cookies: dict[str, str], listener: Listener) -> None:
        self._path = path
        self._cookies = cookies
        self._listener = listener
        self._received = bytearray()
        self._parts = bytearray()
        #: Done when the server has accepted.
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Done when the connection is closed; its result is the code, 1006 for none.
        self.closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.code = 1006
        self.messages = 0
        self.bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the websocket."""
        self.transport: Any = transport
        cookies = "; ".join(
            morsel.OutputString() for morsel in SimpleCookie(self._cookies).values()
        )
        port = transport.get_extra_info("peername")[1]
        lines = [
            f"GET {self._path} HTTP/1.1",
            f"Host: {HOST}:{port}",
            f"Origin: http://{HOST}:{port}",
            *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *([f"Cookie: {cookies}"] if cookies else []),
        ]
        self.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def data_received(self, data: bytes) -> None:
        """Take apart what came: the answer to the handshake first, then frames."""
        self._received += data
        self.bytes += len(data)
        if not self.opened.done():
            head, end, rest = bytes(self._received).partition(b"\r\n\r\n")
            if not end:
                return
            status = head.split(None, 2)[1]
            if status != b"101":
                self.opened.set_exception(Refused(status.decode()))
                self.transport.close()
                return
            self._received = bytearray(rest)
            self.opened.set_result(None)
        now = monotonic()
        while (frame := self._next_frame()) is not None:
            self._take(now, *frame)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell of the end."""
        if not self.opened.done():
            self.opened.set_exception(Refused("connection lost"))
        if not self.closed.done():
            self.closed.set_result(self.code)

    def send(self, message: object) -> None:
        """Send a message as JSON."""
        self.send_frame(TEXT, json.dumps(message).encode())

    def send_frame(self, opcode: int, payload: bytes, *, is_last: bool = True) -> None:
        """Send a frame, masked with nothing."""
        size = len(payload)
        head = bytes([opcode | (0x80 if is_last else 0)])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 1 << 16:
            head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
        else:
            head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
        self.transport.write(head + bytes(4) + payload)

    def close(self) -> None:
        """Close it as a browser does."""
        if not self.closed.done():
            self.send_frame(CLOSE, (1000).to_bytes(2, "big"))
            self.transport.close()

    def _next_frame(self) -> tuple[int, bool, bytes] | None:
        """Cut off the next whole frame: what it carries, whether it is the last part, and that."""
        data = self._received
        if len(data) < 2:
            return None
        size, begin = data[1] & 0x7F, 2
        if size == 126:
            size, begin = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, begin = int.from_bytes(data[2:10], "big"), 10
        if len(data) < begin + size:
            return None
        frame = data[0] & 0x0F, bool(data[0] & 0x80), bytes(data[begin : begin + size])
        del data[: begin + size]
        return frame

    def _take(self, now: float, opcode: int, is_last: bool, payload: bytes) -> None:
        if opcode == PING:
            self.send_frame(PONG, payload)
        elif opcode == CLOSE:
            self.code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.send_frame(CLOSE, payload[:2])
            self.transport.close()
        elif opcode != PONG:
            self._parts += payload
            if is_last:
                message = json.loads(bytes(self._parts))
                self._parts.clear()
                self.messages += 1
                self._listener(self, now, message)


async def open_socket(port: int, path: str, session_key: str, listener: Listener) -> Socket:
    """Open a websocket of the user with this session; raises Refused, or another OSError."""
    loop = asyncio.get_running_loop()
    cookies = {settings.SESSION_COOKIE_NAME: session_key} if session_key else {}
    _, socket = await loop.create_connection(lambda: Socket(path, cookies, listener), HOST, port)
    # Nobody may ask for it.
    socket.closed.add_done_callback(lambda closed: None)
    try:
        await socket.opened
    except asyncio.CancelledError:
        socket.transport.abort()
        raise
    return socket
