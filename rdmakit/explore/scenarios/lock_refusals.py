"""What the receiver of a sequence lock must refuse by name: lies put into its memory, or sent by a sender that lies.

The schedule holds if the report says exactly that, and nothing was signed off or copied. Leans on lock and signal.
"""

from __future__ import annotations

import numpy as np

from rdmakit.device.report import DeviceStatus
from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.lock import make_lock
from rdmakit.signal import SequenceLock, Strategy, handles
from rdmakit.signal import reference as truth
from rdmakit.signal.abi import LOCK_TRANSFER
from rdmakit.signal.strategies import HEADER_BYTES

__all__ = ["LIES"]

# Each lie and what it has to be called.
LIES = {
    "gap": DeviceStatus.GAP,
    "repeat": DeviceStatus.REPEATED,
    "stale_epoch": DeviceStatus.STALE_EPOCH,
    "fingerprint": DeviceStatus.WRONG_FINGERPRINT,
    "signal": DeviceStatus.WRONG_FINGERPRINT,
    "length": DeviceStatus.BAD_ARGUMENT,
    "crc": DeviceStatus.CORRUPT_PAYLOAD,
}


def _lie_in_memory(lock: SequenceLock, lie: str) -> None:
    """The slot and the signal of ticket 0 as a NIC would have written them, but for the lie."""
    payload, epoch, qpn, slots = bytes(range(1, 17)), lock.epoch, lock.sender_qp.qpn, lock.slots
    # Earlier tickets of the slot have been signed off: an older one is then a repeat.
    due = slots if lie == "repeat" else 0
    lock._receiver.state["signed_off"] = lock._receiver.state["credited"] = due
    ticket = {"gap": slots, "repeat": 0}.get(lie, due)
    told = epoch - 1 if lie == "stale_epoch" else epoch
    payload = payload * 4 if lie == "length" else payload
    raw = bytearray(truth.slot(lock.strategy, payload, qpn ^ (lie == "fingerprint"), told, ticket, lock.crc))
    if lie == "crc":
        raw[HEADER_BYTES + len(payload) - 1] ^= 1
    room = min(len(raw), lock.ring.shape[1])
    lock.ring[0, :room] = np.frombuffer(bytes(raw[:room]), np.uint8)
    if lock.strategy in (Strategy.AMO, Strategy.SPLIT):
        lock.tail[0] = due + 1
    elif lock.strategy in (Strategy.WRITE, Strategy.CQE):
        # The flag of the ticket that the header claims; its own lie is its fingerprint.
        flag = truth.signal_fingerprint(qpn ^ (lie == "fingerprint"), epoch, ticket)
        lock.flags[0] = truth.stamp(ticket, flag)


@scenario("lock-refuses", "a slot that lies is refused by name, and nothing of it is signed off", tags=("lock",))
def lock_refuses(scene: Scene) -> None:
    """Options: those of `lock`, and `lie`: gap, repeat, stale_epoch, fingerprint, length, crc.

    `imm` is lied to by its sender, "signal" is an immediate of an older epoch.
    """
    lie = str(scene.options.get("lie", "gap"))
    if lie not in LIES:
        raise BadArgument("no such lie", value=lie, rule=f"one of {', '.join(LIES)}", remedy="--set lie=gap")
    world = scene.world(hosts=2, ports=1)
    lock = make_lock(scene, world).reconnect(2)
    state, length = lock._receiver.state, lock.max_payload
    if lie == "signal" and lock.strategy is not Strategy.IMM:
        raise BadArgument("a lie for immediates", value=lie, rule="strategy=imm", remedy="--set strategy=imm")
    if lock.strategy is not Strategy.IMM:
        _lie_in_memory(lock, lie)
    elif lie == "gap":
        lock._sender.next[0] = 1
    elif lie == "repeat":
        state["signed_off"] = state["credited"] = 1
    due = int(state["signed_off"])
    copies = world.array((2, length), np.uint8, 0xA5, name="copies")
    lengths = world.array((2,), np.uint32, name="lengths")
    orders, source = world.array((2,), LOCK_TRANSFER), world.array((length,), np.uint8, 7, name="source")
    orders["length"] = length
    firsts = world.array((2,), np.uint64)
    firsts[:] = lock.next_ticket, due
    senders, receivers = handles([lock], world.array)
    if lock.strategy is Strategy.IMM and lie == "fingerprint":
        receivers["sender_qpn"] ^= 1
    world.stock_kernel("lock_receive")(1, 32, (receivers, 1, firsts[1:], 1, copies, length, lengths, None), rank=1)
    if lie == "signal":
        senders["epoch"] -= 1  # the immediate is looked at before the slot, which would be called stale
    if lock.strategy is Strategy.IMM:
        world.stock_kernel("lock_send")(1, 32, (senders, 1, firsts, 1, orders, source), rank=0)
    scene.keep(lock, senders, receivers, orders, firsts, lengths, source)
    report = lock.reports[1]

    def refused() -> str | bool:
        if report.status is not LIES[lie]:
            return f"the receiver says {report.status.name}, and should say {LIES[lie].name}"
        if int(state["signed_off"]) != due:
            return f"ticket {due} was signed off"
        return bool((copies == 0xA5).all()) or "a refused payload was delivered"

    scene.check(refused)
