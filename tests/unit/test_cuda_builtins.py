"""CUDA's own names on the CPU runner: kernels written for nvcc run unchanged, a fibre a thread."""

import time

import numpy as np

import rdmakit


def run_raw(code, arguments, grid=1, block=32, name="k", **options):
    world = rdmakit.World(**options)
    world.compile(code).get_function(name)(grid, block, arguments)
    world.run()


def test_a_reduction_as_nvidia_writes_it():
    code = """
    template <class T> __device__ T warp_sum(T v) {
        for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(0xffffffff, v, offset);
        return v;
    }
    extern "C" __global__ void __launch_bounds__(256) k(const float* __restrict__ in, float* out, int n) {
        __shared__ float partial[32];
        static __shared__ int blocks_done;
        float v = 0;
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += in[i];
        v = warp_sum(v);
        if (threadIdx.x % warpSize == 0) partial[threadIdx.x / warpSize] = v;
        if (threadIdx.x == 0) ++blocks_done;
        __syncthreads();
        if (threadIdx.x < 32) {
            v = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
            v = warp_sum(v);
            if (threadIdx.x == 0) atomicAdd(out, v);
            if (threadIdx.x == 0) atomicMax(reinterpret_cast<int*>(out + 1), blocks_done);
        }
    }
    """
    values = np.arange(5000, dtype=np.float32) % 7
    out = np.zeros(2, np.float32)
    run_raw(code, (values, out, len(values)), grid=5, block=256)
    assert out[0] == values.sum()
    assert out.view(np.int32)[1] == 1  # each block has shared memory of its own, zeroed


def test_dynamic_shared_memory_in_both_places():
    code = """
    extern __shared__ __align__(16) char pool[];
    __global__ void k(float* out) {
        extern __shared__ float words[];
        float* same = reinterpret_cast<float*>(pool);
        words[threadIdx.x] = 2.0f * threadIdx.x;
        __syncthreads();
        out[blockIdx.x * blockDim.x + threadIdx.x] = same[blockDim.x - 1 - threadIdx.x];
    }
    """
    world, out = rdmakit.World(), np.zeros(128, np.float32)
    world.compile(code).get_function("k")(2, 64, (out,), shared_mem=256)
    world.run()
    assert (out.reshape(2, 64) == 2.0 * np.arange(63, -1, -1)).all()


def test_warp_collectives():
    code = """
    __global__ void k(int* out) {
        const int lane = threadIdx.x & 31, v = lane * lane;
        int* o = out + lane * 16;
        o[0] = __shfl_sync(0xffffffff, v, 5);
        o[1] = __shfl_up_sync(0xffffffff, v, 2);
        o[2] = __shfl_down_sync(0xffffffff, v, 2, 8);
        o[3] = __shfl_xor_sync(0xffffffff, v, 1);
        o[4] = __ballot_sync(0xffffffff, lane % 3 == 0);
        o[5] = __any_sync(0xffffffff, lane == 31);
        o[6] = __all_sync(0xffffffff, lane < 31);
        o[7] = __reduce_add_sync(0xffffffff, v);
        o[8] = __reduce_max_sync(0xffffffffu, lane ^ 5);
        o[9] = lane < 16 ? __shfl_sync(0x0000ffff, v, 3) : __shfl_sync(0xffff0000, v, 19);
        o[10] = __syncthreads_count(lane > 20);
        o[11] = __syncthreads_or(lane == 7) + 2 * __syncthreads_and(lane < 32);
    }
    """
    out = np.zeros((32, 16), np.int32)
    run_raw(code, (out,))
    lane = np.arange(32)
    v = lane**2
    assert (out[:, 0] == 25).all()
    assert (out[:, 1] == np.where(lane < 2, v, (lane - 2) ** 2)).all()
    assert (out[:, 2] == np.where(lane % 8 >= 6, v, (lane + 2) ** 2)).all()
    assert (out[:, 3] == (lane ^ 1) ** 2).all()
    assert (out[:, 4].view(np.uint32) == sum(1 << int(i) for i in range(0, 32, 3))).all()
    assert (out[:, 5] == 1).all() and (out[:, 6] == 0).all()
    assert (out[:, 7] == v.sum()).all() and (out[:, 8] == 31).all()
    assert (out[:, 9] == np.where(lane < 16, 9, 19 * 19)).all()
    assert (out[:, 10] == 11).all() and (out[:, 11] == 3).all()


