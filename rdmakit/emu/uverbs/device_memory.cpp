// device_memory.cpp — memory of the NIC itself (ibv_alloc_dm), and regions whose memory a descriptor names (dma-buf).
// Leans on open_device.hpp. kernel drivers/infiniband/hw/mlx5/dm.c; rdma-core providers/mlx5/verbs.c alloc_dm_memic.
// Here a file without a name stands for the NIC's memory: the HCA maps it, and so does who allocated or imported it.
#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/mlx5_user_ioctl_cmds.h>
#include <rdma/mlx5_user_ioctl_verbs.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "ioctl_attributes.hpp"
#include "open_device.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u32 kAccessZeroBased = 1u << 5;
constexpr u64 kGranule = 64;  // MLX5_MEMIC_BASE_SIZE

}  // namespace

Shared Shared::of(int fd, u64 offset, u64 length) {
    Shared found;
    const u64 inside = offset & (kPage - 1);
    void* const at = mmap(nullptr, inside + length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset - inside));
    if (at == MAP_FAILED) return found;
    found.base_ = at;
    found.mapped_ = inside + length;
    found.bytes = static_cast<u8*>(at) + inside;
    return found;
}

void Shared::forget() {
    if (base_ != nullptr) munmap(base_, mapped_);
    *this = {};
}

int OpenDevice::reg_mapped(u32 pd, Shared memory, u64 length, u64 iova, u32 access, u32* key) {
    if (memory.bytes == nullptr) return EINVAL;
    const Status status = hca_->reg_mr_iova(pd, memory.bytes, length, iova, access, key);
    if (!status.ok()) {
        memory.forget();
        return status.code;
    }
    mrs_[*key] = *key;
    mapped_[*key] = memory;
    return 0;
}

// For a dma-buf stands whatever can be mapped. Packets name the application's addresses; the bytes are the descriptor's.
int OpenDevice::reg_dmabuf_mr(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_REG_DMABUF_MR_HANDLE, UVERBS_ATTR_REG_DMABUF_MR_PD_HANDLE,
                                    UVERBS_ATTR_REG_DMABUF_MR_OFFSET, UVERBS_ATTR_REG_DMABUF_MR_LENGTH,
                                    UVERBS_ATTR_REG_DMABUF_MR_IOVA, UVERBS_ATTR_REG_DMABUF_MR_FD,
                                    UVERBS_ATTR_REG_DMABUF_MR_ACCESS_FLAGS, UVERBS_ATTR_REG_DMABUF_MR_RESP_LKEY,
                                    UVERBS_ATTR_REG_DMABUF_MR_RESP_RKEY}))
        return error;
    const u64 offset = in.get<u64>(UVERBS_ATTR_REG_DMABUF_MR_OFFSET), length = in.get<u64>(UVERBS_ATTR_REG_DMABUF_MR_LENGTH);
    const u64 iova = in.get<u64>(UVERBS_ATTR_REG_DMABUF_MR_IOVA);
    const u32 pd = in.handle(UVERBS_ATTR_REG_DMABUF_MR_PD_HANDLE);
    if (pds_.count(pd) == 0 || length == 0 || offset + length < offset || (offset ^ iova) & (kPage - 1)) return EINVAL;
    const int fd = in.descriptor(UVERBS_ATTR_REG_DMABUF_MR_FD);
    struct stat file;
    if (fstat(fd, &file) != 0) return errno;
    if (offset + length > static_cast<u64>(file.st_size)) return EINVAL;
    const u32 access = allowed_access(in.get<u32>(UVERBS_ATTR_REG_DMABUF_MR_ACCESS_FLAGS));
    u32 key = 0;
    if (const int error = reg_mapped(pd, Shared::of(fd, offset, length), length, iova, access, &key)) return error;
    in.put_handle(UVERBS_ATTR_REG_DMABUF_MR_HANDLE, key);
    in.put(UVERBS_ATTR_REG_DMABUF_MR_RESP_LKEY, key);
    in.put(UVERBS_ATTR_REG_DMABUF_MR_RESP_RKEY, key);
    return 0;
}

int OpenDevice::alloc_dm(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_ALLOC_DM_HANDLE, UVERBS_ATTR_ALLOC_DM_LENGTH, UVERBS_ATTR_ALLOC_DM_ALIGNMENT},
                                   {MLX5_IB_ATTR_ALLOC_DM_RESP_START_OFFSET, MLX5_IB_ATTR_ALLOC_DM_RESP_PAGE_INDEX,
                                    MLX5_IB_ATTR_ALLOC_DM_REQ_TYPE}))
        return error;
    const u64 length = in.get<u64>(UVERBS_ATTR_ALLOC_DM_LENGTH);
    if (in.get<u8>(MLX5_IB_ATTR_ALLOC_DM_REQ_TYPE) != MLX5_IB_UAPI_DM_TYPE_MEMIC) return EOPNOTSUPP;
    if (length == 0 || length > kDeviceMemory) return EINVAL;
    u64 taken = (length + kGranule - 1) / kGranule * kGranule;
    for (const auto& [handle, other] : device_memory_) taken += (other.length + kGranule - 1) / kGranule * kGranule;
    if (taken > kDeviceMemory || next_dm_ == 0xffff) return ENOMEM;
    const int fd = memfd_create("device memory", MFD_CLOEXEC);
    if (fd < 0) return errno;
    if (ftruncate(fd, static_cast<off_t>((length + kPage - 1) / kPage * kPage)) != 0) {
        const int error = errno;
        close(fd);
        return error;
    }
    const u32 handle = ++next_dm_;
    device_memory_[handle] = {fd, length};
    in.put_handle(UVERBS_ATTR_ALLOC_DM_HANDLE, handle);
    in.put(MLX5_IB_ATTR_ALLOC_DM_RESP_START_OFFSET, u64{0});
    in.put(MLX5_IB_ATTR_ALLOC_DM_RESP_PAGE_INDEX, static_cast<u16>(handle));
    return 0;
}

