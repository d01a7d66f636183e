// link.cu — what two GPUs of one host can move to each other while they also move rows within themselves.
//
// A warp takes chunks in turn: one bulk load into shared memory, then bulk stores to one or two places. No waits between the
// GPUs, no protocol: rates alone. Each line names where chunks come from and go to; `peer` is the other GPU's memory, a
// number behind it the size of the region that is used again and again (4 MB stay in L2).
//   nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -o link link.cu && ./link [sweep]
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define CHECK(call)                                                                                         \
    do {                                                                                                    \
        const cudaError_t e = (call);                                                                       \
        if (e != cudaSuccess) { std::printf("%s: %s\n", #call, cudaGetErrorString(e)); std::exit(1); }      \
    } while (0)

struct Place {
    char* base;          // null: none
    uint32_t mask;       // of the chunks of the region, a power of two of them
    uint64_t policy;     // of L2, 0: none
};
struct Job {
    Place from, beside, a, b;  // `beside`: loaded with each chunk, into a slot of its own
    int first_block, blocks;   // those that do it
    uint64_t chunks;           // of all of them
};
struct Work {
    Job job[2];
    int jobs, chunk, stages, ahead;
    int outstanding, done;   // groups of stores that may be unread, or unwritten
    int apart;               // b is stored with a; 1: by a thread of its own; 2: by ordinary stores of all
};

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ void load(void* to, const char* from, uint32_t bytes, uint64_t* full, uint64_t policy, int expect) {
    if (expect != 0) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(full)), "r"(bytes * expect) : "memory");
    if (policy == 0)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                     "l"(from), "r"(bytes), "r"(shared_address(full)) : "memory");
    else
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                         shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(policy) : "memory");
}
__device__ void store(char* to, const void* from, uint32_t bytes, uint64_t policy) {
    if (policy == 0)
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(to), "r"(shared_address(from)),
                     "r"(bytes), "l"(policy) : "memory");
}
__device__ void wait(uint64_t* full, uint32_t parity) {
    asm volatile("{\n.reg .pred p;\nagain: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}" ::"r"(shared_address(full)),
                 "r"(parity) : "memory");
}

