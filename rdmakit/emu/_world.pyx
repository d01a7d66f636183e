# cython: language_level=3, embedsignature=True
"""The emulated world as C++ has it: numbers in, numbers out. rdmakit.emu puts objects round it.

Leans on rdmakit/emu/run (scheduler, launches) and rdmakit/emu/hca (the device model). Every method that can be refused
raises VerbRefused(errno, message); the caller, who knows the object and the remedy, turns it into a typed error.
"""
from libc.stdint cimport uint8_t, uintptr_t
from libc.string cimport memcpy, strncpy
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.unordered_set cimport unordered_set
from libcpp.vector cimport vector
from cpython.exc cimport PyErr_CheckSignals


cdef extern from "run/world.hpp" namespace "rdmakit" nogil:
    ctypedef unsigned long long u64
    ctypedef unsigned int u32

cdef extern from "run/world.hpp" namespace "rdmakit::emu" nogil:
    cdef cppclass Status:
        int code
        const char* message
    cdef enum class QpState(u32):
        pass
    cdef enum class LagMode(u32):
        pass
    cdef enum class DoorbellMode(u32):
        pass
    cdef enum class Policy(u32):
        pass
    cdef enum class RunOutcome(u32):
        pass
    cdef enum class AsyncEventType(u32):
        pass
    cdef cppclass Gid:
        uint8_t raw[16]
    cdef cppclass HcaTiming:
        u64 doorbell_to_fetch_ps, wqe_gap_ps, qp_wqe_gap_ps, payload_fetch_ps, port_bytes_per_second
        u64 wire_bytes_per_packet, wire_latency_ps, placement_ps, completion_ps
        u64 qp_bytes_per_second, qp_window_bytes, pcie_bytes_per_second, atomic_gap_ps
        u32 proxy_threads
        u64 proxy_poll_ps, proxy_post_ps, proxy_doorbell_ps
        bint proxy_fences
    cdef cppclass NetworkConfig:
        u32 hosts, nics, ports, planes, hosts_per_leaf, spines, hash_seed
        cbool rails, bonded, roce, adaptive
        u64 uplink_bytes_per_second, hop_latency_ps, pause_threshold_bytes
    cdef cppclass LinkUse:
        u32 leaf, spine
        cbool up
        u64 bytes, busy_ps
    cdef cppclass TraceEvent:
        u64 when_ps, until_ps, index, bytes
        u32 kind, unit, qpn, port
    cdef cppclass Trace:
        const vector[TraceEvent]& events()
        u64 left_out()
    cdef cppclass NvlinkUse:
        u64 bytes, busy_ps
    cdef cppclass Nvlink:
        void set_rate(u64)
        void add_memory(const void*, u64, u32)
        const vector[NvlinkUse]& use()
    cdef cppclass HcaConfig:
        char name[32]
        u32 ports
        LagMode lag
        cbool roce
        u32 active_mtu
        DoorbellMode doorbell
        cbool atomic_8b_host_endian
        u32 rnr_turns, retry_turns
        HcaTiming timing
        u32 host, nic
    cdef cppclass CqAttr:
        u32 log_entries, cqe_bytes
        cbool collapsed, overrun_ignore
        void* buffer
        u32* dbrec
    cdef cppclass CqInfo:
        u32 cqn, log_entries, cqe_bytes
        cbool collapsed, overrun_ignore, dead
        void* buffer
        u32* dbrec
        u64 produced, overwritten
        u32 users
    cdef cppclass QpAttr:
        u32 pd, send_cq, recv_cq, log_sq_bbs, log_rq_wqes, max_recv_sge, max_inline
        cbool sq_sig_all, scatter_to_cqe_requester, scatter_to_cqe_responder, out_of_order
        DoorbellMode doorbell
        u32 uar, user_index
        void* sq_buffer
        void* rq_buffer
        u32* dbrec
    cdef cppclass AddressVector:
        Gid dgid
        u32 dlid, flow_label, sgid_index, hop_limit, traffic_class, sl, static_rate, src_path_bits
        cbool is_global
        u32 port_num
    cdef cppclass QpModify:
        QpState qp_state, cur_qp_state
        u32 path_mtu, qp_access_flags, pkey_index, port_num
        AddressVector ah
        u32 dest_qp_num, rq_psn, sq_psn, max_rd_atomic, max_dest_rd_atomic
        u32 min_rnr_timer, timeout, retry_cnt, rnr_retry, path_mig_state
        cbool en_sqd_async_notify
    cdef cppclass QpCounters:
        u64 doorbells, doorbells_ignored, send_wqes, send_bbs, receive_wqes, cqes, errors, flushed
        u64 xmit_payload, rcv_payload, xmit_packets, rnr_naks_received, retries
    cdef cppclass QpInfo:
        u32 qpn
        QpState state
        QpAttr create
        QpModify attr
        u32 rq_stride
        void* uar_register
        u64 sq_producer, sq_issued, sq_completed, rq_consumed
        u32 udp_source_port, physical_port, lag_affinity
        QpCounters counters
    cdef cppclass PortCounters:
        u64 xmit_data, xmit_bytes, xmit_packets, xmit_payload, rcv_data, rcv_bytes, rcv_packets, rcv_payload
        u64 xmit_busy_ps, rcv_busy_ps, paused_ps
    cdef cppclass HcaCounters:
        u64 doorbells, doorbells_unknown_qp, doorbells_wrong_uar, doorbells_wrong_state, doorbells_no_progress
        u64 doorbells_split, wqes, atomics, cqes, errors, flushed, rnr_naks, retries, async_events, cq_overruns
        u64 duplicate_request, out_of_sequence, rx_icrc_encapsulated, packet_seq_err, implied_nak_seq_err
        u64 local_ack_timeout_err, atomics_replayed, packets_lost, responses_lost, doorbells_lost, doorbells_late
        u64 late_writes
        u64 wqe_busy_ps, pcie_read_busy_ps, pcie_write_busy_ps, atomic_busy_ps, proxy_busy_ps
    cdef cppclass UarPage:
        u32 index
        void* page
        void* registers
    cdef cppclass MrInfo:
        u32 key, pd, access
        u64 iova, length
        void* memory
    cdef cppclass AsyncEvent:
        AsyncEventType type
        u32 number, syndrome
    cdef cppclass Hca:
        HcaCounters counters()
        Status add_address(u32, const Gid&, u32)
        u32 ib_ports()
        Status alloc_pd(u32*)
        Status dealloc_pd(u32)
        Status reg_mr(u32, void*, u64, u32, u32*)
        Status reg_mr_iova(u32, void*, u64, u64, u32, u32*)
        Status dereg_mr(u32)
        Status rereg_mr(u32, u32, void*, u64, u32, u32*)
        Status query_mr(u32, MrInfo*)
        u32 live_mrs()
        Status create_cq(const CqAttr&, u32*)
        Status destroy_cq(u32)
        Status query_cq(u32, CqInfo*)
        Status arm_cq(u32, cbool)
        Status create_qp(const QpAttr&, u32*)
        Status destroy_qp(u32)
        Status modify_qp(u32, const QpModify&, u32)
        Status query_qp(u32, QpInfo*)
        Status modify_qp_udp_sport(u32, u32)
        Status query_qp_lag_port(u32, u32*, u32*)
        Status modify_qp_lag_port(u32, u32)
        Status alloc_uar(UarPage*)
        Status free_uar(u32)
        UarPage default_uar()
        void mmio_write64(const void*, u64)
        void mmio_write32(const void*, u32)
        void receive_posted(u32)
        cbool port_up(u32)
        void set_port_up(u32, cbool)
        PortCounters port_counters(u32)
    cdef u32 rq_stride_bytes "rdmakit::emu::Hca::rq_stride_bytes"(u32)
    cdef cppclass Dim:
        u32 x, y, z
    cdef cppclass KernelEntry "rdmakit::cpu::KernelEntry":
        const char* name
        const ArgumentType* arguments
        u32 argument_count, policy, lanes, layout_version
    cdef cppclass ArgumentType "rdmakit::cpu::ArgumentType":
        u32 kind, bytes
    cdef cppclass LaunchSpec:
        const KernelEntry* kernel
        Dim grid, block
        u32 shared_bytes, gpu, stream
        void* section_begin
        u64 section_bytes
        const void* arguments
        const u32* offsets
        u64 argument_bytes
    cdef cppclass WorldConfig:
        Policy policy
        u64 seed
        u32 gpus, resident_warps
        cbool data_in_order
    cdef cppclass Waiting:
        u64 fibre
        string kernel, what, state, file
        u32 gpu, thread, qpn, peer, channel
        Dim block
        int line
        u64 expected, seen, address
        u32 bytes
    cdef cppclass NamedEvent:
        u32 hca
        AsyncEvent event
    cdef cppclass DeviceError:
        string kernel, why
        u32 gpu, thread
        Dim block
    cdef cppclass LaunchTime:
        u64 number, begin_ps, end_ps
        u32 gpu
        string kernel
    cdef cppclass SchedulerCounters:
        u64 switches, parks, wakes, events, stale_loads, sweeps
    cdef cppclass HcaAgent:
        u32 agent, hca, qpn
        cbool requester
    cdef cppclass FibreAgent:
        u32 agent, gpu, thread
        Dim block
        const char* kernel
    cdef cppclass BulkAgent:
        u32 agent, by
    cdef cppclass SharedName:
        const void* address
        u64 bytes
        const char* name
        u32 gpu
        Dim block
    cdef enum class MishapKind(u32):
        pass
    cdef cppclass FaultPlan:
        u64 per_billion[11]
        u64 delay_ps[11]
        u64 port_skew_ps, budget
    cdef cppclass FaultCounters:
        u64 happened[11]
    cdef cppclass Mishap:
        MishapKind kind
        u32 subject, number
        u64 when_ps, after_messages
    cdef cppclass Straggler:
        u32 rank, factor
    cdef cppclass WorldFaults:
        FaultPlan plan
        vector[Mishap] mishaps
        vector[Straggler] stragglers
    cdef u32 kFaultKinds "rdmakit::emu::kFaultKinds"
    cdef u32 kMishapKinds "rdmakit::emu::kMishapKinds"
    cdef cppclass CppWorld "rdmakit::emu::World":
        CppWorld(const WorldConfig&) except +
        Hca* add_hca(const HcaConfig&) except +
        u32 hca_count()
        Hca* hca(u32)
        void set_network(const NetworkConfig&) except +
        void start_trace(u64)
        void stop_trace()
        const Trace& trace()
        vector[LinkUse] links()
        Nvlink& nvlink()
        u64* costs()
        string launch(const LaunchSpec&) except +
        RunOutcome run() except +
        void ask_to_stop(cbool (*)(void*) noexcept, void*)
        void ask_outside(cbool (*)(void*, cbool) noexcept, void*)
        const vector[Waiting]& waiting()
        vector[DeviceError] take_errors()
        vector[NamedEvent] take_events()
        vector[LaunchTime] take_launch_times()
        void set_copy_payload(cbool)
        void set_faults(const WorldFaults&) except +
        void revive(u32)
        vector[u32] dead_ranks()
        u64 died_ps(u32)
        const FaultCounters& fault_counters()
        u64 mishaps_happened(MishapKind)
        u64 messages()
        u64 now_ns()
        const SchedulerCounters& counters()
        void add_action(void (*)(void*) noexcept, void*, u32) except +
        void keep_launches(cbool)
        const vector[HcaAgent]& hca_agents()
        const vector[FibreAgent]& fibre_agents()
        const vector[BulkAgent]& bulk_agents()
        const vector[SharedName]& shared_names()
        const vector[const u64*]& mbarriers()


