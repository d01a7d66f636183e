# %% [markdown] tags=["question"]
# # 13 · Reading the real ones
#
# **You open the device code of NVSHMEM, DeepEP or NCCL. Every name is new. Which of their lines is which of ours, and
# where does the doorbell record come before the doorbell?**
#
# The NIC is the same, so the steps are the same: take a slot, fill it, say that it is filled, tell the NIC, wait for the
# completion. Whoever knows them in one library finds them in the others. What then differs is a decision, and has a reason.

# %%
import re

import numpy as np

import rdmakit
from rdmakit import course, show
from rdmakit.device import connected_pair
from rdmakit.explore import Explorer, replay

course.begin()

# %% [markdown]
# ## The picture: the way of one WQE, in four languages
# **NVSHMEM**'s IBGDA is the oldest. **DeepEP V1** has a copy of its device code, changed for its own needs. **NCCL**'s GIN
# (GPU-initiated networking) has backends: in *GDAKI* the GPU rings the NIC, by NVIDIA's library DOCA GPUNetIO; in *proxy* a
# CPU thread does. DeepEP V2 stands on GIN. A `…` below stands for `doca_gpu_dev_verbs_`; an empty cell, for no name that we know.
# Names alone, no code: NVSHMEM, and with it DeepEP's `ibgda_device.cuh`, are under a licence of NVIDIA's that is not an open
# one. Read them in their own repositories.

# %% tags=["picture"]
HEADS = ("step", "here", "NVSHMEM IBGDA", "DeepEP V1", "NCCL GIN, GDAKI")
ONE_WQE = [
    ("queue", "QpHandle, SqState", "nvshmemi_ibgda_device_qp_t", "the same type", "…qp"),
    ("take a slot", "reserve: reserved", "resv_head", "ibgda_reserve_wqe_slots", "…reserve_wq_slots: sq_rsvd_index"),
    ("is it free?", "reserve waits for completions", "", "", "…wait_until_slot_available, unless told to skip it"),
    ("filled, in order", "publish: ready", "ready_head", "ibgda_submit_requests", "…mark_wqes_ready: sq_ready_index"),
    ("how far told", "submit: rung", "prod_idx", "ibgda_post_send", "…submit_db: sq_wqe_pi"),
    ("two at once", "who finds the bell taken leaves", "a lock", "a lock", "a lock: sq_lock"),
    ("record", "tell: store to dbrec", "dbrec", "ibgda_update_dbr", "…update_dbr: sq_dbrec"),
    ("bell", "tell: mmio_store", "GPU or CPU: NIC_HANDLER", "ibgda_ring_db", "…ring_db: sq_db"),
    ("their order", "record, fence, bell", "record, bell", "record, bell", "bell, record, bell; or no record"),
    ("completion", "poll_cq", "cons_idx", "ibgda_poll_cq", "…poll_cq_at; three kinds of CQ"),
    ("all of them", "quiet", "nvshmem_quiet", "nvshmemi_ibgda_quiet", "ncclGin::flush"),
]
title = "Eleven steps, under other names. In the order of record and bell NCCL differs"
show.data_table([dict(zip(HEADS, row, strict=True)) for row in ONE_WQE], title=title, marked=[8])

# %% [markdown]
# Four decisions in it, and why:
#
# * **When to ring.** NVSHMEM gathers up to 32 requests a bell (`NVSHMEM_IBGDA_NUM_REQUESTS_IN_BATCH`), GIN leaves it to the
#   caller (`ncclGinOptFlagsAggregateRequests`), here it is `QpHandle.batch`. Fewer bells cost latency and save fences.
# * **Who rings.** Where the GPU may not write to the NIC's page, a CPU thread rings (`NVSHMEM_IBGDA_NIC_HANDLER`): the GPU
#   leaves its index in memory. That is one store more that looks like a doorbell, and is none.
# * **Which CQE.** DOCA's puts and signals ask for a CQE for every WQE, so index equals index. Here only the last of a put has one.
# * **An error.** In NCCL 2.30.7 a CQE in error counts as "not yet", and GDAKI's kernels wait on
#   ([NCCL #2383](https://github.com/NVIDIA/nccl/issues/2383)). Here it ends the wait and names QP, index and syndrome.
#
# ## What their users see

