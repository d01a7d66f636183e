"""Your own kernel with our headers: one string, for the CPU runner here and for `cupy.RawModule` on a GPU.

    python tutorials/embed_the_headers.py

The kernel below is plain CUDA that includes <rdmakit/signal.cuh>. Each block doubles its tile and puts it to the
peer with a signal behind it, while other blocks still compute: why one wants GPU-initiated RDMA.
"""

from unittest import SkipTest

import numpy as np

import rdmakit
from rdmakit.device import connected_pair

BLOCKS, THREADS, TILE = 20, 64, 1024
KERNEL = r"""
#include <rdmakit/signal.cuh>

RDMAKIT_KERNEL double_and_put(const rdmakit::QpHandle* qp, const float* in, float* out, int tile,
                              rdmakit::LocalMemory from, rdmakit::RemoteMemory to, rdmakit::RemoteMemory word) {
    const int first = blockIdx.x * tile;
    for (int i = threadIdx.x; i < tile; i += blockDim.x) out[first + i] = 2 * in[first + i];
    __syncthreads();  // the tile is whole; put_signal orders it before the doorbell
    if (threadIdx.x != 0 || !rdmakit::check_handle(*qp)) return;
    rdmakit::put_signal(*qp, to + 4 * first, from + 4 * first, 4 * tile, word, 1);
    rdmakit::quiet(*qp);
}
"""


def emulator() -> bool:
    """Run the kernel on the CPU runner; whether the peer got every tile and every signal."""
    world = rdmakit.World(hosts=2)
    sender, receiver = connected_pair(world.open_rank(0), world.open_rank(1))
    numbers = world.array(BLOCKS * TILE, np.float32, np.arange(BLOCKS * TILE))
    doubled, inbox, word = world.array(numbers.size, "f4"), world.array(numbers.size, "f4"), world.array(1, "u8")
    source, target, signal = sender.pd.register(doubled), receiver.pd.register(inbox), receiver.pd.register(word)
    handle = sender.device_handle()
    kernel = world.compile(KERNEL, name="double_and_put.cu").get_function("double_and_put")
    kernel(BLOCKS, THREADS, [handle, numbers, doubled, TILE, source, target.remote(), signal.remote()])
    world.run()
    handle.report.raise_for_status()
    print(f"{kernel}\n{sender.posted} WQEs, {sender.context.counters['doorbells']} doorbells, {word[0]} signals")
    return bool(word[0] == BLOCKS and np.array_equal(inbox, 2 * numbers))


def nvrtc() -> bool:
    """Compile it for an H100 with NVRTC, which needs neither GPU nor driver; whether it says yes."""
    try:
        from cuda.bindings import nvrtc as rtc

        _, program = rtc.nvrtcCreateProgram(KERNEL.encode(), b"double_and_put.cu", 0, [], [])
    except (ImportError, RuntimeError) as error:
        raise SkipTest(f"{error}: pip install cuda-bindings nvidia-cuda-nvrtc") from None
    options = [b"--gpu-architecture=sm_90a", b"--std=c++17", f"-I{rdmakit.get_include()}".encode()]
    return rtc.nvrtcCompileProgram(program, len(options), options)[0] == rtc.nvrtcResult.NVRTC_SUCCESS


def cupy() -> bool:
    """Compile and load the very same string on the GPU that is here."""
    try:
        import cupy as cp
    except ImportError:
        raise SkipTest("CuPy is not installed: pip install 'rdmakit[gpu]'") from None
    if not cp.cuda.is_available():
        raise SkipTest("CuPy sees no GPU")
    module = cp.RawModule(code=KERNEL, options=("-std=c++17", "-I" + rdmakit.get_include()))
    return module.get_function("double_and_put").num_regs > 0


if __name__ == "__main__":
    good = True
    for step in (emulator, nvrtc, cupy):
        try:
            good &= (passed := step())
            print(f"{'✓' if passed else '✗'} {step.__name__}")
        except SkipTest as reason:
            print(f"– {step.__name__} skipped: {reason}")
    raise SystemExit(0 if good else 1)
