# Completions, polled into a NumPy array.

cdef class Cq:
    """A completion queue, made by `Context.create_cq`."""

    cdef shared_ptr[CqBox] _box
    cdef readonly Context context

    cdef RawCq* _raw(self) except NULL:
        if not self._box.get().usable():
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

    cdef int _take(self, RawWc* rows, int most) except -1:
        cdef RawCq* raw = self._raw()
        cdef int count
        with nogil:
            count = self.context._box.get().get().ops.poll_cq(raw, most, rows)
        if count < 0:
            raise refused("ibv_poll_cq", 5, device=self.context.name)
        return count

    def poll(self, into not None):
        """ibv_poll_cq straight into an array of dtype `rdmakit.verbs.WC`; returns how many rows were written."""
        cdef Py_buffer view
        PyObject_GetBuffer(into, &view, PyBUF_WRITABLE)
        try:
            return self._take(<RawWc*> view.buf, _rows_of(&view))
        finally:
            PyBuffer_Release(&view)

    def completions(self, rows not None):
        """`CompletionRows` of this CQ in `rows`, of dtype `rdmakit.verbs.WC`, which are polled into again and again."""
        return _completions(self, None, rows)

    def direct(self):
        """A `DirectCq`: completions are read from the ring by us, several times faster than `ibv_poll_cq`.

        Of mlx5 devices, and before anything has completed to it; BadState later.
        """
        return _direct_cq(self)

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
