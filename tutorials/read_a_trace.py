"""Where do the microseconds of one message go? Record a timeline, then read it.

    python tutorials/read_a_trace.py [trace.json]

A small dispatch runs on two described hosts, in virtual time. Every reserve, publish, doorbell, fetch, wire,
execution and CQE is an event with a time; the differences between them are the legs of a message. The file opens at
ui.perfetto.dev.
"""

import os
import sys
import tempfile
from itertools import pairwise

import numpy as np

from rdmakit import show
from rdmakit.model import load
from rdmakit.model.measure import measure
from rdmakit.model.steps import STEPS
from rdmakit.model.workload import sized_for
from rdmakit.show.perfetto import check_trace

LEGS = ("doorbell", "fetched", "wire", "executed", "CQE")


def moments(timeline, rank):
    """Of each WQE of `rank`'s NIC: when its doorbell was rung, it was fetched, was on the wire, executed, completed
    (ns)."""
    rows = []
    events = {kind: timeline.of(kind) for kind in LEGS}
    bells, fetched = events["doorbell"], events["fetched"]
    for wire in events["wire"]:
        if wire["unit"] != rank:  # one NIC a GPU: they have one number
            continue
        qpn, index = wire["qpn"], wire["index"]
        # The first bell, and the first look of the NIC, that cover this WQE: both say where the ring then ends.
        bell = bells[(bells["qpn"] == qpn) & (bells["unit"] == rank) & (bells["index"] > index)]
        look = fetched[(fetched["qpn"] == qpn) & (fetched["unit"] == rank) & (fetched["index"] > index)]
        later = [
            e[(e["qpn"] == qpn) & (e["unit"] == rank) & (e["index"] == index)]
            for e in (events["executed"], events["CQE"])
        ]
        times = [
            bell["when_ps"][0],
            look["when_ps"][0],
            wire["until_ps"],
            later[0]["when_ps"][0],
            later[1]["when_ps"][0],
        ]
        rows.append(np.array(times, float) / 1e3)
    return np.array(rows)


def main(out):
    cluster = load("ib").changed(hosts=2, gpus_per_host=2)
    work = sized_for(cluster, "normal", "dispatch", tokens=32, channels=2)
    for step in (STEPS[3], STEPS[5]):
        timeline = measure(cluster, work, step, timeline=True).timeline
        legs = np.diff(moments(timeline, rank=0), axis=1)
        assert (legs >= 0).all(), "a message went back in time"
        names = [f"{a} → {b}" for a, b in pairwise(LEGS)]
        title = f"step {step.number}: {step.title}; median of {len(legs)} WQEs (modelled)"
        print(f"{show.port_bars(list(zip(names, np.median(legs, axis=0), strict=True)), 'ns', title=title)}\n")
    text = timeline.to_json()
    assert check_trace(text) == []
    with open(out, "w", encoding="utf-8") as file:
        file.write(text)
    print(
        f"{out}: {len(timeline.events)} events; drop it on ui.perfetto.dev, search for a QP, and follow its WQE numbers"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(tempfile.mkdtemp(), "trace.json"))
