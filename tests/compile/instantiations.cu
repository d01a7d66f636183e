// One use of every public function of the device headers, every template with each kind of argument that it takes.
// Inputs come from memory and results go there, so that no compiler can fold a call away. Compiled, never run.
#include <rdmakit/atom.cuh>
#include <rdmakit/atom_bulk.cuh>
#include <rdmakit/bulk.cuh>
#include <rdmakit/channel.cuh>
#include <rdmakit/config.cuh>
#include <rdmakit/ep.cuh>
#include <rdmakit/ep_ride.cuh>
#include <rdmakit/hca.cuh>
#include <rdmakit/hca_atomic.cuh>
#include <rdmakit/hca_complete.cuh>
#include <rdmakit/hca_cqe.cuh>
#include <rdmakit/hca_engine.cuh>
#include <rdmakit/hca_execute.cuh>
#include <rdmakit/hca_key.cuh>
#include <rdmakit/hca_move.cuh>
#include <rdmakit/hca_near.cuh>
#include <rdmakit/hca_respond.cuh>
#include <rdmakit/hca_sink.cuh>
#include <rdmakit/hca_state.cuh>
#include <rdmakit/hca_task.cuh>
#include <rdmakit/hca_wqe.cuh>
#include <rdmakit/ll.cuh>
#include <rdmakit/lock.cuh>
#include <rdmakit/lock_receive.cuh>
#include <rdmakit/lock_send.cuh>
#include <rdmakit/lock_stamp.cuh>
#include <rdmakit/lock_strategy.cuh>
#include <rdmakit/lock_wait.cuh>
#include <rdmakit/numbers.cuh>
#include <rdmakit/nvl.cuh>
#include <rdmakit/nvl_ll.cuh>
#include <rdmakit/nvl_mask.cuh>
#include <rdmakit/post.cuh>
#include <rdmakit/queue.cuh>
#include <rdmakit/report.cuh>
#include <rdmakit/signal.cuh>
#include <rdmakit/warp.cuh>
#include <rdmakit/wqe.cuh>

using namespace rdmakit;

// Memory that holds whatever it is asked for, in and out.
struct Memory {
    u8* bytes;
    template <class T> RDMAKIT_DEVICE T& any(int n = 0) const { return *reinterpret_cast<T*>(bytes + 4096 * n); }
    template <class T> RDMAKIT_DEVICE const Memory& keep(const T& value) const {
        any<T>(9) = value;
        return *this;
    }
};

// ---- config ----------------------------------------------------------------------------------------------------------
template <class T> RDMAKIT_DEVICE void use_integer(const Memory& m) {
    const T a = m.any<T>(0), b = m.any<T>(1);
    m.keep(smaller(a, b)).keep(larger(a, b)).keep(ceil_div(a, b)).keep(round_up(a, b));
}
RDMAKIT_KERNEL use_config(Memory m) {
    use_integer<u32>(m);
    use_integer<u64>(m);
    use_integer<i32>(m);
    m.keep(swap_bytes(m.any<u16>())).keep(swap_bytes(m.any<u32>())).keep(swap_bytes(m.any<u64>()));
    m.keep(Site::here().line).keep(count_ones(m.any<u32>()));
}

// ---- atom ------------------------------------------------------------------------------------------------------------
template <Scope S, class T> RDMAKIT_DEVICE void use_ordered(const Memory& m) {
    T* const p = &m.any<T>(1);
    const T a = m.any<T>(2), b = m.any<T>(3);
    store_relaxed<S>(p, a);
    store_release<S>(p, b);
    m.keep(load_relaxed<S>(p)).keep(load_acquire<S>(p));
    m.keep(fetch_add<S>(p, a)).keep(exchange<S>(p, a)).keep(compare_swap<S>(p, a, b));
    m.keep(exchange_acquire<S>(p, a)).keep(exchange_release<S>(p, b)).keep(fetch_or<S>(p, a)).keep(holds(a != b));
    fence<S>();
}
template <Scope S> RDMAKIT_DEVICE void use_scope(const Memory& m) {
    use_ordered<S, u32>(m);
    use_ordered<S, u64>(m);
    use_ordered<S, i32>(m);
    use_ordered<S, i64>(m);
    m.keep(fetch_wrap<S>(&m.any<u32>(1), m.any<u32>(2)));
    m.keep(fetch_max<S>(&m.any<u32>(1), m.any<u32>(2))).keep(fetch_max<S>(&m.any<u64>(1), m.any<u64>(2)));
}
RDMAKIT_KERNEL use_atom(Memory m) {
    use_scope<Scope::cta>(m);
    use_scope<Scope::gpu>(m);
    use_scope<Scope::sys>(m);
    store_segment(m.bytes, m.any<Vec16>(1));
    mmio_store(&m.any<u64>(1), m.any<u64>(2));
    store_stream(&m.any<Vec16>(3), load_stream(&m.any<Vec16>(2)));
    sleep_ns(m.any<u32>());
#if RDMAKIT_GPU
    touch(m.bytes);
#endif
    m.keep(time_ns()).keep(time_reached(m.any<u64>(2))).keep(clock_cycles());
#if RDMAKIT_CONVERTS
    m.keep(convert_bf16x2(m.any<float>(), m.any<float>(1))).keep(convert_e4m3x2(m.any<float>(), m.any<float>(1)));
#endif
}

