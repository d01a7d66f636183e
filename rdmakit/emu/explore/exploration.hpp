// exploration.hpp — what a world of the policy Explore has and others do not: decisions, a memory model, a mutation, and
// the accesses of raw code that are under way.
// Leans on choices, weak_memory, mutation.
#pragma once
#include <unordered_set>

#include "choices.hpp"
#include "mutation.hpp"
#include "weak_memory.hpp"

namespace rdmakit::emu {

class Exploration {
  public:
    Exploration() : memory([this](u32 count) { return choices.choose(ChoiceKind::value, count); }) {}

    Choices choices;
    WeakMemory memory;
    Mutation mutation;
    u64 run = 1;            // changes when the memory model forgets its agents
    bool pruned = false;    // the rest of this schedule is known
    bool updating = false;  // between the two halves of a read-modify-write, which nobody else sees
    bool watch_sites = false;
    std::unordered_set<u64> sites[kPrimitives];  // where primitives of each kind ran

    // ---- one access of device code
    void load(u32 agent, const void* p, void* out, u32 bytes, cpu::Access how, Site site) {
        how = adjust(Primitive::load, how, site);
        memory.load(agent, p, out, bytes, how.order, how.scope, where_site(site));
    }
    void store(u32 agent, void* p, const void* value, u32 bytes, cpu::Access how, Site site) {
        how = adjust(Primitive::store, how, site);
        memory.store(agent, p, value, bytes, how.order, how.scope, where_site(site));
    }
    void update_begin(u32 agent, void* p, void* old, u32 bytes, cpu::Access how, Site site) {
        how = adjust(Primitive::update, how, site);
        memory.update_begin(agent, p, old, bytes, how.order, how.scope, where_site(site));
        updating = true;
    }
    void update_end(u32 agent, void* p, const void* fresh, u32 bytes) {
        updating = false;
        memory.update_end(agent, p, fresh, bytes);
    }
    void fence(u32 agent, cpu::Access how, Site site) {
        seen(Primitive::fence, site);
        if (mutation.at(Primitive::fence, site)) {
            if (mutation.removed) return;
            how = mutation.weaken(how);
        }
        memory.fence(agent, how.scope, where_site(site));
    }
    bool removed(Site site, Primitive what = Primitive::condition) {
        seen(what, site);
        return mutation.at(what, site) && mutation.removed;
    }

    // ---- accesses that the compiler reports just before they happen
    // A load: memory shows the value chosen for it until `settle`. A store: what it wrote is found out by `settle`.
    void raw(u32 agent, void* p, u32 bytes, u32 kind, const void* pc);
    // To be called before anything else looks at memory. Returns whether there was something to settle: *p and *bytes then
    // say what a store has written (bytes 0: nothing).
    bool settle(void** p, u32* bytes);

  private:
    void seen(Primitive primitive, const Site& site) {
        if (watch_sites) sites[static_cast<u32>(primitive)].insert(where_site(site));
    }
    cpu::Access adjust(Primitive primitive, cpu::Access how, const Site& site) {
        seen(primitive, site);
        return mutation.at(primitive, site) ? mutation.weaken(how) : how;
    }
    struct Raw {
        enum class State { none, loading, storing } state = State::none;
        u32 agent, bytes;
        u8* at;
        bool strong;
        const void* pc;
    } raw_;
    std::vector<u8> kept_, chosen_;
};

}  // namespace rdmakit::emu
