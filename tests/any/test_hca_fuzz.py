"""Whatever bytes stand in the ring: the NIC answers with a completion or a QP error, and touches nothing outside its
regions. Random bytes, and valid WQEs with some bytes changed (hypothesis finds and shrinks what breaks this).

The same in C++ under AddressSanitizer and UBSan, tens of thousands of times: tests/native/fuzz.cpp.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rdmakit
from rdmakit.device import connected_pair
from rdmakit.errors import HangError
from rdmakit.layout import Sge, encode

GUARD = 64


class Fenced:
    """Two QPs; each side's region lies between guard bytes that nobody may touch."""

    def __init__(self, doorbell: str) -> None:
        self.world = rdmakit.World(hosts=2, doorbell=doorbell)
        self.near, self.far = connected_pair(
            self.world.open(0), self.world.open(1), sq_wqebbs=32, rq_wqes=4, max_recv_sge=2
        )
        self.memory = [self.world.array(256 + 2 * GUARD) for _ in range(2)]
        for array in self.memory:
            array[:] = 0x5A
        self.mine = self.near.pd.register(self.memory[0][GUARD:-GUARD])
        self.theirs = self.far.pd.register(self.memory[1][GUARD:-GUARD])
        self.far.post_recv(self.theirs.slice(0, 64))

    def run(self, wqe: bytes) -> None:
        """Post it; what comes out is a completion, an error state, or (for an unsignalled one) silence."""
        before = self.near.context.counters["cqes"]
        self.near.post_wqe(wqe)
        try:
            done = self.near.send_cq.wait(check=False)
        except HangError:  # nothing can complete any more: unsignalled, waiting for a receive, or a dead QP
            done = []
        state = self.near.state.name
        assert state in ("RTS", "SQE", "ERR"), state
        for completion in done:
            assert completion.ok == (state == "RTS"), (completion, state)
        if state == "ERR":
            assert done or self.near.context.counters["cqes"] > before or self.near.context.events(), "died in silence"
        for array in self.memory:
            assert (array[:GUARD] == 0x5A).all() and (array[-GUARD:] == 0x5A).all(), "wrote outside its region"


def sized(raw: bytes) -> bytes:
    """At least a ctrl segment, a multiple of 16 bytes."""
    return raw[: max(16, len(raw) // 16 * 16)].ljust(16, b"\0")


@pytest.mark.parametrize("doorbell", ["dbrec", "register", "no_dbr"])
@settings(deadline=None, max_examples=150)
@given(raw=st.binary(min_size=16, max_size=256), as_ours=st.booleans(), ds=st.integers(0, 63))
def test_random_bytes(doorbell, raw, as_ours, ds):
    rig = Fenced(doorbell)
    wqe = bytearray(sized(raw))
    if as_ours:  # far enough past the first checks to reach the later ones
        wqe[4:8] = (rig.near.qpn << 8 | (ds if ds else 1)).to_bytes(4, "big")
        wqe[1:3] = b"\0\0"
    rig.run(bytes(wqe))


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(["write", "read", "send", "fetch_add", "compare_swap", "masked_compare_swap", "dump"]),
    changes=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4),
    length=st.sampled_from([0, 1, 8, 64, 256, 257, 1 << 20]),
)
def test_changed_wqes(kind, changes, length):
    rig = Fenced("dbrec")
    local = Sge(rig.mine.address, max(length, 1), rig.mine.lkey)
    remote = {"raddr": rig.theirs.address, "rkey": rig.theirs.rkey}
    common = {"index": 0, "qpn": rig.near.qpn}
    word = Sge(rig.mine.address, 8, rig.mine.lkey)
    wqe = bytearray(
        {
            "write": lambda: encode.write(**common, **remote, sges=local),
            "read": lambda: encode.read(**common, **remote, sges=local),
            "send": lambda: encode.send(**common, sges=local),
            "fetch_add": lambda: encode.fetch_add(**common, **remote, add=1, sge=word),
            "compare_swap": lambda: encode.compare_swap(**common, **remote, compare=0, swap=1, sge=word),
            "masked_compare_swap": lambda: encode.masked_compare_swap(
                **common, **remote, compare=0, swap=1, compare_mask=0, swap_mask=1, width=8, sge=word
            ),
            "dump": lambda: encode.dump(**common, sge=local),
        }[kind]()
    )
    for at, value in changes:
        wqe[at % len(wqe)] = value
    rig.run(bytes(wqe))


def test_a_ring_of_noise_drains(seed):
    """A full ring of random WQEs: the first bad one fails, the rest is flushed, every slot is accounted for."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        rig = Fenced("dbrec")
        for _ in range(16):
            wqe = bytearray(rng.bytes(int(rng.integers(1, 5)) * 16))
            wqe[4:7] = rig.near.qpn.to_bytes(3, "big")  # the host rings with these bytes: another QP's would be ignored
            rig.near.post_wqe(bytes(wqe))
        done = []
        try:
            while True:
                done += rig.near.send_cq.wait(check=False)
        except HangError:
            pass
        assert rig.near.state.name == "ERR"
        assert [c.status.name for c in done[1:]] == ["WR_FLUSH_ERR"] * (len(done) - 1)
        assert not done[0].ok
