# cython: language_level=3, embedsignature=True
"""libibverbs and libmlx5 as they are: one class for each verbs object, numbers in, numbers out, the GIL released.

Leans on rdmakit/verbs/native, which opens the libraries when first needed. Every handle owns what it stands on
(boxes.hpp), so any order of dropping is right; `close` gives back now. A call that is refused raises Refused(errno,
message, remedy), made by rdmakit.verbs.refusals; `rdmakit.device` objects turn it into a typed error.
"""
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from libcpp cimport bool as cbool
from libcpp.memory cimport make_shared, shared_ptr
from libcpp.string cimport string

from rdmakit.errors import BadArgument, BadState, NotAvailable, UnknownDevice
from rdmakit.verbs.refusals import refused


cdef extern from "native/boxes.hpp" namespace "rdmakit::verbs" nogil:
    ctypedef struct RawDevice "rdmakit::verbs::Device":
        pass
    cdef cppclass ContextOps:
        int (*poll_cq)(RawCq*, int, RawWc*)
        int (*req_notify_cq)(RawCq*, int)
    cdef cppclass RawContext "rdmakit::verbs::Context":
        ContextOps ops
        int cmd_fd, async_fd, num_comp_vectors
    cdef cppclass RawPd "rdmakit::verbs::Pd":
        uint32_t handle
    cdef cppclass RawMr "rdmakit::verbs::Mr":
        size_t length
        uint32_t lkey, rkey
    cdef cppclass RawChannel "rdmakit::verbs::CompChannel":
        int fd
    cdef cppclass RawCq "rdmakit::verbs::Cq":
        uint32_t handle
        int cqe
    cdef cppclass RawQp "rdmakit::verbs::Qp":
        uint32_t qp_num
    cdef cppclass RawWc "rdmakit::verbs::Wc":
        pass
    cdef cppclass RawGid "rdmakit::verbs::Gid":
        uint8_t raw[16]
    cdef cppclass GlobalRoute:
        RawGid dgid
        uint32_t flow_label
        uint8_t sgid_index, hop_limit, traffic_class
    cdef cppclass AhAttr:
        GlobalRoute grh
        uint16_t dlid
        uint8_t sl, src_path_bits, static_rate, is_global, port_num
    cdef cppclass QpCap:
        uint32_t max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data
    cdef cppclass QpAttr:
        int qp_state, cur_qp_state, path_mtu, path_mig_state
        uint32_t qkey, rq_psn, sq_psn, dest_qp_num
        unsigned qp_access_flags
        AhAttr ah_attr
        uint16_t pkey_index
        uint8_t en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout
        uint8_t retry_cnt, rnr_retry
        uint32_t rate_limit
    cdef cppclass QpInitAttr:
        RawCq* send_cq
        RawCq* recv_cq
        QpCap cap
        int qp_type, sq_sig_all
    cdef cppclass QpInitAttrEx:
        RawCq* send_cq
        RawCq* recv_cq
        QpCap cap
        int qp_type, sq_sig_all
        uint32_t comp_mask
        RawPd* pd
    cdef cppclass CqInitAttrEx:
        uint32_t cqe
        RawChannel* channel
        uint32_t comp_mask, flags
    cdef cppclass PortAttr:
        int state, max_mtu, active_mtu, gid_tbl_len
        uint32_t port_cap_flags, max_msg_sz
        uint16_t pkey_tbl_len, lid, sm_lid
        uint8_t active_width, active_speed, phys_state, link_layer
    cdef cppclass DeviceAttr:
        char fw_ver[64]
        uint64_t node_guid, max_mr_size
        uint32_t vendor_id, vendor_part_id, hw_ver
        int max_qp, max_qp_wr, max_sge, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_qp_init_rd_atom, atomic_cap
        uint8_t phys_port_cnt
    cdef union EventElement:
        RawCq* cq
        RawQp* qp
        int port_num
    cdef cppclass AsyncEvent:
        EventElement element
        int event_type
    int kQpTypeRc
    uint32_t kInitAttrPd, kCqInitAttrFlags, kCqIgnoreOverrun
    unsigned kAccessOptional
    int kEventCqError
    cbool event_is_of_qp(int)
    cbool event_is_of_port(int)

    cdef cppclass Mlx5Cq:
        void* buf
        uint32_t* dbrec
        uint32_t cqe_cnt, cqe_size
        void* cq_uar
        uint32_t cqn
    cdef cppclass Mlx5CqInitAttr:
        uint64_t comp_mask
        uint16_t cqe_size
    cdef cppclass Mlx5QpInitAttr:
        uint64_t comp_mask
        uint32_t create_flags
    cdef cppclass Mlx5Allocators:
        pass
    cdef cppclass Mlx5Obj:
        pass
    uint64_t kObjQp, kObjCq, kCqCqeSize, kQpCreateFlags
    uint32_t kQpNoScatterToCqe, kQpScatterToCqe, kQpOutOfOrder
    int kAttrAllocators

    cdef cppclass Mlx5dv:
        int (*set_context_attr)(RawContext*, int, void*)
        cbool (*is_supported)(RawDevice*)
        int (*init_obj)(Mlx5Obj*, uint64_t)
        RawCq* (*create_cq)(RawContext*, CqInitAttrEx*, Mlx5CqInitAttr*)
        RawQp* (*create_qp)(RawContext*, QpInitAttrEx*, Mlx5QpInitAttr*)
        int (*query_qp_lag_port)(RawQp*, uint8_t*, uint8_t*)
        int (*modify_qp_lag_port)(RawQp*, uint8_t)
        int (*modify_qp_udp_sport)(RawQp*, uint16_t)
    cdef cppclass Library:
        RawDevice** (*get_device_list)(int*)
        void (*free_device_list)(RawDevice**)
        const char* (*get_device_name)(RawDevice*)
        uint64_t (*get_device_guid)(RawDevice*)
        RawContext* (*open_device)(RawDevice*)
        int (*query_device)(RawContext*, DeviceAttr*)
        int (*query_port)(RawContext*, uint8_t, PortAttr*)
        int (*query_gid)(RawContext*, uint8_t, int, RawGid*)
        RawPd* (*alloc_pd)(RawContext*)
        RawMr* (*reg_mr)(RawPd*, void*, size_t, int)
        RawChannel* (*create_comp_channel)(RawContext*)
        RawCq* (*create_cq)(RawContext*, int, void*, RawChannel*, int)
        int (*get_cq_event)(RawChannel*, RawCq**, void**)
        void (*ack_cq_events)(RawCq*, unsigned)
        RawQp* (*create_qp)(RawPd*, QpInitAttr*)
        int (*modify_qp)(RawQp*, QpAttr*, int)
        int (*query_qp)(RawQp*, QpAttr*, int, QpInitAttr*)
        int (*get_async_event)(RawContext*, AsyncEvent*)
        void (*ack_async_event)(AsyncEvent*)
        RawMr* (*reg_mr_iova2)(RawPd*, void*, size_t, uint64_t, unsigned)
        RawMr* (*reg_dmabuf_mr)(RawPd*, uint64_t, size_t, uint64_t, int, int)
        int (*query_qp_data_in_order)(RawQp*, int, uint32_t)
        Mlx5dv mlx5dv
        string ibverbs_path, mlx5_path, mlx5_missing, missing
    const Library* library(string*)

    cdef cppclass ContextBox:
        RawContext* get()
        cbool of_this_process()
        int close()
    cdef cppclass ChannelBox:
        RawChannel* get()
        int close()
    cdef cppclass PdBox:
        RawPd* get()
        cbool of_this_process()
        int close()
    cdef cppclass MrBox:
        RawMr* get()
        cbool of_this_process()
        int close()
    cdef cppclass CqBox:
        RawCq* get()
        cbool of_this_process()
        int close()
    cdef cppclass QpBox:
        RawQp* get()
        cbool of_this_process()
        int close()
    shared_ptr[ContextBox] own_context "rdmakit::verbs::own"(RawContext*, const Library*)
    shared_ptr[ChannelBox] own_channel "rdmakit::verbs::own"(RawChannel*, const Library*, shared_ptr[ContextBox])
    shared_ptr[PdBox] own_pd "rdmakit::verbs::own"(RawPd*, const Library*, shared_ptr[ContextBox])
    shared_ptr[MrBox] own_mr "rdmakit::verbs::own"(RawMr*, const Library*, shared_ptr[PdBox])
    shared_ptr[CqBox] own_cq "rdmakit::verbs::own"(
        RawCq*, const Library*, shared_ptr[ContextBox], shared_ptr[ChannelBox])
    shared_ptr[QpBox] own_qp "rdmakit::verbs::own"(
        RawQp*, const Library*, shared_ptr[PdBox], shared_ptr[CqBox], shared_ptr[CqBox])

