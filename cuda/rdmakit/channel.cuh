// rdmakit/channel.cuh — a one-way ring from one rank to another over one QP: slots of payload and of metadata, a tail
// that the sender's strong signals advance, a head (credits) that the receiver sends back.
// Layer: channel (leans on signal). Slot numbers are 64 bits wide and never start again, so a ring needs no cleaning
// between operations and a tail or head that is read late is only too small.
#pragma once
#include "signal.cuh"

namespace rdmakit {

// Both directions of a pair of ranks for one channel: each side sends on its own QP and gets credits from the other's.
struct ChannelHandle {
    QpHandle qp;
    QpHandle credit_qp;        // by which credits go back: the same, or one that no data waits in
    // sending
    u8* staging_payload;       // slots × payload_stride, registered
    u8* staging_meta;          // slots × meta_stride
    const u64* head;           // slots that the receiver has freed, written by it
    RemoteMemory peer_payload; // its ring for us
    RemoteMemory peer_meta;
    RemoteMemory peer_tail;
    // receiving
    const u8* ring_payload;
    const u8* ring_meta;
    const u64* tail;           // slots that the sender has filled
    RemoteMemory peer_head;
    u64* sent;                 // slots sent and received in earlier operations: where this one starts
    u64* received;
    u32 staging_lkey;
    u32 slots;                 // a power of two
    u32 payload_stride;        // bytes: a row of the operation, so that a chunk is one put
    u32 meta_stride;
    u32 chunk;                 // slots a put, a power of two, at most slots / 2
    u32 fenced;                // 1: wait for the data's completion, then signal by itself (the way without a sequence lock)
};

RDMAKIT_DEVICE u32 slot_of(const ChannelHandle& c, u64 number) { return static_cast<u32>(number & (c.slots - 1)); }
RDMAKIT_DEVICE u8* staging_payload(const ChannelHandle& c, u64 number) {
    return c.staging_payload + static_cast<u64>(slot_of(c, number)) * c.payload_stride;
}
RDMAKIT_DEVICE u8* staging_meta(const ChannelHandle& c, u64 number) {
    return c.staging_meta + static_cast<u64>(slot_of(c, number)) * c.meta_stride;
}
RDMAKIT_DEVICE const u8* ring_payload(const ChannelHandle& c, u64 number) {
    return c.ring_payload + static_cast<u64>(slot_of(c, number)) * c.payload_stride;
}
RDMAKIT_DEVICE const u8* ring_meta(const ChannelHandle& c, u64 number) {
    return c.ring_meta + static_cast<u64>(slot_of(c, number)) * c.meta_stride;
}

// Waits until slots up to `end` (exclusive) may be filled: the receiver has freed them, hence has received and used
// what lay there, hence the NIC has long read our staging copy.
RDMAKIT_DEVICE Status wait_credit(const ChannelHandle& c, u64 end, Site site = Site::here()) {
    if (end <= c.slots) return Status::ok;
    u64 head = 0;
    return wait_signal(c.head, end - c.slots, c.qp.watch,
                       Subject{"credit from the receiver", end - c.slots, c.qp.qpn, c.qp.peer, c.qp.channel}, &head, site);
}

// Where an operation's first slot is `begin`: waits until the receiver has freed all before it. Those may be of another
// size, so that the new ones lie across them.
RDMAKIT_DEVICE Status wait_emptied(const ChannelHandle& c, u64 begin, Site site = Site::here()) {
    if (begin == 0) return Status::ok;
    u64 head = 0;
    return wait_signal(c.head, begin, c.qp.watch,
                       Subject{"credit for all that was sent before", begin, c.qp.qpn, c.qp.peer, c.qp.channel}, &head, site);
}

// Puts slots [first, first + count), inside one chunk, and signals them.
RDMAKIT_DEVICE Status send_slots(const ChannelHandle& c, u64 first, u32 count, Site site = Site::here()) {
    const u32 slot = slot_of(c, first);
    const u64 at = static_cast<u64>(slot) * c.payload_stride, meta_at = static_cast<u64>(slot) * c.meta_stride;
    const u32 n = c.fenced != 0 ? 2 : 3;
    const u64 base = reserve(c.qp, n, site);
    if (base == kNoSlot) return Status::aborted;
    write_rdma(c.qp, base, Opcode::write, c.peer_payload.address + at, c.peer_payload.key,
               reinterpret_cast<u64>(c.staging_payload) + at, c.staging_lkey, count * c.payload_stride, 0);
    write_rdma(c.qp, base + 1, Opcode::write, c.peer_meta.address + meta_at, c.peer_meta.key,
               reinterpret_cast<u64>(c.staging_meta) + meta_at, c.staging_lkey, count * c.meta_stride,
               c.fenced != 0 ? kCqUpdate : 0);
    if (c.fenced != 0) {
        const Status sent = publish(c.qp, base, n, site);
        if (sent != Status::ok) return sent;
        const Status done = wait_completed(c.qp, base + n, "the data of a chunk, before its signal", site);
        return done != Status::ok ? done : signal(c.qp, c.peer_tail, count, site);
    }
    write_fetch_add(c.qp, base + 2, c.peer_tail.address, c.peer_tail.key, count, kCqUpdate);
    return publish(c.qp, base, n, site);
}

// Waits until slot `number` has arrived.
RDMAKIT_DEVICE Status wait_slot(const ChannelHandle& c, u64 number, Site site = Site::here()) {
    u64 tail = 0;
    return wait_signal(c.tail, number + 1, c.qp.watch,
                       Subject{"a slot from the sender", number + 1, c.qp.qpn, c.qp.peer, c.qp.channel}, &tail, site);
}

// Gives the sender `slots` more: the next ones in order, of which the caller has seen, by acquire or barrier, that every
// reader is done. An addition, not a WRITE of the new head: two WRITEs to one word may land in either order where the
// memory region allows relaxed ordering (man ibv_reg_mr), and the older head would stay.
RDMAKIT_DEVICE Status return_credit(const ChannelHandle& c, u64 slots, Site site = Site::here()) {
    return signal(c.credit_qp, c.peer_head, slots, site);
}

}  // namespace rdmakit