class VerbRefused(Exception):
    """A verb that the device refused: .code is the errno, .message the device's reason."""

    def __init__(self, int code, str message):
        super().__init__(code, message)
        self.code = code
        self.message = message


cdef int accept(Status status) except -1:
    if status.code != 0:
        raise VerbRefused(status.code, (<bytes>status.message).decode())
    return 0


cdef Gid to_gid(bytes raw) except *:
    cdef Gid gid
    if len(raw) != 16:
        raise ValueError("a GID has 16 bytes")
    memcpy(gid.raw, <const char*>raw, 16)
    return gid


cdef cbool signalled(void* world) noexcept with gil:
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<World>world).pending = error
        return True
    return False


cdef cbool outside(void* world, cbool moved) noexcept with gil:
    try:
        return (<World>world).beyond(moved)
    except BaseException as error:
        (<World>world).pending = error
    return False


def kernel_entry(uintptr_t address):
    """Describes the kernel entry at `address`: (name, policy, lanes, layout_version, ((kind, bytes), ...))."""
    cdef const KernelEntry* entry = <const KernelEntry*>address
    return ((<bytes>entry.name).decode(), entry.policy, entry.lanes, entry.layout_version,
            tuple((entry.arguments[i].kind, entry.arguments[i].bytes) for i in range(entry.argument_count)))


