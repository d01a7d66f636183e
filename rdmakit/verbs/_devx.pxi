# DevX: commands to the device itself, written field by field, and what they need (rdmakit.layout.prm has the fields).

cdef cbool has_devx(const Library* calls):
    return calls.mlx5dv.open_device != NULL and calls.mlx5dv.devx_obj_create != NULL \
        and calls.mlx5dv.devx_obj_query != NULL and calls.mlx5dv.devx_obj_modify != NULL \
        and calls.mlx5dv.devx_obj_destroy != NULL and calls.mlx5dv.devx_general_cmd != NULL \
        and calls.mlx5dv.devx_umem_reg != NULL and calls.mlx5dv.devx_umem_dereg != NULL \
        and calls.mlx5dv.devx_alloc_uar != NULL and calls.mlx5dv.devx_free_uar != NULL \
        and calls.mlx5dv.devx_query_eqn != NULL


cdef RawContext* _devx_context(Context context, str call) except NULL:
    cdef RawContext* raw = context._raw()
    if not context.devx:
        raise refused(call, 95, device=context.name)
    return raw


def event_queue_number(Context context not None, uint32_t vector=0):
    """mlx5dv_devx_query_eqn: the event queue of a completion vector, which a CQ's context names."""
    cdef RawContext* raw = _devx_context(context, "mlx5dv_devx_query_eqn")
    cdef uint32_t number = 0
    cdef int code = context._calls.mlx5dv.devx_query_eqn(raw, vector, &number)
    if code:
        raise refused("mlx5dv_devx_query_eqn", code, device=context.name, vector=vector)
    return number


def devx_command(Context context not None, bytes command not None, size_t answer_bytes):
    """mlx5dv_devx_general_cmd: a command that makes no object; returns the answer's bytes."""
    cdef RawContext* raw = _devx_context(context, "mlx5dv_devx_general_cmd")
    cdef bytearray answer = bytearray(answer_bytes)
    cdef const char* given = command
    cdef char* out = answer
    cdef size_t nbytes = len(command)
    cdef int code
    with nogil:
        code = context._calls.mlx5dv.devx_general_cmd(raw, given, nbytes, out, answer_bytes)
    if code:
        raise refused_command("mlx5dv_devx_general_cmd", code, command, bytes(answer), device=context.name)
    return bytes(answer)


cdef class Uar:
    """A page for doorbells: mlx5dv_devx_alloc_uar. `blue_flame`: a register that takes whole WQEs as well, where the
    device has one to give; else a plain one, not cached. `page_id` is what QPs and CQs name, `doorbell` the address
    that doorbells are written to, `base` the page's."""

    cdef shared_ptr[UarBox] _box
    cdef readonly Context context
    cdef readonly uint32_t page_id
    cdef readonly uintptr_t doorbell, base

    def __init__(self, Context context not None, bint blue_flame=False):
        cdef RawContext* raw = _devx_context(context, "mlx5dv_devx_alloc_uar")
        cdef uint32_t kind = kUarBlueFlame if blue_flame else kUarNonCached
        cdef RawUar* made
        cdef int code
        with nogil:
            made = context._calls.mlx5dv.devx_alloc_uar(raw, kind)
            code = errno
        if made == NULL:
            raise refused("mlx5dv_devx_alloc_uar", code, device=context.name, type="BF" if blue_flame else "NC")
        self.context = context
        self._box = own_uar(made, context._box)
        self.page_id = made.page_id
        self.doorbell, self.base = <uintptr_t> made.reg_addr, <uintptr_t> made.base_addr

    def close(self):
        """mlx5dv_devx_free_uar, when no object holds it any more."""
        self._box.reset()


