// direct.hpp — where libmlx5 keeps a queue's rings and the register that rings its doorbell.
// Leans on library.hpp. man mlx5dv_init_obj.
#pragma once
#include "library.hpp"

namespace rdmakit::verbs {

struct Mlx5View {
    uint32_t* dbrec;
    void* sq;
    uint32_t sq_blocks, sq_stride;
    void* rq;
    uint32_t rq_count, rq_stride;
    void* doorbell;
    uint32_t bf_size;
};

// 0 or an errno.
inline int mlx5_rings(const Library* calls, Qp* qp, Mlx5View* into) {
    if (calls->mlx5dv.init_obj == nullptr) return 95;  // EOPNOTSUPP
    Mlx5Qp found = {};
    Mlx5Obj object = {};
    object.qp.in = qp;
    object.qp.out = &found;
    if (const int error = calls->mlx5dv.init_obj(&object, kObjQp)) return error;
    *into = {found.dbrec,      found.sq.buf,    found.sq.wqe_cnt, found.sq.stride, found.rq.buf,
             found.rq.wqe_cnt, found.rq.stride, found.bf.reg,     found.bf.size};
    return 0;
}

inline int mlx5_ring(const Library* calls, Cq* cq, Mlx5Cq* into) {
    if (calls->mlx5dv.init_obj == nullptr) return 95;
    Mlx5Obj object = {};
    *into = {};
    object.cq.in = cq;
    object.cq.out = into;
    return calls->mlx5dv.init_obj(&object, kObjCq);
}

}  // namespace rdmakit::verbs
