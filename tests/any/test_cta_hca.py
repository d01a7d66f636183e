"""The HCA made of warps (hca_engine.cuh) against the HCA model of the CPU: the same WQE bytes leave the same memory,
the same completions, states, events and counts. Then what is its own: many warps, ends, ride-along, growth.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lock_rig import WAYS, Transfers, make_lock
from moe import failures, make_inputs
from test_ep_low_latency import rows_for, wrong_sums
from test_ep_normal import round_trip

import rdmakit
from rdmakit.device import connected_pair
from rdmakit.ep import verify
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.ep.normal import NormalBuffer
from rdmakit.errors import BadArgument, CompletionError, HangError, NotAvailable, RdmakitError
from rdmakit.layout import Sge, encode

GUARD, ROOM = 64, 512
ENGINES = ("host", "cta")
COUNTS = ("wqes", "atomics", "cqes", "errors", "flushed")
POLICIES = ("fast", "timed", "explore")


class Side:
    """Two hosts of a world; each has ROOM bytes between guards, and receives of 96 bytes in two parts."""

    def __init__(self, world, *, sq=32, cq=256, receives=4, **options):
        self.world = world
        ends = []
        for host in range(2):
            context = self.world.open(host)
            pd = context.alloc_pd()
            send, receive = context.create_cq(cq), context.create_cq(cq)
            ends.append(pd.create_qp(send, receive, sq_wqebbs=sq, rq_wqes=4, max_recv_sge=2))
        self.near, self.far = ends
        self.near.connect(self.far, **options)
        self.far.connect(self.near)
        rng = np.random.default_rng(world.seed)
        # Aligned so that a bit of an address means the same under both engines, wherever their memory lies.
        self.memory = [self.world.allocate(ROOM + 2 * GUARD, alignment=1 << 16) for _ in range(2)]
        for array in self.memory:
            array[:] = rng.integers(0, 256, len(array), dtype=np.uint8)
        self.mine = self.near.pd.register(self.memory[0][GUARD:-GUARD])
        self.theirs = self.far.pd.register(self.memory[1][GUARD:-GUARD])
        for k in range(receives):
            self.far.post_recv([self.theirs.slice(96 * k, 32), self.theirs.slice(96 * k + 32, 64)])

    def completions(self):
        found = []
        for end in (self.near, self.far):
            for cq in (end.send_cq, end.recv_cq):
                try:
                    while True:
                        found += [(end is self.near, *self._plain(done)) for done in cq.wait(check=False)]
                except HangError:  # nothing more comes
                    pass
        return found

    @staticmethod
    def _plain(done):
        return done.wqe_index, done.opcode, done.byte_len, done.imm, done.is_receive, done.syndrome, done.vendor_error

    def outcome(self):
        """All that must be equal. Keys and numbers are the same, since both worlds were made by the same calls."""
        completions = self.completions()
        ends = [(end.state.name, end.completed) for end in (self.near, self.far)]
        counts = [{name: end.context.counters[name] for name in COUNTS} for end in (self.near, self.far)]
        events = [sorted(event.name for event in end.context.events() if event.name != "communication_established")
                  for end in (self.near, self.far)]  # fmt: skip
        return completions, ends, counts, events, [bytes(array) for array in self.memory]


def side_of(engine, seed, *, doorbell="dbrec", policy="fast", **options):
    world = rdmakit.World(hosts=2, seed=seed, doorbell=doorbell, policy=policy, engine=engine)
    return Side(world, **options)


def misaligned(wqe, by):
    """The encoder refuses what the device has to refuse as well."""
    return wqe[:23] + bytes([wqe[23] + by]) + wqe[24:]


def wqe_of(side, kind, index, at, to, length, flags=8, imm=0x1234):
    """A WQE's bytes in a world: `at` and `to` are offsets into its memory."""
    qpn, local = side.near.qpn, Sge(side.mine.address + at, max(length, 1), side.mine.lkey)
    word = Sge(side.mine.address + at // 8 * 8, 8, side.mine.lkey)
    common = {"index": index, "qpn": qpn, "flags": flags}
    remote = {"raddr": side.theirs.address + to, "rkey": side.theirs.rkey}
    aligned = {**remote, "raddr": side.theirs.address + to // 8 * 8}
    inline = bytes(side.memory[0][GUARD + at : GUARD + at + min(length, 28)])
    first, second = max(length // 2, 1), max(length - length // 2, 1)
    half = Sge(local.addr, first, local.lkey), Sge(local.addr + 3, second, local.lkey)
    build = {
        "write": lambda: encode.write(**common, **remote, sges=local),
        "gather": lambda: encode.write(**common, **remote, sges=list(half)),
        "empty": lambda: encode.write(**common, **remote, sges=[]),
        "inline": lambda: encode.write_inline(**common, **remote, data=inline or b"x"),
        "write_imm": lambda: encode.write_imm(**common, **remote, imm=imm, sges=local),
        "read": lambda: encode.read(**common, **remote, sges=local),
        "scatter": lambda: encode.read(**common, **remote, sges=list(half)),
        "send": lambda: encode.send(**common, sges=local),
        "send_imm": lambda: encode.send_imm(**common, imm=imm, sges=local),
        "fetch_add": lambda: encode.fetch_add(**common, **aligned, add=imm, sge=word),
        "unaligned": lambda: misaligned(encode.fetch_add(**common, **aligned, add=imm, sge=word), to % 8),
        "compare_swap": lambda: encode.compare_swap(**common, **aligned, compare=0, swap=imm, sge=word),
        "masked_compare_swap": lambda: encode.masked_compare_swap(
            **common, **aligned, compare=0, swap=imm, compare_mask=0, swap_mask=0xFFFF, width=8, sge=word
        ),
        "masked_fetch_add": lambda: encode.masked_fetch_add(
            **common, **aligned, add=imm, boundary=0x80808080, width=4, sge=word._replace(length=4)
        ),
        "dump": lambda: encode.dump(**common, sge=local),
        "nop": lambda: encode.nop(**common),
    }
    return build[kind]()


KINDS = ("write", "gather", "empty", "inline", "write_imm", "read", "scatter", "send", "send_imm", "fetch_add",
         "unaligned", "compare_swap", "masked_compare_swap", "masked_fetch_add", "dump", "nop")  # fmt: skip
STEP = st.tuples(
    st.sampled_from(KINDS),
    st.integers(0, ROOM - 1),
    st.integers(0, ROOM - 1),
    st.sampled_from([0, 1, 3, 4, 7, 8, 12, 16, 17, 64, 65, 96, 97, 128, 256, ROOM, ROOM + 1]),
    st.sampled_from([0, 8, 8, 8 | 0x80]),
)


def differ(seed, steps, changes=(), policy="fast", doorbell="dbrec", batch=1):
    """What both engines make of the same posts, `batch` WQEs to a doorbell. Equal, or this fails."""
    outcomes = []
    for engine in ENGINES:
        side = side_of(engine, seed, policy=policy if engine == "cta" else "fast", doorbell=doorbell)
        for begin in range(0, len(steps), batch):
            with side.near.batch():
                for kind, at, to, length, flags in steps[begin : begin + batch]:
                    wqe = bytearray(wqe_of(side, kind, side.near.posted, at, to, length, flags))
                    for where, value in changes:
                        wqe[where % len(wqe)] ^= value
                    side.near.post_wqe(bytes(wqe))
            side.world.run()
        outcomes.append(side.outcome())
    for host, cta in zip(*outcomes, strict=True):
        assert host == cta


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 1 << 32), steps=st.lists(STEP, min_size=1, max_size=8), batch=st.sampled_from([1, 3, 8]))
def test_the_same_as_the_cpu_engine(seed, steps, batch):
    differ(seed, steps, batch=batch)


@pytest.mark.parametrize("doorbell", ["dbrec", "register", "no_dbr"])
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 32),
    step=STEP,
    changes=st.lists(st.tuples(st.integers(8, 127), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_the_same_for_spoilt_wqes(doorbell, seed, step, changes):
    """Bytes behind the control segment's first eight, by which the host rings, are anything."""
    differ(seed, [step], changes, doorbell=doorbell)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [8, 256])
def test_every_kind_of_wqe_in_every_policy(policy, kind, length, seed):
    """Source and target at odd and even places, and twice, so that the second finds what the first has left."""
    differ(seed, [(kind, 24, 40, length, 8), (kind, 29, 43, length, 8)], policy=policy)


def test_a_ring_of_noise_drains_alike(seed):
    rng = np.random.default_rng(seed)
    for turn in range(20):
        noise = [bytearray(rng.bytes(int(rng.integers(1, 5)) * 16)) for _ in range(16)]
        outcomes = []
        for engine in ENGINES:
            side = side_of(engine, turn)
            for raw in noise:
                raw[4:7] = side.near.qpn.to_bytes(3, "big")
                side.near.post_wqe(bytes(raw))
            outcomes.append(side.outcome())
        for host, cta in zip(*outcomes, strict=True):
            assert host == cta


# ---- errors --------------------------------------------------------------------------------------------------------
def test_a_receiver_that_is_not_ready_is_waited_for(seed):
    outcomes = []
    for engine in ENGINES:
        side = side_of(engine, seed, receives=0)
        side.near.post_send(side.mine[:40])
        side.near.post_write(side.mine[:8], side.theirs[8:16])
        with pytest.raises(HangError, match="no receive posted"):
            side.near.send_cq.wait()
        side.far.post_recv(side.theirs.slice(64, 64))
        outcomes.append(side.outcome())
    for host, cta in zip(*outcomes, strict=True):
        assert host == cta


@pytest.mark.parametrize("engine", ENGINES)
def test_retries_run_out(engine, seed):
    side = side_of(engine, seed, receives=0, rnr_retry=2)
    side.near.post_send(side.mine[:9])
    with pytest.raises(CompletionError) as caught:
        side.near.send_cq.wait()
    assert caught.value.wc_status == "RNR_RETRY_EXC_ERR"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_peer_that_is_gone_does_not_answer(engine, seed):
    side = side_of(engine, seed)
    side.far.modify("RESET")
    side.near.post_write(side.mine[:8], side.theirs[:8])
    with pytest.raises(CompletionError) as caught:
        side.near.send_cq.wait()
    assert caught.value.wc_status == "RETRY_EXC_ERR"


@pytest.mark.parametrize("engine", ENGINES)
def test_reset_and_connect_again(engine, seed):
    """Indices begin anew, and so do doorbells whose value is that of the last one before."""
    side = side_of(engine, seed)
    for _ in range(3):
        side.near.post_write(side.mine[:64], side.theirs[128:192])
        assert side.near.send_cq.wait()[0].wqe_index == 0
        assert np.array_equal(side.mine.bytes[:64], side.theirs.bytes[128:192])
        side.mine.bytes[:64] += 1
        for end, other in ((side.near, side.far), (side.far, side.near)):
            end.modify("RESET")
            end.connect(other)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_completion_queue_dies(engine, seed):
    side = side_of(engine, seed, cq=4)
    for _ in range(6):
        side.near.post_nop()
    side.world.run()
    assert side.near.state.name == "ERR"
    assert {"cq_error", "qp_fatal"} <= {event.name for event in side.near.context.events()}


# ---- what it has not -----------------------------------------------------------------------------------------------
def test_what_it_has_not_is_refused():
    world = rdmakit.World(engine="cta")
    context = world.open()
    with pytest.raises(NotAvailable, match="scatter"):
        context.alloc_pd().create_qp(context.create_cq(8), scatter_to_cqe=True)
    with pytest.raises(NotAvailable, match="wakes nobody"):
        context.create_cq(8).arm()
    with pytest.raises(BadArgument, match="no faults"):
        world.faults = "loss=0.1"
    with pytest.raises(BadArgument, match="engine"):
        rdmakit.World(engine="dpu")


# ---- many at once --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", POLICIES)
def test_many_queue_pairs_and_keys(policy, seed):
    """More queue pairs than one warp looks at, more keys than the first table has; each moves bytes of its own."""
    world = rdmakit.World(hosts=2, engine="cta", policy=policy, seed=seed)
    ends = [world.open(host).alloc_pd() for host in range(2)]
    moved = []
    for k in range(70):
        near, far = (pd.create_qp(pd.context.create_cq(8)) for pd in ends)
        near.connect(far)
        far.connect(near)
        mine, theirs = ends[0].register(world.array(100, fill=k)), ends[1].register(world.array(100))
        near.post_write(mine, theirs)
        moved.append((near, far, mine, theirs))
    for near, _, mine, theirs in moved:
        near.send_cq.wait()
        assert np.array_equal(mine.bytes, theirs.bytes)


RIDE = """
#include <rdmakit/hca_engine.cuh>
#include <rdmakit/signal.cuh>
RDMAKIT_KERNEL put_and_serve(const rdmakit::HcaHandle* hca, const rdmakit::QpHandle* qp, rdmakit::RemoteMemory to,
                             rdmakit::LocalMemory from, unsigned words, unsigned riders) {
    using namespace rdmakit;
    const u32 block = static_cast<u32>(block_id());
    if (block < riders) {
        hca_serve(*hca, block * warps_in_block() + warp_id(), riders * warps_in_block());
        return;
    }
    if (block_rank() == 0 && check_handle(*qp)) {
        const u32 workers = blocks_in_grid() - riders;
        for (u32 i = block - riders; i < words; i += workers) put(*qp, to + 8 * i, from + 8 * i, 8);
        quiet(*qp);
    }
    hca_leave(hca->left);
}
"""


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("riders", [1, 3])
def test_blocks_ride_in_the_grid_of_an_operation(policy, riders, seed):
    """No other kernel serves: some blocks of the one that posts do, and end with it."""
    words, workers = 60, 4
    world = rdmakit.World(hosts=2, engine="cta", policy=policy, seed=seed)
    near, far = connected_pair(world.open(0), world.open(1))
    source, target = world.array(words, np.uint64), world.array(words, np.uint64)
    source[:] = np.random.default_rng(seed).integers(0, 2**63, words, dtype=np.uint64)
    mine, theirs = near.pd.register(source), far.pd.register(target)
    pod = near.device_handle()
    with world.riding(leavers=workers) as handles:
        kernel = world.compile(RIDE, name="ride.cu").get_function("put_and_serve")
        kernel(riders + workers, 64, (handles[0], pod.array, theirs.remote(), mine, words, riders))
        run = world.run()
    pod.report.raise_for_status()
    assert np.array_equal(source, target) and near.completed == words
    assert [launch.kernel for launch in run.launches] == ["put_and_serve"]


def test_a_handle_of_another_layout_is_refused(seed):
    side = side_of("cta", seed)
    side.near.post_nop()
    side.world._cta.devices[0].pods["layout_version"] = 77
    with pytest.raises(RdmakitError, match="HcaQp of another layout"):
        side.world.run()


# ---- the protocols -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", WAYS)
def test_every_strategy_delivers(policy, way, seed, rng):
    world = rdmakit.World(hosts=2, engine="cta", policy=policy, seed=seed, data_in_order=True)
    lock = make_lock(world, way, slots=4, max_payload=300)
    moved = Transfers(world, [lock], rng.integers(0, 301, 24), rng)
    moved.launch()
    moved.check()
    assert lock.in_flight == 0


@pytest.mark.parametrize("fp8", [False, True])
def test_dispatch_and_combine_between_two_hosts(fp8, seed):
    world = rdmakit.World(hosts=2, engine="cta", seed=seed)
    x, idx, weights = make_inputs([16, 11], 256, 16, 4, seed)
    low = LowLatencyBuffer(world, hidden=256, topk=4, experts=16, max_tokens=16)
    got, handles, _ = low.dispatch(x, idx, use_fp8=fp8)
    assert not failures(verify.check_low_latency(got, x, idx, 16, 16, fp8))
    y = rows_for(got, seed)
    out, _ = low.combine(y, handles, idx, weights)
    assert not wrong_sums(out, y, got, idx, weights, 16)
    if not fp8:
        normal = NormalBuffer(world, hidden=256, topk=4, experts=16, max_tokens=16, channels=4, slots=16, chunk=4)
        assert not round_trip(world, normal, x, idx, weights, 16, seed)[1]
