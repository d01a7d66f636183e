# An mlx5 device's queues driven from here by the array, libmlx5 left out on the way (native/direct_queues.hpp).

cdef class DirectCq:
    """A CQ whose entries are read here, made by `Cq.direct`. `ibv_poll_cq` must not see it any more."""

    cdef NativeCq _native
    cdef readonly Cq cq

    @property
    def failed(self):
        """How many rows of the last poll have a status other than 0: statuses need no look while it is 0."""
        return self._native.failed

    cdef int _take(self, RawWc* rows, int most) except -1:
        cdef uint32_t stranger = 0
        cdef int count
        self.cq._raw()
        count = self._native.poll(rows, most, &stranger)
        if count < 0:
            raise BadState("a completion of a queue pair that is not driven directly", value=hex(stranger),
                           rule="all queue pairs of a direct CQ are direct",
                           remedy="qp.direct(cq), or a CQ of its own for the others")
        return count

    def poll(self, into not None):
        """Completions into an array of dtype `rdmakit.verbs.WC`, oldest first; returns how many rows were written.

        BadState when the next one is of a queue pair that was not made with `Qp.direct`.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(into, &view, PyBUF_WRITABLE)
        try:
            return self._take(<RawWc*> view.buf, _rows_of(&view))
        finally:
            PyBuffer_Release(&view)

    def completions(self, rows not None):
        """`CompletionRows` of this CQ in `rows`, of dtype `rdmakit.verbs.WC`, which are polled into again and again."""
        return _completions(self.cq, self, rows)


@cython.no_gc_clear  # its CQs point at it until it says goodbye
cdef class DirectQp:
    """A queue pair whose rings are written here, made by `Qp.direct`. `ibv_post_send` must not see it any more."""

    cdef NativeQp _native
    cdef readonly Qp qp
    cdef readonly DirectCq send_cq, recv_cq
    cdef dict _rings  # keeps them while a CQE may speak of them, the queue pair destroyed or not

    def __dealloc__(self):
        self._leave()

    cdef void _leave(self) noexcept:
        if self.send_cq is not None:
            self.send_cq._native.join(self._native.qpn, NULL)
        if self.recv_cq is not None:
            self.recv_cq._native.join(self._native.qpn, NULL)

    def close(self):
        """Destroy the queue pair. Completions of it that were not polled are left out of later polls."""
        self.qp.close()
        self._leave()

    def post_send(self, requests not None):
        """Rows of dtype `rdmakit.verbs.SEND_WR` as WQEs, all of them behind one doorbell.

        Refused when there is no room (ENOMEM) or a row says what no WQE can (EINVAL): `taken` of the message says how
        many came before, which are posted.
        """
        self._post(requests, sizeof(BatchSend), "SEND_WR", False)

    def post_recv(self, requests not None):
        """Rows of dtype `rdmakit.verbs.RECV_WR`, as `post_send` does."""
        self._post(requests, sizeof(BatchRecv), "RECV_WR", True)

    cdef object _post(self, object requests, size_t row, str dtype, bint receives):
        cdef Py_buffer view
        cdef Posted posted
        cdef size_t over
        self.qp._raw()
        PyObject_GetBuffer(requests, &view, PyBUF_SIMPLE)
        over = <size_t> view.len % row
        if not over:
            if receives:
                posted = self._native.receive(view.buf, <size_t> view.len // row)
            else:
                posted = self._native.send(view.buf, <size_t> view.len // row)
        PyBuffer_Release(&view)
        if over:
            raise BadArgument("not an array of work requests", value=view.len, rule=f"a multiple of {row} bytes",
                              remedy=f"np.zeros(n, rdmakit.verbs.{dtype})")
        if posted.error:
            raise refused("post_recv" if receives else "post_send", posted.error, qpn=hex(self.qp.qpn),
                          taken=posted.count)


cdef object _used(str what):
    return BadState(f"{what} has been used through libmlx5", value="its doorbell record is not 0",
                    rule="a queue is driven by one of the two from its first work request on",
                    remedy="make it direct before anything is posted or polled")


cdef DirectCq _direct_cq(Cq cq):
    cdef DirectCq found = DirectCq.__new__(DirectCq)
    cdef Mlx5Cq ring
    cdef int code = mlx5_ring(cq.context._calls, cq._raw(), &ring) if cq.context.mlx5 else 95
    if code:
        raise refused("mlx5dv_init_obj", code, device=cq.context.name)
    if not found._native.begin(ring):
        raise _used(f"CQ {ring.cqn:#x}")
    found.cq = cq
    return found


cdef DirectQp _direct_qp(Qp qp, DirectCq send_cq, DirectCq recv_cq):
    cdef DirectQp found = DirectQp.__new__(DirectQp)
    cdef Mlx5View rings
    cdef int code
    for own, given, what in ((qp.send_cq, send_cq.cq, "send"), (qp.recv_cq, recv_cq.cq, "receive")):
        if own is not given:
            raise BadArgument(f"not the queue pair's {what} CQ", value=given.handle, rule=f"{what} CQ {own.handle}",
                              remedy=f"qp.{what if what == 'send' else 'recv'}_cq.direct()")
    code = mlx5_rings(qp._calls, qp._raw(), &rings) if qp.pd.context.mlx5 else 95
    if code:
        raise refused("mlx5dv_init_obj", code, qpn=hex(qp.qpn))
    if not found._native.begin(rings, qp.qpn, qp.cap["max_inline_data"], qp.signals_all):
        raise _used(f"QP {qp.qpn:#x}")
    found.qp, found.send_cq, found.recv_cq, found._rings = qp, send_cq, recv_cq, qp.mlx5()
    send_cq._native.join(qp.qpn, &found._native)
    recv_cq._native.join(qp.qpn, &found._native)
    return found