# %%
HEADS = ("", "here", "NVSHMEM", "DeepEP V1", "NCCL GIN")
TO_USERS = [
    ("put", "put", "nvshmem_putmem_nbi", "nvshmemi_ibgda_put_nbi_warp", "ncclGin::put"),
    (
        *("signal", "put_signal: FETCH_ADD, 8 bytes", "nvshmem_putmem_signal_nbi: set or add"),
        *("nvshmemi_ibgda_amo_nonfetch_add", "StrongSignal, WeakSignal: Inc, Add"),
    ),
    ("its QP", "that of the data", "the library's choice", "that of the data", "that of the data"),
    ("it says", "all before on this QP", "its own put", "a count n, sent as −n−1", "strong: all before; weak: its own put"),
    ("waits", "wait_signal: acquire.sys", "nvshmem_signal_wait_until", "ld_acquire_sys_global", "waitSignal"),
    ("address", "RemoteMemory: address, key", "symmetric heap: own address, PE", "as NVSHMEM", "ncclWindow_t, offset"),
    ("its key", "from whoever registered", "a table", "ibgda_get_lkey_and_rkey", "a window's rkeys[peer]"),
    (
        *("channel", "(peer, channel) → QP → port, planned", "NUM_RC_PER_PE QPs (2), by CTA; nvshmemx_qp_create"),
        *("one QP a channel or local expert", "context × peer → QP"),
    ),
    ("sender's own", "index for wait_completed", "nvshmem_quiet", "", "counter: FETCH_ADD on a companion QP"),
]
title = "Data and its signal share a QP wherever we could look"
show.data_table([dict(zip(HEADS, row, strict=True)) for row in TO_USERS], title=title)

# %% [markdown]
# * **One QP a channel** is what Tencent's network team brought to DeepEP, together with IBGDA in place of a CPU proxy: 44 →
#   58 GB/s at EP32 ([PR #130](https://github.com/deepseek-ai/DeepEP/pull/130)), robust on dual-port NICs and RoCE. Notebooks
#   06 and 07 are about why. Which *port* a QP takes is not in it: NVSHMEM lays out all QPs of one NIC, then all of the next,
#   and V1's kernels use the first half ([PR #650](https://github.com/deepseek-ai/DeepEP/pull/650)).
# * **−n−1**: a zero means "not yet", so that "no tokens" has to be something else. Here a ticket says it (notebook 09).
# * **Strict memory for signals**: GIN registers its signals without relaxed ordering, and demands `NCCL_WIN_STRICT_ORDERING`
#   of a window that holds others; data may be relaxed. Notebook 08 is about why.
# * **GIN's proxy** has no doorbell. A put is a descriptor of 64 bytes in a ring that a CPU thread reads; each of its eight
#   words has a bit that says "written". Words may arrive in any order, and no fence stands between: `eager`, of notebook 09.
#
# ## Three orders
# Back to the marked row of the first table. NCCL rings **twice**, and writes the record in between. Is that wrong? And the
# other way round: first the bell, then the record? Here are the three, in our words. A fourth lacks a fence.

