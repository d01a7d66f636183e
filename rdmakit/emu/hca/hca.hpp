// hca.hpp — one emulated ConnectX: the verbs that configure it, the MMIO that rings it, and the work that it does.
// Leans on environment.hpp (the world), fabric.hpp (who answers to an address) and cuda/rdmakit/hca.cuh (what WQE bytes
// mean). Single-threaded: all HCAs of a world are called from one OS thread. No exceptions, no throw across this API.
//
// Life of a WQE: mmio_write64 → producer advances → the QP queues at its port → decode and local checks
// (requester.cpp) → is it its turn (sequence.cpp), checks and effect at the peer (responder.cpp) → landing and CQE
// (requester.cpp). Untimed, `work` walks this in one go; timed, events of the environment stand between the steps
// (timed.cpp, in_flight.cpp, recovery.cpp). The steps are the same.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "environment.hpp"
#include "fabric.hpp"
#include "late_write.hpp"
#include "rdmakit/hca.cuh"

namespace rdmakit::emu {

struct QueuePair;
struct CompletionQueue;
struct SharedReceiveQueue;
struct Transfer;
struct Outcome;
struct Pieces;
struct Port;
struct Packets;
class EventPool;
struct HcaSnapshot;
struct HcaStep;
struct Request;
struct RemoteAnswer;
class MemoryRegions;
class Ports;
enum class EventKind : u32;

class Hca {
  public:
    // Environment and fabric outlive the HCA; the HCA outlives its events given to Environment::at. Whether the
    // environment is timed, and of which seed, is asked here once.
    Hca(Environment& environment, Fabric& fabric, const HcaConfig& config);
    ~Hca();
    Hca(const Hca&) = delete;
    Hca& operator=(const Hca&) = delete;

    const HcaConfig& config() const { return config_; }
    HcaCounters counters() const { return counters_; }
    // Makes IB port `port` (1 .. IB ports) answer to gid, and to lid if it is not 0.
    Status add_address(u32 port, const Gid& gid, u32 lid = 0);
    u32 ib_ports() const;

    // ---- protection domains and memory --------------------------------------------------------------------------
    Status alloc_pd(u32* pd);
    Status dealloc_pd(u32 pd);  // EBUSY while an MR or a QP is in it
    // key is both lkey and rkey. iova is what WQEs call the first byte; reg_mr uses the address itself.
    Status reg_mr(u32 pd, void* address, u64 length, u32 access, u32* key);
    Status reg_mr_iova(u32 pd, void* address, u64 length, u64 iova, u32 access, u32* key);
    // Whoever creates an mkey by command chooses its low byte.
    Status create_mkey(u32 pd, void* address, u64 length, u64 iova, u32 access, u8 low_byte, u32* key);
    Status dereg_mr(u32 key);
    // New range and rights under the same index: the key's low byte changes, so the old key is dead.
    Status rereg_mr(u32 key, u32 pd, void* address, u64 length, u32 access, u32* new_key);
    Status rereg_mr_iova(u32 key, u32 pd, void* address, u64 length, u64 iova, u32 access, u32* new_key);
    // Only other rights, or another PD, under the same key.
    Status change_mr(u32 key, u32 pd, u32 access);
    Status query_mr(u32 key, MrInfo* info) const;
    u32 live_mrs() const;

    // ---- completion queues --------------------------------------------------------------------------------------
    Status create_cq(const CqAttr& attr, u32* cqn);
    Status destroy_cq(u32 cqn);  // EBUSY while a QP completes to it
    Status query_cq(u32 cqn, CqInfo* info) const;
    // One `completion` event at the next CQE (a solicited one, or an error, if solicited_only). Fires at once if
    // CQEs that the record does not show as consumed are there.
    Status arm_cq(u32 cqn, bool solicited_only);

    // ---- shared receive queues --------------------------------------------------------------------------------
    Status create_srq(const SrqAttr& attr, u32* srqn);
    Status destroy_srq(u32 srqn);  // EBUSY while a QP draws from it
    Status set_srq_limit(u32 srqn, u32 limit);
    u32 srq_limit(u32 srqn) const;