// ---- warp ------------------------------------------------------------------------------------------------------------
template <class T> RDMAKIT_DEVICE void use_lanes(const Memory& m) {
    const T v = m.any<T>();
    m.keep(warp_shuffle(v, m.any<int>(1))).keep(warp_broadcast(v)).keep(warp_sum(v));
}
RDMAKIT_KERNEL use_warp(Memory m) {
    RDMAKIT_SHARED(u32, shared_word);
    RDMAKIT_DYNAMIC_SHARED(Vec16, shared_vectors);
    shared_word = m.any<u32>();
    shared_vectors[thread_in_block()] = m.any<Vec16>();
    block_sync();
    m.keep(shared_word).keep(shared_vectors[threads_in_block() - 1]);
    m.keep(lane_id()).keep(warp_id()).keep(warps_in_block()).keep(block_rank()).keep(block_size());
    m.keep(block_id()).keep(blocks_in_grid());
    use_lanes<u32>(m);
    use_lanes<u64>(m);
    use_lanes<i32>(m);
    use_lanes<float>(m);
    const bool v = m.any<u32>() != 0;
    m.keep(warp_ballot(v)).keep(lowest_lane(m.any<u32>() | 1)).keep(warp_any(v)).keep(warp_all(v));
    warp_sync();
    if (payload_moves(m.any<u64>())) warp_copy(m.bytes, m.bytes + 64, m.any<u64>());
    charge_copy(m.any<u64>());
    charge_pull(m.bytes, m.any<u64>());
}

// ---- report ----------------------------------------------------------------------------------------------------------
template <Scope S, class T> RDMAKIT_DEVICE void use_wait(const Memory& m) {
    const Watch watch = m.any<Watch>();
    const Subject who = m.any<Subject>(1);
    T value = 0;
    m.keep(wait_until<S>(&m.any<T>(2), [](T v) { return v > 7; }, watch, who, &value)).keep(value);
    m.keep(there_already(&m.any<T>(2), m.any<u32>(3), [](T v) { return v > 7; }));
}
RDMAKIT_KERNEL use_report(Memory m) {
    const Watch watch = m.any<Watch>();
    const Subject who = m.any<Subject>(1);
    char text[64];
    copy_text(text, who.what);
    m.keep(text[m.any<u32>() & 63]).keep(aborted(watch.report)).keep(layout_matches(m.any<u32>(), watch, who.what));
    m.keep(fail(watch, Status::bad_argument, who, m.any<u64>(), 1, 2, 3, 4, Site::here()));
    QueueRecord record{};
    keep_queue(record, m.any<QueueView>(4));
    keep_block(record.cqe, m.bytes, m.any<u64>(5), 6);
    m.keep(record).keep(peek(&m.any<u64>(6))).keep(cqe_is_there(m.any<QueueView>(4), m.any<u64>(5)));
    Spin spin(watch);
    const Seen<u32> narrow{&m.any<u32>(2), m.any<u32>(3)};
    const Seen<u64> wide{&m.any<u64>(2), m.any<u64>(3)};
    const SeenLine line{&m.any<u64>(4), &m.any<u64>(5), 8};
    while (spin.pause(who, Site::here(), narrow) && spin.pause(who, Site::here(), wide)) m.keep(spin.status());
    if (!spin.pause(who, Site::here(), line)) m.keep(spin.status());
    use_wait<Scope::cta, u32>(m);
    use_wait<Scope::gpu, u64>(m);
    use_wait<Scope::sys, u64>(m);
}

