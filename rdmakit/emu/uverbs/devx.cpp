#include "devx.hpp"

#include <rdma/mlx5_user_ioctl_cmds.h>
#include <rdma/mlx5_user_ioctl_verbs.h>

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace rdmakit::uverbs {
namespace {

// Handles of DevX's own objects begin here; those of verbs are numbers of queue pairs and completion queues, 24 bits.
constexpr u32 kFirstHandle = 1u << 24;
constexpr std::size_t kShortest = 16;  // of a command, and of an answer (mlx5_ifc_general_obj_in_cmd_hdr_bits)
constexpr u32 kEqn = 1;

constexpr u32 method(u32 object, u32 number) { return object << 16 | number; }

// A command comes as const bytes; nothing writes to it.
Box in_box(const Attributes& in, u16 id) { return {const_cast<u8*>(in.bytes(id)), in.size(id)}; }
Box out_box(Attributes& in, u16 id) {
    Box out(in.out(id), in.size(id));
    for (u32 bit = 0; bit < out.size() * 8; bit += 8) out.set({bit, 8}, 0);
    return out;
}

}  // namespace

void Devx::close() {
    for (const Kind kind : {Kind::qp, Kind::cq, Kind::mkey, Kind::pd})
        for (const auto& [handle, object] : objects_)
            if (object.kind == kind) destroy(object);
    if (std::getenv("RDMAKIT_UVERBS_TRACE") != nullptr)
        std::fprintf(stderr, "uverbs: closed with %zu DevX objects, %zu umems\n", objects_.size(), umems_.size());
    objects_.clear();
    subscriptions_.clear();
    for (const auto& [id, umem] : umems_)
        if (umem.mapped != nullptr) munmap(umem.mapped, umem.bytes);
    umems_.clear();
}

int Devx::run(u32 object, u32 number, Attributes& in) {
    switch (method(object, number)) {
        case method(MLX5_IB_OBJECT_UAR, MLX5_IB_METHOD_UAR_OBJ_ALLOC): return alloc_uar(in);
        case method(MLX5_IB_OBJECT_UAR, MLX5_IB_METHOD_UAR_OBJ_DESTROY): return free_uar(in);
        case method(MLX5_IB_OBJECT_DEVX, MLX5_IB_METHOD_DEVX_QUERY_UAR): return query_uar(in);
        case method(MLX5_IB_OBJECT_DEVX, MLX5_IB_METHOD_DEVX_QUERY_EQN): return query_eqn(in);
        case method(MLX5_IB_OBJECT_DEVX, MLX5_IB_METHOD_DEVX_OTHER): return general(in);
        case method(MLX5_IB_OBJECT_DEVX, MLX5_IB_METHOD_DEVX_SUBSCRIBE_EVENT): return subscribe(in);
        case method(MLX5_IB_OBJECT_DEVX_ASYNC_EVENT_FD, MLX5_IB_METHOD_DEVX_ASYNC_EVENT_FD_ALLOC): return alloc_channel(in);
        case method(MLX5_IB_OBJECT_DEVX_OBJ, MLX5_IB_METHOD_DEVX_OBJ_CREATE): return create(in);
        case method(MLX5_IB_OBJECT_DEVX_OBJ, MLX5_IB_METHOD_DEVX_OBJ_DESTROY): return destroy(in);
        case method(MLX5_IB_OBJECT_DEVX_OBJ, MLX5_IB_METHOD_DEVX_OBJ_MODIFY): return modify(in);
        case method(MLX5_IB_OBJECT_DEVX_OBJ, MLX5_IB_METHOD_DEVX_OBJ_QUERY): return query(in);
        case method(MLX5_IB_OBJECT_DEVX_UMEM, MLX5_IB_METHOD_DEVX_UMEM_REG): return register_umem(in);
        case method(MLX5_IB_OBJECT_DEVX_UMEM, MLX5_IB_METHOD_DEVX_UMEM_DEREG): return forget_umem(in);
        default: return EPROTONOSUPPORT;
    }
}

// The syndrome of real firmware names a line of its source; here it is the errno, and a trace has the reason.
Devx::Verdict Devx::verdict(const char* command, const Status& status) const {
    if (status.ok()) return {};
    if (std::getenv("RDMAKIT_UVERBS_TRACE") != nullptr)
        std::fprintf(stderr, "uverbs: %s: %s\n", command, status.message);
    const u32 syndrome = static_cast<u32>(status.code);
    switch (status.code) {
        case EOPNOTSUPP: return {prm::bad_op, syndrome};
        case EBUSY: return {prm::resource_busy, syndrome};
        case ENOMEM: return {prm::no_resources, syndrome};
        default: return {prm::bad_param, syndrome};
    }
}

// The device refuses in its answer; the call fails besides, with the answer in place (kernel mlx5_cmd_do, EREMOTEIO).
int Devx::answer(Verdict verdict, Box& out) {
    out.set(prm::kStatus, verdict.status);
    out.set(prm::kSyndrome, verdict.syndrome);
    return verdict.status == prm::ok ? 0 : EREMOTEIO;
}

// ---- commands ---------------------------------------------------------------------------------------------------
int Devx::general(Attributes& attributes) {
    if (const int error = attributes.check({MLX5_IB_ATTR_DEVX_OTHER_CMD_IN, MLX5_IB_ATTR_DEVX_OTHER_CMD_OUT}))
        return error;
    const Box in = in_box(attributes, MLX5_IB_ATTR_DEVX_OTHER_CMD_IN);
    if (in.size() < kShortest || attributes.size(MLX5_IB_ATTR_DEVX_OTHER_CMD_OUT) < kShortest) return EINVAL;
    const u32 opcode = in.get32(prm::kOpcode);
    if (opcode != prm::kQueryHcaCap && opcode != prm::kQueryLag) return EINVAL;
    if (!allowed_ && opcode != prm::kQueryHcaCap) return EINVAL;  // devx_is_whitelist_cmd
    Box out = out_box(attributes, MLX5_IB_ATTR_DEVX_OTHER_CMD_OUT);
    return answer(opcode == prm::kQueryLag ? query_lag(out) : query_capabilities(in, out), out);
}

int Devx::create(Attributes& attributes) {
    if (const int error = attributes.check({MLX5_IB_ATTR_DEVX_OBJ_CREATE_HANDLE, MLX5_IB_ATTR_DEVX_OBJ_CREATE_CMD_IN,
                                            MLX5_IB_ATTR_DEVX_OBJ_CREATE_CMD_OUT}))
        return error;
    const Box in = in_box(attributes, MLX5_IB_ATTR_DEVX_OBJ_CREATE_CMD_IN);
    if (!allowed_ || in.size() < kShortest || attributes.size(MLX5_IB_ATTR_DEVX_OBJ_CREATE_CMD_OUT) < kShortest)
        return EINVAL;
    Object object{Kind::pd, 0, {}};
    Verdict verdict;
    named_.clear();
    switch (in.get32(prm::kOpcode)) {
        case prm::kAllocPd: verdict = alloc_pd(&object.number); break;
        case prm::kCreateCq: object.kind = Kind::cq; verdict = create_cq(in, &object.number); break;
        case prm::kCreateQp: object.kind = Kind::qp; verdict = create_qp(in, &object.number); break;
        case prm::kCreateMkey: object.kind = Kind::mkey; verdict = create_mkey(in, &object.number); break;
        default: return EINVAL;
    }
    Box out = out_box(attributes, MLX5_IB_ATTR_DEVX_OBJ_CREATE_CMD_OUT);
    if (const int error = answer(verdict, out)) return error;
    out.set(prm::kNumber, object.kind == Kind::mkey ? object.number >> 8 : object.number);
    const u32 handle = kFirstHandle + next_handle_++;
    object.umems = named_;
    objects_[handle] = object;
    attributes.put_handle(MLX5_IB_ATTR_DEVX_OBJ_CREATE_HANDLE, handle);
    return 0;
}

int Devx::destroy(Attributes& attributes) {
    if (const int error = attributes.check({MLX5_IB_ATTR_DEVX_OBJ_DESTROY_HANDLE})) return error;
    const auto found = objects_.find(attributes.handle(MLX5_IB_ATTR_DEVX_OBJ_DESTROY_HANDLE));
    if (found == objects_.end()) return ENOENT;
    if (const int error = destroy(found->second)) return error;
    forget_events(found->first);
    objects_.erase(found);
    return 0;
}

int Devx::destroy(const Object& object) {
    Machine& machine = Machine::here();
    Status status;
    switch (object.kind) {
        case Kind::pd: status = hca_->dealloc_pd(object.number); break;
        case Kind::mkey: status = hca_->dereg_mr(object.number); break;
        case Kind::cq:
            status = hca_->destroy_cq(object.number);
            if (status.ok()) machine.remove_cq(hca_, object.number);
            break;
        case Kind::qp:
            macs_.erase(object.number);
            machine.remove_qp(hca_, object.number);
            status = hca_->destroy_qp(object.number);
            break;
    }
    return status.ok() ? 0 : EREMOTEIO;
}

// The command must name the object whose handle comes with it.
bool Devx::may_touch(u32 handle, Kind kind, u32 number) const {
    const auto found = objects_.find(handle);
    if (found != objects_.end()) return found->second.kind == kind && found->second.number == number;
    return handle == number && (kind == Kind::qp || kind == Kind::cq) && is_ours_(number, kind == Kind::qp);
}

int Devx::modify(Attributes& attributes) {
    if (const int error = attributes.check({MLX5_IB_ATTR_DEVX_OBJ_MODIFY_HANDLE, MLX5_IB_ATTR_DEVX_OBJ_MODIFY_CMD_IN,
                                            MLX5_IB_ATTR_DEVX_OBJ_MODIFY_CMD_OUT}))
        return error;
    const Box in = in_box(attributes, MLX5_IB_ATTR_DEVX_OBJ_MODIFY_CMD_IN);
    if (!allowed_ || in.size() < kShortest || attributes.size(MLX5_IB_ATTR_DEVX_OBJ_MODIFY_CMD_OUT) < kShortest)
        return EINVAL;
    const u32 number = in.get32(prm::kNumber);
    if (!may_touch(attributes.handle(MLX5_IB_ATTR_DEVX_OBJ_MODIFY_HANDLE), Kind::qp, number)) return EINVAL;
    const Verdict verdict = modify_qp(number, in);
    Box out = out_box(attributes, MLX5_IB_ATTR_DEVX_OBJ_MODIFY_CMD_OUT);
    return answer(verdict, out);
}

int Devx::query(Attributes& attributes) {
    if (const int error = attributes.check({MLX5_IB_ATTR_DEVX_OBJ_QUERY_HANDLE, MLX5_IB_ATTR_DEVX_OBJ_QUERY_CMD_IN,
                                            MLX5_IB_ATTR_DEVX_OBJ_QUERY_CMD_OUT}))
        return error;
    const Box in = in_box(attributes, MLX5_IB_ATTR_DEVX_OBJ_QUERY_CMD_IN);
    if (!allowed_ || in.size() < kShortest || attributes.size(MLX5_IB_ATTR_DEVX_OBJ_QUERY_CMD_OUT) < kShortest)
        return EINVAL;
    const u32 opcode = in.get32(prm::kOpcode), number = in.get32(prm::kNumber);
    if (opcode != prm::kQueryQp && opcode != prm::kQueryCq) return EINVAL;
    const bool queue_pair = opcode == prm::kQueryQp;
    if (!may_touch(attributes.handle(MLX5_IB_ATTR_DEVX_OBJ_QUERY_HANDLE), queue_pair ? Kind::qp : Kind::cq, number))
        return EINVAL;
    Box out = out_box(attributes, MLX5_IB_ATTR_DEVX_OBJ_QUERY_CMD_OUT);
    return answer(queue_pair ? query_qp(number, out) : query_cq(number, out), out);
}

// ---- memory for queues ------------------------------------------------------------------------------------------
int Devx::register_umem(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_DEVX_UMEM_REG_HANDLE, MLX5_IB_ATTR_DEVX_UMEM_REG_ADDR,
                                    MLX5_IB_ATTR_DEVX_UMEM_REG_LEN, MLX5_IB_ATTR_DEVX_UMEM_REG_OUT_ID},
                                   {MLX5_IB_ATTR_DEVX_UMEM_REG_ACCESS, MLX5_IB_ATTR_DEVX_UMEM_REG_PGSZ_BITMAP,
                                    MLX5_IB_ATTR_DEVX_UMEM_REG_DMABUF_FD}))
        return error;
    if (!allowed_) return EINVAL;
    Umem umem{in.get<u64>(MLX5_IB_ATTR_DEVX_UMEM_REG_ADDR), in.get<u64>(MLX5_IB_ATTR_DEVX_UMEM_REG_LEN),
              in.get<u32>(MLX5_IB_ATTR_DEVX_UMEM_REG_ACCESS), nullptr};
    if (in.has(MLX5_IB_ATTR_DEVX_UMEM_REG_DMABUF_FD)) {
        // The address is an offset then. Whatever can be mapped stands for a dma-buf: a memfd has pages of its own, too.
        void* const pages = mmap(nullptr, umem.bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                                 in.descriptor(MLX5_IB_ATTR_DEVX_UMEM_REG_DMABUF_FD), static_cast<off_t>(umem.address));
        if (pages == MAP_FAILED) return errno;
        umem.mapped = pages;
        umem.address = reinterpret_cast<u64>(pages);
    }
    if (umem.address == 0 || umem.bytes == 0 || umem.address + umem.bytes < umem.address) return EINVAL;
    const u32 id = ++next_umem_;
    umems_[id] = umem;
    in.put(MLX5_IB_ATTR_DEVX_UMEM_REG_OUT_ID, id);
    in.put_handle(MLX5_IB_ATTR_DEVX_UMEM_REG_HANDLE, id);
    return 0;
}