int OpenDevice::query_dm(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_QUERY_DM_REQ_HANDLE, MLX5_IB_ATTR_QUERY_DM_RESP_START_OFFSET,
                                    MLX5_IB_ATTR_QUERY_DM_RESP_PAGE_INDEX, MLX5_IB_ATTR_QUERY_DM_RESP_LENGTH}))
        return error;
    const auto found = device_memory_.find(in.handle(MLX5_IB_ATTR_QUERY_DM_REQ_HANDLE));
    if (found == device_memory_.end()) return ENOENT;
    in.put(MLX5_IB_ATTR_QUERY_DM_RESP_START_OFFSET, u64{0});
    in.put(MLX5_IB_ATTR_QUERY_DM_RESP_PAGE_INDEX, static_cast<u16>(found->first));
    in.put(MLX5_IB_ATTR_QUERY_DM_RESP_LENGTH, found->second.length);
    return 0;
}

int OpenDevice::free_dm(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_FREE_DM_HANDLE})) return error;
    const auto found = device_memory_.find(in.handle(UVERBS_ATTR_FREE_DM_HANDLE));
    if (found == device_memory_.end()) return ENOENT;
    if (found->second.regions != 0) return EBUSY;
    close(found->second.fd);
    device_memory_.erase(found);
    return 0;
}

// Addresses of such a region count from 0 (kernel UVERBS_METHOD_DM_MR_REG).
int OpenDevice::reg_dm_mr(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_REG_DM_MR_HANDLE, UVERBS_ATTR_REG_DM_MR_OFFSET, UVERBS_ATTR_REG_DM_MR_LENGTH,
                                    UVERBS_ATTR_REG_DM_MR_PD_HANDLE, UVERBS_ATTR_REG_DM_MR_ACCESS_FLAGS,
                                    UVERBS_ATTR_REG_DM_MR_DM_HANDLE, UVERBS_ATTR_REG_DM_MR_RESP_LKEY,
                                    UVERBS_ATTR_REG_DM_MR_RESP_RKEY}))
        return error;
    const u64 offset = in.get<u64>(UVERBS_ATTR_REG_DM_MR_OFFSET), length = in.get<u64>(UVERBS_ATTR_REG_DM_MR_LENGTH);
    const u32 pd = in.handle(UVERBS_ATTR_REG_DM_MR_PD_HANDLE), access = in.get<u32>(UVERBS_ATTR_REG_DM_MR_ACCESS_FLAGS);
    const auto found = device_memory_.find(in.handle(UVERBS_ATTR_REG_DM_MR_DM_HANDLE));
    if (found == device_memory_.end() || pds_.count(pd) == 0 || !(access & kAccessZeroBased)) return EINVAL;
    if (offset > found->second.length || length > found->second.length - offset) return EINVAL;
    u32 key = 0;
    // An empty region has a key, and no byte that anybody can name: the HCA, which wants one, has it at the last address.
    const u64 bytes = std::max<u64>(length, 1), iova = length != 0 ? 0 : ~u64{0};
    const Shared memory = Shared::of(found->second.fd, offset & ~u64{length == 0 ? kPage - 1 : 0}, bytes);
    if (const int error = reg_mapped(pd, memory, bytes, iova, allowed_access(access & ~kAccessZeroBased), &key)) return error;
    mapped_[key].device_memory = found->first;
    ++found->second.regions;
    in.put_handle(UVERBS_ATTR_REG_DM_MR_HANDLE, key);
    in.put(UVERBS_ATTR_REG_DM_MR_RESP_LKEY, key);
    in.put(UVERBS_ATTR_REG_DM_MR_RESP_RKEY, key);
    return 0;
}

void OpenDevice::forget_mapped(u32 handle) {
    const auto found = mapped_.find(handle);
    if (found == mapped_.end()) return;
    const auto of = device_memory_.find(found->second.device_memory);
    if (of != device_memory_.end()) --of->second.regions;
    found->second.forget();
    mapped_.erase(found);
}

int OpenDevice::memory_file(u64 offset, std::size_t bytes) {
    const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
    const u64 page = offset / kPage;
    if ((page >> 8 & 0xff) != MLX5_IB_MMAP_DEVICE_MEM) return -1;
    const auto found = device_memory_.find(static_cast<u32>(page & 0xff) | static_cast<u32>(page >> 16 & 0xff) << 8);
    const bool fits = found != device_memory_.end() && bytes <= (found->second.length + kPage - 1) / kPage * kPage;
    return fits ? found->second.fd : -1;
}

}  // namespace rdmakit::uverbs
