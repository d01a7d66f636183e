// hca_ping.cu — how long a put and its signal take until the peer has seen them: block 0 is the HCA (hca_engine.cuh),
// which rides in this very grid, a warp for each end; blocks 1 and 2 send 8 bytes and a signal to each other in turn.
#include <rdmakit/hca_engine.cuh>
#include <rdmakit/signal.cuh>

struct PingEnd {
    rdmakit::QpHandle qp;
    rdmakit::RemoteMemory to, word;  // at the peer: where data goes, and the signal
    rdmakit::LocalMemory from;
    unsigned long long* source;      // what `from` names
    const unsigned long long* data;  // what the peer sends here,
    const unsigned long long* mine;  // and its signal
    unsigned long long sum, wrong;   // of what came
    unsigned long long ns;           // for all rounds but the first `warm`
};

// How an end posts: by the protocol that any number of threads may share, or as the only one who does.
enum class PingWay : unsigned { shared = 0, alone = 1, alone_without_record = 2 };

// Nobody else posts to this queue pair, and the peer's answer says that what was posted before has been executed: no turns,
// no atomics, no room to wait for.
RDMAKIT_DEVICE void post_alone(const PingEnd& end, rdmakit::u64* posted, bool record) {
    using namespace rdmakit;
    const QpHandle& qp = end.qp;
    write_rdma(qp, *posted, Opcode::write, end.to.address, end.to.key, end.from.address, end.from.key, 8, 0);
    write_fetch_add(qp, *posted + 1, end.word.address, end.word.key, 1, kCqUpdate);
    *posted += 2;
    const u64 bell = doorbell_value(qp, *posted);
    fence<Scope::sys>();
    if (record) {
        store_relaxed<Scope::sys>(qp.dbrec, swap_bytes(static_cast<u32>(*posted & 0xffff)));
        fence<Scope::sys>();
    }
    mmio_store(qp.doorbell, bell);
}

// Sums of time_ns() at each stage of all rounds: differences of two are what lies between them, however coarse the clock is.
// A poster's and a receiver's own, then those of the server behind the poster (Stage, hca_near.cuh).
struct PingStages {
    unsigned long long begun, rung, seen, read;
    unsigned long long server[rdmakit::kStages];
};
struct PingProbe {
    unsigned long long sums[rdmakit::kStages] = {};
    RDMAKIT_DEVICE void mark(rdmakit::Stage stage) { sums[static_cast<unsigned>(stage)] += rdmakit::time_ns(); }
};

// `stages`: null, or one for each end. What an end needs of its handle it has in registers: a wait's acquire empties L1.
template <class Probe>
RDMAKIT_DEVICE void ping(const rdmakit::HcaHandle* hcas, PingEnd* ends, unsigned way, unsigned warm, unsigned rounds, PingStages* stages) {
    using namespace rdmakit;
    if (block_id() == 0) {
        const u32 warp = static_cast<u32>(warp_id());
        if (warp >= 2) return;
        Probe probe{};
        hca_serve(hcas[warp], 0, 1, probe);
        if constexpr (sizeof(Probe) == sizeof(PingProbe)) {
            if (lane_id() == 0) {
                for (u32 i = 0; i < kStages; ++i) stages[warp].server[i] = probe.sums[i];
            }
        }
        return;
    }
    if (block_id() > 2) return;
    PingEnd& shared = ends[block_id() - 1];
    const bool first = block_id() == 1;
    if (thread_in_block() == 0 && check_handle(shared.qp)) {
        const PingEnd end = shared;
        u64 since = 0, sum = 0, wrong = 0, posted = 0;
        u64 begun = 0, rung = 0, saw = 0, read = 0;
        const auto note = [&](u64& stage) {
            if constexpr (sizeof(Probe) == sizeof(PingProbe)) stage += time_ns();
        };
        for (u64 round = 1; round <= rounds; ++round) {
            if (round == warm + 1) since = time_ns();
            const auto send = [&] {
                note(begun);
                *end.source = round;
                Status status = Status::ok;
                if (way != static_cast<u32>(PingWay::shared)) {
                    post_alone(end, &posted, way == static_cast<u32>(PingWay::alone));
                } else {
                    status = put_signal(end.qp, end.to, end.from, 8, end.word, 1);
                }
                note(rung);
                return status;
            };
            if (first && send() != Status::ok) break;
            u64 seen = 0;
            const Subject who = about(end.qp, "the peer's signal", round);
            if (wait_signal(end.mine, round, end.qp.watch, who, &seen) != Status::ok) break;
            note(saw);
            const u64 got = *end.data;
            sum += got;
            wrong += got == round ? 0 : 1;
            note(read);
            if (!first && send() != Status::ok) break;
        }
        shared.ns = time_ns() - since;
        shared.sum = sum;
        shared.wrong = wrong;
        if constexpr (sizeof(Probe) == sizeof(PingProbe)) {
            PingStages& mine = stages[block_id() - 1];
            mine.begun = begun;
            mine.rung = rung;
            mine.seen = saw;
            mine.read = read;
        }
        if (posted != 0) end.qp.state->reserved = end.qp.state->ready = end.qp.state->rung = posted;
        quiet(end.qp);
    }
    hca_leave(hcas->left);
}

RDMAKIT_KERNEL hca_ping(const rdmakit::HcaHandle* hcas, PingEnd* ends, unsigned way, unsigned warm, unsigned rounds) {
    ping<rdmakit::NoProbe>(hcas, ends, way, warm, rounds, nullptr);
}
// The same with a look at the clock at every stage, which takes time itself.
RDMAKIT_KERNEL hca_ping_stages(const rdmakit::HcaHandle* hcas, PingEnd* ends, unsigned way, unsigned warm, unsigned rounds,
                               PingStages* stages) {
    ping<PingProbe>(hcas, ends, way, warm, rounds, stages);
}