// ---- bulk ------------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_bulk(Memory m) {
    RDMAKIT_SHARED(Mbarrier, barrier);
    RDMAKIT_SHARED(Vec16, tile);
    const Watch watch = m.any<Watch>();
    const Subject who = m.any<Subject>(1);
    if (!check_bulk(watch)) return;
    mbarrier_init(&barrier, m.any<u32>());
    mbarrier_arrive(&barrier);
    mbarrier_arrive_expect(&barrier, 16);
    bulk_load(&tile, m.bytes, 16, &barrier);
    u64 word = 0;
    m.keep(mbarrier_test(&barrier, m.any<u32>(1), &word)).keep(word);
    fetch(&tile, m.bytes, 16, &barrier);
    m.keep(mbarrier_wait(&barrier, m.any<u32>(1), watch, who)).keep(tile);
    proxy_fence();
    proxy_fence_shared();
    bulk_store(m.bytes, &tile, 16);
    bulk_commit();
    bulk_wait_read<2>();
    bulk_wait_read();
    bulk_wait<1>();
    bulk_wait();
#if RDMAKIT_GPU
    m.keep(shared_address(&tile));
#endif
}

// What stands above here holds every line of assembly. Without it this is compiled for each architecture.
#ifndef ATOM_LAYER_ALONE
// ---- wqe -------------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_wqe(Memory m) {
    const u32 a = m.any<u32>(), b = m.any<u32>(1);
    const u64 wide = m.any<u64>(2);
    m.keep(wqebbs(a)).keep(ctrl_segment(Opcode::write, a, b, a, b, kCqUpdate, a)).keep(pair64(wide, a));
    m.keep(remote_segment(wide, a)).keep(data_segment(wide, a, b)).keep(atomic_segment(wide, a));
    m.keep(masked_fetch_add4_segment(a, b)).keep(masked_cmp_swap4_segment(a, b, b, a));
    m.keep(doorbell_next(a, wide)).keep(doorbell_last(m.any<Vec16>())).keep(cqe_ready(a, wide, b & 31));
}

// ---- queue -----------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_queue(QpHandle qp, Memory m) {
    const u64 index = m.any<u64>();
    const u32 a = m.any<u32>(1);
    m.keep(sq_size(qp)).keep(sq_slot(qp, index)).keep(check_handle(qp)).keep(doorbell_value(qp, index));
    m.keep(about(qp, "a use", index).expected);
    const CqeTail tail{a};
    m.keep(tail.op_own()).keep(tail.opcode()).keep(tail.counter()).keep(tail.is_error());
    m.keep(cqe_address(qp.cq, index)).keep(cqe_tail_address(qp.cq, index)).keep(completed_by(qp, index, tail.counter()));
    note_error(qp, index, index, tail);
    Seen<u32> more{};
    m.keep(poll_collapsed(qp, m.any<u64>(3), &more)).keep(more);
    m.keep(poll_cq(qp)).keep(completion_error(qp, about(qp, "a use", 1), Site::here()));
    m.keep(wait_completed(qp, index, "a use"));
    const u64 base = reserve(qp, 3);
    m.keep(publish(qp, base, 3)).keep(quiet(qp));
    ring(qp, base);
    tell<Scope::gpu>(qp, base, index);
    tell<Scope::sys>(qp, base, index);
    submit(qp);
}

// ---- post ------------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_post(QpHandle qp, Memory m) {
    const u64 at = m.any<u64>(), n = m.any<u64>(1);
    const u32 a = m.any<u32>(2);
    const u32 words[3] = {a, a, a};
    store_at(qp, at, a, control(qp, at, Opcode::nop, a, 1, kCqUpdate));
    write_rdma(qp, at, Opcode::write_imm, n, a, n, a, a, kCqUpdate, a);
    write_inline(qp, at, n, a, words, 12, kCqUpdate);
    write_send(qp, at, Opcode::send_imm, n, a, a, kCqUpdate, a);
    write_atomic(qp, at, Opcode::fetch_add, a, n, a, m.any<Vec16>(), 8, kCqUpdate);
    write_fetch_add(qp, at, n, a, n, kCqUpdate);
    write_cmp_swap(qp, at, n, a, n, n, kCqUpdate);
    write_masked_fetch_add4(qp, at, n, a, a, a, kCqUpdate);
    write_masked_fetch_add8(qp, at, n, a, n, n, kCqUpdate);
    write_masked_cmp_swap4(qp, at, n, a, a, a, a, a, kCqUpdate);
    write_masked_cmp_swap8(qp, at, n, a, n, n, n, n, kCqUpdate);
    write_nop(qp, at, kCqUpdate);
    write_dump(qp, at, n, a, a, kCqUpdate);
}