// Until at most `n` groups of this thread's stores are unread; or, with `done`, not yet written.
__device__ void wait_stores(int n, bool done) {
    if (done) {
        if (n == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        if (n == 1) asm volatile("cp.async.bulk.wait_group 1;" ::: "memory");
        if (n == 2) asm volatile("cp.async.bulk.wait_group 2;" ::: "memory");
        if (n >= 3) asm volatile("cp.async.bulk.wait_group 3;" ::: "memory");
    } else {
        if (n == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        if (n == 1) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
        if (n == 2) asm volatile("cp.async.bulk.wait_group.read 2;" ::: "memory");
        if (n >= 3) asm volatile("cp.async.bulk.wait_group.read 3;" ::: "memory");
    }
}
__global__ void __launch_bounds__(512, 1) copy(const __grid_constant__ Work work) {
    extern __shared__ __align__(128) char shared[];
    __shared__ uint64_t full[16][8];
    const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32, chunk = work.chunk, stages = work.stages;
    if (lane == 0) {
        for (uint32_t s = 0; s < stages; ++s) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[warp][s])));
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    for (int k = 0; k < work.jobs; ++k) {
        const Job& job = work.job[k];
        if (blockIdx.x < job.first_block || blockIdx.x >= job.first_block + job.blocks) continue;
        const bool two = job.beside.base != nullptr;
        const uint32_t slot_bytes = (two ? 2 : 1) * chunk;
        char* const slots = shared + warp * stages * slot_bytes;
        const uint32_t step = job.blocks * warps, first = (blockIdx.x - job.first_block) * warps + warp;
        const uint32_t all = static_cast<uint32_t>(job.chunks), mine = first < all ? (all - first + step - 1) / step : 0;
        const auto place = [&](const Place& p, uint32_t j) { return p.base + static_cast<uint64_t>(first + j * step & p.mask) * chunk; };
        uint32_t loaded = 0, load_slot = 0;
        const auto next = [&] {
            if (loaded == mine) return;
            char* const slot = slots + load_slot * slot_bytes;
            load(slot, place(job.from, loaded), chunk, &full[warp][load_slot], job.from.policy, two ? 2 : 1);
            if (two) load(slot + chunk, place(job.beside, loaded), chunk, &full[warp][load_slot], job.beside.policy, 0);
            ++loaded;
            if (++load_slot == stages) load_slot = 0;
        };
        if (lane == 0) {
            for (int n = 0; n < work.ahead; ++n) next();
        }
        for (uint32_t j = 0, s = 0, phase = 0; j < mine; ++j) {
            if (work.apart && lane == 1) wait_stores(work.outstanding, false);
            if (work.apart) __syncwarp();
            if (lane == 0) {
                wait_stores(work.outstanding, work.done);
                next();
            }
            char* const slot = slots + s * slot_bytes;
            if (lane == 0 || work.apart) wait(&full[warp][s], phase);
            if (lane == 0) {
                if (job.a.base != nullptr) store(place(job.a, j), slot, chunk, job.a.policy);
                if (job.b.base != nullptr && work.apart == 0) store(place(job.b, j), slot, chunk, job.b.policy);
                asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            }
            if (work.apart == 1 && lane == 1 && job.b.base != nullptr) {   // a thread of its own stores b
                store(place(job.b, j), slot, chunk, job.b.policy);
                asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            }
            if (work.apart == 2 && job.b.base != nullptr) {                // all threads store b, by ordinary stores
                uint4* const to = reinterpret_cast<uint4*>(place(job.b, j));
                const uint4* const part = reinterpret_cast<const uint4*>(slot);
                for (uint32_t v = lane; v < chunk / 16; v += 32) __stcs(to + v, part[v]);
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            }
            if (++s == stages) s = 0, phase ^= 1;
        }
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

__global__ void policies(uint64_t* out) {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(out[0]));
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(out[1]));
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(out[2]));
    asm volatile("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(out[3]));
}

constexpr uint64_t kRegion = 1ull << 28;
struct Gpu {
    char* memory[4];
    cudaStream_t stream[2];
    cudaEvent_t begin, end;
};
Gpu gpus[2];
uint64_t policy[5];   // none, evict_first, evict_last, normal, unchanged

