"""Errno and call → why it may have been refused, and what to do: `Refused`, which objects turn into typed errors.

Leans on device.provider. Sources: the ERRORS sections of the man pages, rdma-core's Documentation/libibverbs.md.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from rdmakit.device.provider import Refused

__all__ = ["refused"]

_MEMLOCK = "raise the limit of locked memory: ulimit -l unlimited, or /etc/security/limits.d (soft and hard memlock)"
_ACCESS = "be in the group that owns /dev/infiniband/uverbs*, or in a container pass --device /dev/infiniband"
_LACKS = "the device, its driver or the kernel lacks it: rdmakit doctor says what there is"
_GONE = "the device has been unplugged or reset: close everything and open it again"

_DEVX = (
    "DevX needs libmlx5 of rdma-core 22 or later, and firmware that gives user contexts (UCTX_EN=1 by mlxconfig; of a "
    "virtual function its host decides): queues=mlx5 does without"
)

# (call, errno) → remedy; (“”, errno) for any call.
_REMEDIES: dict[tuple[str, int], str] = {
    ("ibv_reg_mr", errno.ENOMEM): _MEMLOCK,
    ("ibv_reg_mr", errno.EFAULT): "the memory is not mapped (any more): register live memory, keep it until close()",
    ("ibv_reg_mr", errno.EINVAL): "remote write and atomic rights need local write; the range must not wrap",
    ("ibv_reg_dmabuf_mr", errno.EOPNOTSUPP): "needs libibverbs ≥ 1.12 (rdma-core 34) and a driver with dma-buf; "
    "register a host buffer instead, or load nvidia-peermem",
    ("ibv_reg_dmabuf_mr", errno.EPROTONOSUPPORT): "the device or its driver registers no dma-bufs (Linux 5.12, and "
    "firmware with on-demand paging): register a host buffer instead, or load nvidia-peermem",
    ("ibv_reg_dmabuf_mr", errno.EBADF): "an open descriptor of a dma-buf: that of cuMemGetHandleForAddressRange",
    ("ibv_reg_dmabuf_mr", errno.EINVAL): "a descriptor of a dma-buf, with offset and size within it",
    ("ibv_create_cq", errno.ENOMEM): _MEMLOCK,
    ("ibv_create_cq", errno.EINVAL): "fewer entries: query_device()['max_cqe'] is the most",
    ("ibv_create_qp", errno.ENOMEM): _MEMLOCK,
    (
        "ibv_create_qp",
        errno.EINVAL,
    ): "smaller queues, fewer gather entries or less inline data: query_device() has limits",
    ("ibv_modify_qp", errno.EINVAL): "a transition or an attribute that the driver refuses: GID index, port, PSN, MTU; "
    "see man ibv_modify_qp",
    ("ibv_modify_qp", errno.ETIMEDOUT): "the peer's address does not resolve: is its network reachable from this port?",
    ("ibv_modify_qp", errno.EHOSTUNREACH): "no route to the peer's GID: check IP addresses and routes of both ports",
    ("ibv_modify_qp", errno.ENETUNREACH): "no route to the peer's GID: check IP addresses and routes of both ports",
    ("ibv_post_send", errno.ENOMEM): "the send queue is full: poll its CQ; only signalled work requests free slots",
    ("ibv_post_send", errno.EINVAL): "an opcode, gather list or inline size that this QP was not created for, or a "
    "state before RTS",
    ("ibv_post_recv", errno.ENOMEM): "the receive queue is full: poll its CQ",
    ("ibv_dealloc_pd", errno.EBUSY): "close the MRs and QPs of this PD first",
    ("ibv_destroy_cq", errno.EBUSY): "close the QPs that complete to it first",
    ("mlx5dv_create_cq", errno.EOPNOTSUPP): "only mlx5 devices have it: leave cqe_bytes and overrun_ignore out",
    ("mlx5dv_create_qp", errno.EOPNOTSUPP): "only mlx5 devices have it: leave out_of_order and scatter_to_cqe out",
    ("mlx5dv_query_qp_lag_port", errno.EOPNOTSUPP): "the device is not bonded, or its bond hashes packets over ports; "
    "devlink's lag_port_select_mode must be queue_affinity",
    ("mlx5dv_modify_qp_lag_port", errno.EOPNOTSUPP): "the device is not bonded, or its bond hashes packets over ports; "
    "set the UDP source port instead",
    ("mlx5dv_modify_qp_udp_sport", errno.EOPNOTSUPP): "bring the queue pair to RTS first; where that does not help, "
    "choose the port by flow_label when connecting: "
    "0xC000 | ((label & 0x3fff) ^ (label >> 14))",
    ("mlx5dv_modify_qp_udp_sport", errno.EINVAL): "RC or UC, in RTS, port 0xC000 … 0xFFFF",
    ("mlx5dv_open_device", errno.EOPNOTSUPP): _DEVX,
    ("mlx5dv_open_device", errno.EINVAL): _DEVX,
    ("mlx5dv_devx_alloc_uar", errno.EOPNOTSUPP): "this kernel gives no such page: another type, or queues=mlx5",
    ("mlx5dv_devx_umem_reg", errno.ENOMEM): _MEMLOCK,
    ("mlx5dv_devx_umem_reg", errno.EFAULT): "the memory is not mapped: allocate it first; of a GPU it needs "
    "nvidia-peermem, or a dma-buf",
    ("mlx5dv_devx_umem_reg_ex", errno.EOPNOTSUPP): "queues in memory of another device need a libmlx5 with "
    "mlx5dv_devx_umem_reg_ex (MLX5_1.19) and a kernel whose umems take dma-bufs: keep them in host memory",
    ("mlx5dv_devx_umem_reg_ex", errno.EINVAL): "offset and size must lie within the dma-buf, on its pages",
    ("ibv_create_ah", errno.ETIMEDOUT): "the peer's address does not resolve: is its network reachable from this port?",
    ("ibv_create_ah", errno.EHOSTUNREACH): "no route to the peer's GID: check IP addresses and routes of both ports",
    ("ibv_create_ah", errno.ENETUNREACH): "no route to the peer's GID: check IP addresses and routes of both ports",
    ("ibv_create_ah", errno.EINVAL): "a port, GID index or GID that this device does not know",
    ("ibv_get_device_list", errno.ENOSYS): "the kernel has no RDMA: modprobe ib_uverbs and the device's driver",
    ("ibv_get_device_list", errno.EPERM): _ACCESS,
    ("", errno.EACCES): _ACCESS,
    ("", errno.EPERM): _ACCESS,
    ("", errno.EOPNOTSUPP): _LACKS,
    ("", errno.EPROTONOSUPPORT): _LACKS,
    ("", errno.ENOSYS): _LACKS,
    ("", errno.ENOMEM): "close what is no longer used; " + _MEMLOCK,
    ("", errno.EBUSY): "close what stands on it first",
    ("", errno.EMFILE): "raise the limit of open files (ulimit -n), or close what is no longer used",
    ("", errno.EAGAIN): "the kernel or the device had no room just now: try again, or make fewer objects",
    ("", errno.ENODEV): _GONE,
    ("", errno.EIO): _GONE,
}


def refused(call: str, code: int, **facts: Any) -> Refused:
    """The exception to raise for `call`, which answered `code`; `facts` say with what.

    >>> refused("ibv_reg_mr", errno.ENOMEM, nbytes=4096)
    Refused(12, 'ibv_reg_mr: Cannot allocate memory (nbytes 4096)')
    """
    said = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    message = f"{call}: {os.strerror(code) if code else 'failed without an errno'}"
    remedy = _REMEDIES.get((call, code)) or _REMEDIES.get(("", code))
    remedy = remedy or f"man {call} has its errors; the kernel's log (dmesg) may say more"
    return Refused(code or errno.EIO, f"{message} ({said})" if said else message, remedy)
