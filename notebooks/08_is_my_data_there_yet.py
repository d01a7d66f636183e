# %% [markdown] tags=["question"]
# # 08 · Is my data there yet?
#
# **A kernel writes data into another GPU's memory and then sets a flag behind it. May the reader trust the flag?**
#
# The sender knows the order in which it *issued* things. The reader sees the order in which they *arrive*. Between the
# two lie a NIC, a network, another NIC and a PCIe bus, and each of them is faster if it may change the order.

# %%
import numpy as np

import rdmakit
from rdmakit import course, show
from rdmakit.device import connected_pair
from rdmakit.explore import Explorer, replay

course.begin()

# %% [markdown]
# ## The picture: arrival against issue order
# 24 WRITEs of one word each, posted at once, with one doorbell. At the other end 24 blocks wait, each for its word, and
# look at the clock when they see it. Three times:
#
# * **strict**: a reliable connected QP as the standard has it,
# * **relaxed**: the reader's memory is registered with `IBV_ACCESS_RELAXED_ORDERING`; PCIe writes may pass each other,
# * **out of order**: both QPs allow it (`MLX5DV_QP_CREATE_OOO_DP`), and messages take several paths through the network.

# %% tags=["picture"]
BURST = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL burst(QpHandle qp, RemoteMemory to, u32 count, u64* bell) {
    const u64 base = reserve(qp, count);
    for (u32 i = 0; i < count; ++i) {
        const u32 one[3] = {1, 0, 0};
        write_inline(qp, base + i, to.address + 8 * i, to.key, one, 8, kCqUpdate);
    }
    *bell = time_ns();
    publish(qp, base, count);
}
RDMAKIT_KERNEL watch(const u64* words, u64* when) {
    u64 seen = 0;
    wait_until<Scope::sys>(words + block_id(), [](u64 v) { return v != 0; }, Watch{}, Subject{"its word", 1}, &seen);
    when[block_id()] = time_ns();
}
"""
MODES = ("strict", "relaxed", "out of order")


def arrivals(mode, count=24):
    plan = "relaxed_ordering,adaptive_routing"  # writes and messages that may take longer than others, do
    world = rdmakit.World(hosts=2, ports=1, policy="timed", faults=plan, seed=MODES.index(mode))
    near, far = connected_pair(world.open(host=0), world.open(host=1), out_of_order=mode == "out of order")
    words, when, bell = (world.array(n, np.uint64) for n in (count, count, 1))
    inbox = far.pd.register(words, relaxed_ordering=mode == "relaxed")
    kernels = world.compile(BURST)
    kernels.get_function("watch")(count, 32, [words, when], rank=1)
    kernels.get_function("burst")(1, 32, [near.device_handle(), inbox.remote(), count, bell])
    world.run()
    return (when - bell).astype(float) / 1e3


seen = {mode: arrivals(mode) for mode in MODES}
early = {mode: sum(t > later for i, t in enumerate(at) for later in at[i + 1 :]) for mode, at in seen.items()}
title = f"Pairs that change places: none, {early['relaxed']} and {early['out of order']} of {24 * 23 // 2}"
with course.plot(title, "issued (number)", "seen after the bell (µs)", ncols=3, sharey=True) as axes:
    for place, (mode, at) in zip(axes, seen.items(), strict=True):
        place.plot(at, label=mode)
        place.legend(loc="lower right")
        place.label_outer()

# %% [markdown]
# Modelled: the delays are chances that we chose. That any order *may* come is what the two options mean. Nobody loses
# anything by it as long as he waits for a completion. But a reader on another GPU has no completion. He has a flag.
#
# ## The naive flag
# Data and flag are two WRITEs on one QP, the flag behind the data, one doorbell for both. The reader waits for the flag
# with an acquire at system scope, as it should, and reads. This is a **scene**: a world, launches in it, and what memory must hold at the end.

# %%
NAIVE = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL naive(QpHandle qp, RemoteMemory data, LocalMemory from, u32 words, RemoteMemory flag) {
    const u64 base = reserve(qp, 2);
    const u32 one[3] = {1, 0, 0};
    fill_put(qp, base, data, from, 8 * words, Signalled::no);
    write_inline(qp, base + 1, flag.address, flag.key, one, 8, kCqUpdate);
    publish(qp, base, 2);
}
RDMAKIT_KERNEL atomic(QpHandle qp, RemoteMemory data, LocalMemory from, u32 words, RemoteMemory flag) {
    put_signal(qp, data, from, 8 * words, flag, 1);
}
RDMAKIT_KERNEL receive(const u64* data, u32 words, const u64* flag, u64* copy) {
    u64 seen = 0;
    wait_until<Scope::sys>(flag, [](u64 v) { return v != 0; }, Watch{}, Subject{"the flag", 1}, &seen);
    for (u32 i = 0; i < words; ++i) copy[i] = data[i];
}
"""


def flag_behind_data(scene, words=4):
    """data, and a flag behind it"""
    mode, sender = scene.options["mode"], scene.options.get("sender", "naive")
    world = scene.world(hosts=2, ports=1)
    near, far = connected_pair(world.open(host=0), world.open(host=1), out_of_order=mode == "out of order")
    source, data, copy = (world.array(words, np.uint64, name=n) for n in ("source", "data", "copy"))
    source[:] = 1 + np.arange(words)
    flag = world.array(1, np.uint64, name="flag")
    here = near.pd.register(source)
    there, signal = (far.pd.register(array, relaxed_ordering=mode == "relaxed") for array in (data, flag))
    kernels = world.compile(NAIVE, name="naive.cu")
    kernels.get_function("receive")(1, 32, [data, words, flag, copy], rank=1)
    kernels.get_function(sender)(1, 32, [near.device_handle(), there.remote(), here, words, signal.remote()])
    scene.keep(far, there, signal, here)
    scene.expect(copy, source)
    if scene.options.get("luck", True):
        scene.allow_latent_races()  # a result that is right by luck counts as right


