// abi.hpp — the structs and calls of libibverbs that rdmakit uses, declared anew: a build needs no RDMA headers.
// Leans on nothing. Sources: man ibv_post_send, ibv_poll_cq, ibv_modify_qp, ibv_query_port; rdma-core
// libibverbs/verbs.h, whose ABI (IBVERBS_1.1, libibverbs.so.1) has been stable since 2008. tests/unit/test_verbs_abi.py
// compares sizes and offsets with the distribution's own header where that is installed.
#pragma once
#include <pthread.h>

#include <cstddef>
#include <cstdint>

namespace rdmakit::verbs {

struct Context;
struct Cq;
struct Qp;
struct SendWr;
struct RecvWr;
struct Wc;
struct Device;

struct Sge {
    uint64_t addr;
    uint32_t length, lkey;
};

struct SendWr {
    uint64_t wr_id;
    SendWr* next;
    Sge* sg_list;
    int num_sge;
    int opcode;
    unsigned send_flags;
    uint32_t imm_data;  // network order
    union {
        struct {
            uint64_t remote_addr;
            uint32_t rkey;
        } rdma;
        struct {
            uint64_t remote_addr, compare_add, swap;
            uint32_t rkey;
        } atomic;
    } wr;
    uint32_t xrc_remote_srqn;
    uint64_t bind_mw_or_tso[6];
};
static_assert(sizeof(SendWr) == 128 && offsetof(SendWr, wr) == 40);

struct RecvWr {
    uint64_t wr_id;
    RecvWr* next;
    Sge* sg_list;
    int num_sge;
};
static_assert(sizeof(RecvWr) == 32);

struct Wc {
    uint64_t wr_id;
    uint32_t status, opcode, vendor_err, byte_len;
    uint32_t imm_data;  // network order
    uint32_t qp_num, src_qp, wc_flags;
    uint16_t pkey_index, slid;
    uint8_t sl, dlid_path_bits;
};
static_assert(sizeof(Wc) == 48);

struct ContextOps {
    void* before_poll_cq[11];
    int (*poll_cq)(Cq*, int, Wc*);
    int (*req_notify_cq)(Cq*, int);
    void* before_post_send[12];
    int (*post_send)(Qp*, SendWr*, SendWr**);
    int (*post_recv)(Qp*, RecvWr*, RecvWr**);
    void* rest[5];
};
static_assert(sizeof(ContextOps) == 32 * sizeof(void*));

struct Context {
    Device* device;
    ContextOps ops;
    int cmd_fd, async_fd, num_comp_vectors;
    pthread_mutex_t mutex;
    void* abi_compat;
};

struct Pd {
    Context* context;
    uint32_t handle;
};

struct Mr {
    Context* context;
    Pd* pd;
    void* addr;
    size_t length;
    uint32_t handle, lkey, rkey;
};

struct CompChannel {
    Context* context;
    int fd, refcnt;
};

struct Cq {
    Context* context;
    CompChannel* channel;
    void* cq_context;
    uint32_t handle;
    int cqe;
};

struct Qp {
    Context* context;
    void* qp_context;
    Pd* pd;
    Cq *send_cq, *recv_cq;
    void* srq;
    uint32_t handle, qp_num;
    int state, qp_type;
};

struct Gid {
    uint8_t raw[16];
};

struct GidEntry {
    Gid gid;
    uint32_t gid_index, port_num, gid_type, ndev_ifindex;
};

struct GlobalRoute {
    alignas(8) Gid dgid;
    uint32_t flow_label;
    uint8_t sgid_index, hop_limit, traffic_class;
};

struct AhAttr {
    GlobalRoute grh;
    uint16_t dlid;
    uint8_t sl, src_path_bits, static_rate, is_global, port_num;
};
static_assert(sizeof(AhAttr) == 32);

struct QpCap {
    uint32_t max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data;
};

struct QpAttr {
    int qp_state, cur_qp_state, path_mtu, path_mig_state;
    uint32_t qkey, rq_psn, sq_psn, dest_qp_num;
    unsigned qp_access_flags;
    QpCap cap;
    AhAttr ah_attr, alt_ah_attr;
    uint16_t pkey_index, alt_pkey_index;
    uint8_t en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout,
        retry_cnt, rnr_retry, alt_port_num, alt_timeout;
    uint32_t rate_limit;
};
static_assert(sizeof(QpAttr) == 144);

struct QpInitAttr {
    void* qp_context;
    Cq *send_cq, *recv_cq;
    void* srq;
    QpCap cap;
    int qp_type, sq_sig_all;
};
static_assert(sizeof(QpInitAttr) == 64);

struct QpInitAttrEx {
    void* qp_context;
    Cq *send_cq, *recv_cq;
    void* srq;
    QpCap cap;
    int qp_type, sq_sig_all;
    uint32_t comp_mask;
    Pd* pd;
    void* xrcd;
    uint32_t create_flags;
    uint16_t max_tso_header;
    void* rwq_ind_tbl;
    uint8_t rx_hash_function, rx_hash_key_len;
    uint8_t* rx_hash_key;
    uint64_t rx_hash_fields_mask;
    uint32_t source_qpn;
    uint64_t send_ops_flags;
};
static_assert(sizeof(QpInitAttrEx) == 136);

struct CqInitAttrEx {
    uint32_t cqe;
    void* cq_context;
    CompChannel* channel;
    uint32_t comp_vector;
    uint64_t wc_flags;
    uint32_t comp_mask, flags;
    Pd* parent_domain;
};
static_assert(sizeof(CqInitAttrEx) == 56);

// What the exported ibv_query_port fills; newer fields behind it are an inline function's of the header.
struct PortAttr {
    int state, max_mtu, active_mtu, gid_tbl_len;
    uint32_t port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr;
    uint16_t pkey_tbl_len, lid, sm_lid;
    uint8_t lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply, active_width, active_speed, phys_state, link_layer,
        flags;
};

struct DeviceAttr {
    char fw_ver[64];
    uint64_t node_guid, sys_image_guid;  // network order
    uint64_t max_mr_size, page_size_cap;
    uint32_t vendor_id, vendor_part_id, hw_ver;
    int max_qp, max_qp_wr;
    unsigned device_cap_flags;
    int max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom,
        max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw, max_raw_ipv6_qp,
        max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach, max_total_mcast_qp_attach, max_ah, max_fmr,
        max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge;
    uint16_t max_pkeys;
    uint8_t local_ca_ack_delay, phys_port_cnt;
};
static_assert(sizeof(DeviceAttr) == 232);

struct AsyncEvent {
    union {
        Cq* cq;
        Qp* qp;
        int port_num;
    } element;
    int event_type;
};

constexpr int kQpTypeRc = 2;
constexpr uint32_t kInitAttrPd = 1u << 0;          // IBV_QP_INIT_ATTR_PD
constexpr uint32_t kCqInitAttrFlags = 1u << 0;     // IBV_CQ_INIT_ATTR_MASK_FLAGS
constexpr uint32_t kCqIgnoreOverrun = 1u << 1;     // IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN
constexpr unsigned kAccessOptional = 0x3ff00000u;  // IBV_ACCESS_OPTIONAL_RANGE: needs ibv_reg_mr_iova2

// enum ibv_wr_opcode, ibv_send_flags
constexpr int kWrWrite = 0, kWrWriteImm = 1, kWrSend = 2, kWrSendImm = 3, kWrRead = 4, kWrCmpSwap = 5, kWrFetchAdd = 6,
              kWrLocalInv = 7, kWrSendInv = 9;
constexpr unsigned kSendFence = 1, kSendSignaled = 2, kSendSolicited = 4, kSendInline = 8;

// enum ibv_event_type: whose `element` is a QP, a CQ, a port
constexpr int kEventCqError = 0;
inline bool event_is_of_qp(int type) {
    return (type >= 1 && type <= 7) || type == 16;  // QP_FATAL … PATH_MIG_ERR, QP_LAST_WQE_REACHED
}
inline bool event_is_of_port(int type) {
    return (type >= 9 && type <= 13) || type == 17 || type == 18;  // PORT_ACTIVE … SM_CHANGE, CLIENT_REREGISTER, GID
}

}  // namespace rdmakit::verbs