// ---- hca -------------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_hca(SendRing ring, KeyTable table, Memory m) {
    const u64 a = m.any<u64>(), b = m.any<u64>(1);
    const u32 narrow = m.any<u32>(2);
    m.keep(masked_add<u32>(narrow, narrow, 1)).keep(masked_add<u64>(a, b, 1));
    m.keep(masked_swap<u32>(narrow, narrow, 1, 2, 3)).keep(masked_swap<u64>(a, b, 1, 2, 3));
    m.keep(atomic_result(narrow != 0, narrow, a, m.any<AtomicOperands>()));
    m.keep(cqe_owner(a, narrow, false)).keep(cqe_slot(a, narrow, b != 0)).keep(cqe_op_own(CqeOpcode::requester, 4, narrow));
    m.keep(requester_cqe(narrow, 8, 1, 2, a)).keep(vendor_syndrome(m.any<Syndrome>())).keep(scatter_flag(a, narrow));
    m.keep(responder_cqe(CqeOpcode::responder_send, narrow, 1, 2, 3, 4, 5, b != 0, a));
    m.keep(error_cqe(CqeOpcode::requester_error, narrow, 8, 1, 2, m.any<Syndrome>()));
    m.keep(check_key(table, narrow, a, b, 3, 4).fault);
    m.keep(widen_index(a, narrow)).keep(doorbell_next_index(decode_doorbell(a)));
    m.keep(ring_ds(ring, a, narrow)).keep(word64(load_ds(ring, a, narrow), 2));
    DecodedWqe wqe = decode_wqe(ring, a, b, narrow);
    decode_atomic(ring, wqe);
    m.keep(local_segment(ring, wqe, narrow).bytes).keep(opcode_shape(narrow).max_ds).keep(wants_cqe(wqe, b != 0));
    m.keep(faulty(wqe, Syndrome::local_length));
}