cdef class Umem:
    """Memory that commands can name (`umem_id`): a `Memory`, or `nbytes` at `address`, mlx5dv_devx_umem_reg; or at
    `offset` of a dma-buf, mlx5dv_devx_umem_reg_ex, after which the descriptor may be closed. A `Memory` is kept as long
    as the device may use it, other memory is the caller's to keep."""

    cdef shared_ptr[UmemBox] _box
    cdef readonly Context context
    cdef readonly uint32_t umem_id
    cdef readonly size_t nbytes

    def __init__(self, Context context not None, size_t nbytes, *, Memory memory=None, uintptr_t address=0,
                 int dmabuf_fd=-1, uint64_t offset=0, uint32_t access=1):
        cdef str call = "mlx5dv_devx_umem_reg" if dmabuf_fd < 0 else "mlx5dv_devx_umem_reg_ex"
        cdef RawContext* raw = _devx_context(context, call)
        cdef const Library* calls = context._calls
        cdef RawUmem* made = NULL
        cdef int code = 95  # EOPNOTSUPP
        cdef shared_ptr[void] owner
        if memory is not None:
            address, owner = memory.address, memory._owner
        if dmabuf_fd < 0:
            with nogil:
                made = register_umem(calls, raw, <void*> address, nbytes, access)
                code = errno
        elif calls.mlx5dv.devx_umem_reg_ex != NULL:
            with nogil:
                made = register_dmabuf(calls, raw, dmabuf_fd, offset, nbytes, access)
                code = errno
        if made == NULL:
            raise refused(call, code, device=context.name, nbytes=nbytes,
                          address=hex(address) if dmabuf_fd < 0 else None, fd=None if dmabuf_fd < 0 else dmabuf_fd)
        self.context = context
        self._box = own_umem(made, calls, context._box, owner)
        self.umem_id, self.nbytes = made.umem_id, nbytes

    def close(self):
        """mlx5dv_devx_umem_dereg; Refused while an object uses it."""
        cdef int code
        with nogil:
            code = self._box.get().close()
        if code:
            raise refused("mlx5dv_devx_umem_dereg", code, device=self.context.name, umem=self.umem_id)


cdef class DevxObject:
    """What a command has created: mlx5dv_devx_obj_create. `answer` is the command's; `holds` are the PDs, CQs, umems
    and UAR pages that the command names, kept until the object is gone."""

    cdef shared_ptr[DevxBox] _box
    cdef readonly Context context
    cdef readonly bytes answer

    def __init__(self, Context context not None, bytes command not None, size_t answer_bytes=16, holds=()):
        cdef RawContext* raw = _devx_context(context, "mlx5dv_devx_obj_create")
        cdef bytearray answer = bytearray(answer_bytes)
        cdef const char* given = command
        cdef char* out = answer
        cdef size_t nbytes = len(command)
        cdef Parents parents
        cdef RawDevx* made
        cdef int code
        parents.push_back(<shared_ptr[void]> context._box)
        for held in holds:
            if isinstance(held, Pd):
                parents.push_back(<shared_ptr[void]> (<Pd> held)._box)
            elif isinstance(held, Umem):
                parents.push_back(<shared_ptr[void]> (<Umem> held)._box)
            elif isinstance(held, Uar):
                parents.push_back(<shared_ptr[void]> (<Uar> held)._box)
            else:
                parents.push_back(<shared_ptr[void]> (<DevxObject?> held)._box)
        with nogil:
            made = context._calls.mlx5dv.devx_obj_create(raw, given, nbytes, out, answer_bytes)
            code = errno
        if made == NULL:
            raise refused_command("mlx5dv_devx_obj_create", code, command, bytes(answer), device=context.name)
        self.context = context
        self._box = own_devx(made, context._calls, parents)
        self.answer = bytes(answer)

    cdef RawDevx* _raw(self) except NULL:
        _require(f"object of {self.context.name}", self._box.get().get() != NULL, self._box.get().of_this_process())
        return self._box.get().get()

    def modify(self, bytes command not None, size_t answer_bytes=16):
        """mlx5dv_devx_obj_modify; returns the answer's bytes."""
        return self._run(command, answer_bytes, True)

    def query(self, bytes command not None, size_t answer_bytes):
        """mlx5dv_devx_obj_query; returns the answer's bytes."""
        return self._run(command, answer_bytes, False)

    cdef object _run(self, bytes command, size_t answer_bytes, bint modify):
        cdef RawDevx* raw = self._raw()
        cdef const Library* calls = self.context._calls
        cdef bytearray answer = bytearray(answer_bytes)
        cdef const char* given = command
        cdef char* out = answer
        cdef size_t nbytes = len(command)
        cdef int code
        with nogil:
            if modify:
                code = calls.mlx5dv.devx_obj_modify(raw, given, nbytes, out, answer_bytes)
            else:
                code = calls.mlx5dv.devx_obj_query(raw, given, nbytes, out, answer_bytes)
        if code:
            call = "mlx5dv_devx_obj_modify" if modify else "mlx5dv_devx_obj_query"
            raise refused_command(call, code, command, bytes(answer), device=self.context.name)
        return bytes(answer)

    def close(self):
        """mlx5dv_devx_obj_destroy; Refused with EBUSY while another object uses it."""
        cdef int code
        with nogil:
            code = self._box.get().close()
        if code:
            raise refused("mlx5dv_devx_obj_destroy", code, device=self.context.name)