    // ---- queue pairs --------------------------------------------------------------------------------------------
    static u32 rq_stride_bytes(u32 max_recv_sge);
    Status create_qp(const QpAttr& attr, u32* qpn);
    Status destroy_qp(u32 qpn);
    Status modify_qp(u32 qpn, const QpModify& attr, u32 mask);
    Status query_qp(u32 qpn, QpInfo* info) const;
    // mlx5dv_modify_qp_udp_sport: RTS only, 0xC000 .. 0xFFFF.
    Status modify_qp_udp_sport(u32 qpn, u32 source_port);
    // mlx5dv_query_qp_lag_port / mlx5dv_modify_qp_lag_port: EOPNOTSUPP where libmlx5 says so.
    Status query_qp_lag_port(u32 qpn, u32* configured, u32* active) const;
    Status modify_qp_lag_port(u32 qpn, u32 port);
    // What the device itself does when told (qpc.lag_tx_port_affinity), 0: none. Without a bond it takes no notice.
    Status set_lag_port(u32 qpn, u32 port);
    // What of a bond carries packets whose affinity is `port`.
    u32 active_lag_port(u32 port) const;

    // ---- doorbells ----------------------------------------------------------------------------------------------
    Status alloc_uar(UarPage* page);
    Status free_uar(u32 index);  // EBUSY while a QP rings it
    UarPage default_uar() const;
    bool owns(const void* address) const;  // is it in one of this HCA's UAR pages?
    // An 8-byte store to a UAR page: a send doorbell, or at offset 0x20 a CQ's arm doorbell.
    void mmio_write64(const void* address, u64 value);
    // A 4-byte store is half a doorbell: counted, reported as `doorbell_split`, and otherwise without effect.
    void mmio_write32(const void* address, u32 value);
    // Receive queues have no doorbell: whoever advances the record's word 0 may say so, to end an RNR wait at once.
    void receive_posted(u32 qpn);

    // ---- work (untimed) -----------------------------------------------------------------------------------------
    // Executes up to `budget` WQEs; returns how many. Calls ready() at its end if some can still be done, or if a
    // finite retry counts down.
    u32 work(u32 budget);
    // Untimed, with peers in other processes: execute what came from there, for the same HCA `from` as seen from here;
    // and go on with what was sent there. `data`: what a request brings, what an answer brings.
    RemoteAnswer serve(const RemoteRequest& request, std::vector<u8>& data, Hca& from);
    void answered(const RemoteAnswer& answer, std::vector<u8>& data);
    void unanswered(u32 qpn);  // what was sent there is lost
    // Stepwise: appends what can be done next, the calmest first; takes one of them; who does it, to the memory model.
    void next_steps(std::vector<HcaStep>& out);
    void take(const HcaStep& step);
    u32 agent_of(const HcaStep& step);
    // Stepwise: everything that work changes, to be put back before the next run. Not what verbs create or destroy.
    std::shared_ptr<const HcaSnapshot> save() const;
    void restore(const HcaSnapshot& snapshot);
    // QPs that wait for a receive WQE or for a peer. Call work() once more before calling the world hung.
    u32 waiting() const { return static_cast<u32>(stalled_.size()); }

    // ---- ports --------------------------------------------------------------------------------------------------
    u32 ports() const { return config_.ports; }
    bool port_up(u32 port) const;
    void set_port_up(u32 port, bool up);
    PortCounters port_counters(u32 port) const;

    // An internal error of the QP that was created as number `ordinal`, from 0: IBV_EVENT_QP_FATAL, and it is in ERR.
    void break_qp(u32 ordinal);

    // ---- for the other files of this model ----------------------------------------------------------------------
    QueuePair* find_qp(u32 qpn) const {
        const u32 index = qpn - qpn_base_;
        return index < qps_.size() ? qps_[index].get() : nullptr;
    }
    SharedReceiveQueue* find_srq(u32 srqn) const { return srqn < srqs_.size() ? srqs_[srqn].get() : nullptr; }
    CompletionQueue* find_cq(u32 cqn) const { return cqn < cqs_.size() ? cqs_[cqn].get() : nullptr; }

  private:
    Status refuse(int code, const char* format, ...) const __attribute__((format(printf, 3, 4)));

    // memory_region.cpp
    Status check_registration(u32 pd, void* address, u64 length, u64 iova, u32 access) const;
    Status enter_region(u32 pd, void* address, u64 length, u64 iova, u32 access, const u8* low_byte, u32* key);

    // modify_qp.cpp, port.cpp
    void reset_queues(QueuePair& qp);
    void apply_attributes(QueuePair& qp, const QpModify& attr, u32 mask);
    Status check_attributes(const QueuePair& qp, const QpModify& attr, u32 mask) const;
    void choose_route(QueuePair& qp);
    void reroute(QueuePair& qp);
    void drained(QueuePair& qp);