def rq_stride(u32 max_recv_sge):
    """Bytes of a receive WQE that holds so many scatter entries."""
    return rq_stride_bytes(max_recv_sge)


cdef class World:
    """One world: GPUs, HCAs, a fabric, a scheduler. Not thread-safe; `run` releases the GIL."""

    cdef CppWorld* world
    cdef bint busy
    cdef object pending  # what a signal handler raised, or who is asked outside
    cdef object beyond

    def __cinit__(self, u32 policy=0, u64 seed=0, u32 gpus=1, u32 resident_warps=132 * 64, bint data_in_order=False):
        cdef WorldConfig config
        config.policy = <Policy>policy
        config.seed = seed
        config.gpus = gpus
        config.resident_warps = resident_warps
        config.data_in_order = data_in_order
        self.busy = False
        self.world = new CppWorld(config)

    def __dealloc__(self):
        del self.world

    cdef Hca* at(self, u32 index) except NULL:
        if self.busy:
            raise RuntimeError("this world is running in another thread; a world is used by one thread at a time")
        if index >= self.world.hca_count():
            raise IndexError(index)
        return self.world.hca(index)

    # ---- devices
    def add_hca(self, dict config):
        cdef HcaConfig c
        strncpy(c.name, <bytes>config["name"].encode(), 31)
        c.ports = config["ports"]
        c.lag = <LagMode><u32>config["lag"]
        c.roce = config["roce"]
        c.active_mtu = config["active_mtu"]
        c.doorbell = <DoorbellMode><u32>config["doorbell"]
        c.atomic_8b_host_endian = config.get("atomic_8b_host_endian", True)
        c.host, c.nic = config.get("host", 0), config.get("nic", 0)
        if "port_bytes_per_second" in config:
            c.timing.port_bytes_per_second = config["port_bytes_per_second"]
        c.timing.doorbell_to_fetch_ps = config.get("doorbell_to_fetch_ps", c.timing.doorbell_to_fetch_ps)
        c.timing.wqe_gap_ps = config.get("wqe_gap_ps", c.timing.wqe_gap_ps)
        c.timing.qp_wqe_gap_ps = config.get("qp_wqe_gap_ps", c.timing.qp_wqe_gap_ps)
        c.timing.payload_fetch_ps = config.get("payload_fetch_ps", c.timing.payload_fetch_ps)
        c.timing.wire_bytes_per_packet = config.get("wire_bytes_per_packet", c.timing.wire_bytes_per_packet)
        c.timing.wire_latency_ps = config.get("wire_latency_ps", c.timing.wire_latency_ps)
        c.timing.placement_ps = config.get("placement_ps", c.timing.placement_ps)
        c.timing.completion_ps = config.get("completion_ps", c.timing.completion_ps)
        c.timing.qp_bytes_per_second = config.get("qp_bytes_per_second", 0)
        c.timing.qp_window_bytes = config.get("qp_window_bytes", 0)
        c.timing.pcie_bytes_per_second = config.get("pcie_bytes_per_second", 0)
        c.timing.atomic_gap_ps = config.get("atomic_gap_ps", 0)
        c.timing.proxy_threads = config.get("proxy_threads", 0)
        c.timing.proxy_poll_ps = config.get("proxy_poll_ps", 0)
        c.timing.proxy_post_ps = config.get("proxy_post_ps", 0)
        c.timing.proxy_doorbell_ps = config.get("proxy_doorbell_ps", 0)
        c.timing.proxy_fences = config.get("proxy_fences", 0) != 0
        self.world.add_hca(c)
        return self.world.hca_count() - 1

    def set_network(self, dict config):
        """The switches between HCAs; before anything runs. Names as in struct NetworkConfig."""
        cdef NetworkConfig c
        c.hosts, c.nics, c.ports = config["hosts"], config["nics"], config["ports"]
        c.planes, c.hosts_per_leaf, c.spines = config["planes"], config["hosts_per_leaf"], config["spines"]
        c.hash_seed, c.rails, c.bonded = config["hash_seed"], config["rails"], config["bonded"]
        c.roce, c.adaptive = config["roce"], config["adaptive"]
        c.uplink_bytes_per_second, c.hop_latency_ps = config["uplink_bytes_per_second"], config["hop_latency_ps"]
        c.pause_threshold_bytes = config["pause_threshold_bytes"]
        self.world.set_network(c)

    def start_trace(self, u64 most):
        self.world.start_trace(most)

    def stop_trace(self):
        """Bytes of an array of struct TraceEvent, and how many events did not fit."""
        self.world.stop_trace()
        cdef vector[TraceEvent] events = self.world.trace().events()
        if events.empty():
            return b"", self.world.trace().left_out()
        return (<const char*>events.data())[:events.size() * sizeof(TraceEvent)], self.world.trace().left_out()

    def links(self):
        """(leaf, spine, up, bytes, busy_ps) of every link between switches."""
        cdef LinkUse use
        cdef vector[LinkUse] found = self.world.links()
        return [(use.leaf, use.spine, use.up, use.bytes, use.busy_ps) for use in found]

    def set_costs(self, list costs):
        """Picoseconds by cost::Kind."""
        for kind, cost in enumerate(costs):
            self.world.costs()[<u32>kind] = cost

    def set_nvlink(self, u64 bytes_per_second):
        self.world.nvlink().set_rate(bytes_per_second)

    def add_gpu_memory(self, uintptr_t address, u64 length, u32 gpu):
        self.world.nvlink().add_memory(<const void*>address, length, gpu)

    def nvlink_use(self):
        """(bytes, busy_ps) of each GPU with memory that is known, as the sender."""
        cdef NvlinkUse use
        cdef vector[NvlinkUse] found = self.world.nvlink().use()
        return [(use.bytes, use.busy_ps) for use in found]

    def add_address(self, u32 h, u32 port, bytes gid, u32 lid):
        accept(self.at(h).add_address(port, to_gid(gid), lid))

    def hca_counters(self, u32 h):
        cdef HcaCounters c = self.at(h).counters()
        return dict(doorbells=c.doorbells, doorbells_unknown_qp=c.doorbells_unknown_qp,
                    doorbells_wrong_uar=c.doorbells_wrong_uar, doorbells_wrong_state=c.doorbells_wrong_state,
                    doorbells_no_progress=c.doorbells_no_progress, doorbells_split=c.doorbells_split, wqes=c.wqes,
                    atomics=c.atomics, cqes=c.cqes, errors=c.errors, flushed=c.flushed, rnr_naks=c.rnr_naks,
                    retries=c.retries, async_events=c.async_events, cq_overruns=c.cq_overruns,
                    duplicate_request=c.duplicate_request, out_of_sequence=c.out_of_sequence,
                    rx_icrc_encapsulated=c.rx_icrc_encapsulated, packet_seq_err=c.packet_seq_err,
                    implied_nak_seq_err=c.implied_nak_seq_err, local_ack_timeout_err=c.local_ack_timeout_err,
                    atomics_replayed=c.atomics_replayed, packets_lost=c.packets_lost,
                    responses_lost=c.responses_lost, doorbells_lost=c.doorbells_lost,
                    doorbells_late=c.doorbells_late, late_writes=c.late_writes, wqe_busy_ps=c.wqe_busy_ps,
                    pcie_read_busy_ps=c.pcie_read_busy_ps, pcie_write_busy_ps=c.pcie_write_busy_ps,
                    atomic_busy_ps=c.atomic_busy_ps, proxy_busy_ps=c.proxy_busy_ps)

    # ---- PD, MR
    def alloc_pd(self, u32 h):
        cdef u32 pd = 0
        accept(self.at(h).alloc_pd(&pd))
        return pd

    def dealloc_pd(self, u32 h, u32 pd):
        accept(self.at(h).dealloc_pd(pd))

    def reg_mr(self, u32 h, u32 pd, uintptr_t address, u64 length, u32 access, iova=None):
        cdef u32 key = 0
        if iova is None:
            accept(self.at(h).reg_mr(pd, <void*>address, length, access, &key))
        else:
            accept(self.at(h).reg_mr_iova(pd, <void*>address, length, iova, access, &key))
        return key

    def rereg_mr(self, u32 h, u32 key, u32 pd, uintptr_t address, u64 length, u32 access):
        cdef u32 fresh = 0
        accept(self.at(h).rereg_mr(key, pd, <void*>address, length, access, &fresh))
        return fresh

    def dereg_mr(self, u32 h, u32 key):
        accept(self.at(h).dereg_mr(key))

    def live_mrs(self, u32 h):
        return self.at(h).live_mrs()

    # ---- CQ
    def create_cq(self, u32 h, u32 log_entries, u32 cqe_bytes, bint collapsed, bint overrun_ignore,
                  uintptr_t buffer=0, uintptr_t dbrec=0):
        """`buffer` and `dbrec` are memory of the caller's, which outlives the CQ; 0: the HCA's own."""
        cdef CqAttr attr
        cdef u32 cqn = 0
        attr.buffer = <void*>buffer
        attr.dbrec = <u32*>dbrec
        attr.log_entries = log_entries
        attr.cqe_bytes = cqe_bytes
        attr.collapsed = collapsed
        attr.overrun_ignore = overrun_ignore
        accept(self.at(h).create_cq(attr, &cqn))
        return cqn

    def destroy_cq(self, u32 h, u32 cqn):
        accept(self.at(h).destroy_cq(cqn))

    def arm_cq(self, u32 h, u32 cqn, bint solicited_only):
        accept(self.at(h).arm_cq(cqn, solicited_only))

    def query_cq(self, u32 h, u32 cqn):
        cdef CqInfo info
        accept(self.at(h).query_cq(cqn, &info))
        return dict(cqn=info.cqn, log_entries=info.log_entries, cqe_bytes=info.cqe_bytes, collapsed=info.collapsed,
                    overrun_ignore=info.overrun_ignore, dead=info.dead, buffer=<uintptr_t>info.buffer,
                    dbrec=<uintptr_t>info.dbrec, produced=info.produced, overwritten=info.overwritten,
                    users=info.users)

    # ---- QP
    def create_qp(self, u32 h, dict a):
        cdef QpAttr attr
        cdef u32 qpn = 0
        attr.pd = a["pd"]
        attr.send_cq = a["send_cq"]
        attr.recv_cq = a["recv_cq"]
        attr.log_sq_bbs = a["log_sq_bbs"]
        attr.log_rq_wqes = a["log_rq_wqes"]
        attr.max_recv_sge = a["max_recv_sge"]
        attr.max_inline = a["max_inline"]
        attr.sq_sig_all = a["sq_sig_all"]
        attr.scatter_to_cqe_requester = a["scatter_to_cqe_requester"]
        attr.scatter_to_cqe_responder = a["scatter_to_cqe_responder"]
        attr.out_of_order = a.get("out_of_order", False)
        attr.doorbell = <DoorbellMode><u32>a["doorbell"]
        attr.uar = a["uar"]
        attr.sq_buffer = <void*><uintptr_t>a.get("sq_buffer", 0)
        attr.rq_buffer = <void*><uintptr_t>a.get("rq_buffer", 0)
        attr.dbrec = <u32*><uintptr_t>a.get("dbrec", 0)
        accept(self.at(h).create_qp(attr, &qpn))
        return qpn

    def destroy_qp(self, u32 h, u32 qpn):
        accept(self.at(h).destroy_qp(qpn))

    def modify_qp(self, u32 h, u32 qpn, dict a, u32 mask):
        """`a` holds attributes by their names in struct ibv_qp_attr; `mask` says which count."""
        cdef QpModify m
        m.qp_state = <QpState><u32>a.get("qp_state", 0)
        m.cur_qp_state = <QpState><u32>a.get("cur_qp_state", 0)
        m.path_mtu = a.get("path_mtu", 5)
        m.qp_access_flags = a.get("qp_access_flags", 0)
        m.pkey_index = a.get("pkey_index", 0)
        m.port_num = a.get("port_num", 1)
        m.dest_qp_num = a.get("dest_qp_num", 0)
        m.rq_psn = a.get("rq_psn", 0)
        m.sq_psn = a.get("sq_psn", 0)
        m.max_rd_atomic = a.get("max_rd_atomic", 16)
        m.max_dest_rd_atomic = a.get("max_dest_rd_atomic", 16)
        m.min_rnr_timer = a.get("min_rnr_timer", 12)
        m.timeout = a.get("timeout", 14)
        m.retry_cnt = a.get("retry_cnt", 7)
        m.rnr_retry = a.get("rnr_retry", 7)
        m.en_sqd_async_notify = a.get("en_sqd_async_notify", False)
        m.path_mig_state = a.get("path_mig_state", 0)
        if "dgid" in a:
            m.ah.dgid = to_gid(a["dgid"])
        m.ah.is_global = bool(a.get("is_global", "dgid" in a))
        m.ah.dlid = a.get("dlid", 0)
        m.ah.flow_label = a.get("flow_label", 0)
        m.ah.sgid_index = a.get("sgid_index", 0)
        m.ah.hop_limit = a.get("hop_limit", 64)
        m.ah.traffic_class = a.get("traffic_class", 0)
        m.ah.sl = a.get("sl", 0)
        m.ah.static_rate = a.get("static_rate", 0)
        m.ah.src_path_bits = a.get("src_path_bits", 0)
        m.ah.port_num = a.get("ah_port_num", a.get("port_num", 1))
        accept(self.at(h).modify_qp(qpn, m, mask))

    def query_qp(self, u32 h, u32 qpn):
        cdef QpInfo i
        accept(self.at(h).query_qp(qpn, &i))
        return dict(
            qpn=i.qpn, state=<u32>i.state, pd=i.create.pd, send_cq=i.create.send_cq, recv_cq=i.create.recv_cq,
            log_sq_bbs=i.create.log_sq_bbs, log_rq_wqes=i.create.log_rq_wqes, max_recv_sge=i.create.max_recv_sge,
            max_inline=i.create.max_inline, sq_sig_all=i.create.sq_sig_all, doorbell=<u32>i.create.doorbell,
            out_of_order=i.create.out_of_order,
            uar=i.create.uar, sq_buffer=<uintptr_t>i.create.sq_buffer, rq_buffer=<uintptr_t>i.create.rq_buffer,
            dbrec=<uintptr_t>i.create.dbrec, rq_stride=i.rq_stride, uar_register=<uintptr_t>i.uar_register,
            sq_producer=i.sq_producer, sq_issued=i.sq_issued, sq_completed=i.sq_completed,
            rq_consumed=i.rq_consumed, udp_source_port=i.udp_source_port, physical_port=i.physical_port,
            lag_affinity=i.lag_affinity, path_mtu=i.attr.path_mtu, qp_access_flags=i.attr.qp_access_flags,
            port_num=i.attr.port_num, dest_qp_num=i.attr.dest_qp_num, rnr_retry=i.attr.rnr_retry,
            retry_cnt=i.attr.retry_cnt, flow_label=i.attr.ah.flow_label, sgid_index=i.attr.ah.sgid_index,
            hop_limit=i.attr.ah.hop_limit, traffic_class=i.attr.ah.traffic_class, sl=i.attr.ah.sl,
            static_rate=i.attr.ah.static_rate, src_path_bits=i.attr.ah.src_path_bits,
            is_global=int(i.attr.ah.is_global), dgid=bytes(i.attr.ah.dgid.raw[:16]), dlid=i.attr.ah.dlid,
            path_mig_state=i.attr.path_mig_state,
            counters=dict(doorbells=i.counters.doorbells, doorbells_ignored=i.counters.doorbells_ignored,
                          send_wqes=i.counters.send_wqes, send_bbs=i.counters.send_bbs,
                          receive_wqes=i.counters.receive_wqes, cqes=i.counters.cqes, errors=i.counters.errors,
                          flushed=i.counters.flushed, xmit_payload=i.counters.xmit_payload,
                          rcv_payload=i.counters.rcv_payload, xmit_packets=i.counters.xmit_packets,
                          rnr_naks_received=i.counters.rnr_naks_received, retries=i.counters.retries))

    def qp_now(self, u32 h, u32 qpn):
        """What is asked of every queue pair, again and again: state, physical port, doorbell register."""
        cdef QpInfo i
        accept(self.at(h).query_qp(qpn, &i))
        return <u32>i.state, i.physical_port, <uintptr_t>i.uar_register

    def modify_qp_udp_sport(self, u32 h, u32 qpn, u32 port):
        accept(self.at(h).modify_qp_udp_sport(qpn, port))

    def query_qp_lag_port(self, u32 h, u32 qpn):
        cdef u32 configured = 0, active = 0
        accept(self.at(h).query_qp_lag_port(qpn, &configured, &active))
        return configured, active

    def modify_qp_lag_port(self, u32 h, u32 qpn, u32 port):
        accept(self.at(h).modify_qp_lag_port(qpn, port))

    # ---- doorbells, ports
    def alloc_uar(self, u32 h):
        cdef UarPage page
        accept(self.at(h).alloc_uar(&page))
        return page.index, <uintptr_t>page.page, <uintptr_t>page.registers

    def free_uar(self, u32 h, u32 index):
        accept(self.at(h).free_uar(index))

    def mmio_write64(self, u32 h, uintptr_t address, u64 value):
        self.at(h).mmio_write64(<void*>address, value)

    def mmio_write32(self, u32 h, uintptr_t address, u32 value):
        self.at(h).mmio_write32(<void*>address, value)

    def receive_posted(self, u32 h, u32 qpn):
        self.at(h).receive_posted(qpn)

    def port_up(self, u32 h, u32 port):
        return self.at(h).port_up(port)

    def set_port_up(self, u32 h, u32 port, bint up):
        self.at(h).set_port_up(port, up)

    def port_counters(self, u32 h, u32 port):
        cdef PortCounters c = self.at(h).port_counters(port)
        return dict(xmit_data=c.xmit_data, xmit_bytes=c.xmit_bytes, xmit_packets=c.xmit_packets,
                    xmit_payload=c.xmit_payload, rcv_data=c.rcv_data, rcv_bytes=c.rcv_bytes,
                    rcv_packets=c.rcv_packets, rcv_payload=c.rcv_payload, xmit_busy_ps=c.xmit_busy_ps,
                    rcv_busy_ps=c.rcv_busy_ps, paused_ps=c.paused_ps)

    # ---- kernels
    def launch(self, uintptr_t entry, tuple grid, tuple block, bytes arguments, tuple offsets, u32 shared_bytes,
               u32 gpu, u32 stream, uintptr_t section, u64 section_bytes):
        """Queues a launch; returns '' or what is wrong with it."""
        cdef LaunchSpec spec
        cdef vector[u32] places
        for offset in offsets:
            places.push_back(offset)
        spec.kernel = <const KernelEntry*>entry
        spec.grid.x, spec.grid.y, spec.grid.z = grid
        spec.block.x, spec.block.y, spec.block.z = block
        spec.shared_bytes = shared_bytes
        spec.gpu = gpu
        spec.stream = stream
        spec.section_begin = <void*>section
        spec.section_bytes = section_bytes
        spec.arguments = <const char*>arguments
        spec.offsets = places.data()
        spec.argument_bytes = len(arguments)
        return self.world.launch(spec).decode()

    def run(self, beyond=None):
        """Runs until all launches have ended and all HCAs are idle: 0 done, 1 hung, 2 a kernel failed.

        Signal handlers of Python are called meanwhile; if one raises (Ctrl-C does), all launches are ended.
        `beyond(moved)` is called when nothing can go on here, since devices outside may write what kernels wait for:
        whether something has moved since the last call; False ends the run as hung, an exception is raised then.
        """
        cdef RunOutcome outcome
        if self.busy:
            raise RuntimeError("this world is running already; a world is used by one thread at a time")
        self.busy = True
        try:
            self.beyond = beyond
            self.world.ask_to_stop(signalled, <void*>self)
            self.world.ask_outside(NULL, NULL)
            if beyond is not None:
                self.world.ask_outside(outside, <void*>self)
            with nogil:
                outcome = self.world.run()
        finally:
            self.busy = False
            self.beyond = None
        if self.pending is not None:
            error, self.pending = self.pending, None
            raise error
        return <u32>outcome

    def waiting(self):
        cdef Waiting w
        cdef vector[Waiting] all_waiting = self.world.waiting()
        result = []
        for w in all_waiting:
            result.append(dict(
                fibre=w.fibre, kernel=w.kernel.decode(), what=w.what.decode(), state=w.state.decode(),
                file=w.file.decode(), line=w.line, rank=w.gpu, block=(w.block.x, w.block.y, w.block.z),
                thread=w.thread, qpn=w.qpn, peer=w.peer, channel=w.channel, expected=w.expected, seen=w.seen,
                address=w.address, bytes=w.bytes))
        return result

    def take_errors(self):
        cdef DeviceError e
        cdef vector[DeviceError] errors = self.world.take_errors()
        return [dict(kernel=e.kernel.decode(), why=e.why.decode(errors="replace"), rank=e.gpu, thread=e.thread,
                     block=(e.block.x, e.block.y, e.block.z)) for e in errors]

    def take_events(self):
        cdef NamedEvent e
        cdef vector[NamedEvent] events = self.world.take_events()
        return [(e.hca, <u32>e.event.type, e.event.number, e.event.syndrome) for e in events]

    def take_launch_times(self):
        cdef LaunchTime t
        cdef vector[LaunchTime] times = self.world.take_launch_times()
        return [(t.kernel.decode(), t.gpu, t.begin_ps, t.end_ps) for t in times]

    def set_copy_payload(self, bint on):
        self.world.set_copy_payload(on)

    # ---- faults
    def set_faults(self, list per_billion, list delay_ps, u64 port_skew_ps, budget, list mishaps, list stragglers):
        """Chances and longest delays by FaultKind; mishaps (kind, subject, number, when_ps, after_messages); stragglers
        (rank, factor). None where there is no bound."""
        cdef WorldFaults f
        cdef Mishap m
        cdef Straggler s
        if len(per_billion) != kFaultKinds or len(delay_ps) != kFaultKinds:
            raise ValueError(f"there are {kFaultKinds} kinds of faults")
        for i in range(kFaultKinds):
            f.plan.per_billion[i] = per_billion[i]
            f.plan.delay_ps[i] = delay_ps[i]
        f.plan.port_skew_ps = port_skew_ps
        f.plan.budget = <u64>-1 if budget is None else budget
        for kind, subject, number, when_ps, after_messages in mishaps:
            m.kind = <MishapKind><u32>kind
            m.subject = subject
            m.number = number
            m.when_ps = <u64>-1 if when_ps is None else when_ps
            m.after_messages = <u64>-1 if after_messages is None else after_messages
            f.mishaps.push_back(m)
        for rank, factor in stragglers:
            s.rank = rank
            s.factor = factor
            f.stragglers.push_back(s)
        self.world.set_faults(f)

    def fault_counters(self):
        """How often each FaultKind, then each MishapKind, has happened."""
        cdef FaultCounters c = self.world.fault_counters()
        return ([c.happened[i] for i in range(kFaultKinds)]
                + [self.world.mishaps_happened(<MishapKind><u32>i) for i in range(kMishapKinds)])

    def messages(self):
        return self.world.messages()

    def dead_ranks(self):
        """(rank, when it died in ns), by rank."""
        return [(rank, self.world.died_ps(rank) / 1000) for rank in self.world.dead_ranks()]

    def revive(self, u32 rank):
        self.world.revive(rank)

    def now_ns(self):
        return self.world.now_ns()

    def counters(self):
        cdef SchedulerCounters c = self.world.counters()
        return dict(switches=c.switches, parks=c.parks, wakes=c.wakes, events=c.events, stale_loads=c.stale_loads,
                    sweeps=c.sweeps)


include "_explorer.pxi"
