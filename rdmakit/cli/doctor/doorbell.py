"""Checks that try: a device is opened, writes to itself, and its doorbell register is mapped for a GPU's kernels.

Leans on check, machine; the objects of rdmakit.device and rdmakit.gpu.probe are asked for through the machine.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from rdmakit.cli.doctor.check import Answer, failed, passed, skipped, warned, worst
from rdmakit.cli.doctor.machine import Machine
from rdmakit.cli.doctor.ports import counted
from rdmakit.errors import CompletionError, NotAvailable, RdmakitError

__all__ = ["loopback", "memory_registration", "register", "write_to_itself"]

_BYTES = 64
_PAGE = 4096
_WAIT_S = 5.0


def why(error: RdmakitError) -> str:
    """An error's sentence and rule, without the remedy."""
    return f"{error.what}: {error.rule}" if error.rule else error.what


def write_to_itself(context: Any, port: int) -> None:
    """One WRITE from a queue pair to another of the same port; an error if a byte differs."""
    import numpy as np

    from rdmakit.device import connected_pair
    from rdmakit.errors import DeviceFault

    near, far = connected_pair(context, context, port=port, cq_entries=16)
    sent = np.frombuffer(secrets.token_bytes(_BYTES), np.uint8).copy()
    source, target = near.pd.register(sent), far.pd.register(np.bitwise_not(sent))
    near.post_write(source, target.remote())
    near.send_cq.wait(timeout=_WAIT_S)
    if not np.array_equal(target.bytes, source.bytes):
        raise DeviceFault("a WRITE completed and its bytes differ", value=port, rule="completion is placement here",
                          remedy="look at the kernel's log: dmesg")  # fmt: skip


def _loop(machine: Machine, name: str, ports: list[int]) -> Answer:
    where = name
    try:
        with machine.ask.open(name) as context:
            queues = str(getattr(context.device, "where", ""))
            for port in ports:
                where = f"{name}/{port}"
                write_to_itself(context, port)
    except CompletionError as error:
        return failed(f"{where}: a WRITE to itself ended in {error.wc_status}", error.remedy or "")
    except RdmakitError as error:
        return failed(f"{name}: {why(error)}", error.remedy or "")
    return passed(f"{name} ({queues})" if queues else name, **{name: queues})


def loopback(machine: Machine) -> Answer:
    """Each device is opened and writes bytes to itself through every active port."""
    if not machine.active:
        return skipped(machine.no_rdma() or "no active port")
    by_device: dict[str, list[int]] = {}
    for nic, port in machine.active:
        by_device.setdefault(nic.name, []).append(port.number)
    listed, reason = machine.ask.device_names()
    unlisted = [name for name in by_device if name not in listed]
    if unlisted:
        return failed(f"libibverbs does not list {', '.join(unlisted)}" + (f": {reason}" if reason else ""),
                      "ibv_devices; apt-get install ibverbs-providers")  # fmt: skip
    found = worst(_loop(machine, name, ports) for name, ports in by_device.items())
    if found.verdict != "PASS":
        return found
    return passed(f"{_BYTES} B written and compared on {counted(len(machine.active), 'port')}", **found.facts)


def _queue(machine: Machine, name: str) -> tuple[Any, int, int]:
    """A queue pair, the page of its doorbell register, and how much BlueFlame it has."""
    from rdmakit.device.lifetime import typed_refusal

    with typed_refusal("making a queue pair", device=name):
        context = machine.ask.raw(name)
        if not context.mlx5:
            raise NotAvailable(f"{name} is no mlx5 device", rule="kernels write mlx5 doorbells",
                               remedy="queues=proxied")  # fmt: skip
        cq = context.create_cq(16)
        qp = context.alloc_pd().create_qp(cq)
        view = qp.mlx5()
    return qp, int(view["doorbell"]) // _PAGE * _PAGE, int(view["bf_size"])


def register(machine: Machine) -> Answer:
    """A queue pair is made and CUDA is asked to map the page of its doorbell register."""
    if not machine.active:
        return skipped(machine.no_rdma() or "no active port")
    name = machine.active[0][0].name
    try:
        kept, page, blueflame = _queue(machine, name)
    except NotAvailable as error:
        return skipped(why(error))
    except RdmakitError as error:
        return failed(f"{name}: {why(error)}", error.remedy or "")
    facts = {"device": name, "blueflame": blueflame}
    try:
        probe = machine.ask.cuda()
    except NotAvailable as error:
        return skipped(f"{name} has one, BlueFlame {blueflame} B; mapping it for kernels: {why(error)}", **facts)
    try:
        # An emulated NIC's register is memory of this process, which IoMemory is not for.
        probe.map_for_kernels(page, _PAGE, io=not machine.emulated)
    except NotAvailable as error:
        return warned(
            f"CUDA does not map {name}'s doorbell ({error.value}): a CPU proxy has to ring it",
            "set PeerMappingOverride (above), run as root or with CAP_SYS_ADMIN once to compare", **facts,
        )  # fmt: skip
    finally:
        del kept
    kind = "memory of an emulated NIC" if machine.emulated else "IoMemory"
    return passed(f"{name}'s doorbell is mapped for kernels ({kind})", **facts)


def memory_registration(machine: Machine) -> Answer:
    """A page of GPU memory is registered with a NIC, as a dma-buf and by its address."""
    if machine.no_gpu() or not machine.active or machine.emulated:
        return skipped(machine.no_gpu() or machine.no_rdma() or "no active port, or emulated NICs only")
    try:
        probe = machine.ask.cuda()
        memory = probe.GpuMemory()
    except NotAvailable as error:
        return skipped(why(error))
    name = machine.active[0][0].name
    refusals = {}
    for way, attempt in (("dma-buf", _as_dmabuf), ("nvidia_peermem", _by_address)):
        try:
            attempt(machine, probe, memory, name)
        except RdmakitError as error:
            refusals[way] = why(error)
        else:
            return passed(f"{name} registers GPU memory ({way})", way=way, refused=refusals)
    said = "; ".join(f"{way}: {reason}" for way, reason in refusals.items())
    return failed(f"{name} registers no GPU memory ({said})", "modprobe nvidia-peermem, or the open kernel modules",
                  refused=refusals)  # fmt: skip


_ACCESS = 1 | 2 | 4  # IBV_ACCESS_LOCAL_WRITE, REMOTE_WRITE, REMOTE_READ


def _as_dmabuf(machine: Machine, probe: Any, memory: Any, name: str) -> None:
    from rdmakit.device.lifetime import typed_refusal

    fd = probe.dmabuf_fd(memory)
    try:
        with typed_refusal("registering a dma-buf", device=name):
            pd = machine.ask.raw(name).alloc_pd()
            pd.reg_dmabuf_mr(0, memory.nbytes, memory.address, fd, _ACCESS).close()
    finally:
        os.close(fd)


def _by_address(machine: Machine, probe: Any, memory: Any, name: str) -> None:
    del probe
    from rdmakit.device.lifetime import typed_refusal

    with typed_refusal("registering GPU memory", device=name):
        machine.ask.raw(name).alloc_pd().reg_mr(memory.address, memory.nbytes, _ACCESS).close()
