"""Checks of `rdmakit doctor` that open and ask: each with answers of a healthy machine, and with refusals."""

import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
from types import SimpleNamespace

import pytest
from machine_tree import Host

import rdmakit
from rdmakit.cli.doctor.check import Answer
from rdmakit.cli.doctor.checks import CHECKS, _look
from rdmakit.cli.doctor.machine import Machine
from rdmakit.device.provider import Refused
from rdmakit.errors import NotAvailable, UnknownDevice
from rdmakit.gpu.nvml import GpuLinks, NvmlReport
from rdmakit.gpu.probe import Versions

BY_NAME = {check.name: check for check in CHECKS}


def no(what, rule="a rule", value=None):
    def refuse(*_arguments, **_options):
        raise NotAvailable(what, value=value, rule=rule, remedy="a remedy")

    return refuse


class Stand:
    """In the place of `Asked`; what is not said otherwise is not available."""

    def __init__(self, **answers):
        for name in ("libraries", "device_names", "open", "raw", "cuda", "nvml"):
            setattr(self, name, answers.get(name, no(f"no {name}")))
        self.command = answers.get("command", lambda *words: None)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def look(host, name, environment=None, **answers) -> Answer:
    machine = Machine(host.root, Stand(**answers), environment=environment or {})
    return _look(BY_NAME[name], machine)


def say(value):
    return lambda *_: value


# ---- build
def test_this_python_will_do(host):
    answer = look(host, "python")
    assert answer.verdict in ("PASS", "WARN") and platform.python_version() in answer.said


