"""What rdmakit.gpu asks of NVML and of the CUDA driver, against stand-ins for both that check how they are called."""

import ctypes
import os
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from rdmakit.errors import NotAvailable
from rdmakit.gpu import driver as cuda_driver
from rdmakit.gpu import nvml, probe


class NVMLError(Exception):
    pass


def stand_in(gpus=2, up=18, peers=0, reads=0, fabric=3):
    """A `pynvml`: `peers`, `reads` are the P2P statuses of NVLink and of reads (0 is OK)."""
    def link_state(handle, link):
        if link >= up:
            raise NVMLError("not supported")
        return 1

    class Fabric(SimpleNamespace):
        state = 0

    def fabric_info(handle, info):
        info.state = fabric

    found = ModuleType("pynvml")
    calls = []
    found.__dict__.update(
        NVMLError=NVMLError, NVML_NVLINK_MAX_LINKS=18, NVML_P2P_STATUS_OK=0, c_nvmlGpuFabricInfo_t=Fabric,
        nvmlInit=lambda: calls.append("init"), nvmlShutdown=lambda: calls.append("shutdown"), calls=calls,
        nvmlDeviceGetCount=lambda: gpus, nvmlDeviceGetHandleByIndex=lambda index: f"handle {index}",
        nvmlSystemGetDriverVersion=lambda: b"580.65.06", nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
        nvmlDeviceGetName=lambda handle: "NVIDIA H200", nvmlDeviceGetNvLinkState=link_state,
        nvmlDeviceGetPciInfo=lambda handle: SimpleNamespace(busId=b"00000000:3D:00.0"),
        nvmlDeviceGetGpuFabricInfo=fabric_info,
        nvmlDeviceGetP2PStatus=lambda a, b, index: {2: peers, 0: reads}[index],
    )  # fmt: skip
    return found


@pytest.fixture
def read(monkeypatch):
    def read(**options):
        found = stand_in(**options)
        monkeypatch.setitem(sys.modules, "pynvml", found)
        report = nvml.read_gpus()
        assert found.calls == ["init", "shutdown"]
        return report

    return read


def test_gpus_their_links_and_their_peers(read):
    report = read()
    assert (report.driver, report.cuda) == ("580.65.06", 13000)
    assert report.gpus[1] == nvml.GpuLinks(1, "NVIDIA H200", "0000:3d:00.0", 18)
    assert report.peer == {(0, 1): "nvlink", (1, 0): "nvlink"}
    assert read(peers=5).peer[0, 1] == "pcie" and read(peers=5, reads=5, up=0).peer[0, 1] == "none"
    assert read(up=0).gpus[0].nvlinks == 0 and read(up=12).gpus[0].nvlinks == 12


@pytest.mark.parametrize("state, word", [(0, ""), (1, "not started"), (2, "in progress"), (3, "")])
def test_a_fabric_that_is_not_ready(read, state, word):
    assert {gpu.fabric for gpu in read(fabric=state).gpus} == {word}


def test_drawing_and_json_say_the_same(read):
    report = read(gpus=3)
    found = report.to_dict()
    assert found["peer"]["GPU2"] == {"GPU0": "nvlink", "GPU1": "nvlink"}
    rows = report.draw().splitlines()
    assert len(rows) == 4 and rows[3].split()[:4] == ["GPU2", "NVLINK", "NVLINK", "-"]


def test_old_drivers_lack_calls(monkeypatch):
    old = stand_in()
    for name in ("nvmlDeviceGetGpuFabricInfo", "c_nvmlGpuFabricInfo_t", "nvmlSystemGetCudaDriverVersion_v2"):
        delattr(old, name)
    monkeypatch.setitem(sys.modules, "pynvml", old)
    report = nvml.read_gpus()
    assert report.cuda == 0 and report.gpus[0].fabric == ""


def test_nvml_that_is_missing_or_does_not_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NotAvailable, match="pip install nvidia-ml-py"):
        nvml.read_gpus()
    broken = stand_in()

    def refuse():
        raise NVMLError("Driver Not Loaded")

    broken.nvmlInit = refuse
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    with pytest.raises(NotAvailable, match="Driver Not Loaded"):
        nvml.read_gpus()


