"""Buffer on GPUs over real devices between hosts of two ranks each, every rank a process: CUDA is a stand-in.

Heaps lie in memory of GPUs, which ranks of a host map by CUDA IPC, or in the host's, which they share. Kernels run on
the CPU runner. tests/gpu/test_device_queues.py is this on GPUs.
"""

import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
import gpu_process_rig as gpus  # noqa: E402
import process_rig as rig  # noqa: E402
from two_by_two import HOSTS, LOCAL, RANKS  # noqa: E402


@pytest.mark.parametrize("where", ["gpu", "host", "mixed"])
def test_all_calls(ranks, tmp_path, seed, where):
    """Normal and low latency, two shapes of these, on heaps that this host's ranks reach; nothing stays behind."""
    ranks.each(gpus.install, where)
    assert ranks.each(rig.make, tmp_path / "meeting", {}) == [HOSTS] * RANKS
    for rank, (kind, in_host_memory, reached, opened, registered) in enumerate(ranks.each(gpus.engine_of)):
        own = rank // LOCAL * LOCAL
        assert kind == "DeviceLink" and reached == [own, own + 1]
        assert in_host_memory == (where != "gpu"), "where one rank's heap must lie in the host's memory, all do"
        assert (opened, registered) == ((0, LOCAL) if in_host_memory else (LOCAL - 1, 0))
    for place in (place for of_rank in ranks.each(gpus.places) for place in of_rank):
        assert ("memory of the GPU" in place) == (where == "gpu" and place.startswith("devx")), place
    ranks.each(gpus.touch, seed)
    for turn, fp8 in enumerate((False, True)):
        ranks.each(rig.normal, seed + turn, fp8, 2)
        ranks.each(rig.low_latency, seed + turn, fp8, turn == 0)
    ranks.each(rig.other_experts, 3)  # another low-latency heap
    ranks.each(rig.low_latency, seed + 10, True, True)
    ranks.each(rig.normal, seed + 10, True)
    ranks.each(rig.destroy)
    assert ranks.each(gpus.what_cuda_has) == [(0, 0, 0)] * RANKS


def test_gpus_whose_additions_get_lost_are_refused(ranks, tmp_path, seed):
    """Two GPUs of a host do not add to one word of the host's memory, unless the bus has atomics."""
    ranks.each(gpus.install, "mixed", "each")
    for answer in ranks.all(rig.make, tmp_path / "refused", {}):
        assert answer[:2] == ("failed", "NotAvailable"), answer
        for text in ("several GPUs of one host", "ranks 0 … 1 on 2 GPUs", "HostNativeAtomic", "EFAULT", "peermem"):
            assert text in answer[2], answer
    for where, adds in (("host", True), ("gpu", False)):
        ranks.each(gpus.install, where, "each", adds)
        ranks.each(rig.make, tmp_path / where, {})
        ranks.each(rig.normal, seed, False)
        ranks.each(rig.destroy)


def test_a_rank_that_fails_is_named_on_its_host(ranks, tmp_path, seed):
    """Where ranks share memory, who waits learns why another does not come."""
    ranks.each(gpus.install, "host")
    ranks.each(rig.make, tmp_path / "meeting", {})
    said = ranks.each(gpus.wait_for_what_does_not_come, 1)
    assert said[1][0] == "HangError"
    kind, text = said[0]
    assert kind == "RankMissing" and "rank 0 waits for rank 1, which failed" in text and "a flag did not come" in text
    assert said[2] is said[3] is None


def test_a_rank_whose_call_raises_is_named_on_its_host(ranks, tmp_path, seed):
    """What a kernel reported is raised by the next call, before anything waits: others learn it all the same."""
    ranks.each(gpus.install, "host")
    ranks.each(rig.make, tmp_path / "meeting", {})
    said = ranks.each(gpus.call_after_a_failure, 1)
    assert said[1][0] == "DeviceFault"
    kind, text = said[0]
    assert kind == "RankMissing" and "rank 0 waits for rank 1, which failed" in text and "gave up" in text
    assert said[2] is said[3] is None