int Devx::forget_umem(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_DEVX_UMEM_DEREG_HANDLE})) return error;
    const auto found = umems_.find(in.handle(MLX5_IB_ATTR_DEVX_UMEM_DEREG_HANDLE));
    if (found == umems_.end()) return ENOENT;
    for (const auto& [handle, object] : objects_)
        for (const u32 id : object.umems)
            if (id == found->first) return EBUSY;
    if (found->second.mapped != nullptr) munmap(found->second.mapped, found->second.bytes);
    umems_.erase(found);
    return 0;
}

int Devx::query_eqn(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_DEVX_QUERY_EQN_USER_VEC, MLX5_IB_ATTR_DEVX_QUERY_EQN_DEV_EQN}))
        return error;
    if (in.get<u32>(MLX5_IB_ATTR_DEVX_QUERY_EQN_USER_VEC) != 0) return ENOENT;  // one completion vector
    in.put(MLX5_IB_ATTR_DEVX_QUERY_EQN_DEV_EQN, kEqn);
    return 0;
}

// ---- pages for doorbells ----------------------------------------------------------------------------------------
int Devx::query_uar(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_DEVX_QUERY_UAR_USER_IDX, MLX5_IB_ATTR_DEVX_QUERY_UAR_DEV_IDX}))
        return error;
    const UarPage* const page = uars_.numbered(in.get<u32>(MLX5_IB_ATTR_DEVX_QUERY_UAR_USER_IDX));
    if (page == nullptr) return ENOMEM;
    in.put(MLX5_IB_ATTR_DEVX_QUERY_UAR_DEV_IDX, page->index);
    return 0;
}

