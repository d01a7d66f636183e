"""What the lab's tests share: a function on each of the two hosts at once, which talk to each other and to the test.

A host's function runs in a process of its own, forked into that host's network namespace, so nothing that it opens
outlives it, and a host that dies is a process that was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import time
import traceback
from pathlib import Path

import rdmakit
import rdmakit.verbs.backend  # here, not in each process: an emulated processor needs seconds for it

PORTS = (0, 1)
_NEWNS, _NEWNET = 0x00020000, 0x40000000  # CLONE_NEWNS, CLONE_NEWNET (sched.h)
_SLAVE, _REC, _DETACH = 1 << 19, 1 << 14, 2  # MS_SLAVE, MS_REC, MNT_DETACH (sys/mount.h)
_libc = ctypes.CDLL(None, use_errno=True)
_fork = multiprocessing.get_context("fork")


def enter(host: int) -> None:
    """Move this process to a host's namespace, with that host's devices in /sys, as `ip netns exec` does."""
    namespace = os.open(f"/run/netns/h{host}", os.O_RDONLY)
    steps = (
        ("setns", namespace, _NEWNET),
        ("unshare", _NEWNS),
        ("mount", b"none", b"/", None, ctypes.c_ulong(_SLAVE | _REC), None),
        ("umount2", b"/sys", _DETACH),
        ("mount", b"sysfs", b"/sys", b"sysfs", ctypes.c_ulong(0), None),
    )
    for name, *arguments in steps:
        if getattr(_libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{name} {arguments}")
    os.close(namespace)


class Host:
    """One end as its function sees it: its number, its devices, the line to the other end."""

    def __init__(self, number: int, line) -> None:
        self.number, self._line = number, line

    def name(self, port: int) -> str:
        return f"h{self.number}r{port}"

    def open(self, port: int = 0):
        """The soft-RoCE device on one of the host's two ports, as `rdmakit.open` gives it."""
        return rdmakit.open(self.name(port))

    def tell(self, what) -> None:
        self._line.send(what)

    def hear(self, seconds: float = 30):
        """What the other end tells next. EOFError when it has gone, TimeoutError when it says nothing."""
        if not self._line.poll(seconds):
            raise TimeoutError(f"h{self.number}: the other host has said nothing for {seconds} s")
        return self._line.recv()

    def swap(self, what):
        """Tell, and hear."""
        self.tell(what)
        return self.hear()

    def connect(self, qp, **attributes):
        """Connect to the queue pair that the other host connects at the same time; both are ready afterwards.

        Retransmission after a second (timeout 18) unless told otherwise: an emulated processor on a busy machine may
        need longer to acknowledge than the usual 67 ms.
        """
        attributes = {"timeout": 18, **attributes}
        qp.connect(self.swap(qp.endpoint().to_json()), **attributes)
        self.swap("connected")
        return qp


class Beside:
    """`function()` in another process of this host's, meanwhile; `result()` is what it returned, as JSON has it."""

    def __init__(self, function) -> None:
        self._answer, answer = os.pipe()
        self._process = os.fork()
        if self._process:
            os.close(answer)
            return
        try:
            text = json.dumps(function())
        except BaseException:
            text = json.dumps({"failed": traceback.format_exc()})
        with os.fdopen(answer, "w") as told:
            told.write(text)
        os._exit(0)

    def result(self):
        with os.fdopen(self._answer) as told:
            found = told.read()
        os.waitpid(self._process, 0)
        found = json.loads(found)
        assert not (isinstance(found, dict) and "failed" in found), found["failed"]
        return found


def _live(host: Host, function, answer) -> None:
    try:
        enter(host.number)
        answer.send(("ok", function(host)))
    except BaseException:
        answer.send(("failed", f"on h{host.number}:\n{traceback.format_exc()}"))
    os._exit(0)  # what the function has left open, the kernel takes back, as from any process that ends