// What an HCA of warps is made of.
RDMAKIT_KERNEL use_hca_move(HcaQp* qp, Memory m) {
    const DecodedWqe wqe = m.any<DecodedWqe>();
    const u64 bytes = m.any<u64>(1);
    const u32 a = m.any<u32>(2);
    u8* const to = m.bytes + bytes;
    m.keep(is_aligned<u64>(to)).keep(load_unaligned<u32>(to)).keep(load_unaligned<u64>(to + 1));
    store_byte(to, static_cast<u8>(a));
    store_few(to, bytes, 0, a & 15);
    move_few(to, m.bytes, a & 15);
    warp_move(to, m.bytes, bytes, a != 0);
#if RDMAKIT_GPU
    move_vectors(to, m.bytes, bytes);
#endif
    move_in_order(to, m.bytes, bytes);
    move_each<u8>(to, m.bytes, bytes);
    move_each<u64>(to, m.bytes, bytes);
    move_runs(LocalRuns(*qp, wqe, 0), ReceiveRuns(*qp, bytes), bytes, false);
    move_runs(OneRun{Run{to, bytes}}, LocalRuns(*qp, wqe, kKeyLocalWrite), bytes, true);
    OneRun run{Run{to, bytes}};
    m.keep(run.next().bytes);
    m.keep(try_turn(&qp->turn)).keep(try_turn_and_tell(&qp->turn)).keep(wait_turn(&qp->turn, m.any<Watch>(3), m.any<Subject>(4)));
    end_turn(&qp->turn);
    m.keep(lanes_that(16, [a](u32 i) { return (a >> i & 1) != 0; }));
}
RDMAKIT_KERNEL use_hca_complete(HcaQp* qp, Memory m) {
    const Watch watch = m.any<Watch>();
    const DecodedWqe wqe = m.any<DecodedWqe>(1);
    const u64(&words)[8] = m.any<u64[8]>(2);
    Serving s(*qp, watch);
    m.keep(state_of(*qp)).keep(make_room(*qp->send_cq)).keep(push_words(*qp->send_cq, words, watch, true));
    m.keep(push_cqe(*qp->recv_cq, m.any<Cqe>(3), watch)).keep(receives_available(*qp)).keep(take_respond(*qp, watch));
    write_cqe(*qp->send_cq, words, false);
    order_after_payload(true);
    flush_receives(*qp, watch);
    flush_sends(s);
    set_error(*qp);
    m.keep(mark_error(s));
    flush_both(s);
    enter_error(s);
    fail(s, wqe, Syndrome::flushed);
    s.write_back();
}
RDMAKIT_KERNEL use_hca_respond(HcaQp* qp, Memory m) {
    const Watch watch = m.any<Watch>();
    const DecodedWqe wqe = m.any<DecodedWqe>(1);
    const u32 a = m.any<u32>(2);
    u64 old = 0;
    Serving s(*qp, watch);
    m.keep(is_atomic(a)).keep(is_read(a)).keep(is_send(a)).keep(is_local(a)).keep(needed_access(a));
    m.keep(refuse_request(*qp, Syndrome::remote_op, a, watch)).keep(receive_ready(*qp, watch));
    m.keep(refuse_receive(*qp, Syndrome::local_length, Syndrome::remote_op, watch)).keep(consume_receive(*qp, wqe, a, watch));
    m.keep(check_receive(*qp, a, watch)).keep(with_receive(s, wqe, [&] { m.keep(a); }));
    m.keep(update_word(&m.any<u32>(3), a != 0, wqe, &old)).keep(update_word(&m.any<u64>(3), a != 0, wqe, &old)).keep(old);
    m.keep(respond_write(s, wqe)).keep(respond_read(s, wqe)).keep(respond_atomic(s, wqe)).keep(respond(s, wqe));
}
RDMAKIT_KERNEL use_hca_engine(HcaHandle hca, HcaSink* sink, Memory m) {
    const Watch watch = m.any<Watch>();
    const u32 a = m.any<u32>(1);
    Serving s(*hca.qps, watch);
    hear(s, m.any<u64>(2));
    touch_wqes(s);
    m.keep(check_locally(s, m.any<DecodedWqe>(3))).keep(execute_next(s, a != 0)).keep(serve_qp(hca, a, a != 0));
    m.keep(serve_turn(hca, a, a != 0));
    m.keep(hca_groups(hca)).keep(hca_look(hca, a, a, false)).keep(check_control(m.any<u64>(2), a, *sink).sum);
    hca_serve(hca, a, a + 1);
    hca_leave(hca.left);
    m.keep(run_sink(*sink, watch));
}

RDMAKIT_KERNEL use_hca_near(HcaHandle hca, Memory m) {
    const u32 a = m.any<u32>(1);
    const Vec16(&segments)[kDsPerBb] = m.any<Vec16[kDsPerBb]>(2);
    NoProbe probe;
    Near n;
    n.take_up(hca, a);
    u64 memory = 0;
    n.rights.local.begin(n.qp->keys, a);
    const NearKey key = n.rights.local.find(a);
    n.rights.local.learn(key);
    m.keep(reaches(key, a, a, a, &memory)).keep(memory).keep(n.entries());
    n.settle();
    probe.mark(Stage::heard);
    Fetched fetched = fetch_blocks(n, a);
    const Request request = read_request(segments, a, a, false);
    m.keep(request.known).keep(allow(n.rights, request, request.known, a != 0)).keep(hear_near(n, m.any<u64>(3), &fetched));
    understand(n, fetched);
    m.keep(next_task(fetched));
    complete_no_more(*n.qp, hca.watch, Pushed::died);
    add_word(m.bytes, a, a, m.bytes);
    Spin spin(hca.watch);
    m.keep(execute_near(hca, a, n, fetched, probe)).keep(serve_news(hca, a, n, a, false, false, probe));
    m.keep(pause_near(n, spin, m.any<Subject>(4), hca.left, a, Site::here()));
    n.give_back();
    serve_near(hca, a, probe);
}

// ---- signal ----------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_signal(QpHandle qp, RemoteMemory to, LocalMemory from, Memory m) {
    const u64 bytes = m.any<u64>();
    u64 end = 0;
    m.keep(writes_for(bytes)).keep(fill_put(qp, bytes, to + 64, from + 64, bytes, Signalled::yes));
    m.keep(put(qp, to, from, bytes, &end)).keep(put_signal(qp, to, from, bytes, to, 1, &end)).keep(end);
    m.keep(signal(qp, to, 1)).keep(put_word(qp, to, bytes));
    m.keep(wait_signal(&m.any<u64>(1), bytes, qp.watch, about(qp, "a use", bytes), &end)).keep(end);
}

