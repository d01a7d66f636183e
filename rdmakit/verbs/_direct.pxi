# An mlx5 device's queues driven from here by the array, libmlx5 left out on the way (native/direct_queues.hpp).

cdef class DirectCq:
    """A CQ whose entries are read here, made by `Cq.direct`, or of a command's CQ by `direct_cq`. `ibv_poll_cq` must
    not see it any more. `cq`: that of verbs, or None."""

    cdef NativeCq _native
    cdef readonly Cq cq
    cdef DevxObject _made
    cdef object _rings

    @property
    def failed(self):
        """How many rows of the last poll have a status other than 0: statuses need no look while it is 0."""
        return self._native.failed

    cdef int _take(self, RawWc* rows, int most) except -1:
        cdef uint32_t stranger = 0
        cdef int count
        if self._made is None:
            self.cq._raw()
        else:
            self._made._raw()
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
    """A queue pair whose rings are written here, made by `Qp.direct`, or of a command's queue pair by `direct_qp`.
    `ibv_post_send` must not see it any more. `qp`: that of verbs, or None."""

    cdef NativeQp _native
    cdef readonly Qp qp
    cdef readonly DirectCq send_cq, recv_cq
    cdef DevxObject _made
    cdef object _rings  # keeps them while a CQE may speak of them, the queue pair destroyed or not

    def __dealloc__(self):
        self._leave()

    cdef void _leave(self) noexcept:
        if self.send_cq is not None:
            self.send_cq._native.join(self._native.qpn, NULL)
        if self.recv_cq is not None:
            self.recv_cq._native.join(self._native.qpn, NULL)

    def close(self):
        """Destroy the queue pair. Completions of it that were not polled are left out of later polls."""
        if self._made is None:
            self.qp.close()
        else:
            self._made.close()
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
        if self._made is None:
            self.qp._raw()
        else:
            self._made._raw()
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
            raise refused("post_recv" if receives else "post_send", posted.error, qpn=hex(self._native.qpn),
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


cdef void* _begin_of(object memory, size_t least, str what) except NULL:
    """Where memory of this process begins; `what` is for the message if it is too short."""
    cdef Py_buffer view
    cdef void* first
    cdef size_t length
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    first, length = view.buf, <size_t> view.len
    PyBuffer_Release(&view)
    if length < least:
        raise BadArgument(f"{what} is too short", value=length, rule=f"{least} bytes",
                          remedy="the memory that the command named")
    return first


cdef size_t _power_of_two(size_t count, str what) except 0:
    if not count or count & (count - 1):
        raise BadArgument(f"no such {what}", value=count, rule="a power of two",
                          remedy="all of the ring, and nothing else")
    return count


def direct_cq(DevxObject made not None, uint32_t cqn, ring not None, dbrec not None, uint32_t cqe_bytes=64):
    """A `DirectCq` of a CQ that a command made, not a collapsed one, from memory of this process; `dbrec` is 8 bytes.

    Before anything is polled; BadState later.
    """
    cdef DirectCq found = DirectCq.__new__(DirectCq)
    cdef Mlx5Cq entries
    memset(&entries, 0, sizeof(entries))
    entries.cqn, entries.cqe_size = cqn, cqe_bytes
    entries.buf = _begin_of(ring, cqe_bytes, "ring of completions")
    entries.cqe_cnt = <uint32_t> _power_of_two(memoryview(ring).nbytes // cqe_bytes, "number of entries")
    entries.dbrec = <uint32_t*> _begin_of(dbrec, 8, "doorbell record")
    if not found._native.begin(entries):
        raise _used(f"CQ {cqn:#x}")
    found._made, found._rings = made, (ring, dbrec)
    return found


def direct_qp(DevxObject made not None, uint32_t qpn, sq not None, rq, uint32_t rq_stride, dbrec not None,
              uintptr_t doorbell, DirectCq send_cq not None, DirectCq recv_cq=None, uint32_t max_inline=0):
    """A `DirectQp` of a queue pair that a command made: rings (`rq` None: it has none), record and doorbell address
    in this process. Before anything is posted; BadState later."""
    cdef DirectQp found = DirectQp.__new__(DirectQp)
    cdef Mlx5View rings
    memset(&rings, 0, sizeof(rings))
    rings.sq, rings.sq_stride = _begin_of(sq, 64, "send ring"), 64
    rings.sq_blocks = <uint32_t> _power_of_two(memoryview(sq).nbytes // 64, "number of basic blocks")
    if rq is not None:
        rings.rq, rings.rq_stride = _begin_of(rq, rq_stride, "receive ring"), rq_stride
        rings.rq_count = <uint32_t> _power_of_two(memoryview(rq).nbytes // rq_stride, "number of receives")
    rings.dbrec = <uint32_t*> _begin_of(dbrec, 8, "doorbell record")
    rings.doorbell = <void*> doorbell
    if not found._native.begin(rings, qpn, max_inline, False):
        raise _used(f"QP {qpn:#x}")
    found._made, found._rings = made, (sq, rq, dbrec)
    found.send_cq, found.recv_cq = send_cq, send_cq if recv_cq is None else recv_cq
    found.send_cq._native.join(qpn, &found._native)
    found.recv_cq._native.join(qpn, &found._native)
    return found
