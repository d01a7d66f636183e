// doorbell.cpp — UAR pages and what a store to one does.
// Leans on hca_wqe.cuh. mlx5 PRM "Doorbells"; rdma-core providers/mlx5/qp.c post_send_db.
#include <cerrno>

#include "event_pool.hpp"
#include "hca.hpp"
#include "queue_pair.hpp"
#include "uar.hpp"

namespace rdmakit::emu {

namespace {
constexpr u64 kLateTurns = 32;

UarPage describe(u32 index, void* page) {
    return UarPage{index, page, static_cast<u8*>(page) + kUarDoorbellOffset};
}
const void* page_of(const void* address) {
    return reinterpret_cast<const void*>(reinterpret_cast<u64>(address) & ~(kUarBytes - 1));
}
}  // namespace

Status Hca::alloc_uar(UarPage* page) {
    auto uar = std::make_unique<Uar>();
    uar->page = allocate_pages(kUarBytes);
    if (!uar->page) return refuse(ENOMEM, "no memory for a UAR page");
    *page = describe(static_cast<u32>(uars_.size()), uar->page.get());
    uars_.push_back(std::move(uar));
    return {};
}

Status Hca::free_uar(u32 index) {
    if (index == 0 || index >= uars_.size() || !uars_[index]) return refuse(EINVAL, "no UAR page %u to free", index);
    if (uars_[index]->users) return refuse(EBUSY, "UAR page %u is rung by %u QPs", index, uars_[index]->users);
    uars_[index].reset();
    return {};
}

UarPage Hca::default_uar() const { return describe(0, uars_[0]->page.get()); }

bool Hca::owns(const void* address) const {
    const void* page = page_of(address);
    for (const auto& uar : uars_)
        if (uar && uar->page.get() == page) return true;
    return false;
}

void Hca::mmio_write64(const void* address, u64 value) {
    const u64 offset = reinterpret_cast<u64>(address) & (kUarBytes - 1);
    if (offset == kUarCqOffset) {
        // {sequence[29:28] | solicited only[24] | consumer index, CQ number}: MLX5_CQ_DB_REQ_NOT_SOL, rdma-core mlx5dv.h
        const u32 cqn = swap_bytes(static_cast<u32>(value >> 32)) & 0xffffff;
        if (owns(address) && find_cq(cqn)) arm_cq(cqn, swap_bytes(static_cast<u32>(value)) & (1u << 24));
        return;
    }
    ++counters_.doorbells;
    QueuePair* qp = find_qp(decode_doorbell(value).qpn);
    if (!qp) {
        ++counters_.doorbells_unknown_qp;
        return;
    }
    ++qp->info.counters.doorbells;
    if (page_of(address) != qp->uar_page) {  // the HCA compares the page with the one in the QP's context
        ++counters_.doorbells_wrong_uar;
        ++qp->info.counters.doorbells_ignored;
        return;
    }
    if (environment_.happens(FaultKind::doorbell_lost, qp->info.qpn)) {
        ++counters_.doorbells_lost;
        return;
    }
    const bool late = !stepwise_ && environment_.happens(FaultKind::doorbell_late, qp->info.qpn);
    if (late) ++counters_.doorbells_late;
    if (timed_) {
        const u64 longer = late ? environment_.fault_delay_ps(FaultKind::doorbell_late) : 0;
        const bool proxy = config_.timing.proxy_threads != 0;
        const u64 rung = proxy ? proxy_rings_at(*qp, value) : environment_.now_ps();
        schedule(rung + config_.timing.doorbell_to_fetch_ps + longer, EventKind::doorbell, qp->info.qpn, proxy, 0, value);
    } else if (stepwise_) {
        rung(*qp, value);  // as late as the scheduler likes
    } else if (late) {
        late_doorbells_.push_back(LateDoorbell{qp->info.qpn, 1 + static_cast<u32>(environment_.random(kLateTurns)), value});
        announce();
    } else {
        ring_send(*qp, value);
    }
}

// A thread of the host reads the request, posts what is new and rings. QPs are shared out over threads by number.
u64 Hca::proxy_rings_at(QueuePair& qp, u64 value) {
    const HcaTiming& timing = config_.timing;
    proxy_free_ps_.resize(timing.proxy_threads, 0);
    u64& free_ps = proxy_free_ps_[qp.info.qpn % timing.proxy_threads];
    const u64 next = widen_index(qp.timed->proxied, doorbell_next_index(decode_doorbell(value)));
    const u64 fresh = next > qp.timed->proxied ? next - qp.timed->proxied : 0;
    qp.timed->proxied += fresh;
    const u64 work = fresh * timing.proxy_post_ps + timing.proxy_doorbell_ps;
    counters_.proxy_busy_ps += work;
    free_ps = larger(free_ps, environment_.now_ps() + timing.proxy_poll_ps) + work;
    return free_ps;
}

// What it has been asked for, as far as fences let it: payload that stands behind one waits.
void Hca::proxy_posts(QueuePair& qp) {
    TimedQueue& timed = *qp.timed;
    while (timed.given < timed.asked) {
        const DecodedWqe wqe = decode_wqe(qp.sq, timed.given, timed.asked - timed.given, qp.info.qpn);
        const bool payload = wqe.fault == Syndrome::none && wqe.bytes != 0 && wqe.atomic_width == 0;
        if (payload && timed.heard < timed.fence) break;
        timed.given = smaller(timed.asked, timed.given + larger(1u, wqe.bbs));
        if (payload && (wqe.fm_ce_se & kCqUpdate) != 0) timed.fence = timed.given;
    }
    if (timed.given > qp.producer) ring_send(qp, doorbell_next(qp.info.qpn, timed.given), true);
}

// It will have seen at `seen_ps` that all before `through` is complete, and rings then for what has waited for that.
void Hca::proxy_goes_on(QueuePair& qp, u64 through, u64 seen_ps) {
    TimedQueue& timed = *qp.timed;
    if (timed.proxy_pending || timed.heard >= timed.fence || through < timed.fence) return;
    timed.proxy_pending = true;
    const u64 work = config_.timing.proxy_doorbell_ps;
    counters_.proxy_busy_ps += work;
    u64& free_ps = proxy_free_ps_[qp.info.qpn % config_.timing.proxy_threads];
    free_ps = larger(free_ps, seen_ps) + work;
    schedule(free_ps + config_.timing.doorbell_to_fetch_ps, EventKind::proxy, qp.info.qpn, through, qp.epoch, 0);
}

// Untimed: late is some calls of work() later.
void Hca::ring_late_doorbells() {
    std::vector<LateDoorbell> waiting;
    std::swap(waiting, late_doorbells_);
    for (LateDoorbell& bell : waiting) {
        QueuePair* qp = find_qp(bell.qpn);
        if (qp && --bell.turns != 0)
            late_doorbells_.push_back(bell);
        else if (qp)
            ring_send(*qp, bell.value);
    }
}

void Hca::mmio_write32(const void* address, u32 value) {
    ++counters_.doorbells_split;
    // Either half may come first; the QP number is in the upper one.
    const bool second = (reinterpret_cast<u64>(address) & 7) == 4;
    report(AsyncEventType::doorbell_split, second ? swap_bytes(value) >> 8 : 0);
}

// `register_alone`: the record may show more than the host's thread, whose bell this is, has posted.
void Hca::ring_send(QueuePair& qp, u64 value, bool register_alone) {
    const Doorbell bell = decode_doorbell(value);
    const u64 entries = qp.sq_entries();
    if (qp.state() == QpState::reset || qp.state() == QpState::init || qp.state() == QpState::rtr) {
        ++counters_.doorbells_wrong_state;
        ++qp.info.counters.doorbells_ignored;
        return;
    }
    u64 target = qp.producer;
    if (register_alone || qp.info.create.doorbell != DoorbellMode::dbrec) {
        target = widen_index(qp.producer, doorbell_next_index(bell));
        // A sender that keeps `index & (entries - 1)` in its ctrl segments (mori) rings with a slot, not an index.
        const bool slot = bell.ds != 0 && bell.index < entries && target > qp.completed + entries;
        if (slot && qp.info.create.doorbell == DoorbellMode::register_value) target = qp.producer;
    }
    if (!register_alone && qp.info.create.doorbell != DoorbellMode::no_dbr) {
        const u32 record = read_record(qp, &qp.info.create.dbrec[kDbrecSend], true);
        target = larger(target, widen_index(qp.producer, record & 0xffff));
    }
    if (target <= qp.producer) {
        ++counters_.doorbells_no_progress;
        ++qp.info.counters.doorbells_ignored;
        return;
    }
    if (target > qp.completed + entries) {
        // More was posted than the ring holds: what was overwritten cannot be known. Everything still in the ring
        // completes in error, the first with 0x02, so that whoever polls learns of it.
        qp.producer = qp.completed + entries;
        report(AsyncEventType::qp_fatal, qp.info.qpn, static_cast<u32>(Syndrome::local_qp_op));
        if (qp.state() != QpState::err) {
            fetch(qp, qp.completed, 1);
            fail(qp, decode_wqe(qp.sq, qp.completed, entries, qp.info.qpn), Syndrome::local_qp_op);
            return;
        }
    } else {
        qp.producer = target;
    }
    if (timed_ && environment_.tracing)
        environment_.mark(*this, Environment::Mark::fetched, qp.info.qpn, qp.tx_port, qp.producer, 0, environment_.now_ps(),
                          environment_.now_ps());
    if (qp.state() == QpState::err)
        flush_sends(qp);
    else if (qp.has_work())
        enqueue(qp);
}

void Hca::receive_posted(u32 qpn) {
    QueuePair* qp = find_qp(qpn);
    if (!qp) return;
    if (qp->state() == QpState::err) {
        flush_receives(*qp);
        return;
    }
    if (timed_ || !qp->peer.hca || qp->receives_available() == 0) return;  // timed: the RNR timer decides
    QueuePair* sender = qp->peer.hca->find_qp(qp->info.attr.dest_qp_num);
    if (sender && sender->stalled && sender->stalled_on_receiver) qp->peer.hca->resume(*sender);
}

}  // namespace rdmakit::emu
