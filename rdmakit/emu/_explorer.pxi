# The explorer as C++ has it (explore/explorer.hpp): one scenario, many schedules. rdmakit.explore has its objects.

cdef extern from "explore/explorer.hpp" namespace "rdmakit::cpu" nogil:
    cdef enum class Order(u32):
        pass

cdef extern from "explore/explorer.hpp" namespace "rdmakit::emu" nogil:
    cdef enum class Verdict(u32):
        pass
    cdef enum class Search(u32):
        pass
    cdef enum class Primitive(u32):
        pass
    cdef enum class StepKind "rdmakit::emu::Step::Kind"(u32):
        pass
    cdef cppclass Schedule:
        Search search
        u64 seed
        u32 depth
        double steps_expected
        vector[u32] decisions
        cbool faults
    cdef cppclass Judged:
        Verdict verdict
        u64 hash, decisions, detail
    cdef cppclass Totals:
        u64 schedules, pruned, distinct, stale_loads, failures, first_failing_seed
        cbool done
        Judged last
    cdef cppclass Access:
        u32 agent
        cbool write, strong
        u32 scope
        u64 where
    cdef cppclass Race:
        u64 address
        Access first, second
    cdef cppclass MemoryStep "rdmakit::emu::Step":
        StepKind kind
        u32 agent
        Order order
        u32 scope
        u64 address, bytes, value, where, number
        u64 come_from "from"
        u32 newer
        const char* note
        u64 detail[3]
    cdef cppclass Mutation:
        cbool on
        string file
        int line
        Primitive what
        cbool removed, no_acquire, no_release
        u32 scope
        u64 hits
    cdef cppclass Choices:
        const vector[u32]& trail()
        u32 stale_bound, switch_bound, fault_bound
        u64 states()
    cdef cppclass WeakMemory:
        const Race* race()
        void record(cbool)
        const vector[MemoryStep]& steps()
        void dma_write(u32, void*, const void*, u64, u32, const char*)
    cdef cppclass Exploration:
        Choices choices
        WeakMemory memory
        Mutation mutation
        cbool watch_sites
        unordered_set[u64] sites[6]
    cdef cppclass CppExplorer "rdmakit::emu::Explorer":
        CppExplorer(CppWorld&) except +
        void expect(const void*, const void*, u64) except +
        void watch_report(const void*)
        void ready() except +
        cbool (*check)(void*) noexcept
        void* check_argument
        Judged run(const Schedule&) except +
        Totals explore(const Schedule&, u64) except +
        Exploration& exploration()
        void latent_races_fail(cbool)
        void may_end_early(cbool)
        void start_over()


cdef cbool run_check(void* explorer) noexcept with gil:
    cdef Explorer self = <Explorer>explorer
    self.world.busy = False  # the schedule is over: a check may ask the world's devices
    try:
        return bool(self.check())
    except BaseException as error:
        self.pending = error
        return False
    finally:
        self.world.busy = True


cdef void run_action(void* action) noexcept with gil:
    explorer, act = <object>action
    (<Explorer>explorer).world.busy = False  # what the host does now, it does between two steps of this very schedule
    try:
        act()
    except BaseException as error:
        (<Explorer>explorer).pending = error
    finally:
        (<Explorer>explorer).world.busy = True


cdef Schedule to_schedule(u32 search, u64 seed, u32 depth, double steps, list decisions, bint faults):
    cdef Schedule s
    s.search = <Search>search
    s.seed = seed
    s.depth = depth
    s.steps_expected = steps
    s.faults = faults
    for decision in decisions:
        s.decisions.push_back(decision)
    return s


