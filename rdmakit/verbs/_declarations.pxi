# What _verbs calls and reads, as C++ has it: rdmakit/verbs/native.

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
        uint64_t wr_id
        uint32_t status
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
        AhAttr ah_attr, alt_ah_attr
        uint16_t pkey_index, alt_pkey_index
        uint8_t en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout
        uint8_t retry_cnt, rnr_retry, alt_port_num, alt_timeout
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
    cdef cppclass Mlx5ContextAttr:
        uint32_t flags
    cdef cppclass RawUar "rdmakit::verbs::DevxUar":
        void* reg_addr
        void* base_addr
        uint32_t page_id
    cdef cppclass RawUmem "rdmakit::verbs::DevxUmem":
        uint32_t umem_id
    cdef cppclass RawDevx "rdmakit::verbs::DevxObj":
        pass
    cdef cppclass RawEvents "rdmakit::verbs::DevxEventChannel":
        int fd
    cdef cppclass DevxEvent:
        uint64_t cookie
        uint8_t type
    uint32_t kContextDevx, kUarBlueFlame, kUarNonCached
    int kOmitEventData
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
        RawContext* (*open_device)(RawDevice*, Mlx5ContextAttr*)
        RawDevx* (*devx_obj_create)(RawContext*, const void*, size_t, void*, size_t)
        int (*devx_obj_query)(RawDevx*, const void*, size_t, void*, size_t)
        int (*devx_obj_modify)(RawDevx*, const void*, size_t, void*, size_t)
        int (*devx_obj_destroy)(RawDevx*)
        int (*devx_general_cmd)(RawContext*, const void*, size_t, void*, size_t)
        RawUmem* (*devx_umem_reg)(RawContext*, void*, size_t, uint32_t)
        void* devx_umem_reg_ex
        int (*devx_umem_dereg)(RawUmem*)
        RawUar* (*devx_alloc_uar)(RawContext*, uint32_t)
        void (*devx_free_uar)(RawUar*)
        int (*devx_query_eqn)(RawContext*, uint32_t, uint32_t*)
        RawEvents* (*devx_create_event_channel)(RawContext*, int)
        void (*devx_destroy_event_channel)(RawEvents*)
        int (*devx_subscribe_devx_event)(RawEvents*, RawDevx*, uint16_t, uint16_t*, uint64_t)
        long (*devx_get_event)(RawEvents*, DevxEvent*, size_t)
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
        cbool usable()
        int close()
    cdef cppclass ChannelBox:
        RawChannel* get()
        int close()
    cdef cppclass PdBox:
        RawPd* get()
        cbool of_this_process()
        cbool usable()
        int close()
    cdef cppclass MrBox:
        RawMr* get()
        cbool of_this_process()
        int close()
    cdef cppclass CqBox:
        RawCq* get()
        cbool of_this_process()
        cbool usable()
        int close()
    cdef cppclass QpBox:
        RawQp* get()
        cbool of_this_process()
        cbool usable()
        int close()
    shared_ptr[ContextBox] own_context "rdmakit::verbs::own"(RawContext*, const Library*)
    shared_ptr[ChannelBox] own_channel "rdmakit::verbs::own"(RawChannel*, const Library*, shared_ptr[ContextBox])
    shared_ptr[PdBox] own_pd "rdmakit::verbs::own"(RawPd*, const Library*, shared_ptr[ContextBox])
    shared_ptr[MrBox] own_mr "rdmakit::verbs::own"(RawMr*, const Library*, shared_ptr[PdBox])
    shared_ptr[CqBox] own_cq "rdmakit::verbs::own"(
        RawCq*, const Library*, shared_ptr[ContextBox], shared_ptr[ChannelBox])
    shared_ptr[QpBox] own_qp "rdmakit::verbs::own"(
        RawQp*, const Library*, shared_ptr[PdBox], shared_ptr[CqBox], shared_ptr[CqBox])

cdef extern from "native/devx.hpp" namespace "rdmakit::verbs" nogil:
    ctypedef vector[shared_ptr[void]] Parents
    cdef cppclass UarBox:
        RawUar* get()
        cbool of_this_process()
        int close()
    cdef cppclass UmemBox:
        RawUmem* get()
        cbool of_this_process()
        int close()
    cdef cppclass DevxBox:
        RawDevx* get()
        cbool of_this_process()
        int close()
    cdef cppclass EventsBox:
        RawEvents* get()
        cbool of_this_process()
    shared_ptr[EventsBox] own_events "rdmakit::verbs::own"(RawEvents*, shared_ptr[ContextBox])
    shared_ptr[UarBox] own_uar "rdmakit::verbs::own"(RawUar*, shared_ptr[ContextBox])
    shared_ptr[UmemBox] own_umem "rdmakit::verbs::own"(
        RawUmem*, const Library*, shared_ptr[ContextBox], shared_ptr[void])
    shared_ptr[DevxBox] own_devx "rdmakit::verbs::own"(RawDevx*, const Library*, Parents)
    RawUmem* register_umem(const Library*, RawContext*, void*, size_t, uint32_t)
    RawUmem* register_dmabuf(const Library*, RawContext*, int, uint64_t, size_t, uint32_t)
    int pd_number(const Library*, RawPd*, uint32_t*)
    int resolve_mac(const Library*, RawPd*, AhAttr*, uint8_t*)

cdef extern from "native/batch.hpp" namespace "rdmakit::verbs" nogil:
    cdef cppclass BatchSend:
        pass
    cdef cppclass BatchRecv:
        pass
    cdef struct Posted:
        int error
        size_t count
    ctypedef Posted (*PostRows)(RawQp*, const void*, size_t) noexcept nogil
    Posted post_sends(RawQp*, const void*, size_t)
    Posted post_receives(RawQp*, const void*, size_t)

cdef extern from "native/pages.hpp" namespace "rdmakit::verbs" nogil:
    Mlx5Allocators page_allocators()
    shared_ptr[void] new_pages(size_t)
    shared_ptr[void] share_pages(const void*)

cdef extern from "rdmakit/cpu_dma.cuh" nogil:
    void ring_register "rdmakit::cpu::ring"(void*, uint64_t)
    void with_device "rdmakit::cpu::with_device"()

cdef extern from "native/direct.hpp" namespace "rdmakit::verbs" nogil:
    int mlx5_rings(const Library*, RawQp*, Mlx5View*)
    int mlx5_ring(const Library*, RawCq*, Mlx5Cq*)
    cdef struct Mlx5View:
        uint32_t* dbrec
        void* sq
        uint32_t sq_blocks, sq_stride
        void* rq
        uint32_t rq_count, rq_stride
        void* doorbell
        uint32_t bf_size

cdef extern from "native/direct_queues.hpp" namespace "rdmakit::verbs" nogil:
    cdef cppclass NativeQp "rdmakit::verbs::DirectQp":
        uint32_t qpn
        cbool begin(const Mlx5View&, uint32_t, uint32_t, cbool)
        Posted send(const void*, size_t)
        Posted receive(const void*, size_t)
    cdef cppclass NativeCq "rdmakit::verbs::DirectCq":
        uint32_t failed
        cbool begin(const Mlx5Cq&)
        int poll(RawWc*, int, uint32_t*)
        void join(uint32_t, NativeQp*)

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
        void start()
        void stop()
