// queue_pair.hpp — the state of one RC queue pair: rings, connection, retry counts, where its packets leave.
// Leans on completion_queue.hpp and fabric.hpp. Plain data; requester.cpp, responder.cpp and timed.cpp act on it.
#pragma once
#include <deque>
#include <memory>
#include <vector>

#include "completion_queue.hpp"
#include "fabric.hpp"
#include "payload.hpp"
#include "replay.hpp"
#include "shared_receive_queue.hpp"

namespace rdmakit::emu {

// One message on its way: the request, and the local memory that it names.
struct Transfer {
    DecodedWqe wqe;
    Pieces local;
    u32 psn = 0;                  // of its first packet
    u32 port = 0;                 // physical, by which it left; 0: by none
    u32 first = 0;                // packets left out since a NAK has acknowledged them
    u32 arriving = ~0u;           // packets, counted from the message's first, that come through to the responder
    u32 taken = 0;                // of them: how many the responder had, then has, executed
};

// What became of a request at the responder.
struct Outcome {
    enum Kind : u32 {
        done,           // executed; the response carries `old` (atomics) or `memory` (READ)
        not_ready,      // RNR NAK: no receive WQE
        refused,        // NAK with a syndrome
        lost,           // nobody answered: no route, port down, peer not in RTR, packet lost
        unanswered,     // executed, but its response is lost
        out_of_sequence,  // NAK: an earlier packet is missing
        early,          // out-of-order QPs: arrived before what it has to come after; deliver it again then
    } kind = done;
    Syndrome syndrome = Syndrome::none;
    u64 old = 0;           // atomics: the old value; not_ready: the NAK's timer code; out_of_sequence: the PSN expected
    u8* memory = nullptr;  // READ: where the checked bytes lie at the responder
};

// A WQE that was sent and not yet completed (timed only).
struct InFlight {
    DecodedWqe wqe;
    Outcome outcome;
    u64 sent_ps;
    u32 psn, port, first;  // as in Transfer
    bool failed_locally;
    bool executed;         // by the responder
    bool held;             // arrived early, see Outcome::early
    bool answered;         // its own response is back; a later one acknowledges WRITEs and SENDs too
};
// By basic block index. A few at a time, when they are first used: most queue pairs of a large cluster never fill a ring.
class InFlightSlots {
  public:
    void make(u64 count) { groups_.resize((count + kGroup - 1) / kGroup); }
    InFlight& operator[](u64 index) {
        std::unique_ptr<InFlight[]>& group = groups_[index / kGroup];
        if (!group) group = std::make_unique<InFlight[]>(kGroup);
        return group[index % kGroup];
    }
    const InFlight& operator[](u64 index) const { return groups_[index / kGroup][index % kGroup]; }  // one that was issued

  private:
    static constexpr u64 kGroup = 8;
    std::vector<std::unique_ptr<InFlight[]>> groups_;
};
struct TimedQueue {
    InFlightSlots slots;
    u64 last_arrival_ps = 0, last_ack_ps = 0, next_issue_ps = 0;
    u64 last_egress_ps = 0;     // when the last of its requests that waited in the network comes out
    u64 arrived = 0;            // basic block index before which the responder has executed everything
    u32 acknowledged_psn = 0;   // by completions, and within the first message that is not complete by a NAK
    u32 reads_in_flight = 0;    // READs and atomics
    u64 bytes_in_flight = 0;    // of payload that is sent and not acknowledged
    u64 proxied = 0;            // basic block index before which the host's thread has taken requests,
    u64 asked = 0, given = 0;   // is ready to post, and has posted,
    u64 fence = 0, heard = 0;   // and that has to be complete before it posts more payload; is complete, as far as it has seen
    bool proxy_pending = false; // an event will let it go on
    bool blocked = false;       // no issue until a completion: fence, too many READs, or a local error
    bool turn_pending = false;  // slower than its port: an event will say when it may send again
    bool local_error = false;   // the last WQE issued failed before it was sent
    void forget_proxy() {
        proxied = asked = given = fence = heard = 0;
        proxy_pending = false;
    }
    void restart(u64 at) {
        arrived = at;
        reads_in_flight = 0;
        bytes_in_flight = 0;
        blocked = local_error = turn_pending = false;
    }
};

struct Flight;
struct QueuePair;

// What changes while it works, and can be put back as it was (snapshot.cpp).
struct QueuePairState {
    QpInfo info;
    SendRing sq{};
    u64 producer = 0;   // free-running basic block indices: posted up to
    u64 issued = 0;     // handed to the responder up to
    u64 completed = 0;  // done up to; untimed always equal to issued
    u64 rq_consumed = 0;
    const u8* rq = nullptr;
    u32 rq_mask = 0, rq_stride = 0;
    CompletionQueue* send_cq = nullptr;
    CompletionQueue* recv_cq = nullptr;
    SharedReceiveQueue* srq = nullptr;
    const void* uar_page = nullptr;

