// abi_mlx5dv.hpp — the structs of libmlx5's direct verbs that rdmakit uses, declared anew.
// Leans on abi.hpp. Sources: man mlx5dv_init_obj, mlx5dv_create_qp, mlx5dv_create_cq; rdma-core
// providers/mlx5/mlx5dv.h. tests/unit/test_verbs_abi.py compares them with the distribution's header.
#pragma once
#include "abi.hpp"

namespace rdmakit::verbs {

struct Mlx5Qp {
    uint32_t* dbrec;  // [0] receive, [1] send
    struct {
        void* buf;
        uint32_t wqe_cnt, stride;
    } sq, rq;
    struct {
        void* reg;
        uint32_t size;  // 0: no BlueFlame, plain doorbells only
    } bf;
    uint64_t comp_mask;
    int64_t uar_mmap_offset;
    uint32_t tirn, tisn, rqn, sqn;
    uint64_t tir_icm_addr;
};
static_assert(sizeof(Mlx5Qp) == 96);

struct Mlx5Cq {
    void* buf;
    uint32_t* dbrec;
    uint32_t cqe_cnt, cqe_size;
    void* cq_uar;
    uint32_t cqn;
    uint64_t comp_mask;
};
static_assert(sizeof(Mlx5Cq) == 48);

struct Mlx5Obj {
    struct {
        void *in, *out;
    } qp, cq, srq, rwq, dm, ah, pd;
};

struct Mlx5CqInitAttr {
    uint64_t comp_mask;
    uint8_t cqe_comp_res_format;
    uint32_t flags;
    uint16_t cqe_size;
};
static_assert(sizeof(Mlx5CqInitAttr) == 24);

struct Mlx5QpInitAttr {
    uint64_t comp_mask;
    uint32_t create_flags;
    uint8_t dc_init_attr[16];
    uint64_t send_ops_flags;
};

// Who gives libmlx5 the memory of its queues and doorbell records (MLX5DV_CTX_ATTR_BUF_ALLOCATORS).
struct Mlx5Allocators {
    void* (*alloc)(size_t size, void* data);
    void (*free)(void* memory, void* data);
    void* data;
};
constexpr int kAttrAllocators = 1;

constexpr uint64_t kObjQp = 1u << 0, kObjCq = 1u << 1;               // enum mlx5dv_obj_type
constexpr uint64_t kCqCqeSize = 1u << 2;                              // MLX5DV_CQ_INIT_ATTR_MASK_CQE_SIZE
constexpr uint64_t kQpCreateFlags = 1u << 0;                          // MLX5DV_QP_INIT_ATTR_MASK_QP_CREATE_FLAGS
constexpr uint32_t kQpNoScatterToCqe = 1u << 3;                       // MLX5DV_QP_CREATE_DISABLE_SCATTER_TO_CQE
constexpr uint32_t kQpScatterToCqe = 1u << 4;                         // MLX5DV_QP_CREATE_ALLOW_SCATTER_TO_CQE
constexpr uint32_t kQpOutOfOrder = 1u << 7;                           // MLX5DV_QP_CREATE_OOO_DP

}  // namespace rdmakit::verbs
