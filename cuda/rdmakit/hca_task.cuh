// rdmakit/hca_task.cuh — the requests that go the short way (hca_near.cuh): what a WQE asks for, and whether it may.
// Layer: hca (leans on hca_wqe, hca_key, warp). Each lane looks at a WQE of its own; keys that were met are kept in registers.
#pragma once
#include "hca_key.cuh"
#include "hca_wqe.cuh"
#include "warp.cuh"

namespace rdmakit {

// ---- keys -----------------------------------------------------------------------------------------------------------------
// A live key of the right domain, as the host registered it: it changes keys only while no kernel runs.
struct NearKey {
    u64 addr, len, base;
    u32 key, access;  // key 0 is none
};
// The two that were asked for last. Each lane asks for a key of its own.
struct NearKeys {
    KeyTable table;
    u32 pd;
    NearKey one, other;

    RDMAKIT_DEVICE void begin(const KeyTable& keys, u32 domain) {
        table = keys;
        pd = domain;
        one = other = NearKey{};
    }
    RDMAKIT_DEVICE NearKey find(u32 key) const {
        const bool first = key == one.key;
        if (!first && key != other.key) return load(key);
        return NearKey{first ? one.addr : other.addr, first ? one.len : other.len, first ? one.base : other.base, key,
                       first ? one.access : other.access};
    }
    // All lanes, each with what it has found, if it has looked for anything. One of the new ones is kept.
    RDMAKIT_DEVICE void learn(const NearKey& found) {
        const u32 fresh = warp_ballot(found.key != 0 && found.key != one.key && found.key != other.key);
        if (fresh == 0) return;
        const int from = lowest_lane(fresh);
        other = one;
        one = NearKey{warp_shuffle(found.addr, from), warp_shuffle(found.len, from), warp_shuffle(found.base, from),
                      warp_shuffle(found.key, from), warp_shuffle(found.access, from)};
    }

  private:
    RDMAKIT_DEVICE NearKey load(u32 key) const {
        if (key >> 8 >= table.count) return NearKey{};
        const KeyEntry entry = table.entries[key >> 8];
        if (entry.state != KeyState::live || entry.key != key || entry.pd != pd || key == 0) return NearKey{};
        return NearKey{entry.addr, entry.len, entry.base, key, entry.access};
    }
};
// Where the bytes lie, in *memory. False: not there, or not allowed.
RDMAKIT_DEVICE bool reaches(const NearKey& key, u64 addr, u64 bytes, u32 access, u64* memory) {
    const u64 at = addr - key.addr;
    *memory = key.base + at;
    return key.key != 0 && (access & ~key.access) == 0 && bytes <= key.len && at <= key.len - bytes;
}

// ---- requests -----------------------------------------------------------------------------------------------------------
// A request of those that may go the short way.
struct Request {
    bool known, adds, inlined, signalled;
    u32 bytes;
    u64 raddr, laddr, add;
    u32 rkey, lkey, opcode;
    Vec16 data;  // the local segment, as it lies in memory
};
// As decode_wqe (hca_wqe.cuh) has it, but strict: what is unusual is not known here.
RDMAKIT_DEVICE Request read_request(const Vec16 (&v)[kDsPerBb], u32 index, u32 qpn, bool sig_all) {
    constexpr u32 kWrite = static_cast<u32>(Opcode::write), kAdd = static_cast<u32>(Opcode::fetch_add);
    constexpr u32 kMasked = static_cast<u32>(Opcode::masked_fetch_add);
    constexpr u32 kMasked4 = (kOpmodMasked4 << 24) | kMasked, kMasked8 = (kOpmodMasked8 << 24) | kMasked;
    const u32 kind = swap_bytes(v[0].w[0]) ^ ((index & 0xffff) << 8), low_boundary = v[2].w[2] | v[2].w[3];
    const bool narrow = kind == kMasked4 && v[2].w[1] == 0;
    const bool adds = kind == kAdd || (kind == kMasked8 && low_boundary == 0) || narrow;
    Request r{};
    r.adds = adds;
    r.opcode = kind & 0xff;
    r.data = adds ? v[3] : v[2];
    const u32 count = swap_bytes(r.data.w[0]), most = adds ? (narrow ? 4u : 8u) : kMaxWrite;
    r.inlined = (count & kInlineFlag) != 0;
    r.bytes = count & ~kInlineFlag;
    r.raddr = word64(v[1], 0);
    r.rkey = swap_bytes(v[1].w[2]);
    r.laddr = word64(r.data, 2);
    r.lkey = swap_bytes(r.data.w[1]);
    r.add = narrow ? swap_bytes(v[2].w[0]) : word64(v[2], 0);
    r.signalled = sig_all || ((v[0].w[2] >> 24) & (3u << 2)) == kCqUpdate;
    const bool fits = r.inlined ? !adds && r.bytes <= 12 : r.bytes <= most;
    const bool aligned = !adds || (r.bytes == most && (r.raddr & (most - 1)) == 0);
    r.known = (kind == kWrite || adds) && v[0].w[1] == swap_bytes((qpn << 8) | (adds ? 4u : 3u)) && r.bytes != 0 && fits && aligned;
    return r;
}

// What a WQE asks for, once it is known that it may: where bytes lie, and what to do with them.
struct Task {
    u64 from, to;
    u64 low;  // what is added, or the first bytes to write, if they are here
    u32 high, bytes, what;
};
constexpr u32 kTaskAllowed = 1u << 8, kTaskAdds = 1u << 9, kTaskSignalled = 1u << 10, kTaskHere = 1u << 11;  // below: the opcode

// What a queue pair may do, and where.
struct Rights {
    NearKeys local, remote;
    u32 access;  // what the peer lets it do; 0 where nothing may go the short way
};
// All lanes, each for a WQE of its own, if it has one. `first`: nothing before it is still to be executed.
RDMAKIT_DEVICE Task allow(Rights& rights, const Request& r, bool known, bool first) {
    const u32 needed = r.adds ? kKeyRemoteAtomic : kKeyRemoteWrite;
    known = known && (rights.access & needed) != 0;
    Task task{0, 0, r.add, r.data.w[3], r.bytes, r.opcode | (r.adds ? kTaskAdds : 0) | (r.signalled ? kTaskSignalled : 0)};
    NearKey local{}, remote{};
    bool allowed = known;
    if (known && !r.inlined) {
        local = rights.local.find(r.lkey);
        allowed = reaches(local, r.laddr, r.bytes, r.adds ? kKeyLocalWrite : 0, &task.from);
    }
    if (r.inlined) {
        task.low = r.data.w[1] | (static_cast<u64>(r.data.w[2]) << 32);
        task.what |= kTaskHere;
    } else if (allowed && first && r.bytes == 8 && !r.adds && (task.from & 7) == 0) {
        task.low = *reinterpret_cast<const u64*>(task.from);  // on its way while the other key is looked at
        task.what |= kTaskHere;
    }
    if (known) {
        remote = rights.remote.find(r.rkey);
        allowed = allowed && reaches(remote, r.raddr, r.bytes, needed, &task.to);
    }
    if (allowed && (!r.adds || (task.to & (r.bytes - 1)) == 0)) task.what |= kTaskAllowed;
    rights.local.learn(local);
    rights.remote.learn(remote);
    return task;
}

}  // namespace rdmakit
