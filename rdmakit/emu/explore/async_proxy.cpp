// async_proxy.cpp — bulk copies as the memory model sees them (rdmakit/atom_bulk.cuh says what PTX promises).
//
// Each copy is an agent. It knows what the thread that issued it knew of each other agent at that agent's last proxy fence,
// as far as the fence is in the thread's past, and all that copies of the same block have made known to it; nothing more. So
// what was written by the generic proxy and not fenced may be missing from what it reads, and is a race.
//
// A proxy fence has to be known to whoever meets the thread that made it. It counts as a step of an agent of its own,
// which stands in the clocks that travel with releases, barriers and kernels' ends like every other.
#include "weak_memory.hpp"

#include <cstring>

namespace rdmakit::emu {

u32 WeakMemory::add_part(u32 agent, u64 which) {
    const u32 id = add_agent(agents_[agent].block, agents_[agent].gpu, 0);
    // Whoever comes first: the hash knows it by the agent that it belongs to, not by its number.
    hash_ -= agents_[id].hash;
    agents_[id].hash = 0;
    mix(id, agents_[agent].hash, which);
    return id;
}

void WeakMemory::proxy_fence(u32 agent, Where where) {
    step(Step::Kind::fence, agent, Order::acq_rel, 0, 0, 0, where).note = "proxy";
    if (agents_[agent].fences == 0) agents_[agent].fences = add_part(agent, 4);
    const u32 fences = agents_[agent].fences;
    agents_[fences].fenced_at.push_back(frozen_.freeze(agents_[agent].clock));
    agents_[agent].clock.raise(fences, static_cast<u32>(agents_[fences].fenced_at.size()));
    mix(agent, 5, 0);
    advance(agent);
}

// What the asynchronous proxy sees of what an agent knows.
void WeakMemory::join_proxied(Clock& clock, u32 agent) const {
    const Clock& all = agents_[agent].clock;
    for (u32 i = 0; i < agents_.size(); ++i) {
        const u32 known = all.of(i);
        if (known == 0) continue;
        const Agent& other = agents_[i];
        frozen_.join_into(clock, other.began);
        if (!other.fenced_at.empty()) frozen_.join_into(clock, other.fenced_at[smaller<std::size_t>(known, other.fenced_at.size()) - 1]);
        if (other.copies && distance(agent, i) == Distance::block) clock.raise(i, known);
    }
}

u32 WeakMemory::bulk_issue(u32 agent, ClockRef* issued, Where where, const char* what) {
    const u32 copy = add_part(agent, 6);
    agents_[copy].copies = true;
    Clock clock;
    join_proxied(clock, agent);
    agents_[copy].clock.join(clock);
    step(Step::Kind::note, agent, Order::plain, 0, 0, 0, where).note = what;
    mix(agent, 7, 0);
    *issued = snapshot(agent);
    return copy;
}

ClockRef WeakMemory::bulk_read(u32 copy, void* out, const void* p, u64 bytes, Where where) {
    const u32 stale = stale_loads_;
    Step& s = step(Step::Kind::load, copy, Order::plain, 0, reinterpret_cast<std::uintptr_t>(p), bytes, where);
    read_range(copy, reinterpret_cast<std::uintptr_t>(p), static_cast<u8*>(out), bytes, Order::plain, kWeak, where);
    s.note = "reads";
    s.from = last_from_;
    s.newer = larger(last_newer_, stale_loads_ - stale);
    std::memcpy(&s.value, out, sizeof s.value);
    return snapshot(copy);
}
ClockRef WeakMemory::bulk_write(u32 copy, void* p, const void* from, u64 bytes, Where where) {
    Step& s = step(Step::Kind::store, copy, Order::plain, 0, reinterpret_cast<std::uintptr_t>(p), bytes, where);
    s.note = "writes";
    std::memcpy(&s.value, from, sizeof s.value);
    const ClockRef nothing[3] = {0, 0, 0};
    write_range(copy, reinterpret_cast<std::uintptr_t>(p), static_cast<const u8*>(from), bytes, kWeak, nothing, false, where);
    return snapshot(copy);
}
// By the generic proxy, and a release (PTX ISA, "cp.async.bulk": complete-tx has .release semantics).
void WeakMemory::bulk_arrive(u32 copy, ClockRef issued, u64* barrier, const std::function<u64(u64)>& next, Where where) {
    learn(copy, issued);
    u64 old = 0;
    update_begin(copy, barrier, &old, sizeof old, Order::release, 0, where);
    const u64 fresh = next(old);
    update_end(copy, barrier, &fresh, sizeof fresh);
}

}  // namespace rdmakit::emu
