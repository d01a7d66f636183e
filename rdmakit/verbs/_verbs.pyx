# cython: language_level=3, embedsignature=True
"""libibverbs and libmlx5 as they are: one class for each verbs object, numbers in, numbers out, the GIL released.

Leans on rdmakit/verbs/native, which opens the libraries when first needed. Every handle owns what it stands on
(boxes.hpp), so any order of dropping is right; `close` gives back now. A call that is refused raises Refused(errno,
message, remedy), made by rdmakit.verbs.refusals; `rdmakit.device` objects turn it into a typed error.

Each idea has a file of its own, included below.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from libcpp cimport bool as cbool
from libcpp.memory cimport make_shared, shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from rdmakit.errors import BadArgument, BadState, NotAvailable, UnknownDevice
from rdmakit.verbs.devx_refusals import refused_command
from rdmakit.verbs.refusals import refused

include "_declarations.pxi"
include "_library.pxi"
include "_context.pxi"
include "_pd.pxi"
include "_cq.pxi"
include "_qp.pxi"
include "_devx.pxi"
include "_direct.pxi"
include "_completion_rows.pxi"
include "_proxy.pxi"
