"""What a device on the bus sees, on aarch64: which barriers are emitted; the code around them compiles and runs.

Barriers are told by their instructions in the compiler's output, since no emulator lets stores pass each other.
Programs of the other architecture run under qemu-user where that is installed.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OTHER, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'cuda'}", f"-I{ROOT / 'rdmakit/verbs'}"]
BARRIER = re.compile(r"^\s*(dmb|dsb|sfence|lfence|mfence|lock)\b[ \t]*(\w*)", re.MULTILINE)

SOURCE = """
#include "rdmakit/cpu_dma.cuh"
using namespace rdmakit::cpu;
extern "C" {
void send(unsigned* wqe, unsigned* record) { *wqe = 1; to_device(); *record = 2; }
unsigned take(const unsigned* owner, const unsigned* rest) { unsigned o = *owner; from_device(); return o + *rest; }
unsigned give_back(const unsigned* rest, unsigned* record) { unsigned r = *rest; with_device(); *record = 1; return r; }
void bell(void* at) { ring(at, 7); }
}
"""
KERNEL = """
#include "rdmakit/atom.cuh"
using namespace rdmakit;
extern "C" {
void fence_sys() { fence<Scope::sys>(); }
void fence_gpu() { fence<Scope::gpu>(); }
u32 acquire_sys(const u32* p) { return load_acquire<Scope::sys>(p); }
void release_sys(u32* p) { store_release<Scope::sys>(p, 1u); }
}
"""
EXPECTED = {  # rdma-core util/udma_barrier.h; loads of write-back memory keep their order on x86-64
    "aarch64": {"send": ["dmb oshst"], "take": ["dmb oshld"], "give_back": ["dmb osh"], "bell": ["dsb st", "dsb st"]},
    "x86_64": {"send": [], "take": [], "give_back": [], "bell": ["sfence", "sfence"]},
}


def compiler(machine):
    """One that makes code for it."""
    name = "g++" if platform.machine() == machine else OTHER if machine == "aarch64" else "x86_64-linux-gnu-g++"
    if shutil.which(name) is None:
        pytest.skip(f"no {name}: apt-get install g++-{machine.replace('_', '-')}-linux-gnu")
    return name


def barriers(cxx, source, *options):
    """Of each function its barriers, in order."""
    command = [cxx, *FLAGS, *options, "-x", "c++", "-S", "-o", "-", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bodies = re.findall(r"^(\w+):\n(.*?)^\s*\.size\s+\1", done.stdout, re.MULTILINE | re.DOTALL)
    return {name: [" ".join(found).strip() for found in BARRIER.findall(body)] for name, body in bodies}


@pytest.mark.parametrize("machine", EXPECTED)
def test_each_barrier_is_the_architectures_own(machine):
    found = barriers(compiler(machine), SOURCE)
    assert {name: found[name] for name in EXPECTED[machine]} == EXPECTED[machine]


def test_kernels_on_the_cpu_runner_reach_the_bus_at_system_scope():
    found = barriers(compiler("aarch64"), KERNEL, "-DRDMAKIT_POLICY=0", "-DRDMAKIT_LANES=1")
    assert found["fence_sys"] == found["acquire_sys"] == found["release_sys"] == ["dmb osh"]
    assert found["fence_gpu"] == ["dmb ish"], "for other threads alone"


def test_posting_orders_wqe_record_and_register():
    """The record is written behind the WQE, the register behind both, and nothing lags."""
    found = barriers(compiler("aarch64"), '#include "native/direct_queues.cpp"')
    send, receive, poll = (next(body for name, body in found.items() if f"{where}E" in name) for where in
                           ("DirectQp4send", "DirectQp7receive", "DirectCq4poll"))  # fmt: skip
    assert send[-3:] == ["dmb oshst", "dsb st", "dsb st"]
    assert receive == ["dmb oshst"]
    assert "dmb oshld" in poll and "dmb osh" in poll


@pytest.mark.parametrize("source", sorted((ROOT / "rdmakit/verbs/native").glob("*.cpp")), ids=lambda path: path.name)
def test_what_drives_real_devices_compiles(source):
    done = subprocess.run([compiler("aarch64"), *FLAGS, "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("machine", EXPECTED)
def test_rings_against_a_device_that_is_a_thread(machine, tmp_path):
    """tests/compile/direct_queues.cpp, natively or under qemu-user."""
    cxx, program = compiler(machine), tmp_path / "direct_queues"
    emulated = [] if platform.machine() == machine else [shutil.which(f"qemu-{machine}")]
    if emulated == [None]:
        pytest.skip(f"no qemu-{machine}: apt-get install qemu-user")
    sources = [str(ROOT / "tests/compile/direct_queues.cpp"), str(ROOT / "rdmakit/verbs/native/direct_queues.cpp")]
    done = subprocess.run([cxx, *FLAGS, "-static", "-pthread", *sources, "-o", str(program)],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*emulated, str(program), "2000"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout == "2000 batches\n", done.stdout + done.stderr
