"""Bulk copies: the same kernel under every policy, what each fence and wait is for, and what is said of misuse."""

from __future__ import annotations

import numpy as np
import pytest

import rdmakit
from rdmakit.device import REPORT, WATCH, Report
from rdmakit.errors import DeviceFault, HangError
from rdmakit.explore import Explorer, explore
from rdmakit.explore.mutants import run_mutants
from rdmakit.explore.scenario import scenarios
from rdmakit.explore.sites import Kind

RUNNERS = [("fast", 1), ("timed", 1), ("explore", 1), ("fast", 32), ("timed", 32), ("explore", 32)]
WRONG = [s.name for s in scenarios("bulk") if not s.holds]
HEAD = "#include <rdmakit/bulk.cuh>\nusing namespace rdmakit;\nstruct Two { alignas(128) u64 at[32]; };\n"


def watch_of(world):
    report = Report(world.array(REPORT.itemsize, np.uint8))
    watch = np.zeros((), WATCH)
    watch["report"] = report.address
    return watch, report


def run(world, source, *arguments, block=32, name="bulk.cu", lanes=None):
    module = world.compile(HEAD + source, name=name, lanes=lanes)
    module.get_function(module.kernels[0])(1, block, arguments)
    return world.run()


# ---- what it does
@pytest.mark.parametrize(("policy", "lanes"), RUNNERS)
@pytest.mark.parametrize(("tiles", "words", "block"), [(1, 2, 32), (5, 18, 64), (8, 256, 128)])
def test_tiles_come_and_go(policy, lanes, tiles, words, block, seed):
    from rdmakit.emu.compile import stock_kernel

    world = rdmakit.World(policy=policy, seed=seed)
    source, sink = world.array(tiles * words, np.uint64), world.array(tiles * words, np.uint64)
    source[:] = np.arange(tiles * words) + seed
    flag = world.array(1, np.uint32)
    watch, report = watch_of(world)
    if lanes == 1:
        kernel = stock_kernel("bulk_add", policy=policy).bind(world)
    else:
        from pathlib import Path

        text = Path(rdmakit.get_include(), "kernels/bulk_add.cu").read_text()
        kernel = world.compile(text, name="bulk_add.cu", lanes=lanes).get_function("bulk_add")
    kernel(1, block, (source, sink, tiles, words, 7, flag, watch))
    world.run()
    report.raise_for_status()
    assert (sink == source + 7).all() and flag[0] == 1


def test_many_blocks_each_with_its_own_barrier(seed):
    world = rdmakit.World(seed=seed)
    blocks = 12
    source, sink = (world.array(32 * blocks, np.uint64) for _ in range(2))
    source[:] = np.arange(32 * blocks)
    watch, _ = watch_of(world)
    module = world.compile(
        HEAD
        + """
RDMAKIT_KERNEL each(const u64* from, u64* to, Watch watch) {
    RDMAKIT_SHARED(Two, tile);
    RDMAKIT_SHARED(Mbarrier, full);
    if (block_rank() == 0) {
        mbarrier_init(&full, 1);
        fetch(tile.at, from + 32 * block_id(), 256, &full);
    }
    block_sync();
    if (mbarrier_wait(&full, 0, watch, Subject{"a tile", 0, 0, 0, 0}) != Status::ok) return;
    block_sync();
    if (block_rank() != 0) return;
    bulk_store(to + 32 * block_id(), tile.at, 256);
    bulk_commit();
    bulk_wait_read();  // that the bytes land before the kernel ends needs no wait
}
"""
    )
    module.get_function("each")(blocks, 64, (source, sink, watch))
    world.run()
    assert (sink == source).all()