def test_the_stand_in_has_nvmls_own_names():
    real = pytest.importorskip("pynvml", reason="pip install nvidia-ml-py")
    names = [name for name in vars(stand_in()) if name.startswith(("nvml", "NVML", "c_nvml"))]
    assert [name for name in names if not hasattr(real, name)] == []
    assert (real.NVML_P2P_CAPS_INDEX_NVLINK, real.NVML_P2P_STATUS_OK) == (nvml._NVLINK, 0)
    assert real.NVML_P2P_CAPS_INDEX_READ in (nvml._READ, (nvml._READ,))
    assert (real.NVML_GPU_FABRIC_STATE_NOT_STARTED, real.NVML_GPU_FABRIC_STATE_IN_PROGRESS) == tuple(nvml._FABRIC)


# ---- the CUDA driver: a library of its names, which remembers how it was called
LIBCUDA = r"""
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
struct Seen { void* address; size_t bytes; unsigned flags; int registered, unregistered, dmabuf; } seen;
int refuse_with;
extern "C" {
int cuMemHostRegister_v2(void* p, size_t bytes, unsigned flags) {
    if (refuse_with) return refuse_with;
    seen.address = p, seen.bytes = bytes, seen.flags = flags, ++seen.registered;
    return 0;
}
int cuMemHostGetDevicePointer_v2(uint64_t* out, void* p, unsigned flags) {
    *out = (uint64_t)p + flags + 0x100;
    return 0;
}
int cuMemHostUnregister(void* p) { seen.unregistered += p == seen.address; return 0; }
int cuDeviceGetAttribute(int* out, int attribute, int device) {
    *out = attribute == 124 && seen.dmabuf && device == 3;
    return 0;
}
int cuMemGetHandleForAddressRange(void* out, uint64_t at, size_t bytes, int type, unsigned long long flags) {
    if (at % 65536 || bytes % 65536 || type != 1 || flags) return 1;
    *(int*)out = dup(1);
    return 0;
}
int cuGetErrorName(int code, const char** name) { *name = code == 800 ? "CUDA_ERROR_NOT_PERMITTED" : 0; return 0; }
}
"""


class Seen(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("flags", ctypes.c_uint),
                ("registered", ctypes.c_int), ("unregistered", ctypes.c_int), ("dmabuf", ctypes.c_int)]  # fmt: skip


@pytest.fixture
def driver(tmp_path, monkeypatch):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++: apt-get install g++")
    source, library = tmp_path / "cuda.cpp", tmp_path / "libcuda.so"
    source.write_text(LIBCUDA)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(free=lambda at: None),
                                                Device=lambda: SimpleNamespace(id=3)))  # fmt: skip
    monkeypatch.setattr(cuda_driver, "_LIBRARY", str(library))
    monkeypatch.setattr(cuda_driver, "cupy", lambda: cupy)
    loaded = ctypes.CDLL(str(library))
    return Seen.in_dll(loaded, "seen"), ctypes.c_int.in_dll(loaded, "refuse_with")


@pytest.mark.parametrize("io, flags", [(True, 7), (False, 3)])
def test_a_page_is_registered_asked_for_and_given_back(driver, io, flags):
    seen, _ = driver
    page = 0x7F12345678000
    assert probe.map_for_kernels(page, 4096, io=io) == page + 0x100
    assert (seen.address, seen.bytes, seen.flags, seen.registered, seen.unregistered) == (page, 4096, flags, 1, 1)


def test_a_refusal_carries_cudas_word(driver):
    seen, refuse_with = driver
    for code, word in ((800, "CUDA_ERROR_NOT_PERMITTED"), (999, "CUresult 999")):
        refuse_with.value = code
        with pytest.raises(NotAvailable) as caught:
            probe.map_for_kernels(0x1000, 4096, io=True)
        assert caught.value.value == word
    assert seen.unregistered == 0, "what was not registered is not given back"


def test_a_dmabuf_is_a_descriptor(driver):
    seen, _ = driver
    memory = SimpleNamespace(address=0x7F0000010000, nbytes=65536)
    with pytest.raises(NotAvailable, match="no dma-buf"):
        probe.dmabuf_fd(memory)
    seen.dmabuf = 1
    descriptor = probe.dmabuf_fd(memory)
    os.fstat(descriptor)
    os.close(descriptor)
    with pytest.raises(NotAvailable, match="cuMemGetHandleForAddressRange"):
        probe.dmabuf_fd(SimpleNamespace(address=0x7F0000010001, nbytes=65536))
