// environment.hpp — what the emulated HCA needs of the world around it: time, events, chance, and who to tell.
// Leans on faults.hpp and on cuda/rdmakit/config.cuh for its number types. The scheduler implements it; tests implement a small one.
#pragma once
#include <cstddef>
#include <vector>

#include "../explore/clocks.hpp"
#include "faults.hpp"

namespace rdmakit::emu {

class Hca;
class WeakMemory;
struct RemoteRequest;

// Asynchronous events, named as IBV_EVENT_* (man ibv_get_async_event). `completion` is the completion channel's event
// of an armed CQ; `doorbell_split` has no verbs counterpart (a real HCA would act on half a doorbell, undefined).
enum class AsyncEventType : u32 {
    completion = 0,
    cq_error = 1,            // IBV_EVENT_CQ_ERR: the CQ overran and is dead
    qp_fatal = 2,            // IBV_EVENT_QP_FATAL: ring overflow, or its CQ is dead
    qp_request_error = 3,    // IBV_EVENT_QP_REQ_ERR: the responder refused an invalid request
    qp_access_error = 4,     // IBV_EVENT_QP_ACCESS_ERR: the responder refused a key, a range or a right
    sq_drained = 5,          // IBV_EVENT_SQ_DRAINED
    port_active = 6,         // IBV_EVENT_PORT_ACTIVE
    port_error = 7,          // IBV_EVENT_PORT_ERR
    doorbell_split = 8,      // a 4-byte store to a doorbell register
    communication_established = 9,  // IBV_EVENT_COMM_EST: a request arrived in RTR
    srq_limit_reached = 10,  // IBV_EVENT_SRQ_LIMIT_REACHED
    last_wqe_reached = 11,   // IBV_EVENT_QP_LAST_WQE_REACHED: in ERR, takes no more from its SRQ
};

struct AsyncEvent {
    AsyncEventType type;
    u32 number;    // QP number, CQ number, or port (1..); 0 where none applies
    u32 syndrome;  // the completion syndrome that belongs to it, or 0
};

// All calls come from within a call into the HCA (a verb, an MMIO store, `work`, an event). None of them may call back
// into any HCA; they note what is to be done and return.
class Environment {
  public:
    virtual ~Environment() = default;

    virtual u64 now_ps() = 0;
    // True: latencies and line rates apply and `at` is used. False: `Hca::work` executes, `at` is never called.
    virtual bool timed() = 0;
    // Calls fn(object, arg) once, when the clock reads when_ps; equal times in the order of the calls.
    virtual void at(u64 when_ps, void (*fn)(void* object, u64 arg), void* object, u64 arg) = 0;
    // The same for a time-out, which mostly is not needed: once wanted(object, arg) is false the call may come at any
    // time, and nobody has to wait for it. It comes all the same.
    virtual void timer(u64 when_ps, void (*fn)(void* object, u64 arg), void* object, u64 arg,
                       bool (* /*wanted*/)(void* object, u64 arg)) {
        at(when_ps, fn, object, arg);
    }
    // After every write of an HCA to memory that a kernel or a host may watch: payload, CQE, atomic result.
    virtual void memory_written(const void* address, std::size_t bytes) = 0;
    // Uniform in [0, bound), from the world's seed.
    virtual u64 random(u64 bound) = 0;
    // The HCA has work: call Hca::work soon. Untimed only. Called again at the end of a `work` that left some.
    virtual void ready(Hca& hca) = 0;
    // False: messages of more than cpu::kControlBytes are checked, counted and completed but not copied.
    virtual bool copy_payload() = 0;
    virtual void async_event(Hca& hca, AsyncEvent event) = 0;

    // ---- where queue pairs are in other processes (remote.hpp); untimed only
    virtual bool elsewhere(u32 /*qpn*/) { return false; }
    // Takes a request, and the bytes it brings, to the same HCA `to` in the process of its destination. False if that
    // process is gone. Sooner or later Hca::answered is called.
    virtual bool carry(Hca& /*from*/, Hca& /*to*/, const RemoteRequest&, const std::vector<u8>& /*data*/) { return false; }

    // ---- where the legs of a message are steps of their own (stepwise.cpp); asked when an HCA is made
    virtual bool stepwise() { return false; }
    // Which values loads may return, or null: the newest.
    virtual WeakMemory* weak() { return nullptr; }
    // Does a reader see the bytes of one WRITE in their order (ibv_query_qp_data_in_order)? GPUs are promised no such thing.
    virtual bool data_in_order() { return false; }
    // Changes whenever the memory model forgets its agents; adds one, and says what the running code has made visible.
    virtual u64 run_number() { return 0; }
    virtual u32 add_agent(Hca&, u32 /*qpn*/, bool /*requester*/) { return 0; }
    virtual ClockRef published() { return 0; }

    // For a timeline: what this HCA did from one moment to another. Asked for only while `tracing` is set.
    enum class Mark : u32 { fetched = 16, wire = 17, arrived = 18, completed = 19 };
    bool tracing = false;
    virtual void mark(Hca&, Mark, u32 /*qpn*/, u32 /*port*/, u64 /*index*/, u64 /*bytes*/, u64 /*when_ps*/, u64 /*until_ps*/) {}

    // Set by an environment in which things go wrong: all that faults cost those without is a look at this.
    bool faults_on = false;
    // Does this fault happen now, to something of this QP (its number at the requester)? Asked once an event, for
    // packets once a packet. Asking is choosing: an answer of true has to be acted upon.
    virtual bool fault(FaultKind, u32 /*qpn*/) { return false; }
    // By how much, for the kinds that are about time.
    virtual u64 fault_delay_ps(FaultKind) { return 0; }
    // What the way through physical port `port` takes longer than through port 1.
    virtual u64 port_skew_ps(u32 /*port*/) { return 0; }
    // A request of this QP has left: what counts for faults that come after so many messages. faults_on only.
    virtual void message_left(Hca&, u32 /*qpn*/) {}

    bool happens(FaultKind kind, u32 qpn) { return faults_on && fault(kind, qpn); }
    // How many of `packets` come through before the first that the fault strikes; `packets` if it strikes none.
    u64 unharmed(FaultKind kind, u32 qpn, u64 packets) {
        if (!faults_on) return packets;
        u64 passed = 0;
        while (passed < packets && !fault(kind, qpn)) ++passed;
        return passed;
    }
};

}  // namespace rdmakit::emu
