"""The model runs the device code: bytes are conserved, links carry what the plan says, seeds repeat, limits limit."""

import dataclasses

import numpy as np
import pytest

from rdmakit import World
from rdmakit.emu.clock import COSTS, Clock
from rdmakit.ep.wiring import Wiring
from rdmakit.errors import BadArgument, BadState
from rdmakit.model import load, puts
from rdmakit.model import measure as measuring
from rdmakit.model.cluster import clock_of, steer_by, world_of
from rdmakit.model.measure import measure
from rdmakit.model.plan import make_plan
from rdmakit.model.runs import Run
from rdmakit.model.steps import STEPS, step_of
from rdmakit.model.tune import by_size, tuned
from rdmakit.model.usage import read
from rdmakit.model.workload import sized_for


def small(name="roce", **changes):
    """4 hosts of 2 GPUs, two hosts a leaf: some traffic crosses spines."""
    return load(name).changed(hosts=4, gpus_per_host=2, hosts_per_leaf=2, spines=4, **changes)


@pytest.mark.parametrize(
    "kernel, op", [("normal", "dispatch"), ("normal", "combine"), ("ll", "dispatch"), ("ll", "combine")]
)
@pytest.mark.parametrize(
    "name", ["roce", "h800-cx7-roce-hash", "h800-cx7-roce-unbonded", "h800-cx7-roce-4plane", "ib"]
)
def test_bytes_are_conserved_and_go_where_the_plan_says(name, kernel, op):
    preset = small(name)
    work = sized_for(preset, kernel, op, tokens=24, channels=4)
    got = measure(preset, work, STEPS[5], seed=3)  # refuses a run whose ports differ from the plan by one byte
    rows = work.traffic(exchange=False)  # the exchange of counts is over when the time begins
    assert got.port_bytes.sum() == rows.sum() > 0 and got.wire_bytes * preset.ranks == got.port_bytes.sum()
    assert 0 < got.port_payload_fraction < 1 and got.microseconds > 5
    assert all(0 <= v <= 1.02 for v in got.usage.busiest.values()), got.usage.busiest


@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_copies_between_gpus_take_nvlink(op):
    """Dispatch pushes rows, combine pulls them."""
    work = sized_for(small(), "normal", op, tokens=64, channels=4)
    slow, fast = (measure(small(nvlink_rate=rate), work, STEPS[5]) for rate in ("2 GB/s", "160 GB/s"))
    assert slow.usage.busiest["NVLink"] > 0.6 and slow.microseconds > fast.microseconds


@pytest.mark.parametrize("step", STEPS, ids=lambda s: str(s.number))
def test_every_step_runs_and_checks_itself(step):
    preset = small("h800-cx7-roce-hash")
    work = sized_for(preset, "normal", "dispatch", tokens=48, channels=4)
    got = measure(preset, work, step)
    assert got.step == step.number and got.doorbells > 0
    assert (got.usage.busiest["CPU proxy"] > 0) == step.proxy


def test_a_plan_that_lies_is_refused(monkeypatch):
    preset = small()
    work = sized_for(preset, "normal", "dispatch", tokens=16, channels=2)
    honest = type(work).traffic

    def lies(self, choices=None, **options):
        traffic = honest(self, choices, **options)
        traffic[0, 2, 1] += 1
        return traffic

    monkeypatch.setattr(measuring.Workload, "traffic", lies)
    with pytest.raises(BadState, match="has not carried what the plan says"):
        measure(preset, work, STEPS[5])


@pytest.mark.parametrize("name", ["h800-cx7-roce-hash", "ib"])
def test_links_carry_the_flows_of_the_plan(name):
    """The C++ network hashes as the Python plan does."""
    preset = small(name)
    work = sized_for(preset, "ll", "dispatch", tokens=64, channels=2)
    plan = make_plan(preset, "ll", channels=2).carrying(work.traffic())
    got = []
    measuring_read = measuring.read

    def keep(world):
        found = measuring_read(world)
        got.append(world.links)
        return found

    measuring.read = keep
    try:
        measure(preset, work, STEPS[5])
    finally:
        measuring.read = measuring_read
    wanted, seen = plan.spine_bytes, np.zeros_like(plan.spine_bytes)
    for leaf, spine, up, octets, _ in got[-1]:
        seen[0 if up else 1, leaf, spine] = octets
    assert (wanted > 0).any() and ((wanted > 0) <= (seen > 0)).all()
    ratio = seen[wanted > 0] / wanted[wanted > 0]
    assert (ratio > 1.005).all() and (ratio < 1.1).all(), ratio  # headers, and signals without payload


