"""The PODs that kernels take, as NumPy dtypes: `QpHandle`, `CqHandle`, `Watch`, `SqState` of cuda/rdmakit.

Leans on NumPy. Offsets are those of the C structs (`cuda/rdmakit/report.cuh`, `queue.cuh`); tests compare
them with what g++ says. `DeviceHandle` is one QpHandle together with everything that it points at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device.notebook import table_html
from rdmakit.device.report import Report
from rdmakit.errors import BadArgument

if TYPE_CHECKING:
    from rdmakit.device.qp import QP

__all__ = [
    "CQ_HANDLE",
    "DIALECTS",
    "LAYOUT_VERSION",
    "QP_HANDLE",
    "SQ_STATE",
    "WATCH",
    "DeviceHandle",
    "fields_of",
    "handle_array",
    "struct",
]

LAYOUT_VERSION = 4  # RDMAKIT_LAYOUT_VERSION, config.cuh
DIALECTS = {"next_index": 0, "last_wqe": 1}  # enum class DoorbellDialect, queue.cuh


def struct(size: int, **fields: tuple[int, Any]) -> np.dtype[np.void]:
    return np.dtype(
        {
            "names": list(fields),
            "offsets": [offset for offset, _ in fields.values()],
            "formats": [kind for _, kind in fields.values()],
            "itemsize": size,
        }
    )


def fields_of(kind: np.dtype[np.void], **values: Any) -> tuple[Any, ...]:
    """Values in the order of a struct's fields, 0 for those that are not named: NumPy takes all of them at once at a
    fraction of what it takes for one by one.

    >>> fields_of(np.dtype([("a", "u4"), ("b", "u4"), ("c", "u8")]), c=3, a=1)
    (1, 0, 3)
    """
    found = tuple([values.pop(name, 0) for name in kind.names or ()])
    if values:
        raise KeyError(", ".join(values))
    return found


CQ_HANDLE = struct(
    40,
    layout_version=(0, "<u4"),
    cqn=(4, "<u4"),
    entries=(8, "<u8"),
    dbrec=(16, "<u8"),
    log_entries=(24, "<u4"),
    log_stride=(28, "<u4"),
    collapsed=(32, "<u4"),
    reserved=(36, "<u4"),
)

WATCH = struct(24, report=(0, "<u8"), timeout_ns=(8, "<u8"), rank=(16, "<u4"))

# alignas(128): each word that different warps keep writing has a cache line of its own.
SQ_STATE = struct(
    768,
    reserved=(0, "<u8"),
    ready=(128, "<u8"),
    rung=(256, "<u8"),
    completed=(384, "<u8"),
    bell=(512, "<u4"),
    cq_lock=(640, "<u4"),
    error=(644, "<u4"),
    consumer=(648, "<u8"),
    error_index=(656, "<u8"),
    doorbells=(664, "<u8"),
    cqes=(672, "<u8"),
)

QP_HANDLE = struct(
    144,
    layout_version=(0, "<u4"),
    qpn=(4, "<u4"),
    sq=(8, "<u8"),
    dbrec=(16, "<u8"),
    doorbell=(24, "<u8"),
    state=(32, "<u8"),
    sink_address=(40, "<u8"),
    sink_lkey=(48, "<u4"),
    log_sq=(52, "<u4"),
    dialect=(56, "<u4"),
    batch=(60, "<u4"),
    peer=(64, "<u4"),
    channel=(68, "<u4"),
    same_gpu=(72, "<u4"),
    reserved=(76, "<u4"),
    cq=(80, CQ_HANDLE),
    watch=(120, WATCH),
)


class DeviceHandle:
    """A `QpHandle` for kernels, made by `QP.device_handle`: pass it by value, or by pointer through `array`.

    It keeps the QP (with its CQ, PD and rings), the report and the sink alive. `array` has shape (1,) and
    dtype `QP_HANDLE`; fields may be changed before a launch.
    """

    def __init__(self, qp: QP, array: np.ndarray[Any, np.dtype[np.void]], report: Report) -> None:
        self.qp = qp
        self.array = array
        self.report = report

    def __getitem__(self, field: str) -> Any:
        return self.array[0][field]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.array, dtype=dtype, copy=bool(copy))

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for name in QP_HANDLE.names or ():
            value = self.array[0][name]
            if value.dtype.names:
                rows += [{"field": f"{name}.{part}", "value": hex(value[part])} for part in value.dtype.names]
            else:
                rows.append({"field": name, "value": hex(value)})
        return rows

    def __repr__(self) -> str:
        at = self.array[0]
        size = 1 << int(at["log_sq"])
        return f"<QpHandle of QP {at['qpn']:#x}: peer {at['peer']}, channel {at['channel']}, {size} WQEBBs>"

    def _repr_html_(self) -> str:
        title = f"QpHandle, {QP_HANDLE.itemsize} bytes, passed to kernels by value"
        return table_html(self._rows(), repr(self), title=title)


class HandleArray(np.ndarray[Any, np.dtype[np.void]]):
    """An array of `QP_HANDLE` that keeps alive what its handles point at."""

    owners: tuple[DeviceHandle, ...] = ()

    def __array_finalize__(self, source: Any) -> None:
        self.owners = getattr(source, "owners", ())


def handle_array(handles: list[DeviceHandle], memory: np.ndarray[Any, Any] | None = None) -> HandleArray:
    """One array, shape (len(handles),), of the handles' PODs: the `const QpHandle*` of a kernel.

    `memory`, when given, is uint8 that kernels reach and receives the PODs; without it NumPy's own is used.
    The array keeps the handles alive. BadArgument for an empty list or too little memory.
    """
    if not handles:
        raise BadArgument("no handles", value=handles, rule="at least one",
                          remedy="pass the handles that qp.device_handle() gave")
    nbytes = QP_HANDLE.itemsize * len(handles)
    if memory is None:
        memory = np.zeros(nbytes, np.uint8)
    if memory.nbytes < nbytes:
        raise BadArgument("memory too small for the handles", value=memory.nbytes, rule=f"{nbytes} bytes",
                          remedy="leave memory out, and it is allocated")
    found = memory.reshape(-1).view(np.uint8)[:nbytes].view(QP_HANDLE).view(HandleArray)
    for slot, handle in enumerate(handles):
        found[slot] = handle.array[0]
    found.owners = tuple(handles)
    return found
