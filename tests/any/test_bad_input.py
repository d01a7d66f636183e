"""Every kind of bad input ends in a typed error that names the value, the rule and the remedy, and leaves no trace.

One table for all of the public API; what each layer refuses in detail stands beside that layer.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe import failures, make_inputs
from verbs_rig import Rig

import rdmakit
from rdmakit.ep import recording, verify
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.ep.normal import NormalBuffer
from rdmakit.errors import (
    BadArgument,
    BadState,
    CompletionError,
    CorruptFile,
    ForeignObject,
    LaunchError,
    ObjectBusy,
    QueueFull,
    RdmakitError,
    UnknownDevice,
)


def told(error: RdmakitError) -> None:
    """The message has the value (or the facts in its place), the rule and the remedy, and prints all of them."""
    assert error.value is not None or error.facts, f"no value: {error}"
    assert error.rule and error.remedy, f"no rule or no remedy: {error}"
    assert f"rule: {error.rule}" in str(error) and f"remedy: {error.remedy}" in str(error)


# ---- memory, queues, devices


def use_an_rkey_after_deregistration(rig: Rig) -> None:
    kept = rig.theirs.remote()
    rig.theirs.close()
    rig.near.post_write(rig.mine[:8], kept)
    rig.near.send_cq.wait()


def fill_the_send_ring(rig: Rig) -> None:
    with rig.near.batch():
        for _ in range(129):
            rig.near.post_nop(signalled=False)


def fill_the_receive_ring(rig: Rig) -> None:
    for _ in range(9):
        rig.far.post_recv(rig.theirs[:8])


def launch_too_many_threads(rig: Rig) -> None:
    text = "#include <rdmakit/warp.cuh>\nRDMAKIT_KERNEL nothing(int n) {}"
    rig.world.compile(text).get_function("nothing")((1,), (4096,), (1,))


def damaged_recording(folder: Path) -> Path:
    whole = bytearray(Path(recording.__file__).with_name("data").joinpath("routing_stdlib.npz").read_bytes())
    whole[len(whole) // 2] ^= 1
    path = folder / "damaged.npz"
    path.write_bytes(whole)
    return path


VERBS: dict[str, tuple[type[RdmakitError], Callable[[Rig], Any]]] = {
    "memory with gaps": (BadArgument, lambda r: r.near.pd.register(np.zeros((4, 4))[:, 1])),
    "memory of Python objects": (BadArgument, lambda r: r.near.pd.register(np.array([object()]))),
    "no memory at all": (BadArgument, lambda r: r.near.pd.register(np.zeros(0))),
    "no buffer": (BadArgument, lambda r: r.near.pd.register("text")),
    "foreign PD, local": (ForeignObject, lambda r: r.near.post_send(r.near.context.alloc_pd().register(bytearray(8)))),
    "foreign PD, other device": (ForeignObject, lambda r: r.near.post_send(r.theirs)),
    "foreign CQ": (ForeignObject, lambda r: r.near.pd.create_qp(r.far.context.create_cq(4))),
    "rkey after deregistration": (CompletionError, use_an_rkey_after_deregistration),
    "CQ in use": (ObjectBusy, lambda r: r.near.send_cq.close()),
    "PD in use": (ObjectBusy, lambda r: r.near.pd.close()),
    "sending in RESET": (BadState, lambda r: r.near.modify("RESET").post_nop()),
    "receiving in RESET": (BadState, lambda r: r.near.modify("RESET").post_recv([])),
    "forbidden transition": (BadState, lambda r: r.near.modify("RESET").modify("RTS")),
    "send ring overflow": (QueueFull, fill_the_send_ring),
    "receive ring overflow": (QueueFull, fill_the_receive_ring),
    "unknown device": (UnknownDevice, lambda r: rdmakit.open("mlx6_0")),
    "unknown key of a device": (BadArgument, lambda r: rdmakit.open("emu:colour=red")),
    "bad value of a key": (BadArgument, lambda r: rdmakit.open("emu:hosts=many")),
    "impossible launch": (LaunchError, launch_too_many_threads),
}


@pytest.mark.parametrize("name", VERBS)
def test_verbs(name: str, seed: int) -> None:
    expected, mistake = VERBS[name]
    rig = Rig(seed)
    hca = rig.world._core
    with pytest.raises(expected) as caught:
        mistake(rig)
    told(caught.value)
    world, near, far = rig.world, rig.near, rig.far
    if expected is not CompletionError:  # nothing moved and nothing is stuck: both ends still work from RESET
        near.modify("RESET"), far.modify("RESET")
        near.connect(far), far.connect(near)
        near.post_write(rig.mine[:8], rig.theirs)
        assert near.send_cq.wait().all_ok
        assert (rig.there[:8] == rig.here[:8]).all()
    del rig, near, far, mistake
    caught = None
    gc.collect()
    assert [hca.live_mrs(h) for h in range(2)] == [0, 0], "memory regions are left behind"
    world.run()


# ---- tokens


def spoil(place: int, change: Callable[[Any], Any]) -> Callable[[list[list[Any]]], None]:
    def apply(arguments: list[list[Any]]) -> None:
        arguments[place][0] = change(arguments[place][0])

    return apply


def with_value(where: tuple[int, int], value: Any) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array = array.copy()
        array[where] = value(array) if callable(value) else value
        return array

    return change


X, IDX, WEIGHTS = range(3)
TOKENS: dict[str, Callable[[list[list[Any]]], None]] = {
    "dtype of x": spoil(X, lambda x: x.astype(np.float32)),
    "shape of x": spoil(X, lambda x: x[None]),
    "contiguity of x": spoil(X, lambda x: np.asfortranarray(x)),
    "hidden no multiple of 128": spoil(X, lambda x: np.ascontiguousarray(x[:, :200])),
    "hidden of another buffer": spoil(X, lambda x: np.ascontiguousarray(x[:, :128])),
    "dtype of topk_idx": spoil(IDX, lambda i: i.astype(np.float32)),
    "another top-k": spoil(IDX, lambda i: np.ascontiguousarray(i[:, :1])),
    "expert beyond the last": spoil(IDX, with_value((3, 1), 8)),
    "expert below -1": spoil(IDX, with_value((3, 1), -2)),
    "an expert twice": spoil(IDX, with_value((3, 1), lambda i: i[3, 0])),
    "fewer rows of choices": spoil(IDX, lambda i: i[:3]),
    "more tokens than the buffer": spoil(X, lambda x: np.concatenate([x, x])),
    "dtype of weights": spoil(WEIGHTS, lambda w: w.astype(np.float64)),
    "shape of weights": spoil(WEIGHTS, lambda w: w[:3]),
    "a rank too few": lambda arguments: arguments[X].__delitem__(0),
}


WEIGHTS_OF = [name for name in TOKENS if name.endswith("of weights")]  # low latency takes them in combine
CASES = [(NormalBuffer, name) for name in TOKENS]
CASES += [(LowLatencyBuffer, name) for name in TOKENS if name not in WEIGHTS_OF]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_tokens(kind: Any, name: str) -> None:
    buffer = kind(rdmakit.World(hosts=2), hidden=256, topk=2, experts=8, max_tokens=16)
    assert "2 ranks" in repr(buffer) and "top-2 of 8" in repr(buffer), "what it takes can be read off it"
    given = 3 if kind is NormalBuffer else 2
    arguments = [list(part) for part in make_inputs([16, 16], 256, 8, 2, 1, masked=0)]
    TOKENS[name](arguments)
    with pytest.raises(BadArgument) as caught:
        buffer.dispatch(*arguments[:given])
    told(caught.value)
    x, idx, weights = make_inputs([16, 16], 256, 8, 2, 2, masked=0)  # the buffer still works
    if kind is NormalBuffer:
        assert not failures(verify.check_dispatched(buffer.dispatch(x, idx, weights), x, idx, weights, 8))
    else:
        got, _, _ = buffer.dispatch(x, idx, use_fp8=False)
        assert not failures(verify.check_low_latency(got, x, idx, 8, 16, False))


@pytest.mark.parametrize("name", WEIGHTS_OF)
def test_combine_of_low_latency(name: str) -> None:
    buffer = LowLatencyBuffer(rdmakit.World(hosts=2), hidden=256, topk=2, experts=8, max_tokens=16)
    arguments = [list(part) for part in make_inputs([16, 16], 256, 8, 2, 1, masked=0)]
    got, handles, _ = buffer.dispatch(arguments[X], arguments[IDX], use_fp8=False)
    TOKENS[name](arguments)
    with pytest.raises(BadArgument) as caught:
        buffer.combine([g.packed_recv_x for g in got], handles, arguments[IDX], arguments[WEIGHTS])
    told(caught.value)


@pytest.mark.parametrize("kind", [NormalBuffer, LowLatencyBuffer])
@pytest.mark.parametrize("change", [{"hidden": 100}, {"hidden": 0}, {"topk": 0}, {"experts": 7}, {"max_tokens": 0}])
def test_buffers(kind: Any, change: dict[str, int]) -> None:
    with pytest.raises(BadArgument) as caught:
        kind(rdmakit.World(hosts=2), **({"hidden": 256, "topk": 2, "experts": 8, "max_tokens": 16} | change))
    told(caught.value)


def test_counts_over_the_receive_buffer() -> None:
    buffer = NormalBuffer(rdmakit.World(hosts=2), hidden=128, topk=1, experts=2, max_tokens=16, capacity=20)
    x, idx, weights = make_inputs([16, 16], 128, 2, 1, 1, masked=0)
    with pytest.raises(BadArgument) as caught:
        buffer.dispatch(x, [np.zeros_like(i) for i in idx], weights)
    told(caught.value)
    assert caught.value.value == 32


def test_a_corrupt_recording(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile) as caught:
        recording.load_recording(damaged_recording(tmp_path))
    told(caught.value)