// "x" own memory, "X" the peer's; a digit behind: which region; "s": small; "f"/"l"/"u": evict first / last / unchanged.
Place parse(const std::string& text, int gpu, int chunk) {
    if (text.empty()) return {nullptr, 0, 0};
    const Gpu& whose = gpus[text[0] == 'X' ? 1 - gpu : gpu];
    Place p{whose.memory[text[1] - '0'], 0, 0};
    uint64_t size = kRegion;
    for (size_t i = 2; i < text.size(); ++i) {
        if (text[i] == 's') size = 4ull << 20;
        if (text[i] == 'f') p.policy = policy[1];
        if (text[i] == 'l') p.policy = policy[2];
        if (text[i] == 'u') p.policy = policy[4];
    }
    while ((2ull * p.mask + 2) * chunk <= size) p.mask = 2 * p.mask + 1;
    return p;
}
struct Spec {
    const char* what;
    const char* from[2];
    const char* a[2];
    const char* b[2];
    int blocks[2], first[2], jobs;
    double share[2];    // of 1 GB
    int chunk = 7168, warps = 8, stages = 4, ahead = 2, both = 1, outstanding = 1, done = 0, apart = 0;
    const char* beside[2] = {"", ""};
};
void run(const Spec& s) {
    double best = 1e9, all = 0;
    for (int turn = 0; turn < 4; ++turn) {
        for (int g = 0; g < 1 + s.both; ++g) {
            CHECK(cudaSetDevice(g));
            Work w{};
            w.jobs = s.jobs, w.chunk = s.chunk, w.stages = s.stages, w.ahead = s.ahead, w.outstanding = s.outstanding, w.done = s.done, w.apart = s.apart;
            int grid = 0;
            for (int k = 0; k < s.jobs; ++k) {
                w.job[k] = {parse(s.from[k], g, s.chunk), parse(s.beside[k], g, s.chunk), parse(s.a[k], g, s.chunk), parse(s.b[k] ? s.b[k] : "", g, s.chunk), s.first[k], s.blocks[k],
                            static_cast<uint64_t>(s.share[k] * 1e9 / s.chunk)};
                grid = std::max(grid, s.first[k] + s.blocks[k]);
            }
            const int bytes = s.warps * s.stages * s.chunk * (s.beside[0][0] != 0 ? 2 : 1);
            if (bytes > 225000) return;
            CHECK(cudaFuncSetAttribute(copy, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
            CHECK(cudaEventRecord(gpus[g].begin, gpus[g].stream[0]));
            copy<<<grid, 32 * s.warps, bytes, gpus[g].stream[0]>>>(w);
            CHECK(cudaEventRecord(gpus[g].end, gpus[g].stream[0]));
        }
        double slowest = 0;
        for (int g = 0; g < 1 + s.both; ++g) {
            CHECK(cudaSetDevice(g));
            CHECK(cudaStreamSynchronize(gpus[g].stream[0]));
            float ms = 0;
            CHECK(cudaEventElapsedTime(&ms, gpus[g].begin, gpus[g].end));
            slowest = std::max<double>(slowest, ms);
        }
        if (turn > 0) best = std::min(best, slowest), all = std::max(all, slowest);
    }
    std::printf("%-66s %3d+%-3d blocks %5d B x %d warps, %d/%d stages, %d %s, apart %d, %s: %7.1f GB/s (slowest turn %.1f)\n", s.what, s.blocks[0], s.jobs > 1 ? s.blocks[1] : 0,
                s.chunk, s.warps, s.ahead, s.stages, s.outstanding, s.done ? "unwritten" : "unread", s.apart, s.both ? "both ways" : "one way ", s.share[0] * 1e3 / best, s.share[0] * 1e3 / all);
}

int main(int argc, char**) {
    for (int g = 0; g < 2; ++g) {
        CHECK(cudaSetDevice(g));
        CHECK(cudaDeviceEnablePeerAccess(1 - g, 0));
        for (auto& m : gpus[g].memory) {
            CHECK(cudaMalloc(&m, kRegion));
            CHECK(cudaMemset(m, 0x5a + g, kRegion));
        }
        CHECK(cudaStreamCreate(&gpus[g].stream[0]));
        CHECK(cudaEventCreate(&gpus[g].begin));
        CHECK(cudaEventCreate(&gpus[g].end));
        CHECK(cudaDeviceSynchronize());
    }
    CHECK(cudaSetDevice(0));
    uint64_t* made = nullptr;
    CHECK(cudaMalloc(&made, 64));
    policies<<<1, 1>>>(made);
    CHECK(cudaMemcpy(policy + 1, made, 32, cudaMemcpyDeviceToHost));
    const auto one = [](const char* what, const char* from, const char* a, const char* b, int blocks = 24) {
        Spec s{what, {from, ""}, {a, ""}, {b, ""}, {blocks, 0}, {0, 0}, 1, {1.0, 0}};
        return s;
    };
    if (argc > 1) {  // a sweep of shapes: of a dispatch (pushed and stored here) and of a combine (pulled beside a chunk from here)
        for (const int blocks : {12, 20, 24}) {
            for (const int chunk : {1024, 1792, 2048, 3584, 7168}) {
                for (const int warps : {2, 4, 6, 8, 10, 12, 16}) {
                    for (const int outstanding : {0, 1, 2, 3}) {
                        for (const int done : {0, 1}) {
                            Spec s = one("push + here", "x0", "X1", "x2", blocks);
                            s.chunk = chunk, s.warps = warps, s.ahead = 2, s.stages = 2 + 1 + outstanding, s.outstanding = outstanding, s.done = done;
                            s.share[0] = 0.25;
                            for (s.apart = 0; s.apart < 3; ++s.apart) run(s);
                            s.apart = 0, s.what = "push", s.b[0] = "";
                            run(s);
                        }
                    }
                    for (const int ahead : {1, 2, 3, 4}) {
                        Spec s = one("pull + here", "X0", "x1", "", blocks);
                        s.chunk = chunk, s.warps = warps, s.ahead = ahead, s.stages = ahead + 1, s.outstanding = 0, s.beside[0] = "x2";
                        s.share[0] = 0.25;
                        run(s);
                    }
                }
            }
        }
        return 0;
    }
    for (const int both : {0, 1}) {
        for (const int blocks : {12, 24, 48, 96}) {
            Spec s = one("push", "x0", "X1", "", blocks);
            s.both = both;
            run(s);
            s = one("pull", "X0", "x1", "", blocks);
            s.both = both;
            run(s);
        }
    }
    for (const int blocks : {12, 24, 48}) run(one("push, and the same chunk stored here", "x0", "X1", "x2", blocks));
    run(one("push from a small source", "x0s", "X1", ""));
    run(one("push into a small place", "x0", "X1s", ""));
    run(one("push from small into small", "x0s", "X1s", ""));
    run(one("push + here, small source", "x0s", "X1", "x2"));
    run(one("push + here, small place there", "x0", "X1s", "x2"));
    run(one("push + here, small place here", "x0", "X1", "x2s"));
    run(one("push + here, all small", "x0s", "X1s", "x2s"));
    run(one("push, load evict first", "x0f", "X1", ""));
    run(one("push, store evict first", "x0", "X1f", ""));
    run(one("push + here, load evict first", "x0f", "X1", "x2"));
    run(one("push + here, local store evict first", "x0", "X1", "x2f"));
    run(one("push + here, peer store evict first", "x0", "X1f", "x2"));
    run(one("push + here, all evict first", "x0f", "X1f", "x2f"));
    run(one("push + here, peer store evict last", "x0", "X1l", "x2"));
    run(one("push + here, peer store unchanged", "x0", "X1u", "x2"));
    for (const int local : {4, 8, 12}) {
        Spec s{"blocks that push | blocks that copy here", {"x0", "x0"}, {"X1", "x2"}, {"", ""}, {24 - local, local}, {0, 24 - local}, 2, {1.0, 1.0}};
        run(s);
        s.what = "24 blocks that push | more blocks that copy here";
        s.blocks[0] = 24, s.first[1] = 24;
        run(s);
        s.what = "the same, small places here";
        s.a[1] = "x2s", s.from[1] = "x3s";
        run(s);
    }
    for (const int blocks : {12, 24}) {
        for (const int chunk : {1024, 2048, 3584, 14336}) {
            for (const int warps : {4, 8, 16}) {
                Spec s = one("push", "x0", "X1", "", blocks);
                s.chunk = chunk, s.warps = warps;
                if (chunk * warps * s.stages > 220000) continue;
                run(s);
                s = one("push + here", "x0", "X1", "x2", blocks);
                s.chunk = chunk, s.warps = warps;
                run(s);
                s = one("pull", "X0", "x1", "", blocks);
                s.chunk = chunk, s.warps = warps;
                run(s);
            }
        }
    }
    run(one("pull, load evict first", "X0f", "x1", ""));
    run(one("pull, store evict first", "X0", "x1f", ""));
    run(one("pull from small", "X0s", "x1", ""));
    run(one("pull into small", "X0", "x1s", ""));
    run(one("pull from small into small", "X0s", "x1s", ""));
    Spec s{"pull | copy here", {"X0", "x0"}, {"x1", "x2"}, {"", ""}, {16, 8}, {0, 16}, 2, {1.0, 1.0}};
    run(s);
    Spec m{"pull half | push half", {"X0", "x0"}, {"x1", "X2"}, {"", ""}, {12, 12}, {0, 12}, 2, {0.5, 0.5}};
    m.what = "half pulled, half pushed: twice";
    run(m);
    return 0;
}