# %% [markdown]
# ## Predict
# `Explorer` runs such a scene under one schedule after another: who goes on, which packet arrives, which write becomes
# visible, which old value a load returns. A **seed** makes a schedule. The strict QP first.

# %% tags=["predict"]
course.predict("strict", "Strict RC, one QP: with how many of 100 seeds is the copy wrong?", None, "seeds")


# %% tags=["run"]
def failing(seeds=100, **options):
    explorer = Explorer(flag_behind_data, **options)
    return [seed for seed in range(seeds) if explorer.one(seed=seed) is not None]


strict = Explorer(flag_behind_data, mode="strict")
strict.run(20_000)

# %% tags=["plot"]
course.plot_prediction("strict", len(failing(mode="strict")))

# %% [markdown]
# It **holds**, and not by luck: a strict RC responder executes one QP's WRITEs in order, PCIe keeps them in order, and
# the acquire keeps the reader's loads behind the flag. That is why so much code does this, and why it passes its tests.
#
# ## Break it
# The same kernels. Only the QPs may now deliver out of order, as on a network that sprays packets over many paths.

# %% tags=["predict"]
course.predict("ooo", "Out of order: with how many of 100 seeds is the copy wrong?", None, "seeds")

# %% tags=["break"]
caught = failing(mode="out of order")
print(f"{len(caught)} of 100 seeds: {caught}")
course.plot_prediction("ooo", len(caught))

# %% [markdown]
# The story of one of them, made small: as few decisions as fail in the same way. Look for the WRITE that is executed
# first, and for what the reader does before the other one becomes visible.

# %%
replay(flag_behind_data, caught[0], mode="out of order")

# %% [markdown]
# ## How often, and how sure?
# Most seeds were right, as most of your tests would be. So `explore` also asks whether anything *orders* the two accesses,
# whatever they saw. If nothing does, a right result was luck. The left column counts wrong results, the right one adds
# those that were luck.

# %% tags=["plot"]
scenes = {f"flag, {mode}": {"mode": mode} for mode in MODES}
scenes |= {f"atomic, {mode}": {"mode": mode, "sender": "atomic"} for mode in MODES}
counts = [[len(failing(**options)), len(failing(luck=False, **options))] for options in scenes.values()]
columns = ["wrong", "unordered"]
title = "The flag is right on a strict QP alone, an atomic behind the data in all three modes"
show.heat_map(counts, list(scenes), columns, unit="seeds of 100 that fail", down="signal", across="", title=title)

# %% [markdown]
# The **atomic** is a FETCH_ADD behind the data on its QP: out-of-order QPs execute atomics behind all that was sent
# before, and relaxed WRITEs do not pass them. It says "*all* that came before on this QP is visible": a *strong* signal.
#
# ## Exercise: make the naive flag fail
# The kernels are those above, `naive` and `receive`. Yours is the wiring: two QPs and two memory regions, four words for
# the data and one for the flag. **The QPs stay in order**, and the flag fails within 100 seeds. Change as little as you
# can; an atomic over your wiring must still hold.


# %% tags=["exercise"] exercise="08.naive_flag"
# exercise: 08.naive_flag
def wire(world):
    near, far = connected_pair(world.open(host=0), world.open(host=1))
    data = far.pd.register(world.array(4, np.uint64, name="data"))
    flag = far.pd.register(world.array(1, np.uint64, name="flag"))
    return near, far, data, flag


# %% tags=["check"]
course.check("08.naive_flag", wire)

# %% [markdown]
# ## On real hardware
# Both senders, 1,000 times each, over queue pairs of a real NIC that sends to itself. The kernels run on the CPU. Expect no
# failure: one path, an x86 host that writes in order, and a reader that polls as fast as it can. **That proves nothing**:
# `ibv_query_qp_data_in_order` is where a NIC *promises* it.

# %% tags=["hardware"]
if course.hardware_cell("rdma"):
    pair = course.real_pair("rdma")
    arrays = source, data, copy = [pair.world.array(4, np.uint64, name=n) for n in ("source", "data", "copy")]
    flag = pair.world.array(1, np.uint64, name="flag")
    here, (there, signal) = pair.near.pd.register(source), [pair.far.pd.register(a) for a in (data, flag)]
    kernels, handle = pair.world.compile(NAIVE, name="naive.cu"), pair.near.device_handle()
    for sender in ("naive", "atomic"):
        wrong = 0
        for turn in range(1000):
            source[:], data[:], copy[:], flag[:] = 1 + 4 * turn + np.arange(4), 0, 0, 0
            kernels.get_function("receive")(1, 32, [data, 4, flag, copy], stream=1)
            kernels.get_function(sender)(1, 32, [handle, there.remote(), here, 4, signal.remote()])
            pair.world.run()
            wrong += not np.array_equal(copy, source)
        print(f"{pair.name}, {sender}: {wrong} of 1000 copies wrong, measured")

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **Odds.** A count of seeds is no probability on hardware. It says: this can happen, and here is how.
# * **Verbs promise less than PCIe.** Our relaxed WRITEs pass as PCIe's ordering rules let them. `man ibv_reg_mr` says only
#   that the order of WRITEs "is no longer guaranteed": do not build on which of two may pass.
# * **A GPU's own path.** Before Hopper a GPU may show NIC writes out of order even on a strict QP
#   (`CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING`); the reader then needs a flush. Our strict QP has none of that.
# * **Loss.** Try it: `Explorer(flag_behind_data, mode="strict", faults="loss=0.1,duplicate=0.1").run(1000)`.
