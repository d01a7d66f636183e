# The proxy behind queues that no device reads.

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

    def start(self):
        """A thread of its own makes progress from now on, until `stop`."""
        self._native.get().start()

    def stop(self):
        """End that thread, if there is one."""
        with nogil:
            self._native.get().stop()
