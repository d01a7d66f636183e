# %% [markdown] tags=["question"]
# # 14 · On your GPU
#
# **A kernel copies a payload into the send buffer and posts it. How long does that take, and how near is it to the floor,
# the time that copying the bytes alone would take?**
#
# You know the pieces from earlier notebooks; here they run on your GPU. The doorbells are answered by an emulated NIC, so
# all you need is the GPU. Without one the same kernels run on this CPU in virtual time, and every number says so:
# **measured** or **modelled**.

# %%
from types import SimpleNamespace

import numpy as np

import rdmakit
from rdmakit import course, show
from rdmakit.device import connected_pair
from rdmakit.explore import Explorer

course.begin()
why_not = course.missing("gpu+cupy")
on_gpu, HOW = (False, "modelled") if why_not else (True, "measured")
if on_gpu:
    import cupy

    from rdmakit import gpu
print(f"Times are {HOW}" + (f", for {why_not}." if why_not else " on this machine's GPU."))

# %% [markdown]
# ## The kernels
# Both need only the headers. `copy` shares the bytes out among all warps of all blocks; `warp_copy` moves a warp's share.
# `post` is one thread: a WRITE of the send buffer, and behind it a FETCH_ADD that signals. `hold` does nothing, for a
# while: on a GPU everything else is launched behind it, so that the host's launching is not what we time.

# %%
KERNELS = r"""
#include <rdmakit/signal.cuh>
#include <rdmakit/warp.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL copy(u8* to, const u8* from, u64 bytes) {
    const u64 warps = static_cast<u64>(warps_in_block()) * blocks_in_grid();
    const u64 warp = static_cast<u64>(block_id()) * warps_in_block() + warp_id();
    const u64 share = round_up<u64>(ceil_div(bytes, warps), 16);
    const u64 begin = smaller(warp * share, bytes), end = smaller(begin + share, bytes);
    if (begin < end) warp_copy(to + begin, from + begin, end - begin);
}
RDMAKIT_KERNEL post(QpHandle qp, RemoteMemory to, LocalMemory from, u64 bytes, RemoteMemory word) {
    if (block_id() == 0 && thread_in_block() == 0) put_signal(qp, to, from, bytes, word, 1);
}
RDMAKIT_KERNEL hold(u64 ns) {
    const u64 end = time_ns() + ns;
    while (time_ns() < end) {}
}
"""
WARPS = 16  # a block


def prepare(nbytes):
    """Two hosts, a queue pair between them, `nbytes` of payload on the GPU, a send buffer that the NIC can read."""
    make = gpu.World if on_gpu else rdmakit.World
    options = {"memory": 2 * nbytes + (8 << 20)} if on_gpu else {"policy": "timed"}
    world = make(hosts=2, ports=1, **options)
    near, far = connected_pair(world.open(host=0), world.open(host=1))
    sent = np.random.default_rng(14).integers(0, 256, nbytes, dtype=np.uint8)
    if on_gpu:
        payload = cupy.asarray(sent)
        at = payload.data.ptr
    else:
        payload = at = sent
    buffer, target = world.array(nbytes, name="buffer"), world.array(nbytes, name="target")
    word, done = world.array(1, np.uint64, name="word"), world.array(1, np.uint32, name="done")
    from_, to, flag = near.pd.register(buffer), far.pd.register(target), far.pd.register(word)
    handle = near.device_handle()
    post = [handle, to.remote(), from_, nbytes, flag.remote()]
    fused = [handle, to.remote(), from_, buffer, at, nbytes, flag.remote(), done]
    args = {"copy": [buffer, at, nbytes], "post": post, "fused": fused}
    kept = (near, far, payload, from_, to, flag)
    return SimpleNamespace(world=world, args=args, handle=handle, sent=sent, target=target, word=word, done=done, kept=kept)


