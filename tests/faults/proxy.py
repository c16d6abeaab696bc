"""A TCP proxy that cuts connections after a number of bytes, on command."""

import random
import select
import socket
import struct
import threading
import time

BLOCK_BYTES = 64 * 1024


class Proxy:
    """Listens on `port` and passes everything on to `target_port`, both on loopback."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        # (bytes left, from the client?, hard reset?)
        self._armed: tuple[int, bool, bool] | None = None
        self.cuts = 0
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, choice: random.Random, patience_seconds: float) -> bool:
        """Cuts the connection that carries the n-th byte from now on, in one direction, and whether that came."""
        with self._lock:
            before = self.cuts
            # Small numbers hit negotiations, large ones the middle of objects.
            self._armed = (int(2 ** choice.uniform(0, 18)), choice.random() < 0.7, choice.random() < 0.5)
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            with self._lock:
                if self._armed is None:
                    return self.cuts > before
            time.sleep(0.005)
        with self._lock:
            fired, self._armed = self._armed is None, None
        return fired

    def close(self) -> None:
        self._closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), timeout=10)
        except OSError:
            _end(client, hard=True)
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other = {client: server, server: client}
        try:
            open_ends = [client, server]
            while open_ends:
                for source in select.select(open_ends, [], [])[0]:
                    block = source.recv(BLOCK_BYTES)
                    if not block:
                        open_ends.remove(source)
                        other[source].shutdown(socket.SHUT_WR)
                        continue
                    hard = self._cut_at(block, source is client)
                    if hard is None:
                        other[source].sendall(block)
                        continue
                    allowed, reset = hard
                    other[source].sendall(block[:allowed])
                    _end(client, reset)
                    _end(server, reset)
                    return
        except OSError:
            pass
        _end(client, hard=False)
        _end(server, hard=False)

    def _cut_at(self, block: bytes, from_client: bool) -> tuple[int, bool] | None:
        """Where in this block the connection is to be cut, and how."""
        with self._lock:
            if self._armed is None or self._armed[1] != from_client:
                return None
            left, _, reset = self._armed
            if left > len(block):
                self._armed = (left - len(block), from_client, reset)
                return None
            self._armed = None
            self.cuts += 1
            return left, reset


def _end(end: socket.socket, hard: bool) -> None:
    try:
        if hard:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()
    except OSError:
        pass
