"""Where ranks leave values for each other: a directory, a TCP server in one of them, a store of torch.distributed.

Leans on errors. A store has three calls and no waiting in it: whoever waits knows for whom (rendezvous.py).
"""

from __future__ import annotations

import atexit
import os
import socket
import socketserver
import threading
import time
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from rdmakit.errors import BadArgument, RankMissing

__all__ = ["FileStore", "Store", "TcpStore", "TorchStore"]

_PAUSE_S = 0.02
_SEE_OFF_S = 3.0


class Store(Protocol):
    """Text by key, seen by all ranks."""

    def put(self, key: str, text: str) -> bool:
        """Leave a value; False when that key has one, which then stays."""

    def get(self, key: str) -> str | None:
        """The value, or None while there is none."""

    def drop(self, key: str) -> None:
        """Nobody needs it any more."""

    def close(self) -> None:
        """No call follows."""


class FileStore:
    """A directory that all ranks reach: of one machine's, or of a file system that hosts share. Made when missing.

    It has to be empty at first: a rank that finds its own file of an earlier run says so.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FileStore(folder)
    ...     store.put("a/0", "x"), store.put("a/0", "y"), store.get("a/0"), store.get("a/1")
    (True, False, 'x', None)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadArgument("no directory to meet in", value=str(folder), rule=str(error.strerror),
                              remedy="name one that every rank may write to") from None  # fmt: skip

    def _path(self, key: str) -> Path:
        return self.folder / quote(key, safe="")

    def put(self, key: str, text: str) -> bool:
        """Whole or not at all: a reader never sees half a file."""
        whole = self._path(f"{key}.{socket.gethostname()}.{os.getpid()}.tmp")
        whole.write_text(text, encoding="utf-8")
        try:
            os.link(whole, self._path(key))
        except FileExistsError:
            return False
        finally:
            whole.unlink()
        return True

    def get(self, key: str) -> str | None:
        try:
            return self._path(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def drop(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is open; an empty directory goes."""
        try:
            self.folder.rmdir()
        except OSError:
            return  # others are still at it

    def __repr__(self) -> str:
        return f"FileStore({str(self.folder)!r})"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int]) -> None:
        self.values: dict[str, str] = {}
        self.guard = threading.Lock()
        self.talking = 0  # with whom: connections that are open
        super().__init__(address, _Conversation)


class _Conversation(socketserver.StreamRequestHandler):
    """Lines: `put KEY`, `get KEY`, `drop KEY`, a value in a line of its own; answers `+…` or `-`."""

    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.guard:
            self.server.talking += 1

    def finish(self) -> None:
        with self.server.guard:
            self.server.talking -= 1
        super().finish()

    def handle(self) -> None:
        while line := self.rfile.readline().decode():
            verb, _, key = line.rstrip("\n").partition(" ")
            with self.server.guard:
                answer = self._answer(verb, key)
            self.wfile.write(f"{answer}\n".encode())

    def _answer(self, verb: str, key: str) -> str:
        values = self.server.values
        if verb == "put":
            text = self.rfile.readline().decode().rstrip("\n")
            return "+" if values.setdefault(key, text) is text else "-"
        if verb == "get":
            return f"+{values[key]}" if key in values else "-"
        values.pop(key, None)
        return "+"


class TcpStore:
    """Values in the memory of one rank, which serves (`serve=True`); the others connect, and wait for it `timeout_s`.

    For machines of one network that trusts itself: there is no password. RankMissing when nobody listens in time.
    """

    def __init__(self, host: str, port: int, *, serve: bool, timeout_s: float = 60.0) -> None:
        self.host, self.port = host, port
        self._server = None
        if serve:
            try:
                self._server = _Server((host, port))
            except OSError as error:
                raise BadArgument("cannot listen for other ranks", value=f"{host}:{port}", rule=str(error.strerror),
                                  remedy="an address of this machine and a free port") from None  # fmt: skip
            self.port = int(self._server.server_address[1])
            threading.Thread(target=self._server.serve_forever, args=(_PAUSE_S,), daemon=True).start()
            atexit.register(self._see_off)
        self._socket = self._connect(timeout_s)
        self._lines = self._socket.makefile("rw", encoding="utf-8", newline="\n")
        self._guard = threading.Lock()

    def _connect(self, timeout_s: float) -> socket.socket:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return socket.create_connection((self.host, self.port), timeout=max(timeout_s, 1.0))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RankMissing("nobody listens where ranks are to meet", value=f"{self.host}:{self.port}",
                                      ranks=(0,), rule=f"{error.strerror}, for {timeout_s:g} s",
                                      remedy="start rank 0; name its address and an open port") from None  # fmt: skip
            time.sleep(_PAUSE_S)

    def _ask(self, line: str) -> str | None:
        with self._guard:
            try:
                self._lines.write(line + "\n")
                self._lines.flush()
                answer = self._lines.readline().rstrip("\n")
            except OSError:
                answer = ""
        if not answer:
            raise RankMissing("the rank that keeps the values has gone", value=f"{self.host}:{self.port}", ranks=(0,),
                              rule="it serves until all are through", remedy="see what rank 0 says")  # fmt: skip
        return answer[1:] if answer[0] == "+" else None

    def put(self, key: str, text: str) -> bool:
        return self._ask(f"put {key}\n{text}") is not None

    def get(self, key: str) -> str | None:
        return self._ask(f"get {key}")

    def drop(self, key: str) -> None:
        self._ask(f"drop {key}")

    def _see_off(self) -> None:
        """As this process ends, in an error as a rule: the others still read why; it waits a moment until they have."""
        if self._server is None:
            return
        deadline = time.monotonic() + _SEE_OFF_S
        while self._server.talking > 1 and time.monotonic() < deadline:  # one is our own
            time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Disconnect; the server ends with the rank that has it."""
        atexit.unregister(self._see_off)
        self._lines.close()
        self._socket.close()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __repr__(self) -> str:
        return f"TcpStore({self.host!r}, {self.port}, serve={self._server is not None})"


class TorchStore:
    """A `torch.distributed.Store` (TCPStore, FileStore, PrefixStore): what torchrun has made already.

    Values of different meetings do not meet: give each a prefix of its own (`torch.distributed.PrefixStore`).
    """

    def __init__(self, store: Any) -> None:
        for call in ("set", "get", "check", "add"):
            if not callable(getattr(store, call, None)):
                raise BadArgument("that is no store of torch.distributed", value=type(store).__name__,
                                  rule=f"it lacks {call}()",
                                  remedy="torch.distributed.distributed_c10d._get_default_store(), or a TCPStore of "
                                         "your own")  # fmt: skip
        self._store = store

    def put(self, key: str, text: str) -> bool:
        if self._store.add(f"{key}/claimed", 1) != 1:
            return False
        self._store.set(key, text)
        return True

    def get(self, key: str) -> str | None:
        if not self._store.check([key]):  # `get` alone would wait, and not say for whom
            return None
        value = self._store.get(key)
        return value.decode() if isinstance(value, bytes) else str(value)

    def drop(self, key: str) -> None:
        for name in (key, f"{key}/claimed"):
            if callable(getattr(self._store, "delete_key", None)):
                self._store.delete_key(name)

    def close(self) -> None:
        """The store is torch's."""

    def __repr__(self) -> str:
        return f"TorchStore({type(self._store).__name__})"
