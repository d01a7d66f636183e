"""Dispatch and combine between hosts over real devices, bit for bit against NumPy: kernels on the CPU runner.

Device code posts to queue pairs of the devices, on the NIC's own queues and through the proxy; ports are used as
planned.
"""

import time

import numpy as np
import pytest
from connect_rig import results
from hosts_checks import check_low_latency
from hosts_rig import Rig, shared_out
from internode_checks import check_round_trip
from moe import make_inputs

from rdmakit.connect import Route, open_paths
from rdmakit.errors import BadArgument, BadState, CompletionError, HangError, NotAvailable
from rdmakit.model.cluster import steer_by
from rdmakit.model.execute import check_executed, plan_for


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize(("hosts", "local"), [(2, 1), (2, 2), (3, 1)], ids=["2x1", "2x2", "3x1"])
def test_normal_calls(names, tmp_path, seed, hosts, local, fp8):
    rig = Rig(tmp_path / "meeting", shared_out(names, hosts), local, seed=seed)
    for turn in range(2):  # the second finds rings, counts and epochs where the first left them
        tokens = [max(40 - 7 * rank * turn, 0) for rank in range(rig.ranks)]
        check_round_trip(rig, tokens, 256, 4 * rig.ranks, 4, seed + turn, fp8=fp8)


@pytest.mark.parametrize("kind", ["bf16", "fp8", "ue8m0"])
@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
def test_low_latency_calls(names, tmp_path, seed, kind, halves):
    rig = Rig(tmp_path / "meeting", shared_out(names, 2), seed=seed)
    for turn in range(3):  # both parities, and the first once more
        check_low_latency(rig, [9, 4 + turn], 12, 512, 3, 4, seed + turn, fp8=kind != "bf16", ue8m0=kind == "ue8m0",
                          halves=halves)  # fmt: skip
    check_low_latency(rig, [3, 5], 6, 1024, 2, 2, seed)  # other sizes lay another heap out
    results(rig.ranks, lambda rank: rig.engines[rank].ll_clean())
    check_low_latency(rig, [6, 0], 6, 1024, 2, 2, seed + 9)


def test_low_latency_among_hosts_of_several_ranks_and_normal_calls_between(names, tmp_path, seed):
    """Ranks of one host by stores, others by queue pairs, some of which both kinds of calls share."""
    rig = Rig(tmp_path / "meeting", shared_out(names, 2), 2, seed=seed)
    for turn in range(2):
        check_low_latency(rig, [5, 3, 0, 8], 8, 256, 2, 3, seed + turn, fp8=True)
        check_round_trip(rig, [11, 0, 30, 7], 256, 16, 4, seed + turn)


def test_ports_are_used_as_planned(names, tmp_path, seed):
    """Every queue pair leaves by its planned port, and the ports' shares of what was moved are even."""
    devices = shared_out(names, 2)
    with_ports = open_paths(devices[0])
    plan = plan_for(with_ports, 2, channels=4)
    rig = Rig(tmp_path / "meeting", devices, seed=seed, channels=4, rdma=1 << 19, nvl=4 << 20, max_tokens=128,
              steer=steer_by(plan))  # fmt: skip
    for turn in range(3):
        check_round_trip(rig, [128, 128], 512, 8, 4, seed + turn, num_sms=8)
    for mesh in rig.meshes:
        rows = check_executed(plan, mesh, most=1.15)
        assert len(rows) == 4 and {row["port"] for row in rows} == set(range(1, 1 + len(with_ports)))
        assert max(mesh.posted_blocks()) <= 1.15 * min(mesh.posted_blocks())


def test_an_idle_port_is_found_out(names, tmp_path, seed):
    rig = Rig(tmp_path / "meeting", shared_out(names, 2), seed=seed, steer=lambda *_: Route(1))
    check_round_trip(rig, [40, 40], 256, 8, 4, seed)
    mesh = rig.meshes[0]
    if len(mesh.paths) == 1:
        pytest.skip("one port: rdmakit connectx --nics 4")
    assert mesh.posted_blocks()[0] > 0 and not any(mesh.posted_blocks()[1:])
    with pytest.raises(BadState, match=r"another (port|share) than planned"):
        check_executed(plan_for(mesh.paths, 2, channels=2), mesh)


# ---- what goes wrong
def test_a_key_that_does_not_fit_is_a_completion_error_of_that_queue_pair(names, tmp_path, seed):
    rig = Rig(tmp_path / "meeting", shared_out(names, 2), seed=seed, patience_s=60)
    x, idx, weights = make_inputs([8, 8], 128, 8, 2, seed)
    sents = rig.layouts(idx, 8)
    rig.notify(sents, [8, 8], 8)
    told = rig.meshes[0].told[1]
    told["rkeys"] = [key ^ 0x5A00 for key in told["rkeys"]]  # before the rings for rows of this size are described
    began = time.monotonic()
    with pytest.raises(CompletionError, match="rank 0 cannot reach rank 1") as caught:
        rig.dispatch(sents, x, idx, weights)
    assert time.monotonic() - began < 20
    assert caught.value.facts["wc_status"] == "REM_ACCESS_ERR" and "port 1, which is up" in caught.value.rule


def test_a_rank_that_does_not_take_part_is_waited_for_so_long_and_named(names, tmp_path, seed):
    rig = Rig(tmp_path / "meeting", shared_out(names, 2), seed=seed, patience_s=0.5)
    _, idx, _ = make_inputs([8, 8], 128, 8, 2, seed)
    sents = rig.layouts(idx, 8)
    absent = rig.engines.pop()  # alive: its memory is registered, and nobody sends
    with pytest.raises(HangError, match="token counts from a rail peer"):
        rig.notify(sents[:1], [8], 8)
    assert absent.rank == 1


def test_bad_calls_name_value_rule_and_remedy(names, tmp_path, seed):
    rig = Rig(tmp_path / "meeting", shared_out(names, 2), seed=seed)
    engine = rig.engines[0]
    for kind, text, call in (
        (BadState, "no low-latency heap", lambda: engine.ll_dispatch(*[0] * 12)),
        (BadArgument, "experts that do not fit", lambda: engine.ll_configure(4, 256, 3, 2)),
        (BadArgument, "too many choices", lambda: engine.ll_configure(4, 256, 4, 99)),
        (NotAvailable, "cannot be masked", lambda: engine.mask_update(1, True)),
    ):
        with pytest.raises(kind, match=text) as caught:
            call()
        assert caught.value.rule and caught.value.remedy
    check_low_latency(rig, [2, 2], 4, 256, 2, 2, seed)
    tensors = np.zeros(8, np.int64)
    with pytest.raises(BadState, match="received before it was sent"):
        engine.ll_combine(*[tensors.ctypes.data] * 4, 1, tensors.ctypes.data, 0, 2)


def test_everything_is_given_back(names, tmp_path, seed):
    rig = Rig(tmp_path / "meeting", shared_out(names, 2), seed=seed)
    check_low_latency(rig, [2, 2], 4, 256, 2, 2, seed)
    contexts = [path.context for mesh in rig.meshes for path in mesh.paths]
    for engine in rig.engines:
        engine.close()
    assert not any(qp for context in contexts for qp in context._qps())
    for context in dict.fromkeys(contexts):
        with context:
            pass
        assert context.closed
