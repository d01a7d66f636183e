// weak_memory.cpp — histories: finding words, choosing what a load returns, appending writes. See weak_memory.hpp.
#include "weak_memory.hpp"

#include <cstring>

namespace rdmakit::emu {
namespace {
constexpr u64 kMultiplier = 0x9e3779b97f4a7c15ull;
u64 scramble(u64 h) {
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93ull;
    return h ^ (h >> 32);
}
u8* byte_at(u64 address) { return reinterpret_cast<u8*>(static_cast<std::uintptr_t>(address)); }
u64 number_of(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

// The bytes of [address, address + bytes) that lie in the word at `base`.
u8 mask_in(u64 base, u64 address, u64 bytes) {
    const u64 first = address > base ? address - base : 0;
    const u64 last = address + bytes < base + 4 ? address + bytes - base : 4;
    return static_cast<u8>(((1u << last) - 1) & ~((1u << first) - 1));
}
}  // namespace

// ---- words ------------------------------------------------------------------------------------------------------
void WeakMemory::reset(bool undo) {
    if (undo) {
        for (const Line& l : lines_) {
            for (u32 i = 0; i < kWords; ++i) {
                if (l.words[i].newest != 0) std::memcpy(byte_at(l.key * kLineBytes + 4 * i), &l.words[i].initial, 4);
            }
        }
    }
    ++generation_;
    lines_.clear();
    messages_.resize(1);
    readers_.resize(1);
    agents_.clear();
    frozen_.clear();
    hash_ = positions_ = steps_made_ = 0;
    stale_loads_ = 0;
    raced_ = false;
    steps_.clear();
}

u32 WeakMemory::add_agent(u32 block, u32 gpu, u64 identity, ClockRef knows) {
    const u32 id = agents();
    agents_.push_back(Agent{block, gpu, {}, {}, {0, 0, 0}, 0, 0, knows, 0, false, {}});
    frozen_.join_into(agents_.back().clock, knows);
    agents_.back().clock.raise(id, 1);
    mix(id, identity, 0);
    return id;
}

void WeakMemory::forget(const void* p, u64 bytes) {
    for (u64 base = number_of(p) & ~3ull; base < number_of(p) + bytes; base += 4) {
        if (find(base) != nullptr) word(base) = Word{};
    }
}

void WeakMemory::grow() {
    std::vector<Slot> old(table_.size() * 2);
    std::swap(old, table_);
    for (const Slot& s : old) {
        if (s.generation != generation_) continue;
        u64 at = scramble(s.key * kMultiplier) & (table_.size() - 1);
        while (table_[at].generation == generation_) at = (at + 1) & (table_.size() - 1);
        table_[at] = s;
    }
}

WeakMemory::Line& WeakMemory::line(u64 address) {
    const u64 key = address / kLineBytes;
    for (u64 at = scramble(key * kMultiplier);; ++at) {
        Slot& s = table_[at & (table_.size() - 1)];
        if (s.generation != generation_) {
            s = Slot{key, static_cast<u32>(lines_.size()), generation_};
            lines_.push_back(Line{key, {}});
            if (lines_.size() * 2 > table_.size()) grow();
            return lines_.back();
        }
        if (s.key == key) return lines_[s.line];
    }
}

WeakMemory::Word& WeakMemory::word(u64 address) {
    return line(address).words[address % kLineBytes / 4];
}

const WeakMemory::Word* WeakMemory::find(u64 address) const {
    const u64 key = address / kLineBytes;
    for (u64 at = scramble(key * kMultiplier);; ++at) {
        const Slot& s = table_[at & (table_.size() - 1)];
        if (s.generation != generation_) return nullptr;
        if (s.key == key) return &lines_[s.line].words[address % kLineBytes / 4];
    }
}

// ---- who sees what ------------------------------------------------------------------------------------------------
Distance WeakMemory::distance(u32 a, u32 b) const {
    const Agent &x = agents_[a], &y = agents_[b];
    if (a == b || (x.block == y.block && x.block != kNowhere)) return Distance::block;
    return x.gpu == y.gpu && x.gpu != kNowhere ? Distance::gpu : Distance::system;
}
bool WeakMemory::strong_between(u32 a, u32 scope_a, u32 b, u32 scope_b) const {
    const u32 d = static_cast<u32>(distance(a, b));
    return scope_a != kWeak && scope_b != kWeak && scope_a >= d && scope_b >= d;
}
// Coherence: not older than what it has read, nor than what those had read of whose reading it knows.
u32 WeakMemory::floor_of(const Word& w, u32 agent) const {
    const Clock& clock = agents_[agent].clock;
    u32 floor = 0;
    for (u32 i = w.readers; i != 0; i = readers_[i].next) {
        const Reader& r = readers_[i];
        const u32 known = clock.of(r.agent);
        if (r.agent == agent || known >= r.floor_tick) floor = larger(floor, r.floor);
        else if (known >= r.earlier_tick) floor = larger(floor, r.earlier_floor);
    }
    return floor;
}
void WeakMemory::raise_floor(u32 agent, Reader& r, u32 seq) {
    if (seq <= r.floor) return;
    if (tick(agent) != r.floor_tick) {
        r.earlier_floor = r.floor;
        r.earlier_tick = r.floor_tick;
    }
    r.floor = seq;
    r.floor_tick = tick(agent);
}
WeakMemory::Reader& WeakMemory::reader(Word& w, u32 agent) {
    for (u32 r = w.readers; r != 0; r = readers_[r].next) {
        if (readers_[r].agent == agent) return readers_[r];
    }
    readers_.push_back(Reader{agent, 0, 0, 0, 0, 0, 0, kWeak, 0, 0, w.readers});
    w.readers = static_cast<u32>(readers_.size() - 1);
    return readers_.back();
}
u32 WeakMemory::oldest_visible(const Word& w, u32 agent) const {
    const u32 floor = floor_of(w, agent);
    u32 seq = 0;
    for (u32 m = w.newest; m != 0; m = messages_[m].older) {
        seq = messages_[m].seq;
        if (seq <= floor || knows(agents_[agent], messages_[m])) return seq;
    }
    return 0;
}
void WeakMemory::visible(const Word& w, u32 agent, std::vector<u32>& out) const {
    out.clear();
    const u32 floor = floor_of(w, agent);
    for (u32 m = w.newest; m != 0; m = messages_[m].older) {
        out.push_back(m);
        if (messages_[m].seq <= floor || knows(agents_[agent], messages_[m])) return;
    }
    out.push_back(0);
}

// ---- steps ----------------------------------------------------------------------------------------------------------
void WeakMemory::mix(u32 agent, u64 a, u64 b) {
    Agent& who = agents_[agent];
    hash_ -= who.hash;
    who.hash = scramble((who.hash ^ scramble(a + kMultiplier)) * kMultiplier + b);
    hash_ += who.hash;
}
u64 WeakMemory::scramble_position(u64 agent, u64 turn) { return scramble((agent << 40 ^ turn) * kMultiplier); }
Step& WeakMemory::step(Step::Kind kind, u32 agent, Order order, u32 scope, u64 address, u64 bytes, Where where) {
    static thread_local Step nobody;
    ++steps_made_;
    Step& s = recording_ ? (steps_.emplace_back(), steps_.back()) : nobody;
    s = Step{kind, agent, order, scope, address, bytes, 0, where, steps_made_, 0, 0, nullptr, {0, 0, 0}};
    return s;
}

void WeakMemory::found_race(u64 address, const Access& first, const Access& second) {
    if (raced_ || (ignore && ignore(address))) return;
    raced_ = true;
    race_ = Race{address, first, second};
}
void WeakMemory::check_write(u32 agent, u64 address, const Word& w, u8 mask, u32 scope, Where where) {
    const Access mine{agent, true, scope != kWeak, scope, where};
    for (u32 m = w.newest; m != 0 && !raced_; m = messages_[m].older) {
        const Message& other = messages_[m];
        if (knows(agents_[agent], other)) break;
        if ((other.mask & mask) == 0 || strong_between(agent, scope, other.agent, other.scope)) continue;
        found_race(address, Access{other.agent, true, other.scope != kWeak, other.scope, other.where}, mine);
    }
    for (u32 r = w.readers; r != 0 && !raced_; r = readers_[r].next) {
        const Reader& other = readers_[r];
        if (other.agent == agent || (other.mask & mask) == 0) continue;
        const u32 known = agents_[agent].clock.of(other.agent);
        if (other.plain_tick > known) {
            found_race(address, Access{other.agent, false, false, kWeak, other.where}, mine);
        } else if (other.strong_tick > known && !strong_between(agent, scope, other.agent, other.strong_scope)) {
            found_race(address, Access{other.agent, false, true, other.strong_scope, other.where}, mine);
        }
    }
}
void WeakMemory::check_read(u32 agent, u64 address, const Word& w, u8 mask, u32 scope, Where where) {
    for (u32 m = w.newest; m != 0 && !raced_; m = messages_[m].older) {
        const Message& other = messages_[m];
        if (knows(agents_[agent], other)) break;
        if ((other.mask & mask) == 0 || strong_between(agent, scope, other.agent, other.scope)) continue;
        found_race(address, Access{other.agent, true, other.scope != kWeak, other.scope, other.where},
                   Access{agent, false, scope != kWeak, scope, where});
    }
}

u32 WeakMemory::read_word(u32 agent, u64 address, Word& w, u32 message, u8 mask, Order order, u32 scope, Where where) {
    if (w.newest != 0) check_read(agent, address, w, mask, scope, where);
    Reader& r = reader(w, agent);
    if (scope == kWeak) r.plain_tick = tick(agent);
    else r.strong_tick = tick(agent), r.strong_scope = r.strong_scope == kWeak ? scope : smaller(r.strong_scope, scope);
    r.mask = static_cast<u8>(r.mask | mask);
    r.where = where;
    const Message& m = messages_[message];
    if (message == 0) {
        mix(agent, address, 1);
        last_newer_ = w.newest == 0 ? 0 : messages_[w.newest].seq;
        if (w.newest != 0) return w.initial;
        u32 value;  // nobody has written it: what memory holds, even if it is not ours
        std::memcpy(&value, byte_at(address & ~3ull), 4);
        return value;
    }
    raise_floor(agent, r, m.seq);
    last_newer_ = messages_[w.newest].seq - m.seq;
    last_from_ = m.number;
    mix(agent, address ^ static_cast<u64>(order), m.hash);
    if (scope != kWeak && m.scope != kWeak) {
        const u32 d = static_cast<u32>(distance(agent, m.agent));
        if (scope >= d && m.scope >= d) {
            if (acquires(order)) frozen_.join_into(agents_[agent].clock, m.visible[d]);
            else frozen_.join_into(agents_[agent].pending[d], m.visible[d]);
        }
    }
    return m.value;
}

void WeakMemory::write_word(u32 agent, u64 address, u32 value, u8 mask, u32 scope, const ClockRef (&visible)[3], bool pair,
                            bool update, Where where) {
    Word& w = word(address);
    if (!update) check_write(agent, address, w, mask, scope, where);
    const Message& before = messages_[w.newest];
    if (value != (w.newest != 0 ? before.value : w.initial)) ++changes_;
    Message m{};
    m.value = value;
    m.older = w.newest;
    m.agent = agent;
    m.tick = tick(agent);
    for (u32 d = 0; d < 3; ++d) m.visible[d] = visible[d];
    m.scope = scope;
    m.seq = (w.newest != 0 ? before.seq : 0) + 1;
    m.pairs = (w.newest != 0 ? before.pairs : 0) + (pair ? 1 : 0);
    m.mask = mask;
    m.update = update;
    m.number = steps_made_;
    m.where = where;
    mix(agent, address, w.newest != 0 ? before.hash : value);
    m.hash = scramble(agents_[agent].hash + address);
    messages_.push_back(m);
    w.newest = static_cast<u32>(messages_.size() - 1);
    raise_floor(agent, reader(w, agent), m.seq);
}

void WeakMemory::read_range(u32 agent, u64 address, u8* out, u64 bytes, Order order, u32 scope, Where where) {
    last_from_ = last_newer_ = 0;
    const bool pair = bytes == 8 && address % 8 == 0;  // read as one: both halves of the same 8-byte writes
    const u64 end = address + bytes;
    for (u64 base = address & ~3ull; base < end; base += 4) {
        Word* w = &word(base);
        const u8 mask = mask_in(base, address, bytes);
        u32 choice = w->newest;
        u32 partner = 0;
        if (pair && base == address) {
            const Word& high = word(base + 4);
            w = &word(base);
            if (w->newest != 0 || high.newest != 0) {
                visible(*w, agent, low_);
                visible(high, agent, high_);
                std::vector<std::pair<u32, u32>> both;
                for (const u32 l : low_) {
                    for (const u32 h : high_) {
                        if (messages_[l].pairs == messages_[h].pairs) both.emplace_back(l, h);
                    }
                }
                const u32 picked = both.size() > 1 ? pick_(static_cast<u32>(both.size())) : 0;
                if (picked != 0) ++stale_loads_;
                choice = both[picked].first;
                partner = both[picked].second;
            }
        } else if (w->newest != 0) {
            visible(*w, agent, low_);
            const u32 picked = low_.size() > 1 ? pick_(static_cast<u32>(low_.size())) : 0;
            if (picked != 0) ++stale_loads_;
            choice = low_[picked];
        }
        u32 value = read_word(agent, base, *w, choice, mask, order, scope, where);
        const u64 first = base > address ? base : address;
        const u64 run = (base + 4 < end ? base + 4 : end) - first;
        std::memcpy(out + (first - address), reinterpret_cast<const u8*>(&value) + (first - base), run);
        if (pair) {
            const u64 from = last_from_;
            const u32 newer = last_newer_;
            value = read_word(agent, base + 4, word(base + 4), partner, 15, order, scope, where);
            std::memcpy(out + 4, &value, 4);
            last_from_ = larger(from, last_from_);
            last_newer_ = larger(newer, last_newer_);
            return;
        }
    }
}

void WeakMemory::write_range(u32 agent, u64 address, const u8* from, u64 bytes, u32 scope, const ClockRef (&visible)[3],
                             bool update, Where where) {
    const u64 end = address + bytes;
    const bool pair = bytes == 8 && address % 8 == 0;
    for (u64 base = address & ~3ull; base < end; base += 4) {  // as it was, before memory changes
        Word& w = word(base);
        if (w.newest == 0) std::memcpy(&w.initial, byte_at(base), 4);
    }
    std::memcpy(byte_at(address), from, bytes);
    for (u64 base = address & ~3ull; base < end; base += 4) {
        u32 value;
        std::memcpy(&value, byte_at(base), 4);
        write_word(agent, base, value, mask_in(base, address, bytes), scope, visible, pair, update, where);
    }
}

// What a store hands on to a reader at each distance, as far as its own scope reaches.
void WeakMemory::hand_on(u32 agent, Order order, u32 scope, ClockRef (&visible)[3]) {
    const ClockRef all = releases(order) ? frozen_.freeze(agents_[agent].clock) : 0;
    for (u32 d = 0; d < 3; ++d) visible[d] = scope == kWeak || d > scope ? 0 : releases(order) ? all : agents_[agent].fenced[d];
}

// ---- device code --------------------------------------------------------------------------------------------------
void WeakMemory::load(u32 agent, const void* p, void* out, u32 bytes, Order order, u32 scope, Where where) {
    Step& s = step(Step::Kind::load, agent, order, scope, number_of(p), bytes, where);
    read_range(agent, number_of(p), static_cast<u8*>(out), bytes, order, order == Order::plain ? kWeak : scope, where);
    s.from = last_from_;
    s.newer = last_newer_;
    std::memcpy(&s.value, out, smaller(bytes, 8u));
}
void WeakMemory::store(u32 agent, void* p, const void* value, u32 bytes, Order order, u32 scope, Where where) {
    Step& s = step(Step::Kind::store, agent, order, scope, number_of(p), bytes, where);
    std::memcpy(&s.value, value, smaller(bytes, 8u));
    ClockRef visible[3];
    const u32 level = order == Order::plain ? kWeak : scope;
    hand_on(agent, order, level, visible);
    write_range(agent, number_of(p), static_cast<const u8*>(value), bytes, level, visible, false, where);
    if (releases(order)) advance(agent);
}
void WeakMemory::stored(u32 agent, void* p, const void* before, u32 bytes, Order order, u32 scope, Where where) {
    stored_.assign(static_cast<const u8*>(p), static_cast<const u8*>(p) + bytes);
    std::memcpy(p, before, bytes);
    store(agent, p, stored_.data(), bytes, order, scope, where);
}

// Reads the newest write if its scope and ours include each other, else any visible one: such updates can be lost.
void WeakMemory::update_begin(u32 agent, void* p, void* old, u32 bytes, Order order, u32 scope, Where where) {
    const u64 address = number_of(p);
    Word& w = word(address);
    const Message& newest = messages_[w.newest];
    const bool whole = w.newest == 0 || knows(agents_[agent], newest) || strong_between(agent, scope, newest.agent, newest.scope);
    for (ClockRef& inherited : update_.inherited) inherited = 0;
    Step& s = step(Step::Kind::update, agent, order, scope, address, bytes, where);
    if (whole) {
        last_from_ = 0;
        for (u64 base = address; base < address + bytes; base += 4) {
            Word& each = word(base);
            const u32 value = read_word(agent, base, each, each.newest, 15, order, scope, where);
            std::memcpy(static_cast<u8*>(old) + (base - address), &value, 4);
        }
        // A release sequence: who reads the update has read what it updated, too.
        if (w.newest != 0) {
            for (u32 d = 0; d < 3; ++d) update_.inherited[d] = messages_[word(address).newest].visible[d];
        }
    } else {
        read_range(agent, address, static_cast<u8*>(old), bytes, order, scope, where);
    }
    s.from = last_from_;
    update_.order = order;
    update_.scope = scope;
    update_.where = where;
}
void WeakMemory::update_end(u32 agent, void* p, const void* fresh, u32 bytes) {
    ClockRef visible[3];
    hand_on(agent, update_.order, update_.scope, visible);
    for (u32 d = 0; d < 3; ++d) {
        if (update_.inherited[d] == 0 || d > update_.scope) continue;
        Clock joined;
        frozen_.join_into(joined, visible[d]);
        frozen_.join_into(joined, update_.inherited[d]);
        visible[d] = frozen_.freeze(joined);
    }
    if (recording_ && !steps_.empty()) std::memcpy(&steps_.back().value, fresh, bytes);
    check_write(agent, number_of(p), word(number_of(p)), 15, update_.scope, update_.where);
    write_range(agent, number_of(p), static_cast<const u8*>(fresh), bytes, update_.scope, visible, true, update_.where);
    if (releases(update_.order)) advance(agent);
}

void WeakMemory::fence(u32 agent, u32 scope, Where where) {
    step(Step::Kind::fence, agent, Order::acq_rel, scope, 0, 0, where);
    Agent& a = agents_[agent];
    for (u32 d = 0; d <= scope && d < 3; ++d) {
        a.clock.join(a.pending[d]);
        a.pending[d].clear();
    }
    const ClockRef now = frozen_.freeze(a.clock);
    for (u32 d = 0; d <= scope && d < 3; ++d) a.fenced[d] = now;
    advance(agent);
}

void WeakMemory::meet(const u32* agents, u32 count) {
    Clock all;
    u64 hashes = 0;
    for (u32 i = 0; i < count; ++i) {
        all.join(agents_[agents[i]].clock);
        hashes += agents_[agents[i]].hash;
    }
    for (u32 i = 0; i < count; ++i) {
        agents_[agents[i]].clock.join(all);
        advance(agents[i]);
        mix(agents[i], 2, hashes);
    }
}

// ---- HCAs -----------------------------------------------------------------------------------------------------------
ClockRef WeakMemory::published(u32 agent) const { return agents_[agent].fenced[static_cast<u32>(Distance::system)]; }
ClockRef WeakMemory::snapshot(u32 agent) {
    const ClockRef now = frozen_.freeze(agents_[agent].clock);
    advance(agent);
    return now;
}
ClockRef WeakMemory::both(ClockRef a, ClockRef b) {
    if (a == 0 || b == 0) return a == 0 ? b : a;
    Clock joined;
    frozen_.join_into(joined, a);
    frozen_.join_into(joined, b);
    return frozen_.freeze(joined);
}
void WeakMemory::learn(u32 agent, ClockRef clock) { frozen_.join_into(agents_[agent].clock, clock); }

void WeakMemory::note(u32 agent, const char* what, u64 a, u64 b, u64 c, bool in_hash) {
    if (in_hash) mix(agent, scramble(number_of(what)) ^ a, b ^ c << 40);
    if (!recording_) {
        ++steps_made_;
        return;
    }
    Step& s = step(Step::Kind::note, agent, Order::plain, 2, 0, 0, 0);
    s.note = what;
    s.detail[0] = a;
    s.detail[1] = b;
    s.detail[2] = c;
}
void WeakMemory::dma_read(u32 agent, void* out, const void* p, u64 bytes, const char* what, Order order) {
    const u32 stale = stale_loads_;
    Step& s = step(Step::Kind::load, agent, order, 2, number_of(p), bytes, 0);
    read_range(agent, number_of(p), static_cast<u8*>(out), bytes, order, 2, 0);
    s.note = what;
    s.from = last_from_;
    s.newer = larger(last_newer_, stale_loads_ - stale);
    std::memcpy(&s.value, out, smaller<u64>(bytes, 8));
}
void WeakMemory::dma_write(u32 agent, void* p, const void* from, u64 bytes, ClockRef visible, const char* what) {
    Step& s = step(Step::Kind::store, agent, Order::release, 2, number_of(p), bytes, 0);
    std::memcpy(&s.value, from, smaller<u64>(bytes, 8));
    s.note = what;
    if (visible != kOwn) {
        const ClockRef all[3] = {visible, visible, visible};
        write_range(agent, number_of(p), static_cast<const u8*>(from), bytes, 2, all, false, 0);
        return;
    }
    // Word by word, each handing on those before it.
    const u64 address = number_of(p);
    for (u64 at = 0; at < bytes;) {
        const u64 run = smaller(bytes - at, (address + at) % 8 == 0 && bytes - at >= 8 ? 8 : 4 - (address + at) % 4);
        const ClockRef now = frozen_.freeze(agents_[agent].clock);
        const ClockRef all[3] = {now, now, now};
        write_range(agent, address + at, static_cast<const u8*>(from) + at, run, 2, all, false, 0);
        advance(agent);
        at += run;
    }
}
u64 WeakMemory::dma_update(u32 agent, void* p, u32 bytes, const std::function<u64(u64)>& next, const char* what) {
    u64 old = 0;
    update_begin(agent, p, &old, bytes, Order::acq_rel, 2, 0);
    if (recording_) steps_.back().note = what;
    const u64 fresh = next(old);
    update_end(agent, p, &fresh, bytes);
    return old;
}

// ---- waiting ----------------------------------------------------------------------------------------------------------
bool WeakMemory::news(u32 agent, const void* p, u32 bytes) const {
    for (u64 base = number_of(p) & ~3ull; base < number_of(p) + bytes; base += 4) {
        const Word* w = find(base);
        if (w != nullptr && w->newest != 0 && oldest_visible(*w, agent) < messages_[w->newest].seq) return true;
    }
    return false;
}
void WeakMemory::take_news(u32 agent, const void* p, u32 bytes) {
    for (u64 base = number_of(p) & ~3ull; base < number_of(p) + bytes; base += 4) {
        Word& w = word(base);
        if (w.newest == 0) continue;
        const u32 seen = larger(oldest_visible(w, agent), floor_of(w, agent));
        if (seen < messages_[w.newest].seq) raise_floor(agent, reader(w, agent), seen + 1);
    }
}

}  // namespace rdmakit::emu