cdef class EventChannel:
    """Where events of objects created by command arrive: mlx5dv_devx_create_event_channel, not blocking.

    `omit_data`: events are their cookies alone, each waiting at most once, as completions of armed CQs want it.
    """

    cdef shared_ptr[EventsBox] _box
    cdef readonly Context context

    def __init__(self, Context context not None, bint omit_data=False):
        cdef RawContext* raw = _devx_context(context, "mlx5dv_devx_create_event_channel")
        cdef const Library* calls = context._calls
        cdef RawEvents* made = NULL
        cdef int code = 95  # EOPNOTSUPP
        if calls.mlx5dv.devx_create_event_channel != NULL and calls.mlx5dv.devx_destroy_event_channel != NULL \
                and calls.mlx5dv.devx_subscribe_devx_event != NULL and calls.mlx5dv.devx_get_event != NULL:
            made = calls.mlx5dv.devx_create_event_channel(raw, kOmitEventData if omit_data else 0)
            code = errno
        if made == NULL:
            raise refused("mlx5dv_devx_create_event_channel", code, device=context.name)
        self.context = context
        self._box = own_events(made, context._box)
        _set_nonblocking(made.fd)

    @property
    def fd(self):
        """Readable when an event waits."""
        return self._raw().fd

    cdef RawEvents* _raw(self) except NULL:
        _require(f"events of {self.context.name}", self._box.get().get() != NULL, self._box.get().of_this_process())
        return self._box.get().get()

    def subscribe(self, DevxObject made not None, events not None, uint64_t cookie):
        """mlx5dv_devx_subscribe_devx_event: these events of the object (MLX5_EVENT_TYPE_* numbers, eight at most) bring
        `cookie`."""
        cdef RawEvents* raw = self._raw()
        cdef uint16_t numbers[8]
        cdef uint16_t count = <uint16_t> len(events)
        cdef int code
        if count > 8:
            raise BadArgument("too many kinds of event", value=count, rule="eight at most", remedy="subscribe twice")
        for i in range(count):
            numbers[i] = events[i]
        code = self.context._calls.mlx5dv.devx_subscribe_devx_event(
            raw, made._raw(), <uint16_t> (count * sizeof(uint16_t)), numbers, cookie)
        if code:
            raise refused("mlx5dv_devx_subscribe_devx_event", code if code > 0 else errno, device=self.context.name)

    def events(self):
        """(cookie, MLX5_EVENT_TYPE_* number) of each that has come since the last call; type 0 with `omit_data`."""
        cdef RawEvents* raw = self._raw()
        cdef DevxEvent event
        found = []
        memset(&event, 0, sizeof(event))
        while self.context._calls.mlx5dv.devx_get_event(raw, &event, sizeof(event)) >= <long> sizeof(uint64_t):
            found.append((event.cookie, event.type))
            memset(&event, 0, sizeof(event))
        return found

    def close(self):
        """mlx5dv_devx_destroy_event_channel."""
        self._box.reset()
