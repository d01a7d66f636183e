"""Dispatch and combine between hosts over real devices, bit for bit against NumPy: kernels on the CPU runner.

Device code posts to queue pairs of the devices, on the NIC's own queues and through the proxy; each rank is a host.
"""

import pytest
from connect_rig import results
from hosts_checks import check_low_latency
from hosts_rig import Rig
from internode_checks import check_round_trip

from rdmakit.verbs.backend import device_names


@pytest.fixture(params=["own", "proxied"])
def hosts(request, devices):
    """Device strings of two hosts: half of what there is for each, or the only one for both."""
    named = device_names()[0] if len(set(devices)) > 1 else list(devices)
    suffix = ":queues=proxied" if request.param == "proxied" else ""
    half = len(named) // 2
    return [[name + suffix for name in part] for part in (named[:half], named[half : 2 * half])]


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_a_round_trip_of_two_hosts(hosts, tmp_path, seed, fp8):
    rig = Rig(tmp_path / "meeting", hosts, seed=seed)
    for turn in range(2):  # the second finds rings, counts and epochs where the first left them
        tokens = [max(40 - 7 * rank * turn, 0) for rank in range(rig.ranks)]
        check_round_trip(rig, tokens, 256, 4 * rig.ranks, 4, seed + turn, fp8=fp8)


@pytest.mark.parametrize("kind", ["bf16", "fp8", "ue8m0"])
@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
def test_low_latency_of_two_hosts(hosts, tmp_path, seed, kind, halves):
    rig = Rig(tmp_path / "meeting", hosts, seed=seed)
    for turn in range(3):  # both parities, and the first once more
        check_low_latency(rig, [9, 4 + turn], 12, 512, 3, 4, seed + turn, fp8=kind != "bf16", ue8m0=kind == "ue8m0",
                          halves=halves)  # fmt: skip
    check_low_latency(rig, [3, 5], 6, 1024, 2, 2, seed)  # other sizes lay another heap out
    rounds = [engine.ll_clean for engine in rig.engines]
    results(rig.ranks, lambda rank: rounds[rank]())
    check_low_latency(rig, [6, 0], 6, 1024, 2, 2, seed + 9)
