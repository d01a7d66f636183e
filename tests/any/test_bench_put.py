"""Puts over their size on the CPU runner: every byte arrives with its signal, and what does not is counted."""

import pytest
from test_bench_queue import RunnerPlatform

from rdmakit.gpu import bench_put


@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
def test_every_byte_arrives(policy, seed):
    done = bench_put.put_sizes([8, 1032, 1 << 15], RunnerPlatform(seed, policy), seed=seed, most_rounds=20)
    assert done["ok"] and [row["wrong"] for row in done["sizes"]] == [0, 0, 0]
    assert len(done["lines"]) == 6
    if policy == "timed":
        assert done["figures"]["put_32768_us"] > done["figures"]["put_8_us"] > 0
        assert done["figures"]["put_32768_gbs"] > done["figures"]["put_8_gbs"] > 0


def test_a_byte_that_differs_is_counted(seed):
    """One byte of a source changed behind the run: one that differs at the peer."""

    class Spoilt(RunnerPlatform):
        def run(self, kernel, grid, block, args):
            seconds = super().run(kernel, grid, block, args)
            next(array for array in self.last.kept if array.nbytes == 4096)[7] ^= 1
            return seconds

    done = bench_put.put_sizes([4096], Spoilt(seed), seed=seed, most_rounds=10)
    assert not done["ok"] and done["sizes"][0]["wrong"] == 1