    Fabric::Endpoint peer;       // resolved at RTR
    u32 mtu_shift = 12;
    u32 header_octets = 0;       // of every packet: link, network and transport headers, ICRC, FCS
    u32 tx_port = 0;             // physical, 1..; 0: every eligible port is down
    u32 next_psn = 0;            // requester: PSN of the next message to be issued (24 bits)
    u32 expected_psn = 0;        // responder
    u64 taken_psns = 0;          // responder: since the connection began
    u32 connection = 0;          // requester: counts its connections
    u32 heard_connection = 0;    // responder: of the peer, that of the last request taken
    bool sequence_error_sent = false;

    u32 rnr_tries = 0, timeouts = 0;  // consecutive, for the WQE at the head
    u32 turns_left = 0;               // untimed: of the wait under way; 0: until something changes
    bool stalled = false, stalled_on_receiver = false, in_stalled_list = false;
    bool communicated = false;  // COMM_EST was reported
    bool draining = false;      // in SQD, SQ_DRAINED still to come

    bool queued = false;  // is in the list of the port `queued_at`
    u32 queued_at = 0;
    QueuePair* previous = nullptr;
    QueuePair* next = nullptr;

    u32 epoch = 0;  // changes whenever events under way must no longer count: reset, error, resend
    ReplayRecord replay;  // responder, as the next
    EarlyRecord early;
};

// A request that another process has (remote.cpp).
struct AwayRequest {
    u32 ticket, psn;
    DecodedWqe wqe;
};

struct QueuePair : QueuePairState {
    std::deque<AwayRequest> away;  // in the order of the send queue
    bool away_blocked = false;     // the next one waits for an answer
    u32 last_ticket = 0;
    std::unique_ptr<TimedQueue> timed;
    std::shared_ptr<Flight> flight;  // stepwise only
    OwnedMemory owned_sq, owned_rq, owned_dbrec;

    QpState state() const { return info.state; }
    u64 sq_entries() const { return 1ull << sq.log_bbs; }
    bool has_work() const {
        return info.state == QpState::rts && !stalled && !away_blocked && issued != producer && !(timed && timed->blocked);
    }
    // Receive WQEs that the record shows and that are not consumed; over the ring's size if the record makes no sense.
    u32 receives_available() const {
        if (srq) return srq->available();
        return rq ? receives_available(swap_bytes(__atomic_load_n(&info.create.dbrec[kDbrecReceive], __ATOMIC_ACQUIRE))) : 0;
    }
    u32 receives_available(u32 posted) const {
        const u32 ahead = (posted - static_cast<u32>(rq_consumed)) & 0xffff;
        return ahead <= 0x8000 ? ahead : 0;
    }
};

constexpr bool is_read_or_atomic(u32 opcode) {
    return opcode >= static_cast<u32>(Opcode::read) && opcode <= static_cast<u32>(Opcode::masked_fetch_add);
}
constexpr bool stays_at_home(u32 opcode) {
    return opcode == static_cast<u32>(Opcode::nop) || opcode == static_cast<u32>(Opcode::dump);
}
// PSNs that a message takes: its packets, but of a READ those of the response.
inline u32 psns_of(const DecodedWqe& wqe, u32 mtu_shift) {
    if (stays_at_home(wqe.opcode)) return 0;
    const u64 mtu = 1ull << mtu_shift;
    return wqe.atomic_width != 0 || wqe.bytes <= mtu ? 1 : static_cast<u32>((wqe.bytes + mtu - 1) >> mtu_shift);
}

}  // namespace rdmakit::emu
