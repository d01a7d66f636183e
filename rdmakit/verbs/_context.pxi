# An opened device, and the channel on which its armed CQs report.

cdef class Context:
    """An opened device: ibv_open_device of `name`. UnknownDevice, listing what there is, for another name.

    `devx`: mlx5dv_open_device, so that commands of our own pass (`Uar`, `Umem`, `DevxObject`); Refused where not.
    """

    cdef shared_ptr[ContextBox] _box
    cdef const Library* _calls
    cdef readonly str name
    cdef readonly bint mlx5
    cdef readonly bint own_pages
    cdef readonly bint devx

    def __init__(self, str name, bint devx=False):
        cdef const Library* calls = _loaded()
        cdef int count = 0
        cdef RawContext* raw = NULL
        cdef RawDevice** listed = calls.get_device_list(&count)
        cdef RawDevice* chosen = NULL
        cdef int code = errno
        cdef Mlx5Allocators allocators
        cdef Mlx5ContextAttr asked
        cdef str call = "mlx5dv_open_device" if devx else "ibv_open_device"
        if listed == NULL:
            raise refused("ibv_get_device_list", code)
        names = [calls.get_device_name(listed[i]).decode() for i in range(count)]
        if name in names:
            chosen = listed[<int> names.index(name)]
            self.mlx5 = calls.mlx5dv.is_supported != NULL and calls.mlx5dv.init_obj != NULL \
                and calls.mlx5dv.is_supported(chosen)
            code = 95  # EOPNOTSUPP
            if not devx:
                with nogil:
                    raw = calls.open_device(chosen)
                    code = errno
            elif self.mlx5 and has_devx(calls):
                memset(&asked, 0, sizeof(asked))
                asked.flags = kContextDevx
                with nogil:
                    raw = calls.mlx5dv.open_device(chosen, &asked)
                    code = errno
        calls.free_device_list(listed)
        if name not in names:
            raise UnknownDevice(
                "no such RDMA device", value=name, rule="libibverbs knows " + (", ".join(names) or "none"),
                remedy="ibv_devices lists them; a container needs /dev/infiniband and /sys/class/infiniband",
            )
        if raw == NULL:
            raise refused(call, code, device=name)
        self._calls = calls
        self.name = name
        self.devx = devx
        self._box = own_context(raw, calls)
        if self.mlx5 and calls.mlx5dv.set_context_attr != NULL:
            allocators = page_allocators()
            self.own_pages = calls.mlx5dv.set_context_attr(raw, kAttrAllocators, &allocators) == 0
        _set_nonblocking(raw.async_fd)

    cdef RawContext* _raw(self) except NULL:
        if not self._box.get().usable():
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
        ring_register(<void*> register, value)

    def order(self):
        """What was read and written before keeps its place before what follows, for a device on the bus as well."""
        with_device()

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