# %%
ORDERS = ("record, bell", "bell, record, bell", "bell, record", "bell, record, bell; no fence")
KERNEL = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL post(QpHandle qp, RemoteMemory to, LocalMemory from, u32 count, u32 order, u64* t) {
    const auto record = [&](u32 next) { store_relaxed<Scope::sys>(qp.dbrec, swap_bytes(next & 0xffff)); };
    const auto bell = [&](u32 next) { mmio_store(qp.doorbell, doorbell_next(qp.qpn, next)); };
    // t0
    for (u32 i = 0; i < count; ++i) {
        write_rdma(qp, i, Opcode::write, to.address + 8 * i, to.key, from.address + 8 * i, from.key, 8, kCqUpdate);
        fence<Scope::sys>();  // the WQE before anything that makes the NIC look
        // t1
        if (order != 0) bell(i + 1);
        if (order != 2) record(i + 1);
        if (order != 3) fence<Scope::sys>();
        // t2
        if (order == 2) record(i + 1);
        else bell(i + 1);
    }
    u32 tail = 0;
    wait_until<Scope::sys>(cqe_tail_address(qp.cq, count - 1), [](u32 cqe) { return cqe >> 28 != 15; }, qp.watch,
                           about(qp, "the last completion", count), &tail);
    // t3
}
"""


def launch(world, order, count, code=KERNEL):
    near, far = connected_pair(world.open(host=0), world.open(host=1))
    source, target = (world.array(count, np.uint64, name=name) for name in ("source", "target"))
    source[:], t = 1 + np.arange(count), world.array(4, np.uint64, name="t")
    here, there = near.pd.register(source), far.pd.register(target)
    kernel = world.compile(code, name="orders.cu").get_function("post")
    kernel(1, 32, [near.device_handle(), there.remote(), here, count, ORDERS.index(order), t])
    return source, target, t, (near, far, here, there)


# %% [markdown]
# ## Predict
# One WRITE in virtual time, with a look at the clock at each `// t`, on a NIC that believes the record alone. A fence costs
# 800 ns. How much earlier does NCCL's order have its completion than ours?

# %% tags=["predict"]
course.predict("early", "bell, record, bell: how much earlier is the completion?", None, "ns")

# %% tags=["run"]
with_clock = re.sub(r"// t(\d)", r"t[\1] = time_ns();", KERNEL)
times = {}
for order in ORDERS[:3]:
    world = rdmakit.World(hosts=2, ports=1, policy="timed", doorbell="dbrec")
    source, target, t, _ends = launch(world, order, 1, with_clock)
    world.run()
    assert np.array_equal(source, target)
    times[order] = (t - t[0]).tolist()
lanes = []
for order, t in times.items():
    words = order.split(", ")
    lanes += [(order, 0, t[1], "WQE, fence", "fill"), (order, t[1], t[2], f"{', '.join(words[:-1])}, fence", "tell")]
    lanes.append((order, t[2], t[3], f"{words[-1]}; waits for the completion", "wait"))
ours, nccls = (times[order][3] for order in ORDERS[:2])
title = f"NCCL's order saves {ours - nccls} ns of {ours:,}; so does the reverse, and it delivers (modelled)"
show.time_lanes(list(times), lanes, title=title)

# %% tags=["plot"]
course.plot_prediction("early", ours - nccls)

# %% [markdown]
# The early bell wakes the NIC one fence sooner. When it has fetched the record, the record is there. That holds for the
# third order too: **its tests pass**, and it needs one bell fewer. Should we take it?
#
# ## Break it
# Under `explore` the NIC may be quick, or the GPU slow: an interrupt, a busy bus. Two WRITEs, in the reverse order, on a NIC
# that believes the record alone.

# %% tags=["predict"]
course.predict("hung", "bell, record: with how many of 100 seeds does the kernel wait for ever?", None, "seeds")


# %% tags=["break"]
def two_writes(scene):
    """two WRITEs, each announced"""
    world = scene.world(hosts=2, ports=1, doorbell=scene.options["nic"])
    source, target, _t, ends = launch(world, scene.options["order"], 2)
    scene.keep(*ends)
    scene.expect(target, source)
    scene.allow_latent_races()  # a result that is right by luck counts as right


def failing(order, nic):
    explorer = Explorer(two_writes, order=order, nic=nic)
    return [seed for seed in range(100) if explorer.one(seed=seed) is not None]


hung = failing("bell, record", "dbrec")
course.plot_prediction("hung", len(hung))

# %%
replay(two_writes, hung[0], order="bell, record", nic="dbrec")

# %% [markdown]
# "It is not about visibility": no fence mends that. The NIC looked, found nothing new, and went back to sleep; then the
# record came, and nobody rang. The **second** bell is for this case. And a NIC that believes the register? It needs no record.

# %% tags=["plot"]
nics = ["dbrec", "register", "no_dbr"]  # the record alone, the larger of the two, the register alone
counts = [[len(failing(order, nic)) for nic in nics] for order in ORDERS]
title = "Wherever the record counts, a bell has to follow it, with a fence between"
show.heat_map(counts, list(ORDERS), nics, unit="seeds of 100 that fail", down="order", across="NIC believes", title=title)

# %% [markdown]
# So NCCL's order is right on all three. Its comments say why it may ring early: of the register the NIC looks at QP number
# and index, which is our `register`; the record is for a recovery, and the second bell covers that. By this reading the
# reverse order is right for as long as nothing has to be recovered. You would find out in production.
#
# ## Exercise: find DBR-before-doorbell
# This is device code as you will meet it: by somebody else, in other words, with helpers, and with more stores than one that
# look alike. We wrote it, nobody ships it. It is right. **Find the two lines of one function between which the order of
# record and bell is decided**, and prove it: exchange them, and give a NIC and a seed with which the result fails.
# `Explorer(theirs, code=exchanged(THEIRS, a, b), nic="…").run(100)` tries the code with lines `a` and `b` exchanged; the NICs
# are those above. Leave out a line to see what it is for.

# %%
THEIRS = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;

struct Ring {
    const QpHandle* qp;
    u64 *taken, *filled, *told;
    u32 *turn, *sent, *drained;
    u64 *page, *box;  // box: where a CPU thread rings for us, else null
};

RDMAKIT_DEVICE void set(u32* at, u64 value) { store_relaxed<Scope::sys>(at, swap_bytes(static_cast<u32>(value))); }
RDMAKIT_DEVICE void set(u64* at, u64 value) { mmio_store(at, value); }

RDMAKIT_DEVICE void finish(const Ring& r, u64 from, u64 upto) {
    u64 seen = 0;
    fence<Scope::gpu>();
    const Subject who = about(*r.qp, "its turn", from);
    wait_until<Scope::gpu>(r.filled, [from](u64 v) { return v == from; }, r.qp->watch, who, &seen);
    store_release<Scope::gpu>(r.filled, upto);
}

RDMAKIT_DEVICE void hand_over(const Ring& r) {
    for (u32 seen = 1; exchange_acquire<Scope::gpu>(r.turn, 1u) != 0;) {
        wait_until<Scope::gpu>(r.turn, [](u32 v) { return v == 0; }, r.qp->watch, about(*r.qp, "lock", 0), &seen);
    }
    const u64 upto = load_acquire<Scope::gpu>(r.filled);
    if (fetch_max<Scope::gpu>(r.told, upto) < upto) {
        fence<Scope::sys>();
        if (r.box != nullptr) {
            store_relaxed<Scope::sys>(r.box, upto);
        } else {
            set(r.sent, upto & 0xffff);
            fence<Scope::sys>();
            set(r.page, doorbell_next(r.qp->qpn, upto));
        }
    }
    store_release<Scope::gpu>(r.turn, 0u);
}

RDMAKIT_DEVICE void reap(const Ring& r, u64 upto) {
    u32 tail = 0;
    const u32* last = cqe_tail_address(r.qp->cq, upto - 1);
    wait_until<Scope::sys>(last, [](u32 v) { return v >> 28 != 15; }, r.qp->watch, about(*r.qp, "CQE", upto), &tail);
    set(r.drained, upto & 0xffffff);
}

RDMAKIT_KERNEL post(QpHandle qp, RemoteMemory to, LocalMemory from, u32 count) {
    SqState& s = *qp.state;
    u32* const ci = qp.cq.dbrec + kDbrecSetCi;
    const Ring r{&qp, &s.reserved, &s.ready, &s.rung, &s.bell, qp.dbrec, ci, qp.doorbell, nullptr};
    for (u32 i = 0; i < count; ++i) {
        const u64 slot = fetch_add<Scope::gpu>(r.taken, u64{1}), at = 8 * slot;
        write_rdma(qp, slot, Opcode::write, to.address + at, to.key, from.address + at, from.key, 8, kCqUpdate);
        finish(r, slot, slot + 1);
        hand_over(r);
    }
    if (block_id() == 0) reap(r, u64{count} * blocks_in_grid());
}
"""