    // doorbell.cpp, hca.cpp
    void ring_send(QueuePair& qp, u64 value, bool register_alone = false);
    u64 proxy_rings_at(QueuePair& qp, u64 value);
    void proxy_posts(QueuePair& qp);
    void proxy_goes_on(QueuePair& qp, u64 through, u64 seen_ps);
    void ring_late_doorbells();
    void enqueue(QueuePair& qp);
    void announce();

    // requester.cpp
    void step(QueuePair& qp);
    Syndrome begin(QueuePair& qp, Transfer& transfer);
    Syndrome map_local(const QueuePair& qp, Transfer& transfer) const;
    bool depart(QueuePair& qp, Transfer& transfer);
    void take_up(QueuePair& qp, const DecodedWqe& wqe);
    Outcome deliver(QueuePair& qp, Transfer& transfer);
    void survive(QueuePair& qp, Transfer& transfer, Hca& peer, u32 packets);
    void finish(QueuePair& qp, Transfer& transfer, const Outcome& outcome);
    void fail(QueuePair& qp, const DecodedWqe& wqe, Syndrome syndrome);

    // remote.cpp
    bool is_remote(const QueuePair& qp) const;
    bool must_wait(const QueuePair& qp, const DecodedWqe& wqe) const;
    void send_away(QueuePair& qp, Transfer& transfer);
    void send_again(QueuePair& qp, bool receiver_not_ready);

    // sequence.cpp
    bool many_paths(const QueuePair& qp) const;
    Outcome respond(QueuePair& qp, Transfer& transfer, Hca& from, QueuePair& source);
    Outcome once_more(QueuePair& qp, Transfer& transfer);
    Outcome too_early(QueuePair& qp, Transfer& transfer, QueuePair& source, u32 packets);
    Outcome sequence_error(QueuePair& qp);
    void take_psns(QueuePair& qp, u32 packets);

    // responder.cpp, receive.cpp
    Outcome execute(QueuePair& qp, Transfer& transfer, QueuePair& source);
    Outcome write(QueuePair& qp, Transfer& transfer, QueuePair& source);
    void place(QueuePair& qp, const DecodedWqe& wqe, const Pieces& local, const Pieces& target, u64 from, u64 to);
    Outcome read(QueuePair& qp, const DecodedWqe& wqe);
    Outcome atomic(QueuePair& qp, const DecodedWqe& wqe);
    Outcome send(QueuePair& qp, Transfer& transfer, QueuePair& source);
    bool receive_ready(QueuePair& qp, Outcome& outcome);
    u32 take_receive(QueuePair& qp);
    Outcome consume_receive(QueuePair& qp, const DecodedWqe& wqe, u32 source_qpn, CqeOpcode opcode,
                            const Pieces* scattered);
    Outcome refuse_receive(QueuePair& qp, Syndrome local, Syndrome nak);
    Outcome refuse_request(QueuePair& qp, Syndrome nak, AsyncEventType event);
    bool copies(u64 bytes) const { return copy_payload_ || bytes <= cpu::kControlBytes; }

    // late_write.cpp
    static constexpr u64 kEveryLateWrite = ~0ull;
    bool write_later(QueuePair& qp, u32 rkey, const Pieces& from, u8* at, u64 bytes);
    void land(u32 qpn, u64 number = kEveryLateWrite);

    // flush.cpp
    void enter_error(QueuePair& qp);
    void flush_sends(QueuePair& qp);
    void flush_receives(QueuePair& qp);

    // retry.cpp
    bool may_retry(QueuePair& qp, bool receiver_not_ready);
    bool worth_trying(const QueuePair& qp) const;
    void stall(QueuePair& qp, const DecodedWqe& wqe, bool receiver_not_ready);
    void resume(QueuePair& qp);
    void turn_stalled();

    // timed.cpp
    void schedule(u64 when_ps, EventKind kind, u32 qpn, u64 index, u32 epoch, u64 value);
    static void on_event(void* object, u64 slot);
    static bool still_waits(void* object, u64 slot);
    void wake_port(u32 port, u64 when_ps);
    void transmit(u32 port);
    void issue(QueuePair& qp, Port& port);
    u64 over_pcie(u64& free_ps, u64& busy_ps, u64 bytes, u64 first_ps);
    void egress(QueuePair& qp, u64 index, u64 last_ps);
    void come_in(QueuePair& qp, const DecodedWqe& wqe, const Packets& packets, u32 in, u64 last_ps);
    void pause_until(Port& port, u64 until_ps);
    u64 take_in(u32 in, const Packets& packets, u64 last_ps);

