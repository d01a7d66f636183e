"""A file of device code as a scenario: your `send` on one host, your `receive` on another, a queue pair between them.

Leans on scenario. What the two kernels take is fixed, so that nothing but device code has to be written:

    RDMAKIT_KERNEL send(const rdmakit::QpHandle* qp, rdmakit::RemoteMemory to, rdmakit::LocalMemory from,
                        unsigned long long bytes, rdmakit::RemoteMemory word);
    RDMAKIT_KERNEL receive(const unsigned long long* word, const unsigned char* data, unsigned long long bytes,
                           unsigned char* copy, rdmakit::Watch watch);

`to` is where the receiver finds `data`, `word` is 0 at the beginning. When both have ended, `copy` must equal what lies
at `from`, and nobody may have reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scenario, Scene

__all__ = ["kernel_file"]

_MEMORY = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)  # RemoteMemory, LocalMemory
_ORDERINGS = ("strict", "relaxed", "out_of_order")
_WORD = 128  # bytes in front of the data: the word has a line of its own


def kernel_file(path: Path) -> Scenario:
    """The scenario of `path`, a .cu file with kernels `send` and `receive`. Options: bytes=64, ordering=strict
    (or relaxed, out_of_order), blocks=1, warps=1, sq_wqebbs=8.
    """
    if not path.exists():
        rule = "a .cu file with kernels send and receive"
        raise BadArgument("no such file", value=str(path), rule=rule, remedy="check the path")
    text = path.read_text(encoding="utf-8")

    def build(scene: Scene) -> None:
        _build(scene, text, path.name)

    return Scenario(str(path), build, f"send and receive of {path.name}, from one host to another")


def _build(scene: Scene, text: str, name: str) -> None:
    options = scene.options
    size, ordering = int(options.get("bytes", 64)), str(options.get("ordering", "strict"))
    if ordering not in _ORDERINGS:
        rule = " or ".join(_ORDERINGS)
        raise BadArgument("no such ordering", value=ordering, rule=rule, remedy="--set ordering=relaxed")
    if size < 1:
        raise BadArgument("nothing to send", value=size, rule="bytes is at least 1", remedy="--set bytes=64")
    world = scene.world(hosts=2, ports=1)
    module = world.compile(text, name=name)
    missing = [kernel for kernel in ("send", "receive") if kernel not in module.kernels]
    if missing:
        raise BadArgument(
            f"{name} has no kernel {' and no kernel '.join(missing)}",
            value=", ".join(module.kernels) or "no kernel",
            rule="kernels send and receive, as help(rdmakit.explore.kernel_file) declares them",
            remedy="name them so, or write a scene in Python: tutorials/explore_your_protocol.py",
        )
    blocks, warps = int(options.get("blocks", 1)), int(options.get("warps", 1))
    qps, arrays, regions = [], [], []
    for host, what in enumerate(("source", "word and data")):
        context = world.open(host)
        pd = context.alloc_pd()
        wqebbs = int(options.get("sq_wqebbs", 8))
        cq = context.create_cq(2 * wqebbs)
        qps.append(pd.create_qp(cq, sq_wqebbs=wqebbs, out_of_order=ordering == "out_of_order"))
        arrays.append(world.array(_WORD + size, np.uint8, name=what))
        regions.append(pd.register(arrays[host], relaxed_ordering=ordering == "relaxed" and host == 1))
    qps[0].connect(qps[1])
    qps[1].connect(qps[0])
    sender, receiver = (qp.device_handle(rank=rank) for rank, qp in enumerate(qps))
    source, copy = arrays[0][_WORD:], world.array(size, np.uint8, name="copy")
    source[:] = 1 + np.arange(size) % 255
    word = regions[1].address

    def memory(address: int, key: int) -> Any:
        return np.array([(address, key)], _MEMORY)[0]

    module.get_function("receive")(
        blocks, 32 * warps, (word, word + _WORD, size, copy, receiver.array["watch"][0]), rank=1
    )
    to, origin = memory(word + _WORD, regions[1].rkey), memory(regions[0].address + _WORD, regions[0].lkey)
    flag = memory(word, regions[1].rkey)
    module.get_function("send")(blocks, 32 * warps, (sender.array, to, origin, size, flag), rank=0)
    scene.watch(sender, receiver)
    scene.keep(module, qps, arrays, regions)
    scene.expect(copy, source, "copy")