// ---- lock ------------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_lock_strategy(Memory m) {
    const Strategy s = m.any<Strategy>();
    const u32 n = m.any<u32>(1);
    m.keep(mode_bit(m.any<Ordering>(2), m.any<Reader>(3))).keep(right_modes(s, n != 0)).keep(is_strong(s));
    m.keep(is_right(s, n != 0, Ordering::relaxed, Reader::gpu)).keep(eager_lines(n)).keep(slot_message(s, n)).keep(cost_of(s, n));
}
RDMAKIT_KERNEL use_lock_stamp(Memory m) {
    const u64 n = m.any<u64>();
    const u32 a = m.any<u32>(1);
    m.keep(mix64(n)).keep(fingerprint(a, a, n, a, a)).keep(line_fingerprint(a, a, n, a, a, a)).keep(stamp_word(n, a));
    m.keep(immediate_of(n, a)).keep(widen_ticket(a, n)).keep(widen_ticket(static_cast<u16>(a), n)).keep(comes_after(n, a));
    m.keep(crc32c_word(a, n)).keep(crc32c_line(m.any<u64[kLineWords]>(2))).keep(word_at(m.bytes, a, a)).keep(payload_crc(m.bytes, a));
    store_word(m.bytes, a, a, n);
}
struct UseArrival {
    u64 sum;
    template <Strategy S> RDMAKIT_DEVICE void take(const LockReceiver& lock, const Arrival& arrival) {
        sum += payload_word<S>(lock, arrival, 1) + sum_payload<S>(lock, arrival);
    }
};
template <Strategy S> RDMAKIT_DEVICE void use_strategy(const LockSender& sender, const LockReceiver& receiver, const Memory& m) {
    const u64 ticket = m.any<u64>();
    const u32 length = m.any<u32>(1);
    Arrival arrival{};
    UseArrival use{};
    m.keep(post_slot<S>(sender, ticket, length, Site::here())).keep(send<S>(sender, ticket, m.bytes, length));
    m.keep(receive<S>(receiver, ticket, &arrival)).keep(payload_word<S>(receiver, arrival, length));
    m.keep(sum_payload<S>(receiver, arrival)).keep(deliver<S>(receiver, ticket, use)).keep(use.sum);
    copy_payload<S>(receiver, arrival, m.bytes);
}
RDMAKIT_KERNEL use_lock(const LockSender* s, const LockReceiver* r, Memory m) {
    const u64 ticket = m.any<u64>();
    const u32 n = m.any<u32>(1);
    UseArrival use{};
    use_strategy<Strategy::amo>(*s, *r, m);
    use_strategy<Strategy::imm>(*s, *r, m);
    use_strategy<Strategy::eager>(*s, *r, m);
    use_strategy<Strategy::write>(*s, *r, m);
    use_strategy<Strategy::cqe>(*s, *r, m);
    use_strategy<Strategy::split>(*s, *r, m);
    m.keep(slot_offset(*s, ticket)).keep(slot_offset(*r, ticket)).keep(has_crc(*s)).keep(slot_at(*r, ticket)).keep(header_at(*r, ticket));
    m.keep(signal_fingerprint(n, n, ticket)).keep(check_handle(*s)).keep(check_handle(*r)).keep(wait_window(*s, ticket));
    m.keep(refuse(*r, Status::gap, "a use", ticket, ticket, ticket, Site::here())).keep(judge_header(*r, ticket));
    m.keep(make_header(*s, ticket, n, n)).keep(send(*s, ticket, m.bytes, n)).keep(finish(*s)).keep(finish(*r));
    fill_whole(*s, ticket, m.bytes, n);
    fill_lines(*s, ticket, m.bytes, n);
    write_slot(*s, ticket, Opcode::write_imm, ticket, n, Signalled::yes, n);
    write_tail(*s, s->qp, ticket);
    write_flag(*s, ticket, ticket);
    m.keep(begin_post(s->qp, n, Site::here())).keep(end_post(s->qp, ticket, n, Site::here())).keep(last_word(m.bytes, n, n));
    m.keep(post(s->qp, 1, Site::here(), [&](u64 index) { write_nop(s->qp, index, kCqUpdate); }));
    m.keep(wait_tail<u32>(*r, ticket, Site::here())).keep(wait_tail<u64>(*r, ticket, Site::here()));
    m.keep(of_earlier_epoch(*r, ticket, n)).keep(wait_flag(*r, ticket, Site::here())).keep(wait_immediate(*r, ticket, Site::here()));
    m.keep(wait_line(*r, ticket, n, n, Site::here())).keep(give_back(*r, ticket, Site::here())).keep(sign_off(*r, ticket));
    m.keep(deliver(*r, ticket, use)).keep(use.sum);
}

