"""A check that tries: queues made by command (DevX), which may lie in a GPU's memory and have a collapsed CQ.

Leans on check, machine and doorbell; the objects of rdmakit.device are asked for through the machine.
"""

from __future__ import annotations

from rdmakit.cli.doctor.check import Answer, failed, passed, skipped, warned
from rdmakit.cli.doctor.doorbell import why, write_to_itself
from rdmakit.cli.doctor.machine import Machine
from rdmakit.errors import CompletionError, RdmakitError

__all__ = ["devx"]


def devx(machine: Machine) -> Answer:
    """The first active device is opened for commands, makes a collapsed CQ, and writes to itself."""
    if not machine.active:
        return skipped(machine.no_rdma() or "no active port")
    nic, port = machine.active[0]
    if not machine.ask.raw(nic.name).mlx5:
        return skipped(f"{nic.name} is no mlx5 device: a proxy posts for it")
    try:
        with machine.ask.open(f"{nic.name}:queues=devx") as context:
            context.create_cq(16, collapsed=True, overrun_ignore=True)
            write_to_itself(context, port.number)
            where = str(getattr(context.device, "where", ""))
    except CompletionError as error:
        said = f"{nic.name}: a WRITE between queues made by command ended in {error.wc_status}"
        return failed(said, error.remedy or "")
    except RdmakitError as error:
        return warned(f"{nic.name}: {why(error)}", error.remedy or "")
    return passed(f"{nic.name} makes queues by command, a collapsed CQ among them", device=nic.name, where=where)