def timed(code, names, nbytes, blocks):
    """µs of each kernel of one put, the least of several; what arrived is compared with what was sent."""
    this, best = prepare(nbytes), {}
    kernels = this.world.compile(code, name="put.cu")
    for turn in range(5 if on_gpu else 1):
        this.target[:], this.done[:] = 0, 0
        if on_gpu:
            this.world.compile(KERNELS, name="kernels.cu").get_function("hold")(1, 32, [500_000])
        for name in names:
            kernels.get_function(name)(1 if name == "post" else blocks, 32 * WARPS, this.args[name])
        for launch in this.world.run().launches:
            best[launch.kernel] = min(best.get(launch.kernel, np.inf), launch.duration_ns / 1e3)
        this.handle.report.raise_for_status()
        assert np.array_equal(this.target, this.sent) and this.word[0] == turn + 1
    return [best[name] for name in names]


# %% [markdown]
# ## The picture
# One put of 64 KiB by eight blocks, in virtual time, up to the completion. `put_signal` is nothing but three steps, and
# between them this `post` looks at the clock.

# %% tags=["picture"]
STAMPED = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL post(QpHandle qp, RemoteMemory to, LocalMemory from, u64 bytes, RemoteMemory word, u64* t) {
    t[0] = time_ns();
    const u64 base = reserve(qp, 2);
    t[1] = time_ns();
    write_fetch_add(qp, fill_put(qp, base, to, from, bytes, Signalled::no), word.address, word.key, 1, kCqUpdate);
    t[2] = time_ns();
    publish(qp, base, 2);
    t[3] = time_ns();
    quiet(qp);
    t[4] = time_ns();
}
"""
world = rdmakit.World(hosts=2, ports=1, policy="timed")
near, far = connected_pair(world.open(host=0), world.open(host=1))
buffer, target = near.pd.register(world.array(65536)), far.pd.register(world.array(65536))
word, t = far.pd.register(world.array(1, np.uint64)), world.array(5, np.uint64)
world.compile(KERNELS).get_function("copy")(8, 32 * WARPS, [buffer.bytes, np.ones(65536, np.uint8), 65536])
args = [near.device_handle(), target.remote(), buffer, 65536, word.remote(), t]
world.compile(STAMPED).get_function("post")(1, 32, args)
copied = world.run().launches[0].duration_ns
lanes = [("copy", 0, copied, "copy", "copy")]
steps = {"reserve: two slots of the ring": "wait", "fill: two WQEs": "store", "publish: fences, record, doorbell": "fence"}
lanes += [("post", t[i], t[i + 1], *step) for i, step in enumerate(steps.items())]
lanes += [("NIC", t[3], t[4], "reads WQEs and payload, sends, signals, completes", "NIC")]
share = (t[3] - t[0]) / t[3]
title = f"Posting is {share:.0%} of the GPU's {t[3] / 1e3:.1f} µs for 64 KiB (modelled)"
show.time_lanes(["copy", "post", "NIC"], lanes, title=title)

# %% [markdown]
# Copying is the smallest part. `publish` makes sure that the NIC finds what it is told to find: it waits for earlier
# posters, and its fences wait until the WQEs, then the record, are where the NIC looks.
#
# ## Predict
# The **floor** of a payload: its bytes, over the bandwidth that a large copy reaches here. A put takes longer. A payload
# of 64 KiB, eight blocks copy, one thread posts: how many times its floor does the put take, until it is posted?

# %% tags=["predict"]
course.predict("over", "A put of 64 KiB: its time over its floor?", None, "times")

# %% [markdown]
# ## Run

# %% tags=["run"]
SIZES, BLOCKS = [4**i * 1024 for i in range(1, 8)], (1, 8)
times = {(blocks, size): timed(KERNELS, ["copy", "post"], size, blocks) for blocks in BLOCKS for size in SIZES}
bandwidth = SIZES[-1] / min(times[blocks, SIZES[-1]][0] for blocks in BLOCKS)  # bytes a µs
rows = [
    {
        "KiB": size // 1024,
        "floor (µs)": round(size / bandwidth, 3),
        **{f"copy, {blocks} bl. (µs)": round(times[blocks, size][0], 2) for blocks in BLOCKS},
        "post (µs)": round(times[8, size][1], 2),
        "put, 8 bl., over floor": round(sum(times[8, size]) * bandwidth / size, 1),
    }
    for size in SIZES
]
title = f"All times {HOW}. A large copy reaches {bandwidth / 1e3:,.0f} GB/s ({HOW}); all that was sent has arrived"
show.data_table(rows, title=title)

# %% tags=["plot"]
course.plot_prediction("over", round(sum(times[8, 65536]) * bandwidth / 65536, 1), f"times ({HOW})")

# %% tags=["plot"]
over = {size: sum(times[8, size]) * bandwidth / size for size in SIZES}
title = f"A put of 64 KiB takes {over[65536]:,.0f} times its floor, one of 16 MiB {over[SIZES[-1]]:.1f} times ({HOW})"
with course.plot(title, "payload (B)", f"time over floor (times, {HOW})") as axes:
    for blocks in BLOCKS:
        for last, what in ((1, "copy"), (2, "copy and post")):
            line = [sum(times[blocks, size][:last]) * bandwidth / size for size in SIZES]
            axes.plot(SIZES, line, label=f"{what}, {blocks} block{'s' * (blocks > 1)}")
    axes.axhline(1, color="#999999", linestyle="--", label="the floor")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend()

# %% [markdown]
# A put has a price of its own, whatever its size. Small payloads pay it many times over: that is why notebook 10 sent
# eight tokens a message, and why many warps should post to many queue pairs at once. Large payloads hardly notice it, if
# **enough blocks** copy.
#
# There is one more price: two kernels are **two launches**, with a gap between them, and whoever launches must be told
# when. Let us do it in one.
#
# ## Break it
# One kernel copies, and then posts. A first attempt: block 0 posts as soon as its own part is copied. A second: every
# block posts. Both pass a test with one block. A receiver waits for the signal and takes what is there; 100 schedules each.

# %%
COPIES = KERNELS[: KERNELS.index("RDMAKIT_KERNEL post")].replace("RDMAKIT_KERNEL copy", "RDMAKIT_DEVICE void copy_share")
FUSED = COPIES + r"""
RDMAKIT_KERNEL fused(QpHandle qp, RemoteMemory to, LocalMemory from, u8* buffer, const u8* payload, u64 bytes,
                     RemoteMemory word, u32* done) {
    copy_share(buffer, payload, bytes);
    block_sync();
    if (WHO && thread_in_block() == 0) put_signal(qp, to, from, bytes, word, 1);
}
"""
TAKE = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL take(QpHandle qp, const u64* word, const u64* data, u32 words, u64* out) {
    u64 seen = 0;
    if (wait_signal(word, 1, qp.watch, about(qp, "the signal", 1), &seen) != Status::ok) return;
    for (u32 i = 0; i < words; ++i) out[i] = data[i];
}
"""