// ---- channel ---------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_channel(ChannelHandle channel, Memory m) {
    const u64 n = m.any<u64>();
    m.keep(slot_of(channel, n)).keep(staging_payload(channel, n)).keep(staging_meta(channel, n));
    m.keep(ring_payload(channel, n)).keep(ring_meta(channel, n)).keep(wait_credit(channel, n)).keep(wait_emptied(channel, n));
    m.keep(send_slots(channel, n, 1)).keep(wait_slot(channel, n)).keep(return_credit(channel, n));
}

// ---- ep --------------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_ep(EpRank ep, Memory m) {
    const u32 a = m.any<u32>();
    const u64 n = m.any<u64>(1);
    m.keep(notify_message(ep, m.bytes).experts).keep(count_row_bytes(ep)).keep(token_meta_bytes(ep));
    m.keep(token_meta(ep, m.bytes).weights).keep(heap_of(ep, a, n)).keep(my_heap(ep, n));
    m.keep(heap_array<i32>(ep, a, n)).keep(heap_array<u64>(ep, a, n)).keep(heap_array<float>(ep, a, n));
    m.keep(first_local_rank(ep)).keep(rail_rank(ep, a)).keep(rail(ep, a, a).slots);
    m.keep(channel_tokens(a, a, a).end).keep(goes(m.any<i32>())).keep(tokens_before(m.any<i32>()));
    m.keep(share_hosts(a).parts);
    const Chunks chunks{n, n + 1, a};
    m.keep(chunks.begin_chunk()).keep(chunks.end_chunk()).keep(chunks.begin_of(n)).keep(chunks.end_of(n));
    m.keep(in_turn(&m.any<u64>(2), n, ep.watch, m.any<Subject>(3), [] { return Status::ok; }));
    m.keep(check_rails(ep, a)).keep(by_lane_zero([] { return Status::ok; })).keep(wait_starts(ep, n));
    m.keep(number_tokens(a, a, [](u32 t) { return t != 0; }, [](u32, bool, u32) {}));
}
RDMAKIT_KERNEL use_ep_ride(HcaHandle hca, Memory m) {
    with_riders(hca, m.any<u32>(), [&] { m.any<u32>(1) = 1; });
}