cdef class Explorer:
    """Schedules of one world's launches. The world keeps launches from now on, and runs them in `run` and `explore`."""

    cdef CppExplorer* explorer
    cdef World world
    cdef object check
    cdef object pending
    cdef list actions

    def __cinit__(self, World world):
        self.world = world
        self.actions = []
        self.explorer = new CppExplorer(world.world[0])

    def __dealloc__(self):
        del self.explorer

    def expect(self, uintptr_t address, bytes data):
        self.explorer.expect(<const void*>address, <const char*>data, len(data))

    def watch_report(self, uintptr_t address):
        self.explorer.watch_report(<const void*>address)

    def add_action(self, act, u32 within=1):
        """`act()` is called once a schedule, at any point of it that the schedule chooses, from one of the first
        `within` messages on."""
        pair = (self, act)
        self.actions.append(pair)
        self.world.world.add_action(run_action, <void*>pair, within)

    def keep_launches(self, bint on):
        """Off: launches run in World.run and are over, as if there were no explorer."""
        self.world.world.keep_launches(on)

    def may_end_early(self, bint on):
        self.explorer.may_end_early(on)

    def ready(self, check=None):
        self.check = check
        if check is not None:
            self.explorer.check = run_check
            self.explorer.check_argument = <void*>self
        self.explorer.ready()

    def latent_races_fail(self, bint on):
        self.explorer.latent_races_fail(on)

    def bounds(self, u32 stale=0, u32 switches=0, u32 faults=0):
        cdef Choices* choices = &self.explorer.exploration().choices
        choices.stale_bound, choices.switch_bound, choices.fault_bound = stale, switches, faults

    def start_over(self):
        self.explorer.start_over()

    def states(self):
        return self.explorer.exploration().choices.states()

    def mutate(self, str file="", int line=0, u32 what=0, bint removed=False, bint no_acquire=False,
               bint no_release=False, u32 scope=2):
        """Weakens one place from now on; no file: none."""
        cdef Mutation* m = &self.explorer.exploration().mutation
        m.on = file != ""
        m.file = file.encode()
        m.line = line
        m.what = <Primitive>what
        m.removed, m.no_acquire, m.no_release, m.scope, m.hits = removed, no_acquire, no_release, scope, 0

    def mutation_hits(self):
        return self.explorer.exploration().mutation.hits

    def watch_sites(self, bint on):
        self.explorer.exploration().watch_sites = on

    def sites(self):
        """(file, line, primitive) of every primitive that ran while they were watched."""
        cdef u64 where
        cdef unordered_set[u64] there
        found = []
        for primitive in range(6):
            there = self.explorer.exploration().sites[primitive]
            for where in there:
                file, line = place(where)
                found.append((file, line, primitive))
        return found

    def run(self, u32 search=0, u64 seed=0, u32 depth=3, double steps=100, list decisions=[], bint faults=True,
            bint record=False):
        """One schedule: dict(verdict, hash, decisions, detail, trail). The world stays as it ends until the next."""
        cdef Schedule schedule = to_schedule(search, seed, depth, steps, decisions, faults)
        cdef Judged judged
        if self.world.busy:
            raise RuntimeError("this world is running already; a world is used by one thread at a time")
        self.world.busy = True
        self.explorer.exploration().memory.record(record)
        try:
            self.world.world.ask_to_stop(signalled, <void*>self.world)
            with nogil:
                judged = self.explorer.run(schedule)
        finally:
            self.world.busy = False
            self.explorer.exploration().memory.record(False)
        self.give_back()
        return dict(verdict=<u32>judged.verdict, hash=judged.hash, decisions=judged.decisions, detail=judged.detail,
                    trail=list(self.explorer.exploration().choices.trail()))

    def explore(self, u32 search=0, u64 seed=0, u64 count=1, u32 depth=3, double steps=100, bint faults=True):
        """Up to `count` schedules, until one fails: dict of totals and of the last one."""
        cdef Schedule schedule = to_schedule(search, seed, depth, steps, [], faults)
        cdef Totals t
        if self.world.busy:
            raise RuntimeError("this world is running already; a world is used by one thread at a time")
        self.world.busy = True
        try:
            self.world.world.ask_to_stop(signalled, <void*>self.world)
            with nogil:
                t = self.explorer.explore(schedule, count)
        finally:
            self.world.busy = False
        self.give_back()
        return dict(schedules=t.schedules, pruned=t.pruned, distinct=t.distinct, stale_loads=t.stale_loads,
                    failures=t.failures, first_failing_seed=t.first_failing_seed, done=t.done,
                    verdict=<u32>t.last.verdict, hash=t.last.hash, decisions=t.last.decisions, detail=t.last.detail,
                    trail=list(self.explorer.exploration().choices.trail()))

    cdef give_back(self):
        if self.pending is not None:
            error, self.pending = self.pending, None
            raise error
        if self.world.pending is not None:
            error, self.world.pending = self.world.pending, None
            raise error

    def race(self):
        """The first pair of accesses of the last schedule that nothing orders, or None."""
        cdef const Race* race = self.explorer.exploration().memory.race()
        if race == NULL:
            return None
        return dict(address=race.address, first=access_of(race.first), second=access_of(race.second))

    def steps(self):
        """What the last recorded schedule did, step by step."""
        cdef vector[MemoryStep] steps = self.explorer.exploration().memory.steps()
        cdef MemoryStep s
        found = []
        for s in steps:
            file, line = place(s.where)
            found.append(dict(kind=<u32>s.kind, agent=s.agent, order=<u32>s.order, scope=s.scope, address=s.address,
                              bytes=s.bytes, value=s.value, file=file, line=line, number=s.number,
                              come_from=s.come_from, newer=s.newer,
                              note="" if s.note == NULL else (<bytes>s.note).decode(),
                              detail=(s.detail[0], s.detail[1], s.detail[2])))
        return found

    def agents(self):
        """Who is who in steps and races: (agent, dict)."""
        cdef FibreAgent f
        cdef HcaAgent h
        found = {}
        cdef vector[FibreAgent] fibres = self.world.world.fibre_agents()
        cdef vector[HcaAgent] hcas = self.world.world.hca_agents()
        for f in fibres:
            found[f.agent] = dict(rank=f.gpu, block=(f.block.x, f.block.y, f.block.z), thread=f.thread,
                                  kernel=(<bytes>f.kernel).decode())
        for h in hcas:
            found[h.agent] = dict(hca=h.hca, qpn=h.qpn, requester=bool(h.requester))
        cdef BulkAgent b
        cdef vector[BulkAgent] bulks = self.world.world.bulk_agents()
        for b in bulks:
            found[b.agent] = dict(bulk=b.by)
        return found

    def shared(self):
        """Variables in shared memory of the last schedule, the newest first: (address, bytes, name, rank, block)."""
        cdef SharedName s
        cdef vector[SharedName] names = self.world.world.shared_names()
        found = []
        for s in names:
            found.append((<uintptr_t>s.address, s.bytes, (<bytes>s.name).decode(), s.gpu, s.block.x))
        return found[::-1]

    def mbarriers(self):
        """Addresses of mbarriers that bulk copies have arrived at."""
        cdef vector[const u64*] words = self.world.world.mbarriers()
        cdef const u64* word
        found = set()
        for word in words:
            found.add(<uintptr_t>word)
        return found


cdef tuple place(u64 where):
    """(file, line), or ("", address) of an instruction."""
    if where == 0:
        return "", 0
    if where & 0xffff:
        return (<bytes><const char*><uintptr_t>(where >> 16)).decode(), where & 0xffff
    return "", where >> 16


cdef dict access_of(Access a):
    file, line = place(a.where)
    return dict(agent=a.agent, write=bool(a.write), strong=bool(a.strong), scope=a.scope, file=file, line=line)
