// abi_devx.hpp — the structs of libmlx5's DevX calls, and of the address vector that it resolves, declared anew.
// Leans on abi_mlx5dv.hpp. Sources: man mlx5dv_open_device, mlx5dv_devx_alloc_uar, mlx5dv_devx_umem_reg,
// mlx5dv_devx_obj_create, mlx5dv_init_obj; rdma-core providers/mlx5/mlx5dv.h. tests/unit/test_verbs_abi.py compares
// them with the distribution's header.
#pragma once
#include "abi_mlx5dv.hpp"

namespace rdmakit::verbs {

struct DevxObj;  // libmlx5's own
struct AddressHandle;

struct Mlx5ContextAttr {
    uint32_t flags;
    uint64_t comp_mask;
};

struct DevxUar {
    void *reg_addr, *base_addr;  // where doorbells are written; where the page begins
    uint32_t page_id;
    int64_t mmap_off;
    uint64_t comp_mask;
};
static_assert(sizeof(DevxUar) == 40);

struct DevxUmem {
    uint32_t umem_id;
};

struct DevxUmemIn {
    void* addr;  // of a dma-buf: the offset in it
    size_t size;
    uint32_t access;
    uint64_t pgsz_bitmap, comp_mask;
    int dmabuf_fd;
};

struct DevxEventChannel {
    int fd;
};

struct DevxEvent {  // struct mlx5dv_devx_async_event_hdr with what follows it: an entry of an event queue
    uint64_t cookie;
    uint8_t reserved, type, rest[62];
};

struct Mlx5Pd {
    uint32_t pdn;
    uint64_t comp_mask;
};

struct Mlx5Av {
    uint64_t key;
    uint32_t dqp_dct;
    uint8_t stat_rate_sl, fl_mlid;
    uint16_t rlid;
    uint8_t reserved0[4];
    uint8_t rmac[6];
    uint8_t tclass, hop_limit;
    uint32_t grh_gid_fl;
    uint8_t rgid[16];
};
static_assert(sizeof(Mlx5Av) == 48);

struct Mlx5Ah {
    Mlx5Av* av;
    uint64_t comp_mask;
};

constexpr uint32_t kContextDevx = 1u << 0;             // MLX5DV_CONTEXT_FLAGS_DEVX
constexpr uint32_t kUarBlueFlame = 0, kUarNonCached = 1;  // MLX5DV_UAR_ALLOC_TYPE_BF, _NC
constexpr uint64_t kUmemDmabuf = 1u << 0;              // MLX5DV_UMEM_MASK_DMABUF
constexpr int kOmitEventData = 1;                      // MLX5DV_DEVX_CREATE_EVENT_CHANNEL_FLAGS_OMIT_EV_DATA
constexpr uint64_t kObjAh = 1u << 5, kObjPd = 1u << 6;    // MLX5DV_OBJ_AH, MLX5DV_OBJ_PD

}  // namespace rdmakit::verbs
