# %% [markdown] tags=["question"]
# # 05 · CPU proxy or GPU (IBGDA)
#
# **Shall a thread of the CPU post for the GPU, or the GPU itself? And for which messages does it make a difference?**
#
# A NIC does not care who writes a WQE and rings. For years it was the CPU: the GPU leaves a request in host memory, a
# **proxy** thread polls for it, writes the WQE and rings. With **IBGDA** (InfiniBand GPUDirect Async) the rings lie in
# GPU memory, the doorbell register is mapped into the GPU, and its own threads do what you did in notebook 04.
#
# All times here are **modelled**. A *preset* describes a GPU and a ConnectX-7, each number with its source.

# %%
import numpy as np

from rdmakit import course, show
from rdmakit.device import connected_pair, handle_array
from rdmakit.model import load
from rdmakit.model.cluster import world_of
from rdmakit.model.trace import record

course.begin()

PRESET = load("ib").changed(hosts=2, gpus_per_host=1)
names = ("port_rate", "proxy_poll", "proxy_post", "proxy_doorbell", "proxy_threads", "fence_sys", "gpu_atomic")
settings = [PRESET.settings[name] for name in names]
rows = [[s.parameter.name, s.shown, s.parameter.meaning, s.mark] for s in settings]
show.data_table(rows, ["name", "value", "what it is", "known how"], title="What this notebook's times are made of")

# %% [markdown]
# ## The kernel
# Each warp has a queue pair of its own and posts `messages` WRITEs, `each` of them with one doorbell. It cannot know who
# reads the bell: with `world_of(…, proxy=True)` that is a CPU thread, otherwise the NIC.

