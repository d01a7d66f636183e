// primitive_costs.cu — what the pieces cost that every protocol is made of: chains of one primitive, each step of which
// needs the one before, timed by the SM's clocks. No protocol: orders and scopes here are what is measured.
#include <rdmakit/bulk.cuh>
#include <rdmakit/post.cuh>

enum class Primitive : unsigned {
    empty = 0,  // the loop itself, to be subtracted
    stores, fence, load_relaxed, load_acquire, store_relaxed, store_release, fetch_add, exchange, compare_swap, mmio,
    shuffle, barrier, proxy_fence, bulk_load,
};
enum class Posting : unsigned { reserve = 0, write, publish, post };

struct PrimitiveTime {
    unsigned long long ns, cycles;
    unsigned long long value;  // what the last step left
};

struct PrimitiveAsk {
    unsigned primitive, scope, rounds;
    unsigned outstanding;            // 16-byte stores, each to a line of its own at `lines`, that precede every step
    unsigned long long* target;      // null: a word of shared memory
    unsigned char* lines;
    unsigned long long start, zero;  // `zero` is 0, which no compiler knows
};

namespace rdmakit {

// carried = step(carried, i), `rounds` times. Nothing can be hoisted or folded: every step takes what the last one left.
template <class Step> RDMAKIT_DEVICE void time_chain(u32 rounds, u64 start, PrimitiveTime* to, Step step) {
    u64 carried = start;
    const u64 since_ns = time_ns(), since = clock_cycles();
    RDMAKIT_NO_UNROLL
    for (u32 i = 0; i < rounds; ++i) carried = step(carried, i);
    const u64 cycles = clock_cycles() - since, ns = time_ns() - since_ns;
    if (thread_in_block() == 0) *to = {ns, cycles, carried};
}
RDMAKIT_DEVICE u64 next_of(u64 carried, u32 i) { return carried + (carried ^ i); }

template <Scope S> RDMAKIT_DEVICE void time_scoped(const PrimitiveAsk& ask, u64* target, PrimitiveTime* to) {
    const u64 zero = ask.zero, start = ask.start;
    const auto chain = [&](auto step) { time_chain(ask.rounds, start, to, step); };
    switch (static_cast<Primitive>(ask.primitive)) {
    case Primitive::fence:
        return chain([&](u64 carried, u32 i) {
            for (u32 k = 0; k < ask.outstanding; ++k) store_segment(ask.lines + 128 * k, Vec16{{i, k, i, k}});
            fence<S>();
            return next_of(carried, i);
        });
    case Primitive::load_relaxed: return chain([&](u64 carried, u32) { return load_relaxed<S>(target + (carried & zero)); });
    case Primitive::load_acquire: return chain([&](u64 carried, u32) { return load_acquire<S>(target + (carried & zero)); });
    case Primitive::store_relaxed:
        return chain([&](u64 carried, u32 i) {
            store_relaxed<S>(target, start + i);
            return next_of(carried, i);
        });
    case Primitive::store_release:
        return chain([&](u64 carried, u32 i) {
            store_release<S>(target, start + i);
            return next_of(carried, i);
        });
    case Primitive::fetch_add: return chain([&](u64 carried, u32) { return fetch_add<S>(target + (carried & zero), static_cast<u64>(1)); });
    case Primitive::exchange: return chain([&](u64 carried, u32 i) { return exchange<S>(target + (carried & zero), start + i); });
    case Primitive::compare_swap: return chain([&](u64 carried, u32) { return compare_swap<S>(target, carried, carried + 1) + 1; });
    default: return;
    }
}

}  // namespace rdmakit

