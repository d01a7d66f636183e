"""Bulk copies: another proxy reads and writes memory, in its own time. Right with every fence and wait, wrong without.

Leans on the kernels of bulk_add.cu. The wrong ones are the same text with one line left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import rdmakit
from rdmakit.device import WATCH, Report
from rdmakit.device.report import REPORT
from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scene, scenario

_WAIT = "if (mbarrier_wait(&full.at[b], (t >> 1) & 1, watch, who) != Status::ok) return;"
# What may be left out: a name for the command line → what stands there, and what takes its place. The mbarrier is
# waited for behind the reads, not never: a block that ends under a load is another fault, and would be found first.
_LEFT_OUT = {
    "proxy fence": {"proxy_fence();": ""},
    "wait for reads": {"if (first) bulk_wait_read<1>();": ""},
    "mbarrier": {_WAIT: "", "proxy_fence();": f"{_WAIT} proxy_fence();"},
    "wait for writes": {"bulk_wait();": "bulk_wait_read();"},
    "barrier init": {"block_sync();\n    for": "for"},
}


def _kernels(world: Any, without: str) -> tuple[Any, Any]:
    if not without:
        return world.stock_kernel("bulk_add"), world.stock_kernel("bulk_take")
    if without not in _LEFT_OUT:
        raise BadArgument("no such line", value=without, rule=", ".join(_LEFT_OUT), remedy='without="proxy fence"')
    text = Path(rdmakit.get_include(), "kernels", "bulk_add.cu").read_text(encoding="utf-8")
    for there, instead in _LEFT_OUT[without].items():
        assert text.count(there) == 1, there
        text = text.replace(there, instead)
    module = world.compile(text, name="bulk_add.cu")
    return module.get_function("bulk_add"), module.get_function("bulk_take")


@scenario(
    "bulk", "tiles through shared memory by bulk copies, and a flag for another GPU", tags=("quick", "bulk", "mutants")
)
def bulk(scene: Scene) -> None:
    """Options: tiles=3, words=2 a tile, warps=2, told=True (somebody waits for the flag), without (a line left out)."""
    tiles, words = int(scene.options.get("tiles", 3)), int(scene.options.get("words", 2))
    warps = int(scene.options.get("warps", 2))
    world = scene.world(gpus_per_host=2)
    source, sink, copy = (world.array(tiles * words, np.uint64, name=name) for name in ("source", "sink", "copy"))
    flag = world.array(1, np.uint32, name="flag")
    source[:] = np.arange(1, 1 + tiles * words)
    watches, reports = np.zeros(2, WATCH), []
    for rank in range(2):
        reports.append(Report(world.array(REPORT.itemsize, np.uint8, name=f"report of rank {rank}")))
        watches[rank]["report"], watches[rank]["rank"] = reports[rank].address, rank
    add, take = _kernels(world, str(scene.options.get("without", "")))
    told = bool(scene.options.get("told", True))
    if told:
        take(1, 32, (flag, sink, copy, tiles * words, watches[1]), rank=1)
    add(1, 32 * warps, (source, sink, tiles, words, 1000, flag, watches[0]), rank=0)
    scene.watch(*reports)
    scene.keep(add, take)
    scene.expect(copy if told else sink, source + 1000)


def _wrong(name: str, title: str, without: str, **options: Any) -> None:
    @scenario(name, title, holds=False, tags=("wrong", "bulk"))
    def build(scene: Scene) -> None:
        scene.options = {"without": without, **options, **scene.options}
        bulk(scene)


_wrong("bulk-no-fence", "stored by a bulk copy without a proxy fence behind the writes", "proxy fence")
_wrong("bulk-refills-early", "a buffer is filled anew while a bulk copy still reads it", "wait for reads")
_wrong("bulk-reads-early", "a tile is read before its mbarrier is waited for", "mbarrier", tiles=2)
_wrong(
    "bulk-tells-early", "the flag goes up when the sources have been read, not when all is written", "wait for writes"
)
_wrong(
    "bulk-init-unmet", "threads wait for an mbarrier whose initialisation nothing orders before them", "barrier init"
)
