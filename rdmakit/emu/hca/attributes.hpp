// attributes.hpp — plain structs of the HCA's verbs: what callers give and what they get back.
// Names and values are those of libibverbs (man ibv_create_qp, ibv_modify_qp, ibv_query_port) where it has them.
#pragma once
#include "timing.hpp"

namespace rdmakit::emu {

// code is 0 or an errno value. message is static, or the HCA's own and valid until its next verb.
struct Status {
    int code = 0;
    const char* message = "";
    bool ok() const { return code == 0; }
};

// Who may do what with an MR (IBV_ACCESS_*), and which remote requests a QP takes (its qp_access_flags).
constexpr u32 kAccessLocalWrite = 1u << 0;
constexpr u32 kAccessRemoteWrite = 1u << 1;
constexpr u32 kAccessRemoteRead = 1u << 2;
constexpr u32 kAccessRemoteAtomic = 1u << 3;
constexpr u32 kAccessRelaxedOrdering = 1u << 20;

enum class QpState : u32 { reset = 0, init = 1, rtr = 2, rts = 3, sqd = 4, sqe = 5, err = 6 };  // enum ibv_qp_state
constexpr u32 kQpStates = 7;

// enum ibv_qp_attr_mask
constexpr u32 kQpAttrState = 1u << 0;
constexpr u32 kQpAttrCurState = 1u << 1;
constexpr u32 kQpAttrEnSqdAsyncNotify = 1u << 2;
constexpr u32 kQpAttrAccessFlags = 1u << 3;
constexpr u32 kQpAttrPkeyIndex = 1u << 4;
constexpr u32 kQpAttrPort = 1u << 5;
constexpr u32 kQpAttrQkey = 1u << 6;
constexpr u32 kQpAttrAv = 1u << 7;
constexpr u32 kQpAttrPathMtu = 1u << 8;
constexpr u32 kQpAttrTimeout = 1u << 9;
constexpr u32 kQpAttrRetryCnt = 1u << 10;
constexpr u32 kQpAttrRnrRetry = 1u << 11;
constexpr u32 kQpAttrRqPsn = 1u << 12;
constexpr u32 kQpAttrMaxQpRdAtomic = 1u << 13;
constexpr u32 kQpAttrAltPath = 1u << 14;
constexpr u32 kQpAttrMinRnrTimer = 1u << 15;
constexpr u32 kQpAttrSqPsn = 1u << 16;
constexpr u32 kQpAttrMaxDestRdAtomic = 1u << 17;
constexpr u32 kQpAttrPathMigState = 1u << 18;
constexpr u32 kQpAttrCap = 1u << 19;
constexpr u32 kQpAttrDestQpn = 1u << 20;
constexpr u32 kQpAttrs = 21;

enum class LagMode : u32 { none = 0, hash = 1, queue_affinity = 2 };

// Who has the last word on how far a send queue was posted.
enum class DoorbellMode : u32 {
    device_default = 0,  // QpAttr only: what HcaConfig says
    dbrec = 1,           // strict: the doorbell record alone, read when the register is written
    register_value = 2,  // the further of record and register
    no_dbr = 3,          // the register alone (ConnectX-8 send_dbr_mode_no_dbr_ext); the record is never read
};

struct Gid {
    u8 raw[16] = {};
};

struct HcaConfig {
    char name[32] = "mlx5_0";
    u32 ports = 2;                     // physical ports, 1 or 2; a bonded pair shows as IB port 1 alone
    LagMode lag = LagMode::none;
    bool port_select_flow_table_bypass = true;  // hash mode: the kernel assigns no affinity (mlx5_ib get_tx_affinity)
    bool roce = true;                  // false: InfiniBand link layer, addressed by LID
    u32 active_mtu = 5;                // enum ibv_mtu: 1 = 256 … 5 = 4096 bytes
    DoorbellMode doorbell = DoorbellMode::dbrec;
    bool atomic_8b_host_endian = true; // atomic_req_8B_endianness_mode, which the kernel driver sets when it loads
    u32 max_log_sq_bbs = 15;           // 16-bit indices tell apart at most half their range
    u32 max_log_rq_wqes = 15;
    u32 max_log_cqes = 22;
    u32 max_recv_sge = 32;
    u32 max_qps = 1u << 18;
    u32 first_qpn = 0, last_qpn = 0xffffff;  // 0: begins anywhere
    u32 max_mrs = 1u << 20;
    u32 max_rd_atomic = 16;
    u32 rnr_turns = 32;                // untimed: calls of work() that one RNR timer lasts
    u32 retry_turns = 32;              // untimed: calls of work() that one transport time-out lasts
    HcaTiming timing;
    u32 host = 0, nic = 0;  // where in the network it hangs
};

struct CqAttr {
    u32 log_entries = 10;
    u32 cqe_bytes = 64;           // 64 or 128
    bool collapsed = false;       // `cc`: every CQE goes into entry 0
    bool overrun_ignore = false;  // `oi`: a full CQ is overwritten instead of dying
    void* buffer = nullptr;       // entries * cqe_bytes, 64-byte aligned; null: the HCA allocates and initialises
    u32* dbrec = nullptr;         // two words, 8-byte aligned; null: the HCA allocates
};

struct CqInfo {
    u32 cqn = 0, log_entries = 0, cqe_bytes = 0;
    bool collapsed = false, overrun_ignore = false, dead = false;
    void* buffer = nullptr;
    u32* dbrec = nullptr;
    u64 produced = 0;    // CQEs written since creation
    u64 overwritten = 0; // CQEs that `oi` wrote over entries not yet consumed, by the record
    u32 users = 0;       // queues that complete to it
    u32 arm_sequence = 0;
};

struct SrqAttr {
    u32 pd = 0;
    u32 log_wqes = 0;
    u32 stride = 32;        // bytes of a WQE: 16 for the link, 16 for each scatter entry; a power of two
    u32 limit = 0;
    void* buffer = nullptr; // stride << log_wqes bytes, 64-byte aligned, its list linked
    u32* dbrec = nullptr;
};

struct QpAttr {
    u32 pd = 0, send_cq = 0, recv_cq = 0;
    u32 srq = 0;                // receives come from there; 0: from a queue of its own
    u32 log_sq_bbs = 7;         // send queue, in WQEBBs of 64 bytes
    u32 log_rq_wqes = 0;        // receive queue, in WQEs; meaningful if max_recv_sge > 0
    u32 max_recv_sge = 0;       // 0: no receive queue
    u32 max_inline = 28;
    bool sq_sig_all = false;
    bool scatter_to_cqe_requester = false;  // READ and atomic results of up to 32 (64) bytes land in the CQE
    bool scatter_to_cqe_responder = false;  // and so do received SENDs; libmlx5's default unless disabled
    bool out_of_order = false;  // MLX5DV_QP_CREATE_OOO_DP: WRITEs in any order, if the peer's QP has it too
    DoorbellMode doorbell = DoorbellMode::device_default;
    u32 uar = 0;                // index from alloc_uar; 0: the device's first page
    u32 user_index = 0;
    void* sq_buffer = nullptr;  // (64 << log_sq_bbs) bytes, 64-byte aligned; null: the HCA allocates
    void* rq_buffer = nullptr;  // (rq stride << log_rq_wqes) bytes, 64-byte aligned; see rq_stride_bytes()
    u32* dbrec = nullptr;       // [0] receive, [1] send; 8-byte aligned; null: the HCA allocates
};

// struct ibv_ah_attr with its global route
struct AddressVector {
    Gid dgid;
    u32 dlid = 0;
    u32 flow_label = 0, sgid_index = 0, hop_limit = 64, traffic_class = 0, sl = 0;
    u32 static_rate = 0;    // enum ibv_rate; 0: as fast as the port
    u32 src_path_bits = 0;  // InfiniBand: kept; a port of one LID (LMC 0) takes none of them into what it sends
    bool is_global = false;
    u32 port_num = 1;
};

constexpr u32 kDriversLagPort = ~0u;

// struct ibv_qp_attr, and behind it what only commands to the device itself say
struct QpModify {
    QpState qp_state = QpState::reset, cur_qp_state = QpState::reset;
    u32 path_mtu = 5;  // enum ibv_mtu
    u32 qp_access_flags = 0, pkey_index = 0, port_num = 1;
    AddressVector ah;
    u32 dest_qp_num = 0, rq_psn = 0, sq_psn = 0;
    u32 max_rd_atomic = 16, max_dest_rd_atomic = 16;
    u32 min_rnr_timer = 12, timeout = 14, retry_cnt = 7, rnr_retry = 7;
    bool en_sqd_async_notify = false;
    u32 path_mig_state = 0;           // enum ibv_mig_state; 0: MIGRATED
    u32 udp_source_port = 0;          // with AV; 0: from the flow label
    u32 lag_port = kDriversLagPort;   // RESET to INIT of a bond; 0: none; by default as the kernel's driver assigns it
};

struct QpCounters {
    u64 doorbells = 0;            // register writes that named this QP
    u64 doorbells_ignored = 0;    // of those: wrong state, wrong UAR page, nothing new
    u64 send_wqes = 0, send_bbs = 0, receive_wqes = 0;  // executed (not flushed)
    u64 cqes = 0, errors = 0, flushed = 0;
    u64 xmit_payload = 0, rcv_payload = 0, xmit_packets = 0;
    u64 rnr_naks_received = 0, retries = 0;
};

struct QpInfo {
    u32 qpn = 0;
    QpState state = QpState::reset;
    QpAttr create;                // with the buffers and the doorbell mode that are in use
    QpModify attr;                // last values set
    u32 rq_stride = 0;            // bytes
    void* uar_register = nullptr; // where to write this QP's 8-byte doorbell
    u64 sq_producer = 0, sq_issued = 0, sq_completed = 0;  // free-running WQEBB indices
    u64 rq_consumed = 0;
    u32 udp_source_port = 0;
    u32 physical_port = 0;        // 1.. where its packets leave now; 0 when every port is down
    u32 lag_affinity = 0;         // 0: none, the hash decides
    QpCounters counters;
};

// port_*_data as IB counts them (4-byte words); *_bytes are the same octets, from the Ethernet header to its FCS.
struct PortCounters {
    u64 xmit_data = 0, xmit_bytes = 0, xmit_packets = 0, xmit_payload = 0;
    u64 rcv_data = 0, rcv_bytes = 0, rcv_packets = 0, rcv_payload = 0;
    u64 xmit_busy_ps = 0, rcv_busy_ps = 0;  // timed only, as the next
    u64 paused_ps = 0;                      // stood still since a queue in the network was too long
};

struct HcaCounters {
    u64 doorbells = 0;               // 8-byte register writes
    u64 doorbells_unknown_qp = 0, doorbells_wrong_uar = 0, doorbells_wrong_state = 0, doorbells_no_progress = 0;
    u64 doorbells_split = 0;         // 4-byte register writes
    u64 wqes = 0, cqes = 0, errors = 0, flushed = 0;
    u64 atomics = 0;                 // of the WQEs: what in-QP signals are made of
    u64 rnr_naks = 0, retries = 0, async_events = 0, cq_overruns = 0;
    // Named as in /sys/class/infiniband/*/ports/*/hw_counters. Responder: requests that came again, packets ahead of
    // what was expected, packets with a wrong ICRC. Requester: NAKs of sequence, responses missing before a later one,
    // time-outs.
    u64 duplicate_request = 0, out_of_sequence = 0, rx_icrc_encapsulated = 0;
    u64 packet_seq_err = 0, implied_nak_seq_err = 0, local_ack_timeout_err = 0;
    u64 atomics_replayed = 0;        // of the duplicates
    u64 packets_lost = 0;            // requester: of its requests, corrupted ones included
    u64 responses_lost = 0;          // requester
    u64 doorbells_lost = 0, doorbells_late = 0;
    u64 late_writes = 0;             // relaxed ordering
    // Timed: how long each part has worked.
    u64 wqe_busy_ps = 0, pcie_read_busy_ps = 0, pcie_write_busy_ps = 0, atomic_busy_ps = 0, proxy_busy_ps = 0;
};

struct UarPage {
    u32 index = 0;
    void* page = nullptr;      // 4096 bytes; its contents are never read
    void* registers = nullptr; // page + 0x800: write doorbells here
};

// struct ibv_mr: lkey and rkey are one number on mlx5
struct MrInfo {
    u32 key = 0, pd = 0, access = 0;
    u64 iova = 0, length = 0;
    void* memory = nullptr;
};

}  // namespace rdmakit::emu