def test_time_passes_while_a_copy_is_under_way_and_work_hides_it():
    """Timed: a copy costs its issue at once and its latency only to who waits."""
    body = """
RDMAKIT_KERNEL timed(const u64* from, u64* out, u32 work, Watch watch) {
    RDMAKIT_SHARED(Two, tile);
    RDMAKIT_SHARED(Mbarrier, full);
    mbarrier_init(&full, 1);
    const u64 begin = time_ns();
    fetch(tile.at, from, 256, &full);
    out[0] = time_ns() - begin;
    sleep_ns(work);
    mbarrier_wait(&full, 0, watch, Subject{"a tile", 0, 0, 0, 0});
    out[1] = time_ns() - begin;
}
"""
    found = {}
    for work in (0, 5000):
        world = rdmakit.World(policy="timed")
        out, source = world.array(2, np.uint64), world.array(32, np.uint64)
        run(world, body, source, out, work, watch_of(world)[0])
        found[work] = out.copy()
    assert found[0][0] < 600 <= found[0][1] < 2000
    assert 5000 <= found[5000][1] < 5600, "the copy was done while the thread worked"


def test_consumers_give_a_buffer_back_by_an_mbarrier(seed):
    """Arrivals of all warps, not a block barrier, tell the producer that a buffer is free."""
    body = """
struct Ring { Mbarrier full, empty; };
RDMAKIT_KERNEL ring(const u64* from, u64* sums, u32 tiles, Watch watch) {
    RDMAKIT_SHARED(Two, tile);
    RDMAKIT_SHARED(Ring, ring);
    const u32 consumers = static_cast<u32>(block_size()) - 1;
    if (block_rank() == 0) {
        mbarrier_init(&ring.full, 1);
        mbarrier_init(&ring.empty, consumers);
    }
    block_sync();
    for (u32 t = 0; t < tiles; ++t) {
        if (block_rank() == 0) {
            const Subject who{"an empty buffer", t, 0, 0, 0};
            if (t != 0 && mbarrier_wait(&ring.empty, (t - 1) & 1, watch, who) != Status::ok) return;
            fetch(tile.at, from + 32 * t, 256, &ring.full);
            continue;
        }
        if (mbarrier_wait(&ring.full, t & 1, watch, Subject{"a full buffer", t, 0, 0, 0}) != Status::ok) return;
        for (u32 i = 0; i < 32; ++i) sums[block_rank() - 1] += tile.at[i];
        proxy_fence();  // our reads before the next load
        mbarrier_arrive(&ring.empty);
    }
}
"""

    def scene(scene):
        world = scene.world()
        source, sums = world.array(32 * 3, np.uint64, name="source"), world.array(2, np.uint64, name="sums")
        source[:] = np.arange(32 * 3)
        watch, report = watch_of(world)
        module = world.compile(HEAD + body, name="ring.cu")
        module.get_function("ring")(1, 96, (source, sums, 3, watch))
        scene.watch(report)
        scene.keep(module)
        scene.expect(sums, source.sum())

    explorer = Explorer(scene)
    assert explorer.run(300, seed=seed).ok
    lines = (HEAD + body).splitlines()
    for what, kind, change in (
        ("proxy_fence", Kind.BULK, {"removed": True}),
        ("mbarrier_arrive(", Kind.UPDATE, {"no_release": True}),
    ):
        line = next(n for n, text in enumerate(lines, 1) if what in text)
        explorer.core.mutate("ring.cu", line, int(kind), **change)
        assert explorer.run(300, seed=seed).failure is not None, what
        explorer.core.mutate()


# ---- what is needed
@pytest.mark.parametrize("options", [{}, {"tiles": 1, "warps": 1}, {"tiles": 5, "warps": 3, "words": 4}], ids=str)
def test_right_under_all_schedules_at_random(options, seed):
    found = explore("bulk", 300, seed=seed, **options)
    assert found.ok, found


def test_right_under_every_schedule():
    found = Explorer("bulk", tiles=1, warps=1, told=False).exhaust()
    assert found.ok and found.complete, found


@pytest.mark.explore
@pytest.mark.parametrize("options", [{"tiles": 2, "warps": 1, "told": False}, {"tiles": 1, "warps": 1}], ids=str)
def test_right_under_every_schedule_of_more(options):
    found = Explorer("bulk", **options).exhaust()
    assert found.ok and found.complete, found


