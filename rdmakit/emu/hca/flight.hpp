// flight.hpp — what is under way for one queue pair when each leg of a message is a step of its own: doorbells written
// and not yet taken, requests sent and not yet executed or acknowledged, writes executed and not yet visible.
// Leans on payload.hpp and explore/clocks.hpp. Plain data; stepwise.cpp acts on it.
#pragma once
#include <vector>

#include "../explore/clocks.hpp"
#include "payload.hpp"
#include "queue_pair.hpp"

namespace rdmakit::emu {

struct Bell {
    u64 value;
    ClockRef clock;      // what its writer had made visible to the system
};

struct Request {
    DecodedWqe wqe;
    std::vector<u8> data;    // gathered when it was sent
    ClockRef clock = 0;      // what the requester knew then
    Outcome outcome;
    std::vector<u8> answer;  // of a READ
    ClockRef answer_clock = 0;
    u32 psn = 0;
    u32 losses = 0, refusals = 0;  // in a row: of packets, of a receiver that was not ready
    u32 losses_behind = 0;         // before it was the first that is not acknowledged: no timer is its own then
    bool arrived = false;
    bool waits_for_receive = false;
};

// A request that the network has doubled: its second copy, still on the way whatever has become of the first.
struct Double {
    DecodedWqe wqe;
    std::vector<u8> data;
    ClockRef clock;
    u32 psn, port;
};

// A write that the responder has executed and memory does not show yet, or the completion that comes behind it.
struct Placement {
    u8* to = nullptr;
    std::vector<u8> bytes;
    ClockRef clock = 0;
    CompletionQueue* cq = nullptr;  // a completion: bytes are its CQE, and the half before it if `to` is not null
    bool relaxed = false;           // of a relaxed-ordering MR: others may pass it
};

struct Flight {
    std::vector<Bell> bells;
    std::vector<Request> requests;      // in the order of the send queue, from the first unacknowledged one
    std::vector<Double> doubles;        // in any order
    std::vector<Placement> placements;  // as the responder, in the order of execution
    u32 requester = 0, responder = 0;   // agents of the memory model, in the run `run`
    u64 run = 0;
    ClockRef base = 0;                  // as the responder: what writes that others may pass do not pass themselves
    std::vector<u8> shadow;             // the send queue as far as it was fetched
    bool listed = false;                // in its HCA's list of queue pairs with something under way

    void clear() {
        bells.clear();
        requests.clear();
        doubles.clear();
        placements.clear();
    }
};

// One step that an HCA can take next.
struct HcaStep {
    enum Kind : u32 { place, acknowledge, arrive, receive_double, issue, bell, give_up } kind;
    QueuePair* qp;
    u32 index;   // of the request, its double or the placement
};

}  // namespace rdmakit::emu
