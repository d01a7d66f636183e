"""The benchmarks of primitives, copies and puts on a real GPU, small: every result right, no figure that cannot be."""

from __future__ import annotations

import json

import pytest

from rdmakit.cli import main
from rdmakit.gpu import bench_copies, bench_primitives, bench_put
from rdmakit.gpu.bench_machine import GpuMachine

pytestmark = pytest.mark.gpu


def test_every_primitive_is_right_and_takes_its_time():
    machine = GpuMachine()
    done = bench_primitives.primitives(machine, rounds=2000, repeats=3)
    wrong = [row["name"] for row in done["costs"] if not row["ok"]]
    assert done["ok"] and not wrong, wrong
    figures = done["figures"]
    assert 50 < figures["load_acquire_gpu_ns"] < 5_000, "a chain of loads that no cache of the SM answers"
    assert figures["load_acquire_sys_pinned_ns"] > figures["load_acquire_gpu_ns"]
    assert figures["wqe_post_ns"] > figures["wqe_reserve_ns"]
    assert figures["flag_round_trip_host_ns"] > figures["flag_round_trip_gpu_scope_ns"]
    assert any("peer" in name for name in figures) == ("peer" not in machine.missing)


def test_copies_are_whole_and_grow_with_sms():
    done = bench_copies.copies(sms=(1, 4), each=4 << 20, repeats=3)
    assert done["ok"]
    for row in done["copies"]:
        assert 1 < row["gbs"] < 8_000, row
    for how in bench_copies.HOWS:
        assert done["figures"][f"copy_{how}_local_4sm_gbs"] > 2 * done["figures"][f"copy_{how}_local_1sm_gbs"]


def test_puts_of_every_size_arrive(seed):
    done = bench_put.put_sizes([8, 4104, 1 << 20], seed=seed, most_rounds=50)
    assert done["ok"] and done["figures"]["put_1048576_us"] > done["figures"]["put_8_us"] > 0


def test_the_command_keeps_a_record(tmp_path, capsys):
    path = tmp_path / "put.json"
    assert main(["bench", "put", "--begin", "8", "--end", "512", "--json", "--out", str(path)]) == 0
    kept = json.loads(path.read_text())
    assert kept == json.loads(capsys.readouterr().out)
    assert kept["ok"] and kept["figures"]["put_signal_us"] > 0 and kept["device"] and kept["measured"]
