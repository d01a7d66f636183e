# A protection domain makes memory regions and queue pairs.

cdef class Pd:
    """A protection domain, made by `Context.alloc_pd`."""

    cdef shared_ptr[PdBox] _box
    cdef readonly Context context

    cdef RawPd* _raw(self) except NULL:
        if not self._box.get().usable():
            _require(f"PD of {self.context.name}", self._box.get().get() != NULL, self._box.get().of_this_process())
        return self._box.get().get()

    @property
    def handle(self):
        """The kernel's number for it."""
        return self._raw().handle

    @property
    def number(self):
        """The device's number for it, which commands name: mlx5dv_init_obj."""
        cdef uint32_t number = 0
        cdef int code = pd_number(self.context._calls, self._raw(), &number)
        if code:
            raise refused("mlx5dv_init_obj", code, device=self.context.name)
        return number

    def resolve(self, bytes dgid not None, unsigned port=1, unsigned sgid_index=0):
        """The 6 bytes of the Ethernet address that packets to a GID go to: the kernel's, from an address handle made
        for a moment (ibv_create_ah). Refused where it does not resolve, or libmlx5 does not say."""
        cdef RawPd* raw = self._raw()
        cdef const Library* calls = self.context._calls
        cdef AhAttr attributes
        cdef uint8_t mac[6]
        cdef int code
        if len(dgid) != 16:
            raise BadArgument("not a GID", value=dgid, rule="16 bytes",
                              remedy="rdmakit.device.endpoint.gid_bytes makes them of text")
        memset(&attributes, 0, sizeof(attributes))
        memcpy(attributes.grh.dgid.raw, <const char*> dgid, 16)
        attributes.grh.sgid_index, attributes.grh.hop_limit = <uint8_t> sgid_index, 64
        attributes.is_global, attributes.port_num = 1, <uint8_t> port
        with nogil:
            code = resolve_mac(calls, raw, &attributes, mac)
        if code:
            raise refused("ibv_create_ah", code, device=self.context.name, port=port, gid=dgid.hex())
        return bytes(mac[:6])

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
        found.qpn, found.signals_all = made.qp_num, sq_sig_all
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
