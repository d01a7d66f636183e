// weak_memory.hpp — which value a load may return: per word a history of writes, per agent what it must have seen.
//
// The model, in one paragraph. A write is appended to the history of its word (4 bytes). An agent may read any write that
// is not older than one that it knows of: by happens-before (vector clocks), or because it has read it or a newer one. A
// release hands its writer's clock on, within its scope; an acquire that reads it, or a fence behind such a read, takes it
// over, if each scope includes the other side ("morally strong" in PTX). Two accesses to one byte that are not ordered
// so, one a write, and not both strong enough for each other, are a race, whatever values they saw. Read-modify-writes
// read the newest write, unless scopes are too small for that. Memory itself always holds the newest value.
//
// Weaker than any one GPU, on purpose, but for two things that it does not show: a load that returns a value which is
// written later in program order by somebody who depends on it (load buffering), and two unordered writes to one word
// landing in another order than that of the run (the schedules of the run vary that order).
//
// Leans on clocks. Sources: PTX ISA "Memory Consistency Model"; Kang et al., "A Promising Semantics for Relaxed-Memory
// Concurrency" (views), without promises.
#pragma once
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "clocks.hpp"

namespace rdmakit::emu {

using cpu::Order;
constexpr bool acquires(Order o) { return o == Order::acquire || o == Order::acq_rel; }
constexpr bool releases(Order o) { return o == Order::release || o == Order::acq_rel; }

// A place in the source (file and line) or, with line 0, in the code (an address): see where_site, where_pc.
using Where = u64;
inline Where where_site(const Site& site) {
    return (static_cast<u64>(reinterpret_cast<std::uintptr_t>(site.file)) << 16) | static_cast<u64>(site.line & 0xffff);
}
inline Where where_pc(const void* pc) { return static_cast<u64>(reinterpret_cast<std::uintptr_t>(pc)) << 16; }

// How far two agents are from each other: what scope an access needs to be strong between them.
enum class Distance : u32 { block = 0, gpu = 1, system = 2 };
constexpr u32 kNowhere = ~0u;  // block or GPU of an agent that is none: a NIC, a host

struct Access {
    u32 agent = 0;
    bool write = false, strong = false;
    u32 scope = 0;
    Where where = 0;
};
struct Race {
    u64 address = 0;
    Access first, second;
};

// One step of an agent, as a story tells it.
struct Step {
    enum class Kind : u32 { load, store, update, fence, barrier, doorbell, note, wait } kind;
    u32 agent;
    Order order;
    u32 scope;
    u64 address, bytes, value;
    Where where;
    u64 number;         // of this step
    u64 from;           // loads: number of the step whose value was read, 0: what was there at the start
    u32 newer;          // loads: writes that were there and newer than the one read
    const char* note;   // notes: what an HCA did; static text
    u64 detail[3];      // notes: QP number, WQE index, …
};

class WeakMemory {
  public:
    // Which of `count` answers, 0 being the newest write.
    using Pick = std::function<u32(u32 count)>;

    explicit WeakMemory(Pick pick) : pick_(std::move(pick)) { table_.resize(1u << kFirstLog); }

    // Forgets everything, agents included; `undo` puts back what memory held before.
    void reset(bool undo);
    // `identity` tells it from the others whenever it is introduced: runs that differ in that order alone are equal.
    u32 add_agent(u32 block, u32 gpu, u64 identity, ClockRef knows = 0);
    u32 agents() const { return static_cast<u32>(agents_.size()); }
    // This memory is somebody else's from now on, or nobody's: what was written there is no history of it.
    void forget(const void* p, u64 bytes);