def one_put(scene):
    code, blocks, words = scene.options["code"], scene.options["blocks"], 8 * scene.options["blocks"]
    world = scene.world(hosts=2, ports=1)
    near, far = connected_pair(world.open(host=0), world.open(host=1), out_of_order=True)
    names = ("payload", "buffer", "target", "out")
    payload, buffer, target, out = (world.array(words, np.uint64, name=name) for name in names)
    payload[:] = 100 + np.arange(words)
    word, done = world.array(1, np.uint64, name="word"), world.array(1, np.uint32, name="done")
    from_, to, flag = near.pd.register(buffer), far.pd.register(target), far.pd.register(word)
    here, there = near.device_handle(), far.device_handle(rank=1)
    fused = world.compile(code, name="fused.cu").get_function("fused")
    fused(blocks, 32, [here, to.remote(), from_, buffer, payload, 8 * words, flag.remote(), done], rank=0)
    world.compile(TAKE, name="take.cu").get_function("take")(1, 32, [there, word, target, words, out], rank=1)
    scene.watch(here, there)
    scene.keep(from_, to, flag)
    scene.expect(out, payload)


# %% tags=["break"]
def failing(who, blocks):
    explorer = Explorer(one_put, code=FUSED.replace("WHO", who), blocks=blocks)
    return sum(explorer.one(seed=seed) is not None for seed in range(100))


