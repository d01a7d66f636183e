"""What `rdmakit doctor` asks of a GPU's driver, on a real one: versions, mapping of pages, dma-bufs, NVML, peers."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from rdmakit.cli.doctor.checks import CHECKS
from rdmakit.cli.doctor.machine import Machine
from rdmakit.errors import NotAvailable
from rdmakit.gpu import probe

cupy = pytest.importorskip("cupy", reason="CuPy is not installed (pip install cupy-cuda13x)")

pytestmark = pytest.mark.gpu


@pytest.fixture
def page():
    """A page of this process's own memory: address, and what keeps it."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    view = np.frombuffer(memory, np.uint8)
    view[:] = 0xA5
    return int(view.ctypes.data), view


def test_memory_of_the_host_is_mapped_again_and_again(page):
    address, view = page
    mapped = {probe.map_for_kernels(address, mmap.PAGESIZE, io=False) for _ in range(3)}
    assert len(mapped) == 1 and min(mapped) > 0, "each registration is given back, or the next were refused"
    assert (view == 0xA5).all()


def test_what_is_no_memory_is_refused_with_cudas_word():
    with pytest.raises(NotAvailable) as caught:
        probe.map_for_kernels(0x1000, mmap.PAGESIZE, io=False)
    assert str(caught.value.value).startswith("CUDA_ERROR_")


def test_a_dmabuf_is_a_descriptor_or_refused_by_name():
    memory = probe.GpuMemory()
    assert memory.address % memory.nbytes == 0
    try:
        descriptor = probe.dmabuf_fd(memory)
    except NotAvailable as error:
        assert "dma-buf" in error.what or str(error.value).startswith("CUDA_ERROR_")
        return
    os.fstat(descriptor)
    os.close(descriptor)


def test_nvml_and_cuda_agree():
    pytest.importorskip("pynvml", reason="pip install nvidia-ml-py")
    from rdmakit.gpu.nvml import read_gpus

    report, versions = read_gpus(), probe.versions()
    assert report.cuda <= versions.driver  # a compatibility package brings a newer libcuda
    assert {gpu.name for gpu in report.gpus} >= set(versions.gpus)
    print(report.draw())


@pytest.mark.parametrize("name", ["driver", "cuda", "peers", "distance", "iommu", "peermem", "override", "gpu-mr"])
def test_checks_of_gpus_answer_here(name):
    check = next(check for check in CHECKS if check.name == name)
    answer = check.look(Machine.here())
    print(f"{answer.verdict} {name}: {answer.said}")
    assert answer.verdict in ("PASS", "WARN", "FAIL", "SKIP") and answer.said
    if name in ("driver", "cuda"):
        assert answer.verdict == "PASS", answer
    if name == "peers" and probe.versions().gpus[1:]:
        assert answer.verdict in ("PASS", "WARN") and answer.facts["peer"]