def exchanged(code, one, other):
    lines = code.splitlines()
    lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines)


def theirs(scene):
    """two blocks, two WRITEs each, by their code"""
    world = scene.world(hosts=2, ports=1, doorbell=scene.options["nic"])
    near, far = connected_pair(world.open(host=0), world.open(host=1))
    source, target = (world.array(4, np.uint64, name=name) for name in ("source", "target"))
    source[:] = 1 + np.arange(4)
    here, there = near.pd.register(source), far.pd.register(target)
    kernel = world.compile(scene.options["code"], name="theirs.cu").get_function("post")
    kernel(2, 32, [near.device_handle(), there.remote(), here, 2])
    scene.keep(near, far, here, there)
    scene.expect(target, source)
    scene.allow_latent_races()


print("All stores, fences and atomics in it, with the numbers of their lines:")
for number, line in enumerate(THEIRS.splitlines()):
    if re.search(r"\bset\(|store|fence<|fetch_|exchange", line):
        print(f"{number:3}  {line}")

# %% tags=["exercise"] exercise="13.dbr_first"
# exercise: 13.dbr_first
record, bell = 0, 0  # the two lines' numbers
nic, seed = "", 0  # a NIC, and a seed with which the exchanged code fails there

# %% tags=["check"]
course.check("13.dbr_first", THEIRS, record, bell, nic, seed)