def on_both(near, far, seconds: float = 60, far_dies: bool = False):
    """Run `near(host)` on h0 and `far(host)` on h1; their results. AssertionError with both tracebacks.

    `far_dies`: it is killed and answers nothing, which is no failure.
    """
    line = _fork.Pipe()
    answers = [_fork.Pipe(duplex=False) for _ in range(2)]
    processes = []
    for number, function in enumerate((near, far)):

        def start(number=number, function=function):
            line[1 - number].close()
            _live(Host(number, line[number]), function, answers[number][1])

        processes.append(_fork.Process(target=start, daemon=True))
        processes[-1].start()
    for end in (*line, *(answer[1] for answer in answers)):
        end.close()
    try:
        told = _collect([answer[0] for answer in answers], seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()
    if far_dies and told[1] == _SILENT[1]:
        told[1] = ("ok", None)
    failed = [text for kind, text in told if kind == "failed"]
    assert not failed, "\n".join(failed)
    return tuple(result for _, result in told)


_SILENT = [("failed", f"h{number} has not answered") for number in (0, 1)]


def _collect(answers, seconds: float):
    """Both answers; when one host has failed, the other gets little more time."""
    told = list(_SILENT)
    deadline, waiting = time.monotonic() + seconds, dict(enumerate(answers))
    while waiting and time.monotonic() < deadline:
        for number, answer in list(waiting.items()):
            with contextlib.suppress(EOFError):  # killed: by a test, or a crash
                if not answer.poll(0.05):
                    continue
                told[number] = answer.recv()
                if told[number][0] == "failed":
                    deadline = min(deadline, time.monotonic() + 3)
            del waiting[number]
    return told


def die() -> None:
    """End this process as a host that loses its power: nothing is closed, nobody is told."""
    os.kill(os.getpid(), signal.SIGKILL)


def command(*words: str) -> str:
    """What a program prints. RuntimeError, with what it complained of, when it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


_shaped: set[tuple[int, int]] = set()
_pulled = _fork.Array("b", 4)  # host's, port's; shared, since the hosts' processes pull


def shape(*words: str, hosts=(0, 1), ports=PORTS) -> None:
    """What becomes of packets as they leave these ports: `tbf …`, `netem …`."""
    for host in hosts:
        for port in ports:
            command("tc", "-n", f"h{host}", "qdisc", "replace", "dev", f"p{port}", "root", *words)
            _shaped.add((host, port))


def pull(host: int, port: int) -> None:
    """Pull a port's cable: the link is down for both ends."""
    _pulled[2 * host + port] = 1
    command("ip", "-n", f"h{host}", "link", "set", f"p{port}", "down")


def mend() -> None:
    """Undo what `shape` and `pull` have done."""
    while _shaped:
        host, port = _shaped.pop()
        command("tc", "-n", f"h{host}", "qdisc", "del", "dev", f"p{port}", "root")
    for number in range(4):
        if _pulled[number]:
            command("ip", "-n", f"h{number // 2}", "link", "set", f"p{number % 2}", "up")
            _pulled[number] = 0


def left_on(host: int) -> dict[str, int]:
    """What the devices of a host hold, none of what they hold none of."""
    counted = resources("ip", "netns", "exec", f"h{host}")
    return {kind: count for kind, count in counted.items() if count}


def resources(*before: str) -> dict[str, int]:
    """How many objects of each kind the devices of this host hold, by `rdma resource`: pd, cq, qp, mr …"""
    total: dict[str, int] = {}
    for line in command(*before, "rdma", "resource").splitlines():
        words = line.split()[2:]
        for kind, count in zip(words[::2], words[1::2], strict=True):
            total[kind] = total.get(kind, 0) + int(count)
    return total


def in_the_lab() -> bool:
    """Whether this process runs in the lab's machine."""
    return os.environ.get("RDMAKIT_LAB") == "1" and Path("/run/netns/h1").exists()