# %%
STREAM = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL stream(const QpHandle* qps, RemoteMemory to, LocalMemory from, u64 bytes, u32 messages, u32 each) {
    const QpHandle& qp = qps[block_id()];
    for (u32 done = 0; done < messages; done += each) {
        const u64 base = reserve(qp, each);
        for (u32 i = 0; i < each; ++i) {
            fill_put(qp, base + i, to, from, bytes, i + 1 == each ? Signalled::yes : Signalled::no);
        }
        publish(qp, base, each);  // fence, doorbell record, fence, doorbell
    }
    quiet(qp);
}
"""


def stream(proxy, size, messages, warps=32, each=1, preset=PRESET):
    """The world after `messages` WRITEs of `size` bytes by each warp, and all that happened in it."""
    world = world_of(preset, proxy=proxy)
    here, there = world.open(host=0), world.open(host=1)
    pairs = [connected_pair(here, there)]
    pairs += [connected_pair(here, there, beside=pairs[0]) for _ in range(warps - 1)]
    near, far = pairs[0]
    source, target = near.pd.register(world.array(size)), far.pd.register(world.array(size))
    handles = handle_array([near.device_handle() for near, _ in pairs])
    kernel = world.compile(STREAM, name="stream.cu").get_function("stream")
    kernel(warps, 32, [handles, target.remote(), source, size, messages, each])
    timeline = record(world, world.run, {"time": "modelled"})
    return world, timeline


# %% [markdown]
# ## Predict
# One WRITE of 8 bytes, from the kernel's start until the GPU has seen its completion. How many times as long does it take
# through the proxy?

# %% tags=["predict"]
course.predict("latency", "One WRITE of 8 bytes: how many times as long by the CPU proxy?", None, "times")

# %% [markdown]
# ## The picture
# A WQE's life, from the marks that device code and NIC leave behind.

# %% tags=["picture", "run"]
MARKS = ("reserve", "publish", "doorbell", "fetched", "wire", "executed", "CQE")
STAGES = (
    "reserve a slot",
    "write the WQE, await the turn",
    "record, 2 fences, bell",
    "bell to WQE fetched",
    "payload",
    "wire",
    "completion",
)


def life(proxy):
    """When each stage ends, µs."""
    _, timeline = stream(proxy, size=8, messages=1, warps=1)
    return [float(timeline.of(mark)["when_ps"][0]) / 1e6 for mark in MARKS]


lives = {"GPU rings": life(False), "CPU proxy": life(True)}
took = {who: np.diff([0, *ends]) for who, ends in lives.items()}
longer = dict(zip(STAGES, (took["CPU proxy"] - took["GPU rings"]).round(2), strict=True))
events = [
    (who, begin, end, stage, "through the CPU" if who == "CPU proxy" and longer[stage] else "the same for both")
    for who, ends in lives.items()
    for stage, begin, end in zip(STAGES, [0, *ends], ends, strict=False)
]
extra = lives["CPU proxy"][-1] - lives["GPU rings"][-1]
title = f"The way through the CPU and back adds {extra:.1f} µs to {lives['GPU rings'][-1]:.1f} µs (modelled)"
show.time_lanes(list(lives), events, title=title, unit="µs")

# %% tags=["plot"]
course.plot_prediction("latency", round(lives["CPU proxy"][-1] / lives["GPU rings"][-1], 2))

# %% [markdown]
# The proxy is paid for twice: the request waits until the thread polls, and so does the completion on its way back. Nothing
# of the rest gets shorter: most of a small WRITE's latency is PCIe and fences, whoever rings.
#
# ## Throughput over size
# Latency is one thing. A dispatch has thousands of messages in flight, and then only the slowest station counts. So:
# 32 warps, a bell for each message. We take the time of 32 messages off the time of 64; what remains is pure streaming.

# %% tags=["plot"]
SIZES = [2**n for n in range(7, 18)]


def rate(proxy, size, **options):
    """GB/s of payload, in the steady state."""
    ends = [stream(proxy, size, messages, **options)[0].launches[-1].end_ns for messages in (32, 64)]
    return 32 * options.get("warps", 32) * size / (ends[1] - ends[0])


rates = {who: [rate(proxy, size) for size in SIZES] for who, proxy in (("GPU rings", False), ("CPU proxy", True))}
gain = np.array(rates["GPU rings"]) / rates["CPU proxy"]
title = f"Small WRITEs: the GPU is {gain[0]:.1f} times as fast. Large ones: no difference (modelled)"
with course.plot(title, "size of one WRITE (B)", "payload (GB/s)") as axes:
    for who, values in rates.items():
        axes.plot(SIZES, values, label=who)
    axes.axhline(PRESET["port_rate"] / 1e9, linestyle="--", color="grey", label="line rate of the port")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(loc="lower right")

# %% [markdown]
# Two slopes, one ceiling. On a slope every message costs the same, however small. At the ceiling the wire is full. Where the
# proxy's slope meets the ceiling, the CPU stops being in the way: that is **the crossover**.
#
# ## Break it: a GPU with one warp
# What makes the GPU fast? Take its 32 warps away and leave it one. Messages are 2 KiB. How many times as fast as the proxy
# is the GPU now?

# %% tags=["predict"]
course.predict("one warp", "2 KiB, one warp: how many times as fast is the GPU?", None, "times")

# %% tags=["break"]
WARPS = (1, 2, 4, 8, 16, 32)
by_warps = {
    who: [rate(proxy, 2048, warps=n) for n in WARPS] for who, proxy in (("GPU rings", False), ("CPU proxy", True))
}
gains = [mine / theirs for mine, theirs in zip(*by_warps.values(), strict=True)]
needed = next(n for n, times in zip(WARPS, gains, strict=True) if times > 1.05)
lines = {who: list(zip(WARPS, values, strict=True)) for who, values in by_warps.items()}
title = f"Below {needed} warps nobody waits for the CPU: IBGDA without parallelism gains nothing (modelled)"
show.line_chart(lines, "warps that post (count)", "payload of 2 KiB WRITEs (GB/s)", title=title, log=True)

# %% tags=["plot"]
course.plot_prediction("one warp", round(gains[0], 2))

# %% [markdown]
# One warp fences twice and rings, message after message: about 2.4 µs each, more than four times what the proxy's thread
# takes. A GPU thread is *slow* at this. The GPU wins because hundreds of them do it at once, each on a queue of its own,
# while all of them share one proxy. A kernel that lets one warp post for all has built a proxy out of a GPU.
#
# It also helps to ring less. The same 32 warps, 1 KiB, more WQEs with one doorbell:

# %% tags=["plot"]
EACH = (1, 2, 4, 8, 16)
batched = {who: [rate(proxy, 1024, each=n) for n in EACH] for who, proxy in (("GPU rings", False), ("CPU proxy", True))}
bars = [
    (f"{who}, {n} with one bell", gbs, who)
    for who, values in batched.items()
    for n, gbs in zip(EACH, values, strict=True)
]
best = batched["CPU proxy"][-1] / batched["CPU proxy"][0]
title = f"With {EACH[-1]} WQEs a bell the proxy is {best:.1f} times as fast: it still writes each WQE (GB/s, modelled)"
show.port_bars(bars, "GB/s", title=title, reference=("line rate", PRESET["port_rate"] / 1e9))

# %% [markdown]
# ## Exercise: predict the crossover
# From which message size on does the proxy fill the port? Write it as a function of what the table at the top says. It is
# tried on clusters that you have not seen, with 32 warps, and compared with what a run finds: the least size at which the
# proxy has 98 % of the GPU's throughput. Within ±20 % is right.
#
# * `post_ns`, `doorbell_ns`: what the proxy's thread takes for each WQE and for each doorbell,
# * `each`: WQEs with one doorbell,
# * `port_gbps`: line rate of the port, in gigabits a second.


# %% tags=["exercise"] exercise="05.crossover"
# exercise: 05.crossover
def crossover(post_ns, doorbell_ns, each, port_gbps):
    return None  # bytes


# %% tags=["check"]
course.check("05.crossover", crossover)

# %% [markdown]
# ## On real hardware
# `stream` on the queues of a real NIC, where it writes WQEs and rings the register itself, and on queues whose WQEs a proxy
# thread posts: one warp on one queue pair, on this **CPU**. Expect 8 bytes that arrived, fewer ns with 16 WQEs a bell, and no
# factor between the two who ring, as the model has none for one warp. (`rdmakit doctor` says whether a GPU may ring here.)

# %% tags=["hardware"]
if course.hardware_cell("mlx5"):
    rows = []
    for who, queues in (("kernel rings", ""), ("CPU proxy", "proxied")):
        pair = course.real_pair(queues=queues)
        data = pair.near.pd.register(np.arange(1, 9, dtype=np.uint8))
        target = pair.far.pd.register(np.zeros(8, np.uint8))
        kernel = pair.world.compile(STREAM, name="stream.cu").get_function("stream")
        args = [handle_array([pair.near.device_handle()]), target.remote(), data, 8, 1024]
        for each in (1, 16):
            here = 1e9 * pair.quickest(kernel, 1, 32, [*args, each]) / 1024
            model = 8 / rate(queues == "proxied", 8, warps=1, each=each)
            rows.append([who, each, round(here), round(model), f"{(target.bytes == data.bytes).sum()} of 8"])
    heads = ["who rings", "WQEs a bell", "ns a WRITE, measured", "GPU, ConnectX-7: modelled", "bytes right"]
    course.display(show.data_table(rows, heads, title=f"{pair.name}, one queue pair: {course.how_measured()}"))

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **The GPU's side of the proxy.** Our GPU does the same work in both cases, fences included. A request to a real proxy is
#   one store or two: its latency is less than ours, its throughput is the thread's all the same.
# * **A CPU with other things to do.** Our thread polls without a pause and is never descheduled.
# * **Several proxies.** `proxy_threads` may be more than 1; NVSHMEM has one for each GPU.
# * **Fences.** Nobody here waits for one put before the next. Where a protocol does, and one thread keeps the fences of all
#   channels, that costs more than the posting: notebook 12.
# * **What a WQE takes the thread** is *fitted* to one published gain (44 to 58 GB/s of DeepEP, by IBGDA), not measured.