# %% [markdown]
# ## On real hardware
# Does *your* NIC believe the record or the register? Fill a WQE, leave the record alone, ring. Then the record, and ring again.
# Expect a completion at the first bell or at the second; an emulated ConnectX believes the record.

# %% tags=["hardware"]
if course.hardware_cell("mlx5"):
    ASK = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL fill(QpHandle qp, RemoteMemory to, LocalMemory from) {
    write_rdma(qp, 0, Opcode::write, to.address, to.key, from.address, from.key, 8, kCqUpdate);
    fence<Scope::sys>();
}
RDMAKIT_KERNEL record(QpHandle qp) { store_release<Scope::sys>(qp.dbrec, swap_bytes(1u)); }
RDMAKIT_KERNEL bell(QpHandle qp) { mmio_store(qp.doorbell, doorbell_next(qp.qpn, 1)); }
"""
    pair = course.real_pair()
    here, there = (end.pd.register(pair.world.array(1, np.uint64)) for end in (pair.near, pair.far))
    ask, handle = pair.world.compile(ASK, name="ask.cu"), pair.near.device_handle()

    def completes(*kernels):
        for name in kernels:
            ask.get_function(name)(1, 32, [handle, *([there.remote(), here] if name == "fill" else [])])
            pair.world.run()
        try:
            return len(pair.near.send_cq.wait(timeout=0.2)) > 0
        except rdmakit.HangError:
            return False

    alone = completes("fill", "bell")
    both = alone or completes("record", "bell")
    answer = "the register" if alone else "the record" if both else "neither: rdmakit doctor"
    print(f"{pair.name} believes {answer}; our kernels' queue is right on both")

# %% [markdown] tags=["not-modelled"]
# ## What we did not model, and where we looked
# * **How hardware reconciles** record and register is not documented. Our three NICs are the readings that there are.
# * **Their code.** We ran our kernels in their order, not theirs: BlueFlame, scopes below system and their locks are left out.
# * **Versions** move. What we read: NCCL, `src/transport/net_ib/gdaki/doca-gpunetio/include/device/` (`…qp.cuh` 4d6787a,
#   `…cq.cuh` 8898068, `…onesided.cuh` 51c58fd), `src/include/nccl_device/gin/` (`gdaki/gin_gdaki.h` 081eafa,
#   `proxy/gin_proxy.h` 01cd145) and `docs/userguide/source/api/device_gin.rst` 0bf94a0 (NCCL 2.30.5 and later). DeepEP,
#   `docs/legacy.md` 0297fc8, `csrc/kernels/legacy/internode_ll.cu` 0b32c55, PRs #130 and #650. NVSHMEM,
#   [its documentation](https://docs.nvidia.com/nvshmem/api/): environment variables, signals, ordering, QP-specific APIs.
#   For names inside `nvshmemi_ibgda_*` and `ibgda_*` there is no promise from one release to the next.