cdef extern from "native/batch.hpp" namespace "rdmakit::verbs" nogil:
    cdef cppclass BatchSend:
        pass
    cdef cppclass BatchRecv:
        pass
    cdef struct Posted:
        int error
        size_t count
    Posted post_sends(RawQp*, const BatchSend*, size_t)
    Posted post_receives(RawQp*, const BatchRecv*, size_t)

cdef extern from "native/pages.hpp" namespace "rdmakit::verbs" nogil:
    Mlx5Allocators page_allocators()
    shared_ptr[void] share_pages(const void*)

cdef extern from "native/direct.hpp" namespace "rdmakit::verbs" nogil:
    int mlx5_rings(const Library*, RawQp*, Mlx5View*)
    int mlx5_ring(const Library*, RawCq*, Mlx5Cq*)
    void mmio_write64(void*, uint64_t)
    cdef struct Mlx5View:
        uint32_t* dbrec
        void* sq
        uint32_t sq_blocks, sq_stride
        void* rq
        uint32_t rq_count, rq_stride
        void* doorbell
        uint32_t bf_size

cdef extern from "native/proxy.hpp" namespace "rdmakit::verbs" nogil:
    cdef cppclass SendRing "rdmakit::SendRing":
        const uint8_t* base
        uint32_t log_bbs
    cdef cppclass ProxyCq:
        shared_ptr[CqBox] box
        uint8_t* ring
        uint32_t* dbrec
        uint32_t log_entries, cqe_bytes
        cbool collapsed, overrun_ignore, dead
    cdef cppclass ProxyQp:
        shared_ptr[QpBox] box
        SendRing sq
        const uint8_t* rq
        uint32_t rq_stride, log_rq
        uint32_t* dbrec
        cbool sq_sig_all
        ProxyCq* send_cq
        ProxyCq* recv_cq
    cdef cppclass NativeProxy "rdmakit::verbs::Proxy":
        cbool add_cq(uint32_t, ProxyCq)
        cbool add_qp(uint32_t, ProxyQp)
        void remove_cq(uint32_t)
        void remove_qp(uint32_t)
        ProxyCq* find_cq(uint32_t)
        cbool cq_is_dead(uint32_t)
        void reset_qp(uint32_t)
        cbool progress()


