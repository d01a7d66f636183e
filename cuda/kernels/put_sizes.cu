// put_sizes.cu — puts of any size and their signals, timed: block 0 is the HCA (hca_engine.cuh), which rides in this very
// grid, a warp for each end. Blocks 1 and 2 send a put and its signal to each other in turn; then block 1 alone sends puts
// in a row until all of them are complete.
#include <rdmakit/hca_engine.cuh>
#include <rdmakit/signal.cuh>

struct PutEnd {
    rdmakit::QpHandle qp;
    rdmakit::RemoteMemory to, word;        // at the peer: where data goes, and the signal
    rdmakit::LocalMemory from;
    unsigned long long* last_source;       // the last 8 bytes of what is sent, which count the rounds
    const unsigned long long* last_data;   // and of what has come here
    const unsigned long long* mine;        // the peer's signal
    unsigned long long ns, row_ns;         // of all rounds but the first `warm`; of `row` puts
    unsigned long long wrong;              // rounds whose data was not there with its signal
};

RDMAKIT_KERNEL put_sizes(const rdmakit::HcaHandle* hcas, PutEnd* ends, unsigned long long bytes, unsigned warm,
                         unsigned rounds, unsigned row) {
    using namespace rdmakit;
    if (block_id() == 0) {
        if (warp_id() < 2) hca_serve(hcas[warp_id()], 0, 1);
        return;
    }
    if (block_id() > 2) return;
    PutEnd& end = ends[block_id() - 1];
    const bool first = block_id() == 1;
    if (thread_in_block() == 0 && check_handle(end.qp)) {
        u64 since = 0, wrong = 0, round = 1;
        for (; round <= rounds; ++round) {
            if (round == warm + 1) since = time_ns();
            const auto send = [&] {
                *end.last_source = round;
                return put_signal(end.qp, end.to, end.from, bytes, end.word, 1);
            };
            if (first && send() != Status::ok) break;
            u64 seen = 0;
            const Subject who = about(end.qp, "the peer's signal", round);
            if (wait_signal(end.mine, round, end.qp.watch, who, &seen) != Status::ok) break;
            wrong += *end.last_data == round ? 0 : 1;
            if (!first && send() != Status::ok) break;
        }
        end.ns = time_ns() - since;
        end.wrong = wrong + (rounds + 1 - round);
        Status status = quiet(end.qp);
        if (first) {
            const u64 begin = time_ns();
            for (u32 i = 0; i < row && status == Status::ok; ++i) status = put(end.qp, end.to, end.from, bytes);
            if (status == Status::ok) status = quiet(end.qp);
            end.row_ns = time_ns() - begin;
            if (status != Status::ok) end.wrong += 1;
        }
    }
    hca_leave(hcas->left);
}
