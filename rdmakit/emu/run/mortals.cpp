// mortals.cpp — see mortals.hpp. A dead fibre gives the processor away and is never made ready again: as after a power
// cut it reports nothing, and what it holds stays held.
#include "mortals.hpp"

namespace rdmakit::emu {
namespace {
Fibre& fibre_of(cpu::Thread* t) { return *static_cast<Fibre*>(t); }
}  // namespace

void MortalLauncher::run_fibre(Fibre& fibre) {
    const bool mortal = fibre.rank < fates_.size() && fates_[fibre.rank].mortal;
    if (mortal) {
        fibre.api = mortal_api();
        charged_ps_[&fibre] = fibre.clock_ps;  // its stack was another's before
        before(fibre);
    }
    Launcher::run_fibre(fibre);
    if (mortal) charged_ps_.erase(&fibre);
}

// Pays for what the kernel has done since the last call, and dies if it is time.
void MortalLauncher::before(Fibre& fibre) {
    Fate& f = fate(fibre.rank);
    if (f.factor > 1 && scheduler().policy() == Policy::timed) {
        u64& charged = charged_ps_[&fibre];
        fibre.clock_ps += (fibre.clock_ps - charged) * (f.factor - 1);
        charged = fibre.clock_ps;
    }
    if (!f.died && fibre.clock_ps >= f.dies_ps) {
        f.died = true;
        f.died_ps = fibre.clock_ps;
        ++deaths_;
    }
    if (f.died) fibre.note = cpu::WaitNote{"nothing any more", 0, 0, 0, 0, Site{"", 0}};
    while (fate(fibre.rank).died) scheduler().block_current(fibre, FibreState::at_barrier);
}

// What it has waited costs nothing extra. It may have died in its sleep.
void MortalLauncher::after(Fibre& fibre) {
    charged_ps_[&fibre] = fibre.clock_ps;
    before(fibre);
}

const cpu::RunnerApi* MortalLauncher::mortal_api() {
    static const cpu::RunnerApi api = [] {
        cpu::RunnerApi a = *Launcher::api();
        a.yield = [](cpu::Thread* t) {
            MortalLauncher& l = of(t);
            l.before(fibre_of(t));
            const bool clocked = l.scheduler().policy() == Policy::timed;
            for (u32 i = clocked ? 1 : l.fate(t->rank).factor; i != 0; --i) Launcher::api()->yield(t);
            l.after(fibre_of(t));
        };
        a.park = [](cpu::Thread* t, const cpu::Watched* list, int count, const cpu::WaitNote& note, u64 timeout_ns) {
            of(t).before(fibre_of(t));
            const bool in_time = Launcher::api()->park(t, list, count, note, timeout_ns);
            of(t).after(fibre_of(t));
            return in_time;
        };
        a.mmio64 = [](cpu::Thread* t, void* reg, u64 value) {
            of(t).before(fibre_of(t));
            Launcher::api()->mmio64(t, reg, value);
        };
        a.mmio32 = [](cpu::Thread* t, void* reg, u32 value) {
            of(t).before(fibre_of(t));
            Launcher::api()->mmio32(t, reg, value);
        };
        a.barrier = [](cpu::Thread* t, Site site) {
            of(t).before(fibre_of(t));
            Launcher::api()->barrier(t, site);
            of(t).after(fibre_of(t));
        };
        a.gather = [](cpu::Thread* t, u32 mask, u64 value, Site site) {
            of(t).before(fibre_of(t));
            const u64* values = Launcher::api()->gather(t, mask, value, site);
            of(t).after(fibre_of(t));
            return values;
        };
        a.preempt = [](cpu::Thread* t, const void* pc) {
            of(t).before(fibre_of(t));
            Launcher::api()->preempt(t, pc);
            of(t).after(fibre_of(t));
        };
        return a;
    }();
    return &api;
}

}  // namespace rdmakit::emu