cdef const Library* _loaded() except NULL:
    cdef string why
    cdef const Library* found = library(&why)
    if found == NULL:
        raise NotAvailable(
            "libibverbs cannot be loaded",
            rule=why.decode(errors="replace"),
            remedy="apt-get install libibverbs1 ibverbs-providers (Fedora: dnf install libibverbs), or name the file "
                   "in RDMAKIT_LIBIBVERBS",
        )
    return found


def libraries():
    """What has been loaded: paths of both libraries, the optional calls they lack. NotAvailable without libibverbs."""
    cdef const Library* calls = _loaded()
    missing = calls.missing.decode()
    return {
        "ibverbs": calls.ibverbs_path.decode(),
        "mlx5": calls.mlx5_path.decode(),
        "mlx5_missing": calls.mlx5_missing.decode(errors="replace"),
        "missing": missing.split(", ") if missing else [],
    }


def devices():
    """Each RDMA device of this machine as {name, guid, mlx5}, in libibverbs's order; opens none."""
    cdef const Library* calls = _loaded()
    cdef int count = 0
    cdef RawDevice** listed
    with nogil:
        listed = calls.get_device_list(&count)
    if listed == NULL:
        raise refused("ibv_get_device_list", errno)
    found = []
    for i in range(count):
        supported = calls.mlx5dv.is_supported != NULL and calls.mlx5dv.is_supported(listed[i])
        found.append({
            "name": calls.get_device_name(listed[i]).decode(),
            "guid": calls.get_device_guid(listed[i]).to_bytes(8, "little").hex(),
            "mlx5": bool(supported),
        })
    calls.free_device_list(listed)
    return found


cdef class Memory:
    """Bytes that libmlx5 uses for a queue; a NumPy array over them keeps them mapped. `address` and `nbytes`."""

    cdef shared_ptr[void] _owner
    cdef readonly uintptr_t address
    cdef readonly size_t nbytes

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, <void*> self.address, self.nbytes, 0, flags)


cdef object _memory(void* address, size_t nbytes):
    cdef Memory found = Memory.__new__(Memory)
    found._owner = share_pages(address)
    found.address = <uintptr_t> address
    found.nbytes = nbytes
    return found


cdef object _require(str what, cbool there, cbool of_this_process):
    if not there:
        raise BadState(f"{what} is closed", rule="a closed object refuses use", remedy="make a new one")
    if not of_this_process:
        raise BadState(
            f"{what} was opened before fork",
            rule="RDMA objects belong to the process that opened them (man ibv_fork_init)",
            remedy="open the device in the child, or start it by spawn",
        )