STORIES = {
    "bulk-no-fence": ("shared ", "bulk copy", "issues a bulk store"),
    "bulk-refills-early": ("shared out[", "bulk copy reads it"),
    "bulk-reads-early": ("shared in[", "bulk copy"),
    "bulk-tells-early": ("sink[", "bulk copy", "fence.proxy.async"),
    "bulk-init-unmet": ("shared full[", "1 arrival and 0 bytes due"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_line_that_is_left_out_shows(name, seed):
    explorer = Explorer(name)
    found = explorer.run(1000, seed=seed)
    assert found.failure is not None
    story = str(explorer.story(decisions=explorer.shrink(found.failure, tries=200).decisions))
    assert story.splitlines()[-1].strip() and "FAILED" in story
    assert not [part for part in STORIES[name] if part not in story], story


def test_a_copy_may_read_what_its_issuer_has_not_fenced(seed):
    """Not only a race: the old value is really read. Latent races are allowed, and the sink is wrong."""

    def scene(scene):
        scene.options = {"without": "proxy fence", "tiles": 1}
        from rdmakit.explore.scenarios.bulk import bulk

        bulk(scene)
        scene.allow_latent_races()

    failure = Explorer(scene).run(1000, seed=seed).failure
    assert failure is not None and failure.verdict.name == "WRONG" and "] is 0, and should be 100" in failure.what


def test_every_order_of_the_kernel_is_needed():
    """Mutants of the kernel and its header: each fence, wait, acquire and release left out is noticed."""
    run = run_mutants([Explorer("bulk")], budget=1000, only=lambda m: "bulk" in m.site.file and m.site.name != "holds")
    assert not run.survived and not run.never_ran and len(run.killed) >= 9, run
    assert {k.mutant.site.name for k in run.killed} >= {
        "proxy_fence",
        "bulk_wait",
        "bulk_wait_read",
        "mbarrier_test",
        "wait",
    }


# ---- misuse
def test_a_phase_that_nobody_completes_is_reported_with_its_line():
    world = rdmakit.World()
    watch, report = watch_of(world)
    with pytest.raises(HangError) as caught:
        run(
            world,
            "RDMAKIT_KERNEL never(Watch watch) {\n    RDMAKIT_SHARED(Mbarrier, full);\n    mbarrier_init(&full, 1);\n"
            '    mbarrier_wait(&full, 0, watch, Subject{"a tile", 3, 0, 0, 0});\n}\n',
            watch,
            name="never.cu",
        )
    wait = caught.value.report.waits[0]
    assert (wait.what, wait.expected, wait.place) == ("a tile", 3, "never.cu:7")
    assert report.status.name == "TIMEOUT" and report.line == 7


@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
@pytest.mark.parametrize(("call", "said"), [
    ("bulk_load(tile.at, from + 1, 256, &full)", "multiples of 16 bytes"),
    ("bulk_load(tile.at, from, 8, &full)", "multiples of 16 bytes"),
    ("bulk_load(to, from, 256, &full)", "not in the block's shared memory"),
    ("bulk_store(to, from, 256)", "not in the block's shared memory"),
    ("bulk_load(tile.at, reinterpret_cast<const u64*>(64), 256, &full)", "illegal access"),
    ("bulk_load(tile.at, from, 256, &full)", "still needs the block's shared memory"),
])  # fmt: skip
def test_a_copy_that_cannot_be_is_the_fault_of_its_line(policy, call, said):
    world = rdmakit.World(policy=policy)
    source, sink = world.array(64, np.uint64), world.array(64, np.uint64)
    body = f"""RDMAKIT_KERNEL bad(const u64* from, u64* to) {{
    RDMAKIT_SHARED(Two, tile);
    RDMAKIT_SHARED(Mbarrier, full);
    mbarrier_init(&full, 1);
    {call};
    (void)from, (void)to, (void)tile, (void)full;
}}
"""
    # With a copy under way when the block ends, the schedule decides whether it still is: tried until it is.
    for seed in range(20):
        world = rdmakit.World(policy=policy, seed=seed)
        try:
            run(world, body, source, sink, name="bad.cu")
        except DeviceFault as fault:
            assert said in str(fault) and (said == "illegal access" or "bad.cu:8" in str(fault))
            return
    pytest.fail("nothing was said")