def test_the_same_seed_gives_the_same_numbers():
    preset = small()
    work = sized_for(preset, "normal", "dispatch", tokens=32, channels=4)
    first, again = (measure(preset, work, STEPS[3], seed=11) for _ in range(2))
    assert first.microseconds == again.microseconds and first.usage == again.usage
    assert measure(preset, work, STEPS[3], seed=12).microseconds != first.microseconds


@pytest.mark.parametrize(
    "change, resource",
    [
        ({"port_rate": "20 Gb/s"}, "port send"),
        ({"pcie_rate": "2 GB/s"}, "PCIe write"),
        ({"nvlink_rate": "1 GB/s"}, "NVLink"),
        ({"uplink_rate": "2 Gb/s", "pfc_threshold": "64 MiB"}, "link leaf-spine"),
        ({"wqe_rate": "0.2 M/s"}, "NIC WQE engine"),
    ],
)
def test_what_is_slow_is_busy_and_named(change, resource):
    preset = small(**change)
    got = measure(preset, sized_for(preset, "normal", "dispatch", tokens=256, channels=4), STEPS[5])
    busiest = max(got.usage.busiest, key=lambda name: got.usage.busiest[name])
    assert busiest == resource or got.usage.busiest[resource] > 0.85, got.usage.busiest
    assert (
        got.microseconds
        > measure(small(), sized_for(small(), "normal", "dispatch", tokens=256, channels=4), STEPS[5]).microseconds
    )


NOISE = 0.015  # another order of events moves a run by up to 0.8 %


@pytest.mark.parametrize("kernel, op", [("normal", "dispatch"), ("ll", "combine")])
def test_what_is_faster_never_costs_time(kernel, op):
    """A rate doubled, a latency taken away, a second port: no slower; a rate halved, a latency tripled: no faster."""
    preset = small("h800-cx7-roce-unbonded")
    work = sized_for(preset, kernel, op, tokens=64 if kernel == "normal" else 16, channels=4)
    took = {}

    def us(step=5, **changes):
        key = step, *changes.items()
        if key not in took:
            took[key] = measure(preset.changed(**changes), work, STEPS[step]).microseconds
        return took[key]

    for name in ("port_rate", "pcie_rate", "uplink_rate", "nvlink_rate"):
        shown = preset[name] / 1e9
        slow, fast = (us(**{name: f"{shown * factor} GB/s"}) for factor in (0.5, 2))
        assert slow >= us() * (1 - NOISE) and fast <= us() * (1 + NOISE), name
    for name in ("kernel_launch", "hop_latency", "placement", "gpu_load"):
        more, none = us(**{name: f"{3 * preset[name]} ps"}), us(**{name: "0 ps"})
        assert more >= us() * (1 - NOISE) and none <= us() * (1 + NOISE), name
    assert us(port_rate="50 GB/s") < us() < us(port_rate="5 GB/s") and us(ports=1) > us()
    assert us(0) <= us(0, ports=1) * (1 + NOISE) and us(0) < us(0, proxy_post="3 us")


def test_incast_pauses_whoever_feeds_it():
    preset = small(pfc_threshold="16 KiB")
    work = sized_for(preset, "ll", "dispatch", tokens=128, channels=2, routing="zipf")
    paused = measure(preset, work, STEPS[5]).usage.busiest["port paused"]
    assert paused > measure(small(pfc_threshold="64 MiB"), work, STEPS[5]).usage.busiest["port paused"] == 0


def test_multipath_costs_an_atomic_a_round_trip():
    preset = small("ib")
    work = sized_for(preset, "ll", "dispatch", tokens=32, channels=2)
    slow = measure(preset.changed(routing="adaptive", multipath="yes"), work, STEPS[5]).microseconds
    assert slow > measure(preset.changed(routing="adaptive"), work, STEPS[5]).microseconds