    // in_flight.cpp
    void arrive(QueuePair& qp, u64 index);
    void arrive_again(QueuePair& qp, u64 index);
    void executed(QueuePair& qp, u64 index);
    void admit_held(QueuePair& qp);
    void answer(QueuePair& qp, u64 index, const Outcome& outcome);
    void acknowledge(QueuePair& qp, u64 index, u64 through);
    bool acknowledge_through(QueuePair& qp, u64 through);
    void complete_head(QueuePair& qp);
    u64 respond_at(const QueuePair& qp, const DecodedWqe& wqe, const Outcome& outcome);

    // stepwise.cpp
    void introduce(QueuePair& qp);
    u32 read_record(QueuePair& qp, const u32* record, bool as_requester);
    void fetch(QueuePair& qp, u64 bb, u64 count);
    void list(QueuePair& qp);
    bool may_issue(const QueuePair& qp) const;
    bool may_arrive(const QueuePair& qp, u32 index) const;
    bool may_place(const QueuePair& qp, u32 index) const;
    bool must_give_up(const QueuePair& qp, u32 index) const;
    u32 work_stepwise(u32 budget);
    void rung(QueuePair& qp, u64 value);
    void take_bell(QueuePair& qp);
    void issue_request(QueuePair& qp);
    void arrive_request(QueuePair& qp, u32 index);
    void receive_double(QueuePair& qp, u32 index);
    void make_visible(QueuePair& qp, u32 index);
    void acknowledge_request(QueuePair& qp);
    void queue_write(QueuePair& qp, const Pieces& from, const Pieces& to, u64 bytes, u32 rkey);
    void complete_later(QueuePair& qp, CompletionQueue& cq, const void* cqe, const u8* preceding);
    void bring_home(QueuePair& qp, const Pieces& from, const Pieces& to, u64 bytes);
    // recovery.cpp
    void wait_for_answer(QueuePair& qp, u64 index);
    void sent_again_from(QueuePair& qp, u64 through, u32 psn);
    void resend(QueuePair& qp, u64 index, bool receiver_not_ready);
    void go_back(QueuePair& qp, bool receiver_not_ready);
    void advance(QueuePair& qp);

    // completion_queue.cpp
    bool push_cqe(QueuePair& qp, CompletionQueue& cq, const void* cqe, const u8* preceding);
    bool push_now(QueuePair& qp, CompletionQueue& cq, const void* cqe, const u8* preceding, u32 agent);
    void report(AsyncEventType type, u32 number, u32 syndrome = 0);

    Environment& environment_;
    Fabric& fabric_;
    const HcaConfig config_;
    const bool timed_;
    const bool stepwise_;
    WeakMemory* const weak_;
    Request* arriving_ = nullptr;      // stepwise: what is being executed here
    std::vector<QueuePair*> moving_;   // stepwise: queue pairs with something under way
    HcaCounters counters_;
    u32 qpn_base_ = 0;
    bool copy_payload_ = true;   // Environment::copy_payload, asked once a work() or event
    bool announced_ = false;     // ready() was called and work() has not run since
    u32 next_port_ = 0;          // round robin of work() over ports
    std::unique_ptr<MemoryRegions> memory_;
    std::unique_ptr<Ports> ports_;
    struct Pd {
        bool live = false;
        u32 users = 0;
    };
    struct Uar;
    std::vector<Pd> pds_;
    std::vector<std::unique_ptr<CompletionQueue>> cqs_;
    std::vector<std::unique_ptr<SharedReceiveQueue>> srqs_;
    std::vector<std::unique_ptr<QueuePair>> qps_;
    std::vector<std::unique_ptr<Uar>> uars_;
    std::vector<u32> stalled_;   // QP numbers, in the order in which they began to wait
    u32 live_qps_ = 0;
    std::unique_ptr<EventPool> events_;
    struct LateDoorbell {
        u32 qpn, turns;
        u64 value;
    };
    std::vector<LateDoorbell> late_doorbells_;
    std::vector<LateWrite> late_writes_;
    u64 late_number_ = 0;
    // Timed: when the HCA can take up another WQE, and each of its parts more work.
    u64 wqe_free_ps_ = 0, pcie_read_free_ps_ = 0, pcie_write_free_ps_ = 0, atomic_free_ps_ = 0;
    std::vector<u64> proxy_free_ps_;
    mutable char message_[256] = {};
};

}  // namespace rdmakit::emu
