"""Your own protocol, explored: does it hold in every order that GPUs, NICs and memory allow?

    python tutorials/explore_your_protocol.py
    rdmakit explore tutorials/explore_your_protocol.py:by_luck          # the same from the command line

One GPU fills a mailbox in the memory of another and raises a flag; the other waits for the flag and reads. The first
version uses raw pointers. It works on your machine, and on mine. It is wrong, and one schedule in a few shows it.
"""

from __future__ import annotations

import sys

import numpy as np

from rdmakit.explore import Explorer, Scene

WORDS = 8
MAILBOX = r"""
#include <rdmakit/warp.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL fill(u32* mailbox, u32* flag, u32 words) {
    if (lane_id() != 0) return;
    for (u32 i = 0; i < words; ++i) mailbox[i] = 100 + i;
    RAISE
}
RDMAKIT_KERNEL empty(const u32* mailbox, const u32* flag, u32 words, u32* copy) {
    if (lane_id() != 0) return;
    while (LOOK == 0) {}
    for (u32 i = 0; i < words; ++i) copy[i] = mailbox[i];
}
"""
BY_LUCK = {"RAISE": "*(volatile u32*)flag = 1;", "LOOK": "*(volatile const u32*)flag"}
IN_ORDER = {"RAISE": "store_release<Scope::sys>(flag, 1u);", "LOOK": "load_acquire<Scope::sys>(flag)"}


def mailbox(scene: Scene, words: dict[str, str]) -> None:
    """A scene: a world, launches in it, and what memory has to hold when they have ended."""
    code = MAILBOX
    for name, line in words.items():
        code = code.replace(name, line)
    world = scene.world(hosts=1, gpus_per_host=2)
    box, flag = world.array(WORDS, np.uint32, name="mailbox"), world.array(1, np.uint32, name="flag")
    copy = world.array(WORDS, np.uint32, name="copy")
    kernels = world.compile(code, name="mailbox.cu")
    kernels.get_function("empty")(1, 32, [box, flag, WORDS, copy], rank=1)
    kernels.get_function("fill")(1, 32, [box, flag, WORDS], rank=0)
    scene.expect(copy, np.arange(100, 100 + WORDS))


def by_luck(scene: Scene) -> None:
    """a mailbox whose flag is a plain store"""
    scene.allow_latent_races()  # wait for a wrong result; else the race itself would be enough
    mailbox(scene, BY_LUCK)


def in_order(scene: Scene) -> None:
    """a mailbox whose flag is a release at system scope, looked at by an acquire"""
    mailbox(scene, IN_ORDER)


def main() -> int:
    """0 if the wrong version was caught and the right one held."""
    explorer = Explorer(by_luck)
    found = explorer.run(1000)
    print(found)
    caught = found.failure is not None
    if found.failure is not None:
        small = explorer.shrink(found.failure)  # as few decisions as fail in the same way
        print("\n" + str(explorer.story(decisions=small.decisions)) + "\n")
    right = Explorer(in_order).run(1000)
    print(right)
    print("✓ caught, and mended" if caught and right.ok else "✗ exploring has not told them apart")
    return 0 if caught and right.ok else 1


if __name__ == "__main__":
    sys.exit(main())
