"""A command that the device refused: its status and syndrome, in words, with an errno and what to do.

Leans on device.provider and layout. Sources: kernel drivers/net/ethernet/mellanox/mlx5/core/cmd.c (cmd_status_str,
cmd_status_to_err), include/linux/mlx5/device.h. A syndrome names a line of the firmware.
"""

from __future__ import annotations

import errno
from typing import Any

from rdmakit.device.provider import Refused
from rdmakit.layout.prm_commands import ANSWER, CommandOp, CommandStatus
from rdmakit.verbs.refusals import refused

__all__ = ["refused_command"]

_S = CommandStatus
# The kernel's errno, but for two: a command that the firmware lacks, and resources that it has none of.
_MEANING: dict[int, tuple[int, str]] = {
    _S.INT_ERR: (errno.EIO, "the firmware has failed: dmesg says more; reset the device"),
    _S.BAD_OP_ERR: (errno.EOPNOTSUPP, "this firmware lacks the command, or an option of it: queues=mlx5"),
    _S.BAD_PARAM_ERR: (errno.EINVAL, "a field is wrong for this device: sizes, GID index, port, UDP source port, MTU"),
    _S.BAD_SYS_STATE_ERR: (errno.EIO, "the device is being reset or removed: open it again"),
    _S.BAD_RES_ERR: (errno.EINVAL, "a PD, CQ, umem or UAR page that it names is not there, or another context's"),
    _S.RES_BUSY: (errno.EBUSY, "close what uses it first"),
    _S.LIM_ERR: (errno.ENOMEM, "a limit of the device is reached: fewer or smaller queues"),
    _S.BAD_RES_STATE_ERR: (errno.EINVAL, "the object is in another state: query it"),
    _S.IX_ERR: (errno.EINVAL, "an index is out of range: GID, P_Key, counter"),
    _S.NO_RES_ERR: (errno.ENOMEM, "the device has no more of these: fewer or smaller queues"),
    _S.BAD_QP_STATE_ERR: (errno.EINVAL, "the queue pair cannot go there from here: RESET, INIT, RTR, RTS in turn"),
    _S.BAD_INP_LEN_ERR: (errno.EIO, "the command's length is not what this firmware takes: report it"),
    _S.BAD_OUTP_LEN_ERR: (errno.EIO, "the answer's length is not what this firmware gives: report it"),
}  # fmt: skip


def _named(kind: type[CommandOp] | type[CommandStatus], number: int) -> str:
    return kind(number).name if number in kind._value2member_map_ else hex(number)


def refused_command(call: str, code: int, command: bytes, answer: bytes, **facts: Any) -> Refused:
    """The exception for a command that `call` answered with errno `code`; the device's own verdict, if it came so far.

    The typed error has `command`, `status` and `syndrome` among its facts.

    >>> from rdmakit.layout.prm_commands import QUERY_IN
    >>> command, answer = QUERY_IN.pack({"opcode": CommandOp.CREATE_QP}), bytes.fromhex("03000000 00a1b2c3")
    >>> refusal = refused_command("mlx5dv_devx_obj_create", errno.EREMOTEIO, command, answer)
    >>> refusal.message
    'CREATE_QP: status 0x3 BAD_PARAM_ERR, syndrome 0xa1b2c3 (mlx5dv_devx_obj_create: Remote I/O error)'
    >>> refusal.code == errno.EINVAL, refusal.facts["syndrome"]
    (True, '0xa1b2c3')
    """
    name = _named(CommandOp, int.from_bytes(command[:2], "big"))
    status, syndrome = ANSWER.get(answer, "status"), ANSWER.get(answer, "syndrome")
    plain = refused(call, code, **facts)
    if not status:  # the kernel has not passed it on
        return Refused(plain.code, f"{name}: the kernel refused it, {plain.message}", plain.remedy or (
            "an object of another context, or a command that users may not give: dmesg says more"
        ), command=name)  # fmt: skip
    meaning, remedy = _MEANING.get(status, (errno.EIO, "dmesg says more"))
    verdict = f"status {status:#x} {_named(CommandStatus, status)}, syndrome {syndrome:#x}"
    return Refused(meaning, f"{name}: {verdict} ({plain.message})", remedy, command=name,
                   status=_named(CommandStatus, status), syndrome=hex(syndrome))  # fmt: skip
