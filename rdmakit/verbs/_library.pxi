# The libraries, loaded when first needed; which devices they know; what all classes here share.

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
    """Bytes of a queue, whole pages; a NumPy array over them keeps them mapped. `address` and `nbytes`.

    `Memory(nbytes)` is zeroed memory of its own; others are what libmlx5 uses.
    """

    cdef shared_ptr[void] _owner
    cdef readonly uintptr_t address
    cdef readonly size_t nbytes

    def __init__(self, size_t nbytes):
        self._owner = new_pages(nbytes)
        if self._owner.get() == NULL:
            raise MemoryError(f"no {nbytes} bytes for a queue")
        self.address, self.nbytes = <uintptr_t> self._owner.get(), nbytes

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