# ---- seams
def test_wiring():
    assert [Wiring().qp_of(c) for c in range(3)] == [0, 1, 2]
    shared = Wiring(qps=2, credit_qps=True)
    assert [shared.qp_of(c) for c in range(4)] == [0, 1, 0, 1]
    assert shared.total_qps(5) == 4 and shared.credit_qp_of(3, 5) == 3 and Wiring(qps=9).data_qps(4) == 4
    with pytest.raises(BadArgument):
        Wiring(qps=0)
    with pytest.raises(BadArgument):
        step_of(6)
    assert [s.number for s in STEPS] == list(range(6)) and step_of(2).policy == "planned"


def test_a_plan_too_small_for_the_mesh_is_refused():
    preset = small()
    steer = steer_by(make_plan(preset, channels=2))
    assert steer(0, 2, 1).port in (1, 2)
    with pytest.raises(BadArgument, match="no such queue pair"):
        steer(0, 2, 2)


def test_clocks_are_checked():
    whole = clock_of(load("ib"))
    assert (
        whole.cost_list()
        and whole.hca["proxy_threads"] == 0
        and clock_of(load("ib"), proxy=True).hca["proxy_threads"]
    )
    with pytest.raises(BadArgument, match="without time"):
        World(clock=whole)
    for bad in (
        {"hca": {"speed": 1}},
        {"costs": {"load": 1}},
        {"hca": {"placement_ps": -1}},
        {"nvlink_bytes_per_second": -1},
        {"costs": dict.fromkeys(COSTS, 1.5)},
        {"network": {}},
    ):
        with pytest.raises(BadArgument):
            Clock(**bad)
    with pytest.raises(BadArgument, match="post to one NIC"):
        world_of(load("ib").changed(nics_per_gpu=2))


def test_a_reading_is_of_all_ports():
    world = world_of(small())
    found = read(world)
    assert found.payload.shape == (4, 2, 2) and dataclasses.asdict(found)["doorbells"] == 0


# ---- how large a put is
def test_a_chunk_of_rows_is_one_put():
    """Twice the rows a put, half the WRITEs; FP8 rows and BF16 rows alike."""
    preset = small("ib")
    for op in ("dispatch", "combine"):
        work = sized_for(preset, "normal", op, tokens=256, channels=4)
        few, many = (measure(preset, dataclasses.replace(work, chunk=n), STEPS[5]) for n in (16, 4))
        assert (few.put_rows, many.put_rows) == (16, 4)
        assert few.wqes < many.wqes / 2 and few.port_bytes.sum() == many.port_bytes.sum()


@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_each_step_has_puts_that_suit_it_unless_they_are_chosen(op):
    preset = small("ib")
    work = sized_for(preset, "normal", op, tokens=16, channels=2)
    assert [work.at_step(s.number).chunk for s in STEPS] == list(puts.BEST[op][16])  # the nearest size known
    assert measure(preset, work, STEPS[0]).put_rows == puts.BEST[op][16][0]
    assert dataclasses.replace(work, chunk=2).at_step(0).chunk == 2
    assert dataclasses.replace(work, slots=8).at_step(0).chunk == 4  # a ring holds two
    with pytest.raises(BadArgument, match="no such operation"):
        puts.rows_of_a_put("sideways", 16, 0)
    with pytest.raises(BadArgument, match="no such operation"):
        puts.rows_of_a_put("combine", 16, 6)


def test_the_best_put_is_the_best_of_all_tried():
    preset = small("ib")
    work = sized_for(preset, "normal", "dispatch", tokens=96, channels=2)
    runs = [Run(preset, work, step) for step in (STEPS[0], STEPS[5])]
    tried = by_size(runs, jobs=1)
    chosen = tuned(runs, jobs=1)
    for run, found in zip(chosen, tried, strict=True):
        assert list(found) == list(puts.SIZES) and run.work.chunk in found
        assert found[run.work.chunk].logical_gbs == max(got.logical_gbs for got in found.values())
    assert chosen[0].work.chunk > chosen[1].work.chunk  # a round trip behind each put
    fixed = [dataclasses.replace(runs[0], work=dataclasses.replace(runs[0].work, chunk=2)),
             Run(preset, sized_for(preset, "ll", "dispatch", tokens=8), STEPS[5])]  # fmt: skip
    assert tuned(fixed, jobs=1) == fixed and by_size(fixed, jobs=1) == [{}, {}]
