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
// no atomics, no room to wait for. S: how far its HCA is (QpHandle::same_gpu).
template <PingWay Way, rdmakit::Scope S> RDMAKIT_DEVICE rdmakit::Status post(const PingEnd& end, rdmakit::u64* posted) {
    using namespace rdmakit;
    const QpHandle& qp = end.qp;
    if constexpr (Way == PingWay::shared) return put_signal(qp, end.to, end.from, 8, end.word, 1);
    write_rdma(qp, *posted, Opcode::write, end.to.address, end.to.key, end.from.address, end.from.key, 8, 0);
    write_fetch_add(qp, *posted + 1, end.word.address, end.word.key, 1, kCqUpdate);
    *posted += 2;
    const u64 bell = doorbell_value(qp, *posted);
    if constexpr (Way == PingWay::alone) {
        tell<S>(qp, *posted, bell);
    } else {
        fence<S>();
        mmio_store(qp.doorbell, bell);
    }
    return Status::ok;
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

// One end, by one thread, in a loop of its own for each way: what it needs of its handle stays in registers then, and is not
// fetched again behind each acquire, which empties L1.
template <class Probe, PingWay Way, rdmakit::Scope S>
RDMAKIT_DEVICE void play(PingEnd& shared, bool first, unsigned warm, unsigned rounds, PingStages* stages) {
    using namespace rdmakit;
    const PingEnd end = shared;
    u64 since = 0, sum = 0, wrong = 0, posted = 0;
    u64 begun = 0, rung = 0, saw = 0, read = 0;
    const auto note = [&](u64& stage) {
        if constexpr (sizeof(Probe) == sizeof(PingProbe)) stage += time_ns();
    };
    bool sends = first;
    for (u64 turn = 0; turn < 2 * static_cast<u64>(rounds); ++turn, sends = !sends) {
        const u64 round = turn / 2 + 1;
        if (turn == 2 * static_cast<u64>(warm)) since = time_ns();
        if (sends) {
            note(begun);
            *end.source = round;
            if (post<Way, S>(end, &posted) != Status::ok) break;
            note(rung);
            continue;
        }
        u64 seen = 0;
        const Subject who = about(end.qp, "the peer's signal", round);
        if (wait_signal(end.mine, round, end.qp.watch, who, &seen) != Status::ok) break;
        note(saw);
        const u64 got = *end.data;
        sum += got;
        wrong += got == round ? 0 : 1;
        note(read);
    }
    shared.ns = time_ns() - since;
    shared.sum = sum;
    shared.wrong = wrong;
    if constexpr (sizeof(Probe) == sizeof(PingProbe)) {
        stages->begun = begun;
        stages->rung = rung;
        stages->seen = saw;
        stages->read = read;
    }
    if (Way != PingWay::shared) end.qp.state->reserved = end.qp.state->ready = end.qp.state->rung = posted;
}
template <class Probe, PingWay Way>
RDMAKIT_DEVICE void play(PingEnd& end, bool first, unsigned warm, unsigned rounds, PingStages* stages) {
    using rdmakit::Scope;
    if (end.qp.same_gpu != 0) play<Probe, Way, Scope::gpu>(end, first, warm, rounds, stages);
    else play<Probe, Way, Scope::sys>(end, first, warm, rounds, stages);
}

// `stages`: null, or one for each end.
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
    const bool first = block_id() == 1;
    PingEnd& end = ends[first ? 0 : 1];
    PingStages* const mine = stages == nullptr ? nullptr : &stages[first ? 0 : 1];
    if (thread_in_block() == 0 && check_handle(end.qp)) {
        switch (static_cast<PingWay>(way)) {
            case PingWay::shared: play<Probe, PingWay::shared, Scope::sys>(end, first, warm, rounds, mine); break;
            case PingWay::alone: play<Probe, PingWay::alone>(end, first, warm, rounds, mine); break;
            default: play<Probe, PingWay::alone_without_record>(end, first, warm, rounds, mine); break;
        }
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