// ---- ll --------------------------------------------------------------------------------------------------------------
RDMAKIT_KERNEL use_ll(LlRank ll, Memory m) {
    const u32 a = m.any<u32>();
    const u64 n = m.any<u64>(1);
    const bool fp8 = a != 0;
    m.keep(ll_header_bytes(ll)).keep(ll_payload_bytes(ll, fp8)).keep(ll_scale_count(ll, fp8)).keep(ll_slot_bytes(ll));
    m.keep(ll_message_bytes(ll, fp8)).keep(ll_message(ll, m.bytes, fp8).scales).keep(same_host(ll, a));
    m.keep(ll_slot(ll, n, a, a, a)).keep(ll_count(ll, n, a, a)).keep(ll_partial(ll, n, a, a));
    m.keep(ll_choice(m.any<const i32*>(6), n, a)).keep(ll_clocked(m.any<u64*>(5), a, [] { return Status::ok; }));
    m.keep(check_queues(ll)).keep(ll_way(ll, a, a)).keep(ll_heap(ll, a, n)).keep(ll_send(ll, a, a, n, n, 64)).keep(ll_signal(ll, a, a, n, 1));
}
RDMAKIT_KERNEL use_numbers(Memory m) {
    const float f = m.any<float>(), g = m.any<float>(1);
    m.keep(float_bits(f)).keep(bits_float(m.any<u32>())).keep(bf16_to_float(m.any<u32>())).keep(float_to_bf16(f));
    m.keep(pack_bf16(f, g)).keep(power_of_two_above(f)).keep(float_to_e4m3(f)).keep(pack_e4m3(f, g)).keep(product(f, g));
    add_bf16(m.any<Sum8>(4), m.any<Vec16>());
    add_scaled_bf16(m.any<Sum8>(4), m.any<Vec16>(), f);
    m.keep(to_bf16(m.any<Sum8>(4)));
}
RDMAKIT_KERNEL use_nvl(RDMAKIT_GRID_CONSTANT NvlRank nvl, Memory m) {
    RDMAKIT_SHARED(u32, word);
    RDMAKIT_SHARED(NvlPlaces, places);
    RDMAKIT_SHARED(NvlOffered, offered);
    const u32 a = m.any<u32>();
    const u64 n = m.any<u64>(1);
    m.keep(nvl_at<u32>(nvl, a, n)).keep(nvl_progress(nvl, NvlKind::barrier).epoch).keep(nvl_epoch(nvl, NvlKind::notify));
    m.keep(nvl_reached(nvl, &m.any<u64>(4), a, n, "a word")).keep(nvl_wait(nvl, n, a, n, "a word")).keep(nvl_first_row(nvl, &m.any<i32>(2), a, a));
    nvl_tell(nvl, n, a, n);
    nvl_offer(nvl, n, m.any<NvlOffer>(3), n);
    m.keep(nvl_offered(nvl, n, a, a, n, "an offer", &m.any<u8*>(5))).keep(nvl_all_ok(&word, m.any<Status>()));
    m.keep(nvl_all_offered(nvl, n, n, "offers", offered)).keep(nvl_tagged(n, a)).keep(nvl_is_of(n, n));
    m.keep(nvl_tagged_came(nvl, &m.any<u64>(4), a, n, "a word", &m.any<u64>(6)));
    const NvlItinerary way{places, &m.any<i32>(2), nvl.ranks, a, a, a};
    way.start();
    way.arrive(a);
    m.keep(way.count()).keep(way.token(a)).keep(*way.to(a));
    m.keep(nvl_last_block(nvl, NvlKind::dispatch, &word)).keep(nvl_comes_last(&word)).keep(nvl_meets_last(&m.any<u32>(2), &word));
    m.keep(nvl_last_quietly(nvl, NvlKind::combine));
    nvl_end(nvl, NvlKind::dispatch, n);
}
RDMAKIT_KERNEL use_nvl_ll(RDMAKIT_GRID_CONSTANT NvlLl p, Memory m) {
    RDMAKIT_SHARED(NvlLists, lists);
    RDMAKIT_SHARED(NvlRow, words);
    const u32 a = m.any<u32>();
    const u64 n = m.any<u64>(1);
    m.keep(nvl_local_experts(p)).keep(nvl_slot_bytes(p)).keep(nvl_slot(p, n, a, a)).keep(nvl_pairs(p)).keep(nvl_of_pair(n, a));
    m.keep(nvl_lists(p, n, a)).keep(nvl_pair(p, n, a)).keep(*nvl_choices(p, n, a, a));
    nvl_free(p, n, n);
    m.keep(nvl_room(p, n, n));
    nvl_send_list<i32>(p, a, n, n, n, a, [](u32 i) { return static_cast<i32>(i); });
    nvl_tell_list(p, a, n, n, a);
    m.keep(nvl_list_came(p, n, NvlVerdict::chosen, n, a, "a list", &lists.tokens[a & 7]));
    nvl_look_around(p, words);
    m.keep(nvl_clocked(&m.any<u64>(4), a, [] { return Status::ok; })).keep(nvl_masked(p.nvl, a)).keep(nvl_present(p.nvl));
    m.keep(nvl_answers_or_is_masked(p.nvl, n, a, n, "a word", Site::here(), Site::here()));
    m.keep(nvl_answers(p.nvl, n, a, n, "a word")).keep(nvl_all_sent(p.nvl, a, &lists.last)).keep(clock_cycles());
    m.keep(nvl_verdict(p.nvl, NvlVerdict::complete, &m.any<u64>(4), a, n, "a word", &lists.failed));
    nvl_read_choices(p, &m.any<i64>(2), words);
    nvl_add_up(lists, a);
    m.keep(nvl_share(lists, a, a, a).end).keep(words.ranks);
    nvl_ll_end(p.nvl, a, NvlKind::ll_combine_send, n, NvlKind::ll_combine_receive, n);
}
#endif
