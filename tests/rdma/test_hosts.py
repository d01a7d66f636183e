"""Dispatch and combine between hosts over real devices, bit for bit against NumPy: kernels on the CPU runner.

Device code posts to queue pairs of the devices, on the NIC's own queues and through the proxy; each rank is a host.
"""

import pytest
from hosts_rig import Rig
from internode_checks import check_round_trip

from rdmakit.verbs.backend import device_names


@pytest.fixture(params=["own", "proxied"])
def hosts(request, devices):
    """Device strings of two hosts: half of what there is for each, or the only one for both."""
    named = [name for name in device_names()[0]] if len(set(devices)) > 1 else list(devices)
    suffix = ":queues=proxied" if request.param == "proxied" else ""
    half = len(named) // 2
    return [[name + suffix for name in part] for part in (named[:half], named[half : 2 * half])]


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_a_round_trip_of_two_hosts(hosts, tmp_path, seed, fp8):
    rig = Rig(tmp_path / "meeting", hosts, seed=seed)
    for turn in range(2):  # the second finds rings, counts and epochs where the first left them
        tokens = [max(40 - 7 * rank * turn, 0) for rank in range(rig.ranks)]
        check_round_trip(rig, tokens, 256, 4 * rig.ranks, 4, seed + turn, fp8=fp8)
