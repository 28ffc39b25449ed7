"""The proxy that the other tests of faults stand on."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from aiodatastore.testing.proxy import Proxy


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that reads, says nothing, and ends when its client does."""

    def read(taken: socket.socket) -> None:
        with taken, suppress(OSError):
            while taken.recv(1 << 16):
                pass

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=read, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_links_that_end_while_it_closes_leave_no_socket_behind(port: int) -> None:
    """What is left behind is a warning, thus an error, whenever the garbage collector comes to it."""
    for _ in range(50):
        with Proxy(port) as proxy, ExitStack() as clients:
            for _ in range(8):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
                client.sendall(b"x")
    gc.collect()
