"""Steering a queue pair to a port of a bond: what libmlx5 checks, and the port that the bytes then leave by.

Needs bonded devices: rdmakit connectx --lag affinity -- python -m pytest tests/rdma/test_lag_ports.py
"""

import os
from pathlib import Path

import numpy as np
import pytest

import rdmakit
from rdmakit.device import connected_pair
from rdmakit.errors import BadArgument, BadState, RdmakitError
from rdmakit.verbs import sysfs

NBYTES = 1 << 20


def netdevs(device):
    """Network devices of the bond's ports, in their order."""
    net = sysfs.default_root() / "class/infiniband" / device / "device/net"
    for name in sysfs.names(net):
        slaves = sysfs.read(net / name / "master/bonding/slaves").split()
        if len(slaves) > 1:
            return slaves
    return []


def mode(device):
    first = netdevs(device)[0]
    return sysfs.read(sysfs.default_root() / "class/net" / first / "compat/devlink/lag_port_select_mode")


def sent(device):
    """Bytes that have left by each physical port. On emulated devices alone: a kernel's statistics leave out RDMA's."""
    return [sysfs.read_int(sysfs.default_root() / "class/net" / n / "statistics/tx_bytes") for n in netdevs(device)]


@pytest.fixture
def bonded(devices):
    if not all(netdevs(device) for device in devices):
        pytest.skip("no bonded devices: rdmakit connectx --lag affinity -- python -m pytest tests/rdma")
    return devices


@pytest.fixture(params=["own", "devx"])
def opened(request, bonded, spelled):
    """Both devices: queue pairs of libmlx5's, and such that commands made, which libmlx5 does not steer."""
    first, second = (spelled(device, request.param) for device in bonded)
    with rdmakit.open(first) as here, rdmakit.open(second) as there:
        yield here, there


@pytest.fixture
def ends(opened):
    return connected_pair(*opened)


def copy(ends, rng):
    near, far = ends
    source = near.pd.register(rng.integers(0, 256, NBYTES, np.uint8))
    target = far.pd.register(np.full(NBYTES, 0xA5, np.uint8), "local_write|remote_write")
    near.post_write(source, target.remote())
    near.send_cq.wait()
    assert np.array_equal(source.bytes, target.bytes)


emulated = pytest.mark.skipif(
    "SYSFS_PATH" not in os.environ, reason="a kernel does not count RDMA's bytes by link in sysfs"
)


@emulated
def test_bytes_leave_by_the_port_that_was_chosen(bonded, ends, rng):
    if mode(bonded[0]) == "hash":
        pytest.skip("in hash mode a queue pair has no port")
    near, _ = ends
    for port in (1, 2, 1):
        near.lag_port = port
        assert near.lag_port == (port, port)
        before = sent(bonded[0])
        copy(ends, rng)
        grown = [after - b for after, b in zip(sent(bonded[0]), before, strict=True)]
        assert NBYTES <= grown[port - 1] < 1.1 * NBYTES and grown[2 - port] == 0, (port, grown)


@emulated
def test_without_a_choice_queue_pairs_alternate(bonded, opened, rng):
    if mode(bonded[0]) == "hash":
        pytest.skip("in hash mode a queue pair has no port")
    pairs = [connected_pair(*opened) for _ in range(4)]
    assert sorted(near.lag_port[0] for near, _ in pairs) == [1, 1, 2, 2]


@emulated
def test_in_hash_mode_the_udp_source_port_decides(bonded, ends, rng):
    if mode(bonded[0]) != "hash":
        pytest.skip("in affinity mode a queue pair keeps its port")
    near, _ = ends
    with pytest.raises(RdmakitError, match="hashes packets over ports"):
        _ = near.lag_port
    with pytest.raises(RdmakitError, match="hashes packets over ports"):  # libmlx5 asks before it sets
        near.lag_port = 1
    used = set()
    for udp_source_port in rng.choice(np.arange(0xC000, 0x10000), 12, replace=False):
        near.udp_sport = int(udp_source_port)
        before = sent(bonded[0])
        copy(ends, rng)
        grown = [after - b for after, b in zip(sent(bonded[0]), before, strict=True)]
        assert sum(g >= NBYTES for g in grown) == 1 and 0 in grown, grown
        used.add(grown.index(max(grown)))
    assert used == {0, 1}, "twelve source ports, one link"


def test_ports_that_there_are_not(bonded, ends):
    if mode(bonded[0]) == "hash":
        pytest.skip("in hash mode a queue pair has no port")
    near, _ = ends
    configured = near.lag_port
    with pytest.raises(RdmakitError):
        near.lag_port = 3
    with pytest.raises(BadArgument):
        near.lag_port = 0
    assert near.lag_port == configured
    near.modify("ERR")
    with pytest.raises((BadState, RdmakitError)):
        near.lag_port = 1


@emulated
def test_counters_are_those_of_both_links(bonded, ends, rng):
    files = [Path(sysfs.default_root(), "class/infiniband", d, "ports/1/counters") for d in bonded]
    words = [sysfs.read_int(files[0] / "port_xmit_data"), sysfs.read_int(files[1] / "port_rcv_data")]
    copy(ends, rng)
    grown = 4 * (sysfs.read_int(files[0] / "port_xmit_data") - words[0])
    assert grown == 4 * (sysfs.read_int(files[1] / "port_rcv_data") - words[1])
    assert NBYTES <= grown < 1.1 * NBYTES
    assert abs(sum(sent(bonded[0])) - 4 * sysfs.read_int(files[0] / "port_xmit_data")) < 4
