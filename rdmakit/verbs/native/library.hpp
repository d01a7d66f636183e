// library.hpp — libibverbs and libmlx5, opened when first asked for; each call that may be missing is a null pointer.
// Leans on abi_devx.hpp.
#pragma once
#include <string>

#include "abi_devx.hpp"

namespace rdmakit::verbs {

// What rdmakit cannot do without: libibverbs.so.1 has had it since 1.1.
#define RDMAKIT_IBVERBS_REQUIRED(CALL)                                        \
    CALL(Device**, get_device_list, (int*))                                   \
    CALL(void, free_device_list, (Device**))                                  \
    CALL(const char*, get_device_name, (Device*))                             \
    CALL(uint64_t, get_device_guid, (Device*))                                \
    CALL(Context*, open_device, (Device*))                                    \
    CALL(int, close_device, (Context*))                                       \
    CALL(int, query_device, (Context*, DeviceAttr*))                          \
    CALL(int, query_port, (Context*, uint8_t, PortAttr*))                     \
    CALL(int, query_gid, (Context*, uint8_t, int, Gid*))                      \
    CALL(Pd*, alloc_pd, (Context*))                                           \
    CALL(int, dealloc_pd, (Pd*))                                              \
    CALL(Mr*, reg_mr, (Pd*, void*, size_t, int))                              \
    CALL(int, dereg_mr, (Mr*))                                                \
    CALL(CompChannel*, create_comp_channel, (Context*))                       \
    CALL(int, destroy_comp_channel, (CompChannel*))                           \
    CALL(Cq*, create_cq, (Context*, int, void*, CompChannel*, int))           \
    CALL(int, destroy_cq, (Cq*))                                              \
    CALL(int, get_cq_event, (CompChannel*, Cq**, void**))                     \
    CALL(void, ack_cq_events, (Cq*, unsigned))                                \
    CALL(Qp*, create_qp, (Pd*, QpInitAttr*))                                  \
    CALL(int, modify_qp, (Qp*, QpAttr*, int))                                 \
    CALL(int, query_qp, (Qp*, QpAttr*, int, QpInitAttr*))                     \
    CALL(int, destroy_qp, (Qp*))                                              \
    CALL(AddressHandle*, create_ah, (Pd*, AhAttr*))                           \
    CALL(int, destroy_ah, (AddressHandle*))                                   \
    CALL(int, get_async_event, (Context*, AsyncEvent*))                       \
    CALL(void, ack_async_event, (AsyncEvent*))

// What older or newer ones lack. The version is that in which rdma-core's libibverbs.map lists it.
#define RDMAKIT_IBVERBS_OPTIONAL(CALL)                                                                            \
    CALL(Mr*, reg_mr_iova2, (Pd*, void*, size_t, uint64_t, unsigned), "IBVERBS_1.8")                              \
    CALL(Mr*, reg_dmabuf_mr, (Pd*, uint64_t, size_t, uint64_t, int, int), "IBVERBS_1.12")                         \
    CALL(int, query_qp_data_in_order, (Qp*, int, uint32_t), "IBVERBS_1.14")

#define RDMAKIT_MLX5DV_OPTIONAL(CALL)                                                           \
    CALL(int, set_context_attr, (Context*, int, void*), "MLX5_1.2")                             \
    CALL(bool, is_supported, (Device*), "MLX5_1.7")                                             \
    CALL(int, init_obj, (Mlx5Obj*, uint64_t), "MLX5_1.2")                                       \
    CALL(Cq*, create_cq, (Context*, CqInitAttrEx*, Mlx5CqInitAttr*), "MLX5_1.1")                \
    CALL(Qp*, create_qp, (Context*, QpInitAttrEx*, Mlx5QpInitAttr*), "MLX5_1.3")                \
    CALL(int, query_qp_lag_port, (Qp*, uint8_t*, uint8_t*), "MLX5_1.15")                        \
    CALL(int, modify_qp_lag_port, (Qp*, uint8_t), "MLX5_1.15")                                  \
    CALL(int, modify_qp_udp_sport, (Qp*, uint16_t), "MLX5_1.20")                                \
    CALL(Context*, open_device, (Device*, Mlx5ContextAttr*), "MLX5_1.7")                        \
    CALL(DevxObj*, devx_obj_create, (Context*, const void*, size_t, void*, size_t), "MLX5_1.7") \
    CALL(int, devx_obj_query, (DevxObj*, const void*, size_t, void*, size_t), "MLX5_1.7")       \
    CALL(int, devx_obj_modify, (DevxObj*, const void*, size_t, void*, size_t), "MLX5_1.7")      \
    CALL(int, devx_obj_destroy, (DevxObj*), "MLX5_1.7")                                         \
    CALL(int, devx_general_cmd, (Context*, const void*, size_t, void*, size_t), "MLX5_1.7")     \
    CALL(DevxUmem*, devx_umem_reg, (Context*, void*, size_t, uint32_t), "MLX5_1.7")             \
    CALL(DevxUmem*, devx_umem_reg_ex, (Context*, DevxUmemIn*), "MLX5_1.19")                     \
    CALL(int, devx_umem_dereg, (DevxUmem*), "MLX5_1.7")                                         \
    CALL(DevxUar*, devx_alloc_uar, (Context*, uint32_t), "MLX5_1.7")                            \
    CALL(void, devx_free_uar, (DevxUar*), "MLX5_1.7")                                           \
    CALL(int, devx_query_eqn, (Context*, uint32_t, uint32_t*), "MLX5_1.7")                      \
    CALL(DevxEventChannel*, devx_create_event_channel, (Context*, int), "MLX5_1.11")            \
    CALL(void, devx_destroy_event_channel, (DevxEventChannel*), "MLX5_1.11")                    \
    CALL(int, devx_subscribe_devx_event,                                                        \
         (DevxEventChannel*, DevxObj*, uint16_t, uint16_t*, uint64_t), "MLX5_1.11")             \
    CALL(long, devx_get_event, (DevxEventChannel*, DevxEvent*, size_t), "MLX5_1.11")

struct Library {
#define RDMAKIT_DECLARE(result, name, parameters, ...) result(*name) parameters = nullptr;
    RDMAKIT_IBVERBS_REQUIRED(RDMAKIT_DECLARE)
    RDMAKIT_IBVERBS_OPTIONAL(RDMAKIT_DECLARE)
    struct {
        RDMAKIT_MLX5DV_OPTIONAL(RDMAKIT_DECLARE)
    } mlx5dv;
#undef RDMAKIT_DECLARE
    std::string ibverbs_path, mlx5_path;  // as the loader found them; "" for libmlx5 where there is none
    std::string mlx5_missing;             // why there is none
    std::string missing;                  // optional calls that are not there, "name (version)", comma separated
};

// The libraries, opened by the first call; null, with why not, when libibverbs cannot be used. Thread safe; what was
// missing is looked for again by the next call.
const Library* library(std::string* why);

}  // namespace rdmakit::verbs