def test_atomics_of_many_threads():
    code = """
    __global__ void k(unsigned* u, unsigned long long* w, float* f, int* lock, int* guarded) {
        atomicAdd(u, 1); atomicSub(u + 1, 2); atomicMax(u + 2, threadIdx.x); atomicMin(u + 3, threadIdx.x);
        atomicOr(u + 4, 1u << (threadIdx.x & 31)); atomicAnd(u + 5, ~(1u << (threadIdx.x & 31)));
        atomicXor(u + 6, 1); atomicInc(u + 7, 9); atomicExch(u + 8, 7);
        atomicAdd(w, 1ull << 33); atomicAdd(f, 0.5f);
        bool done = false;
        while (!done) {
            if (atomicCAS(lock, 0, 1) != 0) continue;
            *guarded = *guarded + 1;
            __threadfence();
            atomicExch(lock, 0);
            done = true;
        }
    }
    """
    u = np.zeros(9, np.uint32)
    u[[3, 5]] = 0xFFFFFFFF
    w, f = np.zeros(1, np.uint64), np.zeros(1, np.float32)
    lock, guarded = np.zeros(1, np.int32), np.zeros(1, np.int32)
    for policy in ("fast", "timed"):
        u[:], w[:], f[:], guarded[:] = 0, 0, 0, 0
        u[[3, 5]] = 0xFFFFFFFF
        run_raw(code, (u, w, f, lock, guarded), grid=2, block=64, policy=policy)
        assert u.tolist() == [128, 2**32 - 256, 63, 0, 0xFFFFFFFF, 0, 0, 8, 7]
        assert (int(w[0]), float(f[0]), int(guarded[0])) == (128 << 33, 64.0, 128)


def test_bit_and_number_helpers():
    code = """
    __global__ void k(long long* o, double* d) {
        o[0] = __popc(0xf0f0u); o[1] = __popcll(~0ull); o[2] = __ffs(8); o[3] = __ffs(0); o[4] = __clz(1);
        o[5] = __clzll(0); o[6] = __brev(1u); o[7] = __byte_perm(0x33221100, 0x77665544, 0x7531);
        o[8] = __umulhi(0x80000000u, 6); o[9] = min(3, 4u); o[10] = max(-1.5f, 2); o[11] = __float_as_int(1.0f);
        o[12] = __ldg(o + 4); o[13] = warpSize; o[14] = sizeof(float4) + alignof(int2);
        const float4 v = make_float4(1, 2, 3, 4);
        d[0] = v.x + v.w; d[1] = rsqrtf(4.0f); d[2] = __int_as_float(0x40000000); d[3] = __expf(0.0f);
        const long long began = clock64();
        __nanosleep(1000);
        o[15] = clock64() > began;
    }
    """
    o, d = np.zeros(16, np.int64), np.zeros(4)
    run_raw(code, (o, d), block=1)
    assert o.tolist() == [8, 64, 4, 0, 31, 64, 0x80000000, 0x77553311, 3, 3, 2, 0x3F800000, 31, 32, 24, 1]
    assert d.tolist() == [5.0, 0.5, 2.0, 1.0]


def test_our_own_headers_work_with_a_fibre_a_thread():
    code = """
    #include <rdmakit/warp.cuh>
    using namespace rdmakit;
    __global__ void k(int* out, const char* from, char* to) {
        const int total = warp_sum(static_cast<int>(threadIdx.x));
        if (threadIdx.x == 0) out[0] = total;
        if (warp_any(threadIdx.x == 31)) out[1] = static_cast<int>(warp_ballot(threadIdx.x < 4));
        warp_copy(to, from, 1024);
    }
    """
    out, source, target = np.zeros(2, np.int32), np.arange(1024, dtype=np.uint8), np.zeros(1024, np.uint8)
    run_raw(code, (out, source, target))
    assert out.tolist() == [496, 15] and (source == target).all()


def test_preemption_costs_little_enough():
    code = "__global__ void k(float* a, int n) { for (int i = threadIdx.x; i < n; i += 32) a[i] = a[i] * 2 + 1; }"
    values = np.zeros(3_000_000, np.float32)
    world = rdmakit.World()
    kernel = world.compile(code).get_function("k")
    kernel(1, 32, (values, len(values)))
    began = time.monotonic()
    world.run()
    assert (values == 1).all() and time.monotonic() - began < 3