// One block: `shuffle` takes a warp, `barrier` all threads, everything else its first thread.
RDMAKIT_KERNEL primitive_cost(PrimitiveAsk ask, PrimitiveTime* time, rdmakit::Watch watch) {
    using namespace rdmakit;
    RDMAKIT_SHARED(u64, word);
    RDMAKIT_SHARED(Vec16, landed);
    RDMAKIT_SHARED(Mbarrier, arrived);
    const Primitive what = static_cast<Primitive>(ask.primitive);
    if (what == Primitive::barrier) {
        time_chain(ask.rounds, ask.start, time, [](u64 carried, u32 i) {
            block_sync();
            return next_of(carried, i);
        });
        return;
    }
    if (what == Primitive::shuffle && warp_id() == 0) {
        time_chain(ask.rounds, ask.start, time, [](u64 carried, u32) { return warp_shuffle(carried, 1) + 1; });
        return;
    }
    if (thread_in_block() != 0) return;
    if (what == Primitive::proxy_fence || what == Primitive::bulk_load) {
        if (!check_bulk(watch)) return;
        mbarrier_init(&arrived, 1);
        if (what == Primitive::proxy_fence) {
            time_chain(ask.rounds, ask.start, time, [](u64 carried, u32 i) {
                proxy_fence();
                return next_of(carried, i);
            });
            return;
        }
        const u8* const from = reinterpret_cast<const u8*>(ask.target);
        Status status = Status::ok;
        time_chain(ask.rounds, ask.start, time, [&](u64 carried, u32 i) {
            if (status != Status::ok) return carried;
            fetch(&landed, from + (carried & ask.zero), sizeof(Vec16), &arrived);
            status = mbarrier_wait(&arrived, i & 1, watch, Subject{"16 bytes by a bulk load", i, 0, 0, 0});
            return static_cast<u64>(landed.w[0]) | static_cast<u64>(landed.w[1]) << 32;
        });
        return;
    }
    if (what == Primitive::empty) {
        time_chain(ask.rounds, ask.start, time, [](u64 carried, u32 i) { return next_of(carried, i); });
        return;
    }
    if (what == Primitive::stores) {
        time_chain(ask.rounds, ask.start, time, [&](u64 carried, u32 i) {
            for (u32 k = 0; k < ask.outstanding; ++k) store_segment(ask.lines + 128 * k, Vec16{{i, k, i, k}});
            return next_of(carried, i);
        });
        return;
    }
    if (what == Primitive::mmio) {
        time_chain(ask.rounds, ask.start, time, [&](u64 carried, u32 i) {
            mmio_store(ask.target, ask.start + i);
            return next_of(carried, i);
        });
        return;
    }
    u64* const target = ask.target != nullptr ? ask.target : &word;
    if (ask.target == nullptr) word = ask.start;
    if (ask.scope == static_cast<u32>(Scope::cta)) time_scoped<Scope::cta>(ask, target, time);
    else if (ask.scope == static_cast<u32>(Scope::gpu)) time_scoped<Scope::gpu>(ask, target, time);
    else time_scoped<Scope::sys>(ask, target, time);
}

// One thread posts `rounds` WQEs, which the ring has room for, to a queue pair that nobody serves. `publish` has reserved and
// written all of them before, and rings behind the last alone; `post` does it all for each, doorbell included.
RDMAKIT_KERNEL posting_cost(const rdmakit::QpHandle* handle, unsigned what, unsigned rounds, PrimitiveTime* time) {
    using namespace rdmakit;
    const QpHandle& qp = *handle;
    if (thread_in_block() != 0 || block_id() != 0 || !check_handle(qp)) return;
    const auto write = [&](u64 index) {
        write_rdma(qp, index, Opcode::write, qp.sink_address, 1, qp.sink_address, qp.sink_lkey, 8, kCqUpdate);
    };
    switch (static_cast<Posting>(what)) {
    case Posting::reserve: return time_chain(rounds, 0, time, [&](u64, u32) { return reserve(qp, 1); });
    case Posting::write:
        return time_chain(rounds, 0, time, [&](u64 carried, u32 i) {
            write(i);
            return next_of(carried, i);
        });
    case Posting::publish: {
        const u64 base = reserve(qp, rounds);
        for (u32 i = 0; i < rounds; ++i) write(base + i);
        return time_chain(rounds, 0, time, [&](u64 carried, u32 i) { return carried + static_cast<u64>(publish(qp, base + i, 1)); });
    }
    case Posting::post:
        return time_chain(rounds, 0, time, [&](u64 carried, u32) {
            const u64 base = reserve(qp, 1);
            write(base);
            return carried + static_cast<u64>(publish(qp, base, 1));
        });
    }
}