    // ---- device code. Each is one step; sizes up to 16 bytes, whole words but for plain accesses
    void load(u32 agent, const void* p, void* out, u32 bytes, Order order, u32 scope, Where where);
    void store(u32 agent, void* p, const void* value, u32 bytes, Order order, u32 scope, Where where);
    void update_begin(u32 agent, void* p, void* old, u32 bytes, Order order, u32 scope, Where where);
    void update_end(u32 agent, void* p, const void* fresh, u32 bytes);
    void fence(u32 agent, u32 scope, Where where);
    void meet(const u32* agents, u32 count);  // a barrier: each knows what all knew
    // A store by code that runs on by itself: called when it has been made, `before` being what was there.
    void stored(u32 agent, void* p, const void* before, u32 bytes, Order order, u32 scope, Where where);

    // ---- the asynchronous proxy (async_proxy.cpp)
    void proxy_fence(u32 agent, Where where);
    // A bulk copy begins: its agent. *issued: what the one who issued it knew.
    u32 bulk_issue(u32 agent, ClockRef* issued, Where where, const char* what);
    // Its legs; each returns what knows of it.
    ClockRef bulk_read(u32 copy, void* out, const void* p, u64 bytes, Where where);
    ClockRef bulk_write(u32 copy, void* p, const void* from, u64 bytes, Where where);
    void bulk_arrive(u32 copy, ClockRef issued, u64* barrier, const std::function<u64(u64)>& next, Where where);

    // ---- HCAs
    ClockRef published(u32 agent) const;           // what the agent has released to the system: a doorbell carries it
    ClockRef snapshot(u32 agent);                  // all that it knows, and a new step
    ClockRef both(ClockRef a, ClockRef b);
    void learn(u32 agent, ClockRef clock);
    void dma_read(u32 agent, void* out, const void* p, u64 bytes, const char* note, Order order);
    // `visible`: what a reader that acquires one of these bytes learns, kOwn: all that `agent` knows, word by word.
    void dma_write(u32 agent, void* p, const void* from, u64 bytes, ClockRef visible, const char* note);
    static constexpr ClockRef kOwn = ~0u;
    u64 dma_update(u32 agent, void* p, u32 bytes, const std::function<u64(u64)>& next, const char* note);
    void note(u32 agent, const char* what, u64 a = 0, u64 b = 0, u64 c = 0, bool in_hash = true);

    // ---- waiting
    bool news(u32 agent, const void* p, u32 bytes) const;  // is there a write that it has neither read nor must know?
    void take_news(u32 agent, const void* p, u32 bytes);   // its next read of p returns one of them

    // ---- what happened
    // An agent goes on. What it does then may leave no trace here (a doorbell), and is part of where a schedule stands.
    void passed(u32 agent) { positions_ += scramble_position(agent, agents_[agent].turns++); }
    u64 state() const { return hash_ ^ positions_; }
    u64 hash() const { return hash_; }             // equal for runs that differ only in the order of unrelated steps
    const Race* race() const { return raced_ ? &race_ : nullptr; }
    u32 stale_loads() const { return stale_loads_; }
    u64 changes() const { return changes_; }        // grows whenever a word changes its value, over all runs
    void record(bool on) { recording_ = on; }
    const std::vector<Step>& steps() const { return steps_; }
    // Locations of accesses that no race is to be reported for, by intention of the program under test.
    std::function<bool(u64 address)> ignore;

  private:
    static constexpr u32 kFirstLog = 10;
    static constexpr u32 kLineBytes = 64, kWords = 16;
    static constexpr u32 kWeak = ~0u;  // scope of a plain access