ATTEMPTS = {"block 0 posts": "block_id() == 0", "every block posts": "true"}
GRIDS = (1, 2, 3, 4)
counts = [[failing(who, blocks) for blocks in GRIDS] for who in ATTEMPTS.values()]
heads = ["1 block", *(f"{blocks} blocks" for blocks in GRIDS[1:])]
assert all((count == 0) == (blocks == 1) for row in counts for count, blocks in zip(row, GRIDS, strict=True))
title = "Right with one block, and with no more"
show.heat_map(counts, list(ATTEMPTS), heads, unit="schedules of 100 that fail", down="who", across="grid", title=title)

# %%
Explorer(one_put, code=FUSED.replace("WHO", ATTEMPTS["block 0 posts"]), blocks=2).run(100)

# %% [markdown]
# `block_sync` brings the threads of **one** block together. Blocks have nothing like it: they may not even run at the
# same time. And a GPU that is quick enough hides the mistake for years.
#
# ## Exercise: a fused put
# One kernel, any number of blocks and threads: copy `payload` into `buffer`, then post one WRITE and, behind it, one
# signal, once **all** of it is there. `done` is a counter in the GPU's memory, zero when the kernel starts. What you
# need is in [atom.cuh](../cuda/rdmakit/atom.cuh), [warp.cuh](../cuda/rdmakit/warp.cuh) and
# [signal.cuh](../cuda/rdmakit/signal.cuh); `Explorer(one_put, code=mine, blocks=2).run(100)` tries it.

# %% tags=["exercise"] exercise="14.fused"
# exercise: 14.fused
mine = r"""
#include <rdmakit/signal.cuh>
#include <rdmakit/warp.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL fused(QpHandle qp, RemoteMemory to, LocalMemory from, u8* buffer, const u8* payload, u64 bytes,
                     RemoteMemory word, u32* done) {
    const u64 warps = static_cast<u64>(warps_in_block()) * blocks_in_grid();
    const u64 warp = static_cast<u64>(block_id()) * warps_in_block() + warp_id();
    const u64 share = round_up<u64>(ceil_div(bytes, warps), 16);
    const u64 begin = smaller(warp * share, bytes), end = smaller(begin + share, bytes);
    if (begin < end) warp_copy(buffer + begin, payload + begin, end - begin);
    block_sync();
    if (block_id() == 0 && thread_in_block() == 0) put_signal(qp, to, from, bytes, word, 1);
}
"""

# %% tags=["check"]
course.check("14.fused", mine)

# %% [markdown]
# How does yours compare with two kernels?

# %%
if course.passed("14.fused"):
    one = {size: timed(mine, ["fused"], size, 8)[0] for size in SIZES}
    two = {size: sum(times[8, size]) for size in SIZES}
    title = f"64 KiB: {one[65536]:.1f} µs in one kernel, {two[65536]:.1f} µs in two, without the gap between ({HOW})"
    with course.plot(title, "payload (B)", f"time until posted (µs, {HOW})") as axes:
        axes.plot(SIZES, list(two.values()), label="copy, then post: two kernels")
        axes.plot(SIZES, list(one.values()), label="fused: one kernel")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.legend()
else:
    print("Once your kernel passes, it is timed here.")