cdef class Context:
    """An opened device: ibv_open_device of `name`. UnknownDevice, listing what there is, for another name."""

    cdef shared_ptr[ContextBox] _box
    cdef const Library* _calls
    cdef readonly str name
    cdef readonly bint mlx5
    cdef readonly bint own_pages

    def __init__(self, str name):
        cdef const Library* calls = _loaded()
        cdef int count = 0
        cdef RawContext* raw = NULL
        cdef RawDevice** listed = calls.get_device_list(&count)
        cdef RawDevice* chosen = NULL
        cdef int code = errno
        cdef Mlx5Allocators allocators
        if listed == NULL:
            raise refused("ibv_get_device_list", code)
        names = [calls.get_device_name(listed[i]).decode() for i in range(count)]
        if name in names:
            chosen = listed[<int> names.index(name)]
            self.mlx5 = calls.mlx5dv.is_supported != NULL and calls.mlx5dv.init_obj != NULL \
                and calls.mlx5dv.is_supported(chosen)
            with nogil:
                raw = calls.open_device(chosen)
                code = errno
        calls.free_device_list(listed)
        if name not in names:
            raise UnknownDevice(
                "no such RDMA device", value=name, rule="libibverbs knows " + (", ".join(names) or "none"),
                remedy="ibv_devices lists them; a container needs /dev/infiniband and /sys/class/infiniband",
            )
        if raw == NULL:
            raise refused("ibv_open_device", code, device=name)
        self._calls = calls
        self.name = name
        self._box = own_context(raw, calls)
        if self.mlx5 and calls.mlx5dv.set_context_attr != NULL:
            allocators = page_allocators()
            self.own_pages = calls.mlx5dv.set_context_attr(raw, kAttrAllocators, &allocators) == 0
        _set_nonblocking(raw.async_fd)

    cdef RawContext* _raw(self) except NULL:
        _require(f"context of {self.name}", self._box.get().get() != NULL, self._box.get().of_this_process())
        return self._box.get().get()

    def close(self):
        """ibv_close_device, when the last object made from it is gone."""
        self._box.reset()
        self._box = own_context(NULL, self._calls)

    @property
    def async_fd(self):
        """File descriptor that is readable when an asynchronous event waits."""
        return self._raw().async_fd

    def require(self):
        """BadState when this context is closed, or was opened before fork."""
        self._raw()

    def query_device(self):
        """ibv_query_device as a dict of numbers; `fw_ver` is text."""
        cdef DeviceAttr attr
        cdef RawContext* raw = self._raw()
        memset(&attr, 0, sizeof(attr))
        cdef int code
        with nogil:
            code = self._calls.query_device(raw, &attr)
        if code:
            raise refused("ibv_query_device", code, device=self.name)
        return {
            "fw_ver": attr.fw_ver.decode(), "node_guid": attr.node_guid.to_bytes(8, "little").hex(),
            "vendor_id": attr.vendor_id, "vendor_part_id": attr.vendor_part_id, "hw_ver": attr.hw_ver,
            "max_mr_size": attr.max_mr_size, "max_qp": attr.max_qp, "max_qp_wr": attr.max_qp_wr,
            "max_sge": attr.max_sge, "max_cq": attr.max_cq, "max_cqe": attr.max_cqe, "max_mr": attr.max_mr,
            "max_pd": attr.max_pd, "max_qp_rd_atom": attr.max_qp_rd_atom,
            "max_qp_init_rd_atom": attr.max_qp_init_rd_atom, "atomic_cap": attr.atomic_cap,
            "phys_port_cnt": attr.phys_port_cnt,
        }

    def query_port(self, unsigned port):
        """ibv_query_port as a dict of numbers, as the C API has them (`active_mtu` 5 is 4096 bytes)."""
        cdef PortAttr attr
        cdef RawContext* raw = self._raw()
        memset(&attr, 0, sizeof(attr))
        cdef int code
        with nogil:
            code = self._calls.query_port(raw, <uint8_t> port, &attr)
        if code:
            raise refused("ibv_query_port", code, device=self.name, port=port)
        return {
            "state": attr.state, "max_mtu": attr.max_mtu, "active_mtu": attr.active_mtu,
            "gid_tbl_len": attr.gid_tbl_len, "max_msg_sz": attr.max_msg_sz, "lid": attr.lid, "sm_lid": attr.sm_lid,
            "active_width": attr.active_width, "active_speed": attr.active_speed, "phys_state": attr.phys_state,
            "link_layer": attr.link_layer, "pkey_tbl_len": attr.pkey_tbl_len,
        }

    def query_gid(self, unsigned port, int index):
        """The 16 bytes of a GID table entry; None where it cannot be read, as happens in containers (EINVAL)."""
        cdef RawGid gid
        cdef RawContext* raw = self._raw()
        cdef int code
        with nogil:
            code = self._calls.query_gid(raw, <uint8_t> port, index, &gid)
        return None if code else bytes(gid.raw[:16])

    def alloc_pd(self):
        """ibv_alloc_pd."""
        cdef RawContext* raw = self._raw()
        cdef RawPd* made
        with nogil:
            made = self._calls.alloc_pd(raw)
        if made == NULL:
            raise refused("ibv_alloc_pd", errno, device=self.name)
        cdef Pd found = Pd.__new__(Pd)
        found.context = self
        found._box = own_pd(made, self._calls, self._box)
        return found

    def create_channel(self):
        """ibv_create_comp_channel, not blocking: where the events of armed CQs arrive."""
        cdef RawContext* raw = self._raw()
        cdef RawChannel* made = self._calls.create_comp_channel(raw)
        if made == NULL:
            raise refused("ibv_create_comp_channel", errno, device=self.name)
        _set_nonblocking(made.fd)
        cdef Channel found = Channel.__new__(Channel)
        found.context = self
        found._box = own_channel(made, self._calls, self._box)
        return found

    def create_cq(self, int entries, Channel channel=None, int cqe_bytes=0, bint ignore_overrun=False):
        """A CQ of at least `entries`. `cqe_bytes` (64 or 128) and `ignore_overrun` need an mlx5 device: through
        mlx5dv_create_cq then."""
        cdef RawContext* raw = self._raw()
        cdef shared_ptr[ChannelBox] channel_box
        cdef RawChannel* channel_raw = NULL
        cdef RawCq* made = NULL
        cdef CqInitAttrEx extended
        cdef Mlx5CqInitAttr direct
        cdef int code
        if channel is not None:
            channel_box = channel._box
            channel_raw = channel_box.get().get()
        if cqe_bytes or ignore_overrun:
            if not self.mlx5 or self._calls.mlx5dv.create_cq == NULL:
                raise refused("mlx5dv_create_cq", 95, device=self.name)
            memset(&extended, 0, sizeof(extended))
            memset(&direct, 0, sizeof(direct))
            extended.cqe = <uint32_t> entries
            extended.channel = channel_raw
            if ignore_overrun:
                extended.comp_mask, extended.flags = kCqInitAttrFlags, kCqIgnoreOverrun
            if cqe_bytes:
                direct.comp_mask, direct.cqe_size = kCqCqeSize, <uint16_t> cqe_bytes
            with nogil:
                made = self._calls.mlx5dv.create_cq(raw, &extended, &direct)
                code = errno
        else:
            with nogil:
                made = self._calls.create_cq(raw, entries, NULL, channel_raw, 0)
                code = errno
        if made == NULL:
            raise refused("ibv_create_cq", code, device=self.name, entries=entries)
        cdef Cq found = Cq.__new__(Cq)
        found.context = self
        found._box = own_cq(made, self._calls, self._box, channel_box)
        return found

    def ring(self, uintptr_t register, uint64_t value):
        """Write 8 bytes to a doorbell register of one of its queues, behind all that has been written before."""
        self._raw()  # a child of fork has no register mapped
        mmio_write64(<void*> register, value)

    def async_events(self):
        """Events since the last call, oldest first: (IBV_EVENT number, "qp" | "cq" | "port" | "", its number)."""
        cdef RawContext* raw = self._raw()
        cdef AsyncEvent event
        found = []
        while self._calls.get_async_event(raw, &event) == 0:
            if event_is_of_qp(event.event_type):
                found.append((event.event_type, "qp", event.element.qp.qp_num))
            elif event.event_type == kEventCqError:
                found.append((event.event_type, "cq", event.element.cq.handle))
            elif event_is_of_port(event.event_type):
                found.append((event.event_type, "port", event.element.port_num))
            else:
                found.append((event.event_type, "", 0))
            self._calls.ack_async_event(&event)
        return found