def test_another_platform_fails(host, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    answer = look(host, "python")
    assert answer.verdict == "FAIL" and "riscv64" in answer.said and "x86-64" in answer.remedy


def test_python_without_headers_warns(host, monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    answer = look(host, "python")
    assert answer.verdict == "WARN" and "python3-dev" in answer.remedy


def test_the_compiler_is_tried(host, monkeypatch, tmp_path):
    assert look(host, "compiler").verdict == "PASS"
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'g++ 4.8' && exit\n"
                      "echo 'x.cu:1:1: error: c++17' >&2\nexit 1\n")  # fmt: skip
    broken.chmod(0o755)
    monkeypatch.setenv("RDMAKIT_CXX", str(broken))
    answer = look(host, "compiler")
    assert answer.verdict == "FAIL" and "error: c++17" in answer.said
    monkeypatch.setenv("RDMAKIT_CXX", "/nowhere/g++")
    answer = look(host, "compiler")
    assert answer.verdict == "FAIL" and "/nowhere/g++" in answer.said and "apt install g++" in answer.remedy


def test_the_emulator_is_looked_for(host, monkeypatch):
    answer = look(host, "emulator")
    assert answer.verdict in ("PASS", "WARN")  # WARN: built without Linux's rdma/mlx5-abi.h
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = look(host, "emulator")
    assert answer.verdict == "FAIL" and "make demo" in answer.remedy


@pytest.mark.parametrize("installed, verdict", [
    ({"nvidia-cuda-nvrtc": "13.0", "cuda-bindings": "13.1"}, "PASS"), ({"cuda-bindings": "13.1"}, "SKIP"), ({}, "SKIP"),
])  # fmt: skip
def test_nvrtc_needs_both_wheels(host, monkeypatch, installed, verdict):
    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    answer = look(host, "nvrtc")
    assert answer.verdict == verdict and answer.facts == (installed if verdict == "PASS" else {})


LIBRARIES = {"ibverbs": "/lib/libibverbs.so.1", "mlx5": "/lib/libmlx5.so.1", "mlx5_missing": "", "missing": []}


def test_libraries(host):
    answer = look(host, "libibverbs", libraries=say(LIBRARIES))
    assert (answer.verdict, answer.said) == ("PASS", "libibverbs.so.1, libmlx5.so.1")
    answer = look(host, "libibverbs", libraries=say({**LIBRARIES, "missing": ["reg_dmabuf_mr (IBVERBS_1.12)"]}))
    assert answer.verdict == "WARN" and "reg_dmabuf_mr" in answer.said
    answer = look(host, "libibverbs", libraries=say({**LIBRARIES, "mlx5": "", "mlx5_missing": "no such file"}))
    assert answer.verdict == "WARN" and "proxied" in answer.said
    answer = look(host, "libibverbs", libraries=no("libibverbs cannot be loaded"))
    assert answer.verdict == "FAIL" and answer.remedy == "a remedy"
    host.no_nics()
    assert look(host, "libibverbs", libraries=no("libibverbs cannot be loaded")).verdict == "SKIP"


# ---- ports
def test_mtu_is_the_devices_own_where_it_can_be_asked(host):
    ask = SimpleNamespace(query_port=lambda port: {"active_mtu": 3})
    assert look(host, "mtu", raw=lambda name: ask).facts == {"mlx5_0/1": 1024, "mlx5_1/1": 1024}

    def refuse(port):
        raise Refused(22, "ibv_query_port: Invalid argument")

    assert look(host, "mtu", raw=lambda name: SimpleNamespace(query_port=refuse)).facts["mlx5_0/1"] == 4096


PFC = "pfc-cap 8 macsec-bypass off delay 0\nprio-pfc 0:off 1:off 2:off 3:{} 4:off 5:off 6:off 7:off\nrequests 0 0\n"


def dcb(pfc, dscp="26:3 48:6"):
    return lambda *words: PFC.format(pfc) if words[1] == "pfc" else f"dscp-prio {dscp}\n"


def test_pfc_is_asked_of_dcb(host):
    for i in range(2):
        host.remove(f"sys/class/net/eth{i}/ecn")
    answer = look(host, "flow", command=dcb("on"))
    assert answer.verdict == "PASS" and "mlx5_0/1: PFC on priority 3" in answer.said
    answer = look(host, "flow", command=dcb("off"))
    assert answer.verdict == "WARN" and "no PFC, ECN cannot be seen" in answer.said
    assert look(host, "flow").verdict == "SKIP", "neither dcb nor files"


@pytest.mark.parametrize("tos, verdict", [(26 << 2, "PASS"), ((26 << 2) + 2, "PASS"), (0, "WARN"), (48 << 2, "WARN")])
def test_roce_must_be_in_a_priority_that_is_paused(host, tos, verdict):
    for i in range(2):
        host.sys(f"class/infiniband/mlx5_{i}/tc/1/traffic_class", str(tos))
    answer = look(host, "flow", command=dcb("on"))
    assert answer.verdict == verdict, answer
    if verdict == "WARN":
        assert f"DSCP {tos >> 2}, priority {6 if tos else 0}" in answer.said and "traffic_class" in answer.remedy


# ---- trying
def emulated(spec=""):
    return lambda name: rdmakit.open(f"emu{spec}")


def test_loopback_compares_bytes(host):
    answer = look(host, "loopback", open=emulated(), device_names=say((["mlx5_0", "mlx5_1"], "")))
    assert answer.verdict == "PASS" and "64 B written and compared on 2 ports" in answer.said


def test_loopback_sees_a_port_that_answers_nothing(host):
    world = rdmakit.World(hosts=1, faults="loss=1.0")
    answer = look(host, "loopback", open=lambda name: world.open_rank(0),
                  device_names=say((["mlx5_0", "mlx5_1"], "")))  # fmt: skip
    assert answer.verdict == "FAIL" and "mlx5_0/1: a WRITE to itself ended in RETRY_EXC_ERR" in answer.said, answer


def test_loopback_names_what_libibverbs_does_not_list(host):
    answer = look(host, "loopback", device_names=say((["mlx5_0"], "")))
    assert answer.verdict == "FAIL" and "does not list mlx5_1" in answer.said


def test_a_device_that_cannot_be_opened_fails(host):
    def refuse(name):
        raise UnknownDevice("no such RDMA device", value=name, rule="libibverbs knows none", remedy="ibv_devices")

    for check in ("loopback", "steering"):
        answer = look(host, check, open=refuse, device_names=say((["mlx5_0", "mlx5_1"], "")))
        assert answer.verdict == "FAIL" and "libibverbs knows none" in answer.said and answer.remedy == "ibv_devices"


@pytest.mark.parametrize("spec, accepted", [(":lag=affinity", ["lag_port", "udp_sport"]), (":lag=hash", ["udp_sport"])])
def test_steering_is_tried_on_a_connected_queue_pair(host, spec, accepted):
    answer = look(host, "steering", open=emulated(spec))
    assert answer.verdict == "PASS" and answer.facts["accepted"] == accepted, answer
    assert set(answer.facts["refused"]) == {"lag_port", "udp_sport"} - set(accepted)


class Qp:
    """A queue pair of libibverbs whose doorbell is at an address."""

    def __init__(self, doorbell):
        self.doorbell = doorbell

    def mlx5(self):
        return {"doorbell": self.doorbell, "bf_size": 256}


def raw_device(doorbell=0x7F0000001800, mlx5=True, registers=()):
    """`registers`: what registering memory does, call by call; an exception is raised."""
    def registered(*_):
        outcome = outcomes.pop(0) if outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(close=lambda: None)

    outcomes = list(registers)
    pd = SimpleNamespace(create_qp=lambda cq: Qp(doorbell), reg_mr=registered, reg_dmabuf_mr=registered)
    return lambda name: SimpleNamespace(mlx5=mlx5, create_cq=lambda entries: object(), alloc_pd=lambda: pd)


def test_queues_made_by_command_are_tried(host):
    asked = []

    def opened(name):
        asked.append(name)
        return rdmakit.open("emu")

    answer = look(host, "devx", raw=raw_device(), open=opened)
    assert answer.verdict == "PASS" and asked == ["mlx5_0:queues=devx"], answer
    assert look(host, "devx", raw=raw_device(mlx5=False)).verdict == "SKIP"
    assert look(host, "devx").verdict == "SKIP", "no libibverbs"
    answer = look(host, "devx", raw=raw_device(), open=no("no DevX", "mlx5dv_open_device: Invalid argument"))
    assert answer.verdict == "WARN" and "mlx5dv_open_device" in answer.said and answer.remedy == "a remedy"


def test_a_write_between_queues_made_by_command_that_fails(host):
    world = rdmakit.World(hosts=1, faults="loss=1.0")
    answer = look(host, "devx", raw=raw_device(), open=lambda name: world.open_rank(0))
    assert answer.verdict == "FAIL" and "RETRY_EXC_ERR" in answer.said, answer


def test_the_page_of_the_doorbell_is_mapped(host):
    asked = []
    probe = SimpleNamespace(map_for_kernels=lambda address, nbytes, io: asked.append((address, nbytes, io)))
    answer = look(host, "doorbell", raw=raw_device(), cuda=lambda: probe)
    assert answer.verdict == "PASS" and "IoMemory" in answer.said and answer.facts["blueflame"] == 256
    assert asked == [(0x7F0000001000, 4096, True)]
    answer = look(host, "doorbell", {"LD_PRELOAD": "/x/_uverbs.so"}, raw=raw_device(), cuda=lambda: probe)
    assert asked[1:] == [(0x7F0000001000, 4096, False)], "registers of emulated NICs are memory"


def test_a_doorbell_that_cuda_refuses_is_rung_by_a_proxy(host):
    probe = SimpleNamespace(map_for_kernels=no("cuMemHostRegister_v2 was refused", value="CUDA_ERROR_NOT_PERMITTED"))
    answer = look(host, "doorbell", raw=raw_device(), cuda=lambda: probe)
    assert answer.verdict == "WARN" and "CUDA_ERROR_NOT_PERMITTED" in answer.said
    assert "PeerMappingOverride" in answer.remedy


def test_no_cuda_or_no_mlx5_leaves_the_doorbell_untried(host):
    assert look(host, "doorbell", raw=raw_device()).verdict == "SKIP"
    answer = look(host, "doorbell", raw=raw_device(mlx5=False))
    assert answer.verdict == "SKIP" and "no mlx5 device" in answer.said


def refused(code=14):
    return Refused(code, "ibv_reg_mr: Bad address")


@pytest.mark.parametrize("registers, verdict, way", [
    ([None], "PASS", "dma-buf"), ([refused(95), None], "PASS", "nvidia_peermem"),
    ([refused(95), refused()], "FAIL", None),
])  # fmt: skip
def test_gpu_memory_is_registered_one_way_or_the_other(host, monkeypatch, registers, verdict, way):
    closed, close = [], os.close
    # Others close theirs meanwhile: what a garbage collector finds.
    monkeypatch.setattr("os.close", lambda fd: closed.append(fd) if fd == 77 else close(fd))
    memory = SimpleNamespace(address=0x7F0000000000, nbytes=65536)
    probe = SimpleNamespace(GpuMemory=lambda: memory, dmabuf_fd=lambda given: 77)
    raw = raw_device(registers=registers)
    device = raw("mlx5_0")
    answer = look(host, "gpu-mr", raw=lambda name: device, cuda=lambda: probe)
    assert answer.verdict == verdict and answer.facts.get("way") == way, answer
    assert closed == [77], "the descriptor is given back"
    if verdict == "FAIL":
        assert "dma-buf" in answer.said and "Bad address" in answer.said


# ---- CUDA, NVML
VERSIONS = Versions(driver=13000, runtime=13000, nvrtc=(13, 0), cupy="13.6.0", gpus=("H200",) * 2,
                    capability=("9.0",) * 2)  # fmt: skip


@pytest.mark.parametrize("changes, verdict, said", [
    ({}, "PASS", "CUDA 13.0, NVRTC 13.0, driver's 13.0"),
    ({"driver": 12080}, "FAIL", "the driver knows no such CUDA"),
    ({"driver": 12080, "runtime": 12090, "nvrtc": (12, 9)}, "PASS", "driver's 12.8"),
    ({"driver": 12020, "runtime": 12020, "nvrtc": (12, 2)}, "FAIL", "too old"),
])  # fmt: skip
def test_cuda_fits_the_driver(host, changes, verdict, said):
    from dataclasses import replace

    probe = SimpleNamespace(versions=lambda: replace(VERSIONS, **changes))
    answer = look(host, "cuda", cuda=lambda: probe)
    assert answer.verdict == verdict and said in answer.said, answer


def test_gpus_without_cupy(host):
    assert look(host, "cuda").verdict == "WARN"
    host.no_gpus()
    assert look(host, "cuda").verdict == "SKIP"


def report(how="nvlink", links=(18, 18), fabric=""):
    gpus = tuple(GpuLinks(i, "H200", f"0000:{i}3:00.0", links[i], fabric) for i in range(len(links)))
    pairs = {(a, b): how for a in range(len(links)) for b in range(len(links)) if a != b}
    return NvmlReport("580.65", 13000, gpus, pairs)


@pytest.mark.parametrize("found, verdict, said", [
    (report(), "PASS", "2 GPUs reach each other by NVLink, 18 links a GPU"),
    (report("pcie", (0, 0)), "PASS", "by PCIe"),
    (report("none", (0, 0)), "WARN", "no peer access between GPUs 0→1, 1→0"),
    (report(links=(18, 12)), "WARN", "12 to 18 NVLinks"),
    (report(fabric="in progress"), "FAIL", "fabric of GPU 0 is in progress"),
    (report(links=(0,)), "SKIP", "one GPU"),
])  # fmt: skip
def test_peers_by_nvml(host, found, verdict, said):
    answer = look(host, "peers", nvml=lambda: found)
    assert answer.verdict == verdict and said in answer.said, answer


def test_peers_by_cupy_where_nvml_is_missing(host):
    probe = SimpleNamespace(peer_access=lambda: {(0, 1): True, (1, 0): False})
    answer = look(host, "peers", cuda=lambda: probe)
    assert answer.verdict == "WARN" and "1→0" in answer.said and "0→1" not in answer.said
    assert look(host, "peers").verdict == "SKIP"