# %% [markdown]
# **Modelled**, the fused kernel is the slower one: it pays for fences and a counter, and what it saves, a launch, costs
# nothing in the model. **Measured**, each kernel's own start and end are in your numbers; only the gap between two is not.
#
# ## On real hardware
# Above, the send buffer is in the host's memory, since the emulated NIC has to read it: bytes cross PCIe. A real NIC reads
# the GPU's memory. So here is `copy` from GPU memory to GPU memory, over the floor that the driver's own copy sets. Below
# that, your fused kernel on the queues of a real NIC, on this CPU: expect every byte and one signal for each put.

# %% tags=["hardware"]
if course.hardware_cell("gpu+cupy"):
    source, sink = (cupy.arange(64 << 20, dtype=cupy.uint8) for _ in range(2))
    copy, hold = (gpu.compile_source(KERNELS).get_function(name) for name in ("copy", "hold"))

    def each(launch, *args, times=10):
        """µs of one of several launches that wait behind a kernel for their turn; the least of five rounds."""
        found = []
        for _ in range(5):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            hold(1, 32, [1_000_000])
            begin.record()
            for _ in range(times):
                launch(*args)
            end.record()
            end.synchronize()
            found.append(1e3 * cupy.cuda.get_elapsed_time(begin, end) / times)
        return min(found)

    sizes = [4**i * 1024 for i in range(3, 9)]
    floor = sizes[-1] / each(cupy.copyto, sink, source)  # bytes a µs
    over = {}
    for blocks in (8, 128, 1024):
        sink[:] = 0
        over[blocks] = [each(copy, blocks, 32 * WARPS, [sink, source, size]) * floor / size for size in sizes]
        assert bool((sink == source).all())
    best = min(values[-1] for values in over.values())
    title = f"In GPU memory `copy` takes {best:.2f} times its floor at 64 MiB, {floor / 1e3:,.0f} GB/s (measured)"
    with course.plot(title, "payload (B)", "time over floor (times, measured)") as axes:
        for blocks, values in over.items():
            axes.plot(sizes, values, label=f"{blocks} blocks")
        axes.axhline(1, color="#999999", linestyle="--", label="the driver's copy")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.legend()

# %% tags=["hardware"]
if course.hardware_cell("rdma"):
    pair = course.real_pair("rdma")
    names = ("payload", "buffer", "target")
    payload, buffer, target = (pair.world.array(1 << 20, name=name) for name in names)
    word, done = pair.world.array(1, np.uint64), pair.world.array(1, np.uint32)
    from_, to, flag = pair.near.pd.register(buffer), pair.far.pd.register(target), pair.far.pd.register(word)
    put = [pair.near.device_handle(), to.remote(), from_, buffer, payload, payload.nbytes, flag.remote(), done]
    fused, right = pair.world.compile(mine, name="fused.cu").get_function("fused"), 0
    for turn in range(10):
        payload[:], done[:] = np.random.default_rng(turn).integers(0, 256, payload.nbytes, np.uint8), 0
        fused(8, 32 * WARPS, put)
        pair.world.run()
        pair.near.send_cq.wait()
        right += np.array_equal(target, payload)
    print(f"{pair.name}: {right} of 10 puts of 1 MiB right, {word[0]} signals ({course.how_measured()})")

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **Launches.** In virtual time a kernel starts at no cost. On a GPU a launch takes microseconds of the host, and a gap
#   of about one between kernels of a stream; gaps are in none of the numbers above, measured or modelled.
# * **Memory.** Modelled copies know no limit of HBM or PCIe: each warp has its rate (`cuda/rdmakit/cost.cuh`).
# * **The NIC on a GPU machine** is a thread of this process that polls. Times end when the doorbell is rung; what the
#   NIC does then is no measurement of any NIC.
# * **Queues in GPU memory.** Here the ring and the records are the host's; the fences of `publish` wait for PCIe.
# * **Overlap.** A fused kernel could post the first half while it copies the second. Now you know how.