cdef int _set_nonblocking(int fd) except -1:
    import os
    os.set_blocking(fd, False)
    return 0


cdef class Channel:
    """A completion channel, made by `Context.create_channel`."""

    cdef shared_ptr[ChannelBox] _box
    cdef readonly Context context

    def events(self):
        """Handles of the CQs whose events have arrived since the last call."""
        cdef RawCq* cq = NULL
        cdef void* unused = NULL
        self.context._raw()
        found = []
        while self.context._calls.get_cq_event(self._box.get().get(), &cq, &unused) == 0:
            found.append(cq.handle)
            self.context._calls.ack_cq_events(cq, 1)
        return found


cdef class Pd:
    """A protection domain, made by `Context.alloc_pd`."""

    cdef shared_ptr[PdBox] _box
    cdef readonly Context context

    cdef RawPd* _raw(self) except NULL:
        _require(f"PD of {self.context.name}", self._box.get().get() != NULL, self._box.get().of_this_process())
        return self._box.get().get()

    @property
    def handle(self):
        """The kernel's number for it."""
        return self._raw().handle

    def close(self):
        """ibv_dealloc_pd; Refused with EBUSY while an MR or a QP is in it."""
        cdef int code = self._box.get().close()
        if code:
            raise refused("ibv_dealloc_pd", code, device=self.context.name)

    def reg_mr(self, uintptr_t address, size_t nbytes, unsigned access):
        """ibv_reg_mr, or ibv_reg_mr_iova2 for flags of IBV_ACCESS_OPTIONAL_RANGE (relaxed ordering)."""
        cdef RawPd* raw = self._raw()
        cdef const Library* calls = self.context._calls
        cdef RawMr* made
        cdef int code
        if access & kAccessOptional and calls.reg_mr_iova2 != NULL:
            with nogil:
                made = calls.reg_mr_iova2(raw, <void*> address, nbytes, address, access)
                code = errno
        else:
            access &= ~kAccessOptional  # optional means that a library without it may leave it out
            with nogil:
                made = calls.reg_mr(raw, <void*> address, nbytes, <int> access)
                code = errno
        return self._mr(made, "ibv_reg_mr", code, address, nbytes)

    def reg_dmabuf_mr(self, uint64_t offset, size_t nbytes, uint64_t iova, int fd, unsigned access):
        """ibv_reg_dmabuf_mr: memory of another device, exported as a dma-buf. Refused where the library lacks it."""
        cdef RawPd* raw = self._raw()
        cdef const Library* calls = self.context._calls
        cdef RawMr* made
        cdef int code
        if calls.reg_dmabuf_mr == NULL:
            raise refused("ibv_reg_dmabuf_mr", 95, device=self.context.name)
        with nogil:
            made = calls.reg_dmabuf_mr(raw, offset, nbytes, iova, fd, <int> access)
            code = errno
        return self._mr(made, "ibv_reg_dmabuf_mr", code, iova, nbytes)

    cdef object _mr(self, RawMr* made, str call, int code, uintptr_t address, size_t nbytes):
        if made == NULL:
            raise refused(call, code, device=self.context.name, address=hex(address), nbytes=nbytes)
        cdef Mr found = Mr.__new__(Mr)
        found.pd = self
        found._box = own_mr(made, self.context._calls, self._box)
        found.lkey, found.rkey, found.address, found.nbytes = made.lkey, made.rkey, address, nbytes
        return found

    def create_qp(self, Cq send_cq not None, Cq recv_cq=None, *, uint32_t max_send_wr=1, uint32_t max_recv_wr=0,
                  uint32_t max_send_sge=1, uint32_t max_recv_sge=0, uint32_t max_inline=0, bint sq_sig_all=False,
                  scatter_to_cqe=None, bint out_of_order=False):
        """A reliable connected queue pair, in RESET. The last two, when given, need an mlx5 device: through
        mlx5dv_create_qp then. `cap` says what the device has made of the sizes."""
        cdef RawPd* raw = self._raw()
        cdef const Library* calls = self.context._calls
        cdef Cq receiving = send_cq if recv_cq is None else recv_cq
        cdef RawQp* made = NULL
        cdef QpInitAttr attr
        cdef QpInitAttrEx extended
        cdef Mlx5QpInitAttr direct
        cdef QpCap cap
        cdef int code
        memset(&cap, 0, sizeof(cap))
        cap.max_send_wr, cap.max_recv_wr, cap.max_send_sge = max_send_wr, max_recv_wr, max_send_sge
        cap.max_recv_sge, cap.max_inline_data = max_recv_sge, max_inline
        if scatter_to_cqe is not None or out_of_order:
            if not self.context.mlx5 or calls.mlx5dv.create_qp == NULL:
                raise refused("mlx5dv_create_qp", 95, device=self.context.name)
            memset(&extended, 0, sizeof(extended))
            memset(&direct, 0, sizeof(direct))
            extended.send_cq, extended.recv_cq, extended.cap = send_cq._raw(), receiving._raw(), cap
            extended.qp_type, extended.sq_sig_all = kQpTypeRc, sq_sig_all
            extended.comp_mask, extended.pd = kInitAttrPd, raw
            direct.comp_mask = kQpCreateFlags
            direct.create_flags = (kQpScatterToCqe if scatter_to_cqe else kQpNoScatterToCqe) \
                | (kQpOutOfOrder if out_of_order else 0)
            with nogil:
                made = calls.mlx5dv.create_qp(self.context._box.get().get(), &extended, &direct)
                code = errno
            cap = extended.cap
        else:
            memset(&attr, 0, sizeof(attr))
            attr.send_cq, attr.recv_cq, attr.cap = send_cq._raw(), receiving._raw(), cap
            attr.qp_type, attr.sq_sig_all = kQpTypeRc, sq_sig_all
            with nogil:
                made = calls.create_qp(raw, &attr)
                code = errno
            cap = attr.cap
        if made == NULL:
            raise refused("ibv_create_qp", code, device=self.context.name, max_send_wr=max_send_wr,
                          max_recv_wr=max_recv_wr, max_send_sge=max_send_sge, max_inline=max_inline)
        cdef Qp found = Qp.__new__(Qp)
        found.pd = self
        found.send_cq, found.recv_cq = send_cq, receiving
        found._calls = calls
        found._box = own_qp(made, calls, self._box, send_cq._box, receiving._box)
        found.qpn = made.qp_num
        found.cap = {
            "max_send_wr": cap.max_send_wr, "max_recv_wr": cap.max_recv_wr, "max_send_sge": cap.max_send_sge,
            "max_recv_sge": cap.max_recv_sge, "max_inline_data": cap.max_inline_data,
        }
        return found


