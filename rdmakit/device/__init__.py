"""The public objects, the same for every backend: Context, PD, MR, CQ, QP and what they hand out.

Leans on errors, layout and NumPy. Backends register themselves with `registry`; nothing here knows any of
them.
"""

from rdmakit.device.access import ALL_ACCESS
from rdmakit.device.address_vector import MigrationState, StaticRate
from rdmakit.device.completion import Completion, Completions
from rdmakit.device.context import Context, Port
from rdmakit.device.cq import CQ
from rdmakit.device.endpoint import Endpoint
from rdmakit.device.gpu_mr import GpuMR
from rdmakit.device.handle import (
    CQ_HANDLE,
    LAYOUT_VERSION,
    QP_HANDLE,
    SQ_STATE,
    WATCH,
    DeviceHandle,
    handle_array,
)
from rdmakit.device.mr import MR, MemorySlice, RemoteMemory
from rdmakit.device.pair import connected_pair
from rdmakit.device.pd import PD
from rdmakit.device.provider import AsyncEvent, Device, PortInfo, Provider, Refused
from rdmakit.device.qp import QP
from rdmakit.device.qp_attributes import QPState
from rdmakit.device.registry import backends, device_strings, open, register_backend, register_named_devices
from rdmakit.device.report import REPORT, DeviceStatus, Report

__all__ = [
    "ALL_ACCESS",
    "CQ",
    "CQ_HANDLE",
    "LAYOUT_VERSION",
    "MR",
    "PD",
    "QP",
    "QP_HANDLE",
    "REPORT",
    "SQ_STATE",
    "WATCH",
    "AsyncEvent",
    "Completion",
    "Completions",
    "Context",
    "Device",
    "DeviceHandle",
    "DeviceStatus",
    "Endpoint",
    "GpuMR",
    "MemorySlice",
    "MigrationState",
    "Port",
    "PortInfo",
    "Provider",
    "QPState",
    "Refused",
    "RemoteMemory",
    "Report",
    "StaticRate",
    "backends",
    "connected_pair",
    "device_strings",
    "handle_array",
    "open",
    "register_backend",
    "register_named_devices",
]

register_backend("emu", "rdmakit.emu.backend")
register_named_devices("rdmakit.verbs.backend")
