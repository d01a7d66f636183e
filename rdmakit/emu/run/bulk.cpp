// bulk.cpp — see bulk.hpp.
#include "bulk.hpp"

#include <algorithm>
#include <cstring>

#include "launch.hpp"
#include "rdmakit/cost.cuh"

namespace rdmakit::emu {
namespace {
constexpr u32 kAlignment = 16;
constexpr u64 kPage = 4096;
constexpr u64 kForEver = ~0ull;

// Touches what a copy will: a bad address is the fault of the thread that issues it, at that line.
void touch(const void* p, u64 bytes) {
    const auto* at = static_cast<const volatile u8*>(p);
    for (u64 i = 0; i < bytes; i += kPage) (void)at[i];
    (void)at[bytes - 1];
}
std::string at(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }
}  // namespace

BulkEngine::Stream& BulkEngine::stream_of(const Fibre& fibre) {
    for (auto& s : streams_) {
        if (s->fibre == fibre.number) return *s;
    }
    streams_.push_back(std::make_unique<Stream>());
    streams_.back()->fibre = fibre.number;
    streams_.back()->block = fibre.block;
    return *streams_.back();
}

void BulkEngine::issue(Fibre& fibre, const cpu::BulkCopy& what, Site site) {
    const auto odd = reinterpret_cast<std::uintptr_t>(what.to) | reinterpret_cast<std::uintptr_t>(what.from) | what.bytes;
    const void* const shared = what.barrier != nullptr ? what.to : what.from;
    if (odd % kAlignment != 0 || what.bytes == 0) {
        scheduler_.fail_current(fibre, "a bulk copy whose ends and size are no multiples of 16 bytes (" + at(site) + ")");
    }
    if (!launcher_.in_shared(*fibre.block, shared, what.bytes) ||
        (what.barrier != nullptr && !launcher_.in_shared(*fibre.block, what.barrier, sizeof(u64)))) {
        scheduler_.fail_current(fibre, "a bulk copy whose shared end, or mbarrier, is not in the block's shared memory (" +
                                           at(site) + ")");
    }
    touch(what.to, what.bytes);
    touch(what.from, what.bytes);
    Stream& stream = stream_of(fibre);
    auto copy = std::make_unique<Copy>();
    copy->number = numbers_++;
    copy->fibre = fibre.number;
    copy->group = stream.open;
    copy->block = fibre.block;
    copy->what = what;
    copy->site = site;
    copy->moves = fibre.copy_limit >= what.bytes;
    if (scheduler_.policy() == Policy::timed) {
        auto unit = std::find_if(units_.begin(), units_.end(), [&](const Unit& u) { return u.block == fibre.block; });
        if (unit == units_.end()) unit = units_.insert(unit, Unit{fibre.block, 0});
        unit->free_ps = larger(unit->free_ps, fibre.clock_ps) + what.bytes * cost::kBulkPicosecondsPerByte;
        // A store's source has been read when the engine is through with it; a load's bytes are there a latency later.
        const u64 when = unit->free_ps + (copy->is_load() ? cost::kBulkLatency : 0);
        scheduler_.at(when, timed_leg, this, copy->number);
        copies_.push_back(std::move(copy));
        return;
    }
    if (Exploration* exploration = scheduler_.exploration()) {
        copy->agent = exploration->memory.bulk_issue(fibre.agent, &copy->issued, where_site(site),
                                                     copy->is_load() ? "issues a bulk load" : "issues a bulk store");
        agents_.push_back({copy->agent, fibre.agent});
    }
    copies_.push_back(std::move(copy));
    scheduler_.add_work(*this);
    if (scheduler_.exploration() != nullptr) scheduler_.point(fibre);  // the copy may be made at once
}

bool BulkEngine::under_way(u64 fibre, u64 groups, bool read) const {
    return std::any_of(copies_.begin(), copies_.end(), [&](const std::unique_ptr<Copy>& c) {
        return c->fibre == fibre && !c->is_load() && c->group < groups && !(read && c->read);
    });
}

void BulkEngine::wait(Fibre& fibre, u32 pending, bool read, Site site) {
    Stream& stream = stream_of(fibre);
    const u64 groups = stream.open > pending ? stream.open - pending : 0;
    while (under_way(fibre.number, groups, read)) {
        const cpu::Watched watched{&stream.turns, stream.turns, sizeof stream.turns};
        const char* const what = read ? "its bulk stores to have read their sources" : "its bulk stores to be complete";
        scheduler_.park(fibre, &watched, 1, cpu::WaitNote{what, groups, 0, 0, 0, site}, kForEver);
    }
    Exploration* const exploration = scheduler_.exploration();
    if (exploration == nullptr) return;
    WeakMemory& memory = exploration->memory;
    for (const auto& c : copies_) {
        if (c->fibre == fibre.number && !c->is_load() && c->group < groups) memory.learn(fibre.agent, c->has_read);
    }
    for (const Stream::Done& d : stream.done) {
        if (d.group < groups) memory.learn(fibre.agent, read ? d.has_read : d.has_written);
    }
    if (read) return;
    const auto seen = [&](const Stream::Done& d) { return d.group < groups; };
    stream.done.erase(std::remove_if(stream.done.begin(), stream.done.end(), seen), stream.done.end());
}

// ---- the copies ------------------------------------------------------------------------------------------------------
void BulkEngine::read(Copy& c) {
    launcher_.swap_section(*c.block);
    c.read = true;
    if (!c.moves) return;
    c.bytes.resize(c.what.bytes);
    Exploration* const exploration = scheduler_.exploration();
    if (exploration == nullptr || launcher_.in_section(*c.block, c.what.from)) {
        std::memcpy(c.bytes.data(), c.what.from, c.what.bytes);
        return;
    }
    c.has_read = exploration->memory.bulk_read(c.agent, c.bytes.data(), c.what.from, c.what.bytes, where_site(c.site));
}

void BulkEngine::write(Copy& c) {
    launcher_.swap_section(*c.block);
    Exploration* const exploration = scheduler_.exploration();
    ClockRef has_written = c.has_read;
    if (c.moves) {
        if (exploration == nullptr || launcher_.in_section(*c.block, c.what.to)) std::memcpy(c.what.to, c.bytes.data(), c.what.bytes);
        else has_written = exploration->memory.bulk_write(c.agent, c.what.to, c.bytes.data(), c.what.bytes, where_site(c.site));
        scheduler_.written(c.what.to, c.what.bytes);
    }
    if (!c.is_load()) {
        if (exploration == nullptr) return;
        for (auto& s : streams_) {
            if (s->fibre == c.fibre) s->done.push_back({c.group, c.has_read, has_written});
        }
        return;
    }
    const auto arrived = [&](u64 word) { return cpu::MbarrierWord::from(word).after(0, -static_cast<i32>(c.what.bytes)).word(); };
    if (exploration == nullptr || launcher_.in_section(*c.block, c.what.barrier)) {
        *c.what.barrier = arrived(*c.what.barrier);
    } else {
        exploration->memory.bulk_arrive(c.agent, c.issued, c.what.barrier, arrived, where_site(c.site));
        if (std::find(barriers_.begin(), barriers_.end(), c.what.barrier) == barriers_.end()) barriers_.push_back(c.what.barrier);
    }
    scheduler_.written(c.what.barrier, sizeof(u64));
}

// A load is one leg, a store two: only they differ in when the source is free and when the bytes are there.
void BulkEngine::advance(Copy& c) {
    const bool last = c.is_load() || c.read;
    if (!c.read) read(c);
    if (last) write(c);
    for (auto& s : streams_) {
        if (s->fibre != c.fibre) continue;
        ++s->turns;
        scheduler_.written(&s->turns, sizeof s->turns);
    }
    if (!last) return;
    const auto mine = [&](const std::unique_ptr<Copy>& other) { return other.get() == &c; };
    copies_.erase(std::find_if(copies_.begin(), copies_.end(), mine));
}

void BulkEngine::timed_leg(void* engine, u64 number) {
    auto& self = *static_cast<BulkEngine*>(engine);
    const auto found = std::find_if(self.copies_.begin(), self.copies_.end(),
                                    [&](const std::unique_ptr<Copy>& c) { return c->number == number; });
    if (found == self.copies_.end()) return;  // its launch was ended
    const bool again = !(*found)->is_load() && !(*found)->read;
    self.advance(**found);
    if (again) self.scheduler_.at(self.scheduler_.now_ps() + cost::kBulkLatency, timed_leg, engine, number);
}

void BulkEngine::work(u32 budget) {
    for (; budget != 0 && !copies_.empty(); --budget) advance(*copies_[scheduler_.random(copies_.size())]);
    if (!copies_.empty()) scheduler_.add_work(*this);
}
void BulkEngine::steps(std::vector<u32>& agents) {
    for (const auto& c : copies_) agents.push_back(c->agent);
}
void BulkEngine::take(u32 index) { advance(*copies_[index]); }

// ---- ends ----------------------------------------------------------------------------------------------------------------
std::string BulkEngine::end_block(const Block& block, ClockRef* known) {
    for (const auto& c : copies_) {
        if (c->block == &block && !c->read) {
            return "its block ends while a bulk copy, issued at " + at(c->site) + ", still needs the block's shared memory";
        }
    }
    for (std::size_t i = 0; i < copies_.size();) {
        if (copies_[i]->block == &block) advance(*copies_[i]);
        else ++i;
    }
    for (auto& s : streams_) {
        for (const Stream::Done& d : s->done) {
            if (s->block == &block) *known = scheduler_.exploration()->memory.both(*known, d.has_written);
        }
    }
    const auto gone = [&](const std::unique_ptr<Stream>& s) { return s->block == &block; };
    streams_.erase(std::remove_if(streams_.begin(), streams_.end(), gone), streams_.end());
    const auto unit = [&](const Unit& u) { return u.block == &block; };
    units_.erase(std::remove_if(units_.begin(), units_.end(), unit), units_.end());
    return "";
}

void BulkEngine::clear() {
    copies_.clear();
    streams_.clear();
    units_.clear();
}

}  // namespace rdmakit::emu