cdef class Mr:
    """A memory region, made by `Pd.reg_mr`; the memory is the caller's to keep."""

    cdef shared_ptr[MrBox] _box
    cdef readonly Pd pd
    cdef readonly uint32_t lkey, rkey
    cdef readonly uintptr_t address
    cdef readonly size_t nbytes

    def close(self):
        """ibv_dereg_mr."""
        cdef int code
        with nogil:
            code = self._box.get().close()
        if code:
            raise refused("ibv_dereg_mr", code, lkey=hex(self.lkey))


cdef class Cq:
    """A completion queue, made by `Context.create_cq`."""

    cdef shared_ptr[CqBox] _box
    cdef readonly Context context

    cdef RawCq* _raw(self) except NULL:
        _require(f"CQ of {self.context.name}", self._box.get().get() != NULL, self._box.get().of_this_process())
        return self._box.get().get()

    @property
    def handle(self):
        """The kernel's number for it, which asynchronous events name."""
        return self._raw().handle

    @property
    def entries(self):
        """How many it has."""
        return self._raw().cqe

    def close(self):
        """ibv_destroy_cq; Refused with EBUSY while a QP completes to it."""
        cdef int code = self._box.get().close()
        if code:
            raise refused("ibv_destroy_cq", code, device=self.context.name)

    def arm(self, bint solicited_only=False):
        """ibv_req_notify_cq."""
        cdef RawCq* raw = self._raw()
        cdef int code = self.context._raw().ops.req_notify_cq(raw, solicited_only)
        if code:
            raise refused("ibv_req_notify_cq", code, device=self.context.name)

    def poll(self, into not None):
        """ibv_poll_cq straight into an array of dtype `rdmakit.verbs.WC`; returns how many rows were written."""
        cdef RawCq* raw = self._raw()
        cdef Py_buffer view
        cdef int count
        PyObject_GetBuffer(into, &view, PyBUF_WRITABLE)
        try:
            if view.len % 48:
                raise BadArgument("not an array of completions", value=view.len, rule="a multiple of 48 bytes",
                                  remedy="np.zeros(n, rdmakit.verbs.WC)")
            count = <int> (view.len // 48)
            with nogil:
                count = self.context._box.get().get().ops.poll_cq(raw, count, <RawWc*> view.buf)
        finally:
            PyBuffer_Release(&view)
        if count < 0:
            raise refused("ibv_poll_cq", 5, device=self.context.name)
        return count

    def mlx5(self):
        """mlx5dv_init_obj: {cqn, ring, dbrec, uar, entries, cqe_bytes}. The consumer index is the caller's then."""
        cdef Mlx5Cq found
        cdef int code = mlx5_ring(self.context._calls, self._raw(), &found)
        if code:
            raise refused("mlx5dv_init_obj", code, device=self.context.name)
        return {
            "cqn": found.cqn, "entries": found.cqe_cnt, "cqe_bytes": found.cqe_size,
            "uar": <uintptr_t> found.cq_uar, "ring": _memory(found.buf, found.cqe_cnt * found.cqe_size),
            "dbrec": _memory(found.dbrec, 8),
        }


cdef class Qp:
    """A queue pair, made by `Pd.create_qp`. `cap`: the sizes that it got."""

    cdef shared_ptr[QpBox] _box
    cdef const Library* _calls
    cdef readonly Pd pd
    cdef readonly Cq send_cq, recv_cq
    cdef readonly uint32_t qpn
    cdef readonly dict cap

    cdef RawQp* _raw(self) except NULL:
        _require(f"QP {self.qpn:#x}", self._box.get().get() != NULL, self._box.get().of_this_process())
        return self._box.get().get()

    def close(self):
        """ibv_destroy_qp."""
        cdef int code
        with nogil:
            code = self._box.get().close()
        if code:
            raise refused("ibv_destroy_qp", code, qpn=hex(self.qpn))

    def modify(self, dict attributes not None, int mask):
        """ibv_modify_qp. Names of struct ibv_qp_attr and, flat, of its address vector (`dgid`: 16 bytes)."""
        cdef RawQp* raw = self._raw()
        cdef QpAttr attr
        cdef bytes gid
        cdef int code
        memset(&attr, 0, sizeof(attr))
        attr.ah_attr.grh.hop_limit = 64
        for name, value in attributes.items():
            if name == "qp_state":
                attr.qp_state = value
            elif name == "cur_qp_state":
                attr.cur_qp_state = value
            elif name == "path_mtu":
                attr.path_mtu = value
            elif name == "path_mig_state":
                attr.path_mig_state = value
            elif name == "qkey":
                attr.qkey = value
            elif name == "rq_psn":
                attr.rq_psn = value
            elif name == "sq_psn":
                attr.sq_psn = value
            elif name == "dest_qp_num":
                attr.dest_qp_num = value
            elif name == "qp_access_flags":
                attr.qp_access_flags = value
            elif name == "pkey_index":
                attr.pkey_index = value
            elif name == "en_sqd_async_notify":
                attr.en_sqd_async_notify = value
            elif name == "max_rd_atomic":
                attr.max_rd_atomic = value
            elif name == "max_dest_rd_atomic":
                attr.max_dest_rd_atomic = value
            elif name == "min_rnr_timer":
                attr.min_rnr_timer = value
            elif name == "port_num":
                attr.port_num = value
            elif name == "timeout":
                attr.timeout = value
            elif name == "retry_cnt":
                attr.retry_cnt = value
            elif name == "rnr_retry":
                attr.rnr_retry = value
            elif name == "rate_limit":
                attr.rate_limit = value
            elif name == "dgid":
                gid = bytes(value)
                if len(gid) != 16:
                    raise BadArgument("not a GID", value=value, rule="16 bytes",
                                      remedy="rdmakit.device.endpoint.gid_bytes makes them of text")
                memcpy(attr.ah_attr.grh.dgid.raw, <const char*> gid, 16)
                attr.ah_attr.is_global = 1
            elif name == "dlid":
                attr.ah_attr.dlid = value
            elif name == "flow_label":
                attr.ah_attr.grh.flow_label = value
            elif name == "sgid_index":
                attr.ah_attr.grh.sgid_index = value
            elif name == "hop_limit":
                attr.ah_attr.grh.hop_limit = value
            elif name == "traffic_class":
                attr.ah_attr.grh.traffic_class = value
            elif name == "sl":
                attr.ah_attr.sl = value
            elif name == "ah_port_num":
                attr.ah_attr.port_num = value
            else:
                raise BadArgument("unknown QP attribute", value=name, rule="names of ibv_qp_attr and ibv_ah_attr",
                                  remedy="see man ibv_modify_qp")
        with nogil:
            code = self._calls.modify_qp(raw, &attr, mask)
        if code:
            raise refused("ibv_modify_qp", code if code > 0 else errno, qpn=hex(self.qpn),
                          state=attributes.get("qp_state"))

    def query(self):
        """ibv_query_qp: every attribute, flat, by the names that `modify` takes."""
        cdef RawQp* raw = self._raw()
        cdef QpAttr attr
        cdef QpInitAttr made
        cdef int code
        memset(&attr, 0, sizeof(attr))
        memset(&made, 0, sizeof(made))
        with nogil:
            code = self._calls.query_qp(raw, &attr, (1 << 21) - 1, &made)
        if code:
            raise refused("ibv_query_qp", code if code > 0 else errno, qpn=hex(self.qpn))
        return {
            "qp_state": attr.qp_state, "cur_qp_state": attr.cur_qp_state, "path_mtu": attr.path_mtu,
            "path_mig_state": attr.path_mig_state, "qkey": attr.qkey, "rq_psn": attr.rq_psn, "sq_psn": attr.sq_psn,
            "dest_qp_num": attr.dest_qp_num, "qp_access_flags": attr.qp_access_flags, "pkey_index": attr.pkey_index,
            "sq_draining": attr.sq_draining, "max_rd_atomic": attr.max_rd_atomic,
            "max_dest_rd_atomic": attr.max_dest_rd_atomic, "min_rnr_timer": attr.min_rnr_timer,
            "port_num": attr.port_num, "timeout": attr.timeout, "retry_cnt": attr.retry_cnt,
            "rnr_retry": attr.rnr_retry, "dgid": bytes(attr.ah_attr.grh.dgid.raw[:16]), "dlid": attr.ah_attr.dlid,
            "flow_label": attr.ah_attr.grh.flow_label, "sgid_index": attr.ah_attr.grh.sgid_index,
            "hop_limit": attr.ah_attr.grh.hop_limit, "traffic_class": attr.ah_attr.grh.traffic_class,
            "sl": attr.ah_attr.sl, "sq_sig_all": made.sq_sig_all,
        }

    def post_send(self, requests not None):
        """ibv_post_send of all rows of an array of dtype `rdmakit.verbs.SEND_WR`, in one chain of up to 64 each.

        Refused when the device takes fewer: `taken` of the error's message says how many it took.
        """
        cdef RawQp* raw = self._raw()
        cdef Py_buffer view
        cdef Posted posted
        PyObject_GetBuffer(requests, &view, PyBUF_SIMPLE)
        try:
            if view.len % 64:
                raise BadArgument("not an array of work requests", value=view.len, rule="a multiple of 64 bytes",
                                  remedy="np.zeros(n, rdmakit.verbs.SEND_WR)")
            with nogil:
                posted = post_sends(raw, <const BatchSend*> view.buf, <size_t> view.len // 64)
        finally:
            PyBuffer_Release(&view)
        if posted.error:
            raise refused("ibv_post_send", posted.error if posted.error > 0 else errno, qpn=hex(self.qpn),
                          taken=posted.count)

    def post_recv(self, requests not None):
        """ibv_post_recv of all rows of an array of dtype `rdmakit.verbs.RECV_WR`."""
        cdef RawQp* raw = self._raw()
        cdef Py_buffer view
        cdef Posted posted
        PyObject_GetBuffer(requests, &view, PyBUF_SIMPLE)
        try:
            if view.len % 24:
                raise BadArgument("not an array of receives", value=view.len, rule="a multiple of 24 bytes",
                                  remedy="np.zeros(n, rdmakit.verbs.RECV_WR)")
            with nogil:
                posted = post_receives(raw, <const BatchRecv*> view.buf, <size_t> view.len // 24)
        finally:
            PyBuffer_Release(&view)
        if posted.error:
            raise refused("ibv_post_recv", posted.error if posted.error > 0 else errno, qpn=hex(self.qpn),
                          taken=posted.count)

    def data_in_order(self, int opcode=0, uint32_t flags=0):
        """ibv_query_qp_data_in_order; 0 where the library has no such call, which promises nothing."""
        cdef RawQp* raw = self._raw()
        if self._calls.query_qp_data_in_order == NULL:
            return 0
        return self._calls.query_qp_data_in_order(raw, opcode, flags)

    def lag_port(self):
        """mlx5dv_query_qp_lag_port: (configured, active)."""
        cdef RawQp* raw = self._raw()
        cdef uint8_t configured = 0, active = 0
        cdef int code = 95
        if self._calls.mlx5dv.query_qp_lag_port != NULL and self.pd.context.mlx5:
            code = self._calls.mlx5dv.query_qp_lag_port(raw, &configured, &active)
        if code:
            raise refused("mlx5dv_query_qp_lag_port", code, qpn=hex(self.qpn))
        return configured, active

    def set_lag_port(self, uint8_t port):
        """mlx5dv_modify_qp_lag_port."""
        cdef RawQp* raw = self._raw()
        cdef int code = 95
        if self._calls.mlx5dv.modify_qp_lag_port != NULL and self.pd.context.mlx5:
            code = self._calls.mlx5dv.modify_qp_lag_port(raw, port)
        if code:
            raise refused("mlx5dv_modify_qp_lag_port", code, qpn=hex(self.qpn), port=port)

    def set_udp_sport(self, uint16_t port):
        """mlx5dv_modify_qp_udp_sport."""
        cdef RawQp* raw = self._raw()
        cdef int code = 95
        if self._calls.mlx5dv.modify_qp_udp_sport != NULL and self.pd.context.mlx5:
            code = self._calls.mlx5dv.modify_qp_udp_sport(raw, port)
        if code:
            raise refused("mlx5dv_modify_qp_udp_sport", code, qpn=hex(self.qpn), port=hex(port))

    def mlx5(self):
        """mlx5dv_init_obj: rings and doorbell record as `Memory`, sizes, and the doorbell register's address."""
        cdef Mlx5View found
        cdef int code = mlx5_rings(self._calls, self._raw(), &found)
        if code:
            raise refused("mlx5dv_init_obj", code, qpn=hex(self.qpn))
        return {
            "sq": _memory(found.sq, found.sq_blocks * found.sq_stride),
            "rq": _memory(found.rq, found.rq_count * found.rq_stride) if found.rq_count else None,
            "rq_stride": found.rq_stride, "dbrec": _memory(found.dbrec, 8),
            "doorbell": <uintptr_t> found.doorbell, "bf_size": found.bf_size,
        }

cdef class Proxy:
    """Posts what mlx5 rings hold through plain verbs, and completes it with CQEs (native/proxy.hpp)."""

    cdef shared_ptr[NativeProxy] _native

    def __cinit__(self):
        self._native = make_shared[NativeProxy]()

    def add_cq(self, Cq cq not None, uint32_t cqn, uintptr_t ring, uintptr_t dbrec, uint32_t log_entries,
               uint32_t cqe_bytes, bint collapsed, bint overrun_ignore):
        """Completions of `cq` go to the ring at that address, which the caller keeps."""
        cdef ProxyCq made
        made.box = cq._box
        made.ring, made.dbrec = <uint8_t*> ring, <uint32_t*> dbrec
        made.log_entries, made.cqe_bytes = log_entries, cqe_bytes
        made.collapsed, made.overrun_ignore = collapsed, overrun_ignore
        return self._native.get().add_cq(cqn, made)

    def add_qp(self, Qp qp not None, uint32_t send_cqn, uint32_t recv_cqn, uintptr_t sq, uint32_t log_blocks,
               uintptr_t rq, uint32_t rq_stride, uint32_t log_rq, uintptr_t dbrec, bint sq_sig_all):
        """WQEs in these rings go to `qp`."""
        cdef ProxyQp made
        made.box = qp._box
        made.sq.base, made.sq.log_bbs = <const uint8_t*> sq, log_blocks
        made.rq, made.rq_stride, made.log_rq = <const uint8_t*> rq, rq_stride, log_rq
        made.dbrec, made.sq_sig_all = <uint32_t*> dbrec, sq_sig_all
        made.send_cq = self._native.get().find_cq(send_cqn)
        made.recv_cq = self._native.get().find_cq(recv_cqn)
        return self._native.get().add_qp(qp.qpn, made)

    def remove_cq(self, uint32_t cqn):
        """Forget it; before it is destroyed."""
        self._native.get().remove_cq(cqn)

    def remove_qp(self, uint32_t qpn):
        """Forget it; before it is destroyed."""
        self._native.get().remove_qp(qpn)

    def reset_qp(self, uint32_t qpn):
        """Its indices start at 0 again."""
        self._native.get().reset_qp(qpn)

    def cq_is_dead(self, uint32_t cqn):
        """Whether a CQE came while its ring was full."""
        return self._native.get().cq_is_dead(cqn)

    def progress(self):
        """Hand on and take back; True if anything moved."""
        cdef cbool moved
        with nogil:
            moved = self._native.get().progress()
        return moved
