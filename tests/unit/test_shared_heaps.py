"""Memory that ranks of a host share, as CUDA is told of it: whole, once, given back with its last user."""

import gc
import mmap

import numpy as np
import pytest
from cuda_rig import StandIn

from rdmakit.emu.shared_memory import SharedMemory
from rdmakit.errors import NotAvailable
from rdmakit.gpu.shared_heaps import SharedHeaps

SIZES = 1, mmap.PAGESIZE, 3 * mmap.PAGESIZE + 5


@pytest.fixture
def arrays():
    made = [SharedMemory(nbytes, "heap").array for nbytes in SIZES]
    return [None, *made[:2], None, made[2]]


def test_all_of_each_is_reached_until_nobody_has_it(arrays):
    cuda = StandIn()
    shared = SharedHeaps(arrays, cuda)
    assert shared.heaps == [0 if array is None else array.ctypes.data for array in arrays]
    assert all(cuda.covers(array.ctypes.data, array.nbytes) for array in arrays if array is not None)
    assert cuda.calls == 3 and not cuda.io
    addresses, last = shared.heaps, arrays[-1].copy()
    del arrays[:]
    gc.collect()
    # Still mapped: reading it back would end the process otherwise.
    there = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * last.nbytes).from_address(addresses[-1]))
    assert np.array_equal(there, last)
    del shared, there
    gc.collect()
    assert not cuda.mapped


def test_a_refusal_leaves_nothing_registered(arrays):
    cuda = StandIn()
    cuda.refuse_after = 2
    with pytest.raises(NotAvailable, match="CUDA_ERROR_OUT_OF_MEMORY"):
        SharedHeaps(arrays, cuda)
    assert cuda.calls == 3 and not cuda.mapped


def test_kernels_must_have_the_hosts_addresses(arrays):
    """A NIC is told the address by which the host knows the heap, and WQEs of kernels have theirs."""
    cuda = StandIn(offset=1 << 45)
    with pytest.raises(NotAvailable, match="at another address") as caught:
        SharedHeaps(arrays, cuda)
    assert "RDMAKIT_RANKS_PER_HOST=1" in str(caught.value) and not cuda.mapped