int Devx::alloc_uar(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_UAR_OBJ_ALLOC_HANDLE, MLX5_IB_ATTR_UAR_OBJ_ALLOC_TYPE,
                                    MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_OFFSET, MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_LENGTH,
                                    MLX5_IB_ATTR_UAR_OBJ_ALLOC_PAGE_ID}))
        return error;
    if (in.get<u64>(MLX5_IB_ATTR_UAR_OBJ_ALLOC_TYPE) > MLX5_IB_UAPI_UAR_ALLOC_TYPE_NC) return EOPNOTSUPP;
    const UarPage* const page = uars_.allocate();
    if (page == nullptr) return ENOMEM;
    in.put_handle(MLX5_IB_ATTR_UAR_OBJ_ALLOC_HANDLE, page->index);
    in.put(MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_OFFSET, UarPages::mmap_offset(*page));
    in.put(MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_LENGTH, kPage);
    in.put(MLX5_IB_ATTR_UAR_OBJ_ALLOC_PAGE_ID, page->index);
    return 0;
}

int Devx::free_uar(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_UAR_OBJ_DESTROY_HANDLE})) return error;
    return uars_.release(in.handle(MLX5_IB_ATTR_UAR_OBJ_DESTROY_HANDLE));
}

}  // namespace rdmakit::uverbs