    struct Message {
        u32 value, older;       // index of the older one, 0: none
        u32 agent, tick;
        ClockRef visible[3];    // by distance of the reader
        u32 scope;              // kWeak: plain
        u32 seq, pairs;         // place in the history; 8-byte writes up to and with this one
        u8 mask, update;
        u64 hash;
        u64 number;
        Where where;
    };
    struct Reader {
        u32 agent, floor;       // floor: seq of the newest message that it has read, or written
        u32 floor_tick;         // since when: who knows of that step reads nothing older either
        u32 earlier_floor, earlier_tick;
        u32 plain_tick, strong_tick, strong_scope;
        u8 mask;
        Where where;
        u32 next;               // index, 0: none
    };
    struct Word {
        u32 initial, newest, readers;
    };
    struct Line {
        u64 key;
        Word words[kWords];
    };
    struct Slot {
        u64 key;
        u32 line, generation;
    };
    struct Agent {
        u32 block, gpu;
        Clock clock;
        Clock pending[3];       // read by relaxed loads, learnt at the next fence wide enough
        ClockRef fenced[3];     // what a relaxed store hands on, by distance
        u64 hash;
        u64 turns;              // how often it went on
        ClockRef began;         // what it knew at its start, when no proxy had anything under way
        u32 fences;             // the agent that its proxy fences are steps of, 0: it has made none
        bool copies;            // is a bulk copy
        std::vector<ClockRef> fenced_at;  // of an agent of proxy fences: what each knew
    };
    struct Range {
        u64 first, bytes;
    };

    u32 add_part(u32 agent, u64 which);
    void join_proxied(Clock& clock, u32 agent) const;
    Word& word(u64 address);
    const Word* find(u64 address) const;
    Line& line(u64 address);
    void grow();
    Distance distance(u32 a, u32 b) const;
    bool knows(const Agent& a, const Message& m) const { return a.clock.of(m.agent) >= m.tick; }
    u32 tick(u32 agent) const { return agents_[agent].clock.of(agent); }
    void advance(u32 agent) { agents_[agent].clock.raise(agent, tick(agent) + 1); }
    u32 floor_of(const Word& w, u32 agent) const;
    void raise_floor(u32 agent, Reader& r, u32 seq);
    Reader& reader(Word& w, u32 agent);
    u32 oldest_visible(const Word& w, u32 agent) const;  // seq
    void visible(const Word& w, u32 agent, std::vector<u32>& out) const;  // message indices, newest first; 0: the initial value
    u32 read_word(u32 agent, u64 address, Word& w, u32 message, u8 mask, Order order, u32 scope, Where where);
    void write_word(u32 agent, u64 address, u32 value, u8 mask, u32 scope, const ClockRef (&visible)[3], bool pair,
                    bool update, Where where);
    void check_write(u32 agent, u64 address, const Word& w, u8 mask, u32 scope, Where where);
    void check_read(u32 agent, u64 address, const Word& w, u8 mask, u32 scope, Where where);
    void found_race(u64 address, const Access& first, const Access& second);
    bool strong_between(u32 a, u32 scope_a, u32 b, u32 scope_b) const;
    void hand_on(u32 agent, Order order, u32 scope, ClockRef (&visible)[3]);
    void mix(u32 agent, u64 a, u64 b);
    static u64 scramble_position(u64 agent, u64 turn);
    Step& step(Step::Kind kind, u32 agent, Order order, u32 scope, u64 address, u64 bytes, Where where);
    void read_range(u32 agent, u64 address, u8* out, u64 bytes, Order order, u32 scope, Where where);
    void write_range(u32 agent, u64 address, const u8* from, u64 bytes, u32 scope, const ClockRef (&visible)[3],
                     bool update, Where where);

    Pick pick_;
    std::vector<Slot> table_;
    std::vector<Line> lines_;
    std::vector<Message> messages_{1};
    std::vector<Reader> readers_{1};
    std::vector<Agent> agents_;
    FrozenClocks frozen_;
    u32 generation_ = 1;
    u64 hash_ = 0, positions_ = 0, steps_made_ = 0, changes_ = 0;
    u64 last_from_ = 0;
    u32 last_newer_ = 0;
    u32 stale_loads_ = 0;
    bool raced_ = false, recording_ = false;
    Race race_;
    std::vector<Step> steps_;
    std::vector<u8> stored_;
    mutable std::vector<u32> low_, high_;
    struct Update {
        Order order;
        u32 scope;
        Where where;
        ClockRef inherited[3];
    } update_{};
};

}  // namespace rdmakit::emu
