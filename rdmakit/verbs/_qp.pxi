# A queue pair: its attributes, work requests from a NumPy array, which port it leaves by.

cdef bint _set_address(AhAttr* to, str name, object value) except -1:
    """Whether `name` is a field of struct ibv_ah_attr, and then it is set; a GID makes it global."""
    cdef bytes gid
    if name == "dgid":
        gid = bytes(value)
        if len(gid) != 16:
            raise BadArgument("not a GID", value=value, rule="16 bytes",
                              remedy="rdmakit.device.endpoint.gid_bytes makes them of text")
        memcpy(to.grh.dgid.raw, <const char*> gid, 16)
        to.is_global = 1
    elif name == "dlid":
        to.dlid = value
    elif name == "flow_label":
        to.grh.flow_label = value
    elif name == "sgid_index":
        to.grh.sgid_index = value
    elif name == "hop_limit":
        to.grh.hop_limit = value
    elif name == "traffic_class":
        to.grh.traffic_class = value
    elif name == "sl":
        to.sl = value
    elif name == "static_rate":
        to.static_rate = value
    elif name == "src_path_bits":
        to.src_path_bits = value
    elif name == "is_global":
        to.is_global = value
    else:
        return False
    return True


cdef int _set_alternate(AhAttr* to, dict fields) except -1:
    for name, value in sorted(fields.items(), key=_is_global_last):
        if name == "port_num":
            to.port_num = value
        elif not _set_address(to, name, value):
            raise BadArgument("unknown field of an address vector", value=f"alt_ah_attr.{name}",
                              rule="names of ibv_ah_attr", remedy="see man ibv_modify_qp")
    return 0


def _is_global_last(tuple item):
    return item[0] == "is_global"  # what is said outranks what a GID suggests


cdef dict _address(AhAttr* of):
    return {
        "dgid": bytes(of.grh.dgid.raw[:16]), "dlid": of.dlid, "flow_label": of.grh.flow_label,
        "sgid_index": of.grh.sgid_index, "hop_limit": of.grh.hop_limit, "traffic_class": of.grh.traffic_class,
        "sl": of.sl, "static_rate": of.static_rate, "src_path_bits": of.src_path_bits, "is_global": of.is_global,
    }


cdef int _set_attribute(QpAttr* attr, str name, object value) except -1:
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
    elif name == "ah_port_num":
        attr.ah_attr.port_num = value
    elif name == "alt_ah_attr":
        _set_alternate(&attr.alt_ah_attr, value)
    elif name == "alt_pkey_index":
        attr.alt_pkey_index = value
    elif name == "alt_port_num":
        attr.alt_port_num = value
    elif name == "alt_timeout":
        attr.alt_timeout = value
    elif not _set_address(&attr.ah_attr, name, value):
        raise BadArgument("unknown QP attribute", value=name, rule="names of ibv_qp_attr and ibv_ah_attr",
                          remedy="see man ibv_modify_qp")
    return 0


cdef class Qp:
    """A queue pair, made by `Pd.create_qp`. `cap`: the sizes that it got."""

    cdef shared_ptr[QpBox] _box
    cdef const Library* _calls
    cdef readonly Pd pd
    cdef readonly Cq send_cq, recv_cq
    cdef readonly uint32_t qpn
    cdef readonly dict cap
    cdef readonly bint signals_all

    cdef RawQp* _raw(self) except NULL:
        if not self._box.get().usable():
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
        """ibv_modify_qp. Names of struct ibv_qp_attr and, flat, of its address vector (`dgid`: 16 bytes); its port is
        `ah_port_num`. `alt_ah_attr` is a dict of the same names, its port is `port_num`. Rates and states are numbers.
        """
        cdef RawQp* raw = self._raw()
        cdef QpAttr attr
        cdef int code
        memset(&attr, 0, sizeof(attr))
        attr.ah_attr.grh.hop_limit = attr.alt_ah_attr.grh.hop_limit = 64
        for name, value in sorted(attributes.items(), key=_is_global_last):
            try:
                _set_attribute(&attr, name, value)
            except (OverflowError, TypeError) as error:
                raise BadArgument("not a value of that QP attribute", value=f"{name}={value!r}", rule=str(error),
                                  remedy="man ibv_modify_qp has what each may be") from None
        with nogil:
            code = self._calls.modify_qp(raw, &attr, mask)
        if code:
            raise refused("ibv_modify_qp", code if code > 0 else errno, qpn=hex(self.qpn),
                          state=attributes.get("qp_state"))

    def query(self):
        """ibv_query_qp: every attribute by the names that `modify` takes."""
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
            "rnr_retry": attr.rnr_retry, **_address(&attr.ah_attr), "ah_port_num": attr.ah_attr.port_num,
            "alt_ah_attr": {**_address(&attr.alt_ah_attr), "port_num": attr.alt_ah_attr.port_num},
            "alt_pkey_index": attr.alt_pkey_index, "alt_port_num": attr.alt_port_num, "alt_timeout": attr.alt_timeout,
            "sq_sig_all": made.sq_sig_all,
        }

    def post_send(self, requests not None):
        """ibv_post_send of all rows of an array of dtype `rdmakit.verbs.SEND_WR`, in one chain of up to 64 each.

        Refused when the device takes fewer: `taken` of the error's message says how many it took.
        """
        self._post(post_sends, "ibv_post_send", requests, sizeof(BatchSend), "SEND_WR")

    def post_recv(self, requests not None):
        """ibv_post_recv of all rows of an array of dtype `rdmakit.verbs.RECV_WR`, as `post_send` does."""
        self._post(post_receives, "ibv_post_recv", requests, sizeof(BatchRecv), "RECV_WR")

    cdef object _post(self, PostRows post, str call, object requests, size_t row, str dtype):
        cdef RawQp* raw = self._raw()
        cdef Py_buffer view
        cdef Posted posted
        PyObject_GetBuffer(requests, &view, PyBUF_SIMPLE)
        try:
            if view.len % row:
                raise BadArgument("not an array of work requests", value=view.len, rule=f"a multiple of {row} bytes",
                                  remedy=f"np.zeros(n, rdmakit.verbs.{dtype})")
            with nogil:
                posted = post(raw, view.buf, <size_t> view.len // row)
        finally:
            PyBuffer_Release(&view)
        if posted.error:
            raise refused(call, posted.error if posted.error > 0 else errno, qpn=hex(self.qpn), taken=posted.count)

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

    def direct(self, DirectCq send_cq not None, DirectCq recv_cq=None):
        """A `DirectQp`: work requests are written into the rings by us. Its CQs are given as what their `direct` made.

        Of mlx5 devices, and before anything is posted; BadState later.
        """
        return _direct_qp(self, send_cq, send_cq if recv_cq is None else recv_cq)

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
