# An array that completions are polled into again and again: asked for its memory once.

cdef int _rows_of(Py_buffer* view) except -1:
    if view.len % 48:
        raise BadArgument("not an array of completions", value=view.len, rule="a multiple of 48 bytes",
                          remedy="np.zeros(n, rdmakit.verbs.WC)")
    return <int> (view.len // 48)


cdef class CompletionRows:
    """The rows of an array that one CQ fills, made by `Cq.completions` or `DirectCq.completions`.

    The array is held meanwhile: NumPy will not resize it.
    """

    cdef Py_buffer _view
    cdef RawWc* _first
    cdef int _count
    cdef Cq _cq
    cdef DirectCq _direct  # None: by ibv_poll_cq
    cdef readonly object rows
    cdef readonly int failed  # of the rows of the last poll, those with a status other than 0

    def __dealloc__(self):
        PyBuffer_Release(&self._view)

    cdef int _within(self, int first, int count) except -1:
        if first < 0 or count < 0 or first > self._count - count:
            raise BadArgument("no such rows", value=f"{count} from {first} on", rule=f"within 0 … {self._count}",
                              remedy="rows that lie in the array")
        return 0

    def poll(self, int first=0):
        """Completions into `rows[first:]`, oldest first; returns how many. Errors are those of the CQ's own `poll`."""
        cdef RawWc* into = self._first + first
        cdef int i, found
        self._within(first, 0)
        if self._direct is not None:
            found = self._direct._take(into, self._count - first)
            self.failed = self._direct._native.failed
            return found
        found = self._cq._take(into, self._count - first)
        self.failed = 0
        for i in range(found):
            self.failed += into[i].status != 0
        return found

    def wr_ids(self, int count, int first=0):
        """`rows["wr_id"][first : first + count].tolist()`, without views that NumPy would make on the way."""
        cdef int i
        self._within(first, count)
        return [self._first[i].wr_id for i in range(first, first + count)]


cdef CompletionRows _completions(Cq cq, DirectCq direct, object rows):
    cdef CompletionRows found = CompletionRows.__new__(CompletionRows)
    PyObject_GetBuffer(rows, &found._view, PyBUF_WRITABLE)
    found._count = _rows_of(&found._view)
    found._first, found._cq, found._direct, found.rows = <RawWc*> found._view.buf, cq, direct, rows
    return found
