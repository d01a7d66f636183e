"""Pages are registered with CUDA once, held as often as asked, and given back with the last holder: never sooner."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from cuda_rig import PAGE, StandIn
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.gpu.host_pages import HostPages

BEGIN, PAGES = 0x7F00_0000_0000, 12


def pages_of(address, nbytes):
    return set(range(address // PAGE * PAGE, address + nbytes, PAGE))


class Holders(RuleBasedStateMachine):
    """Any order of holding, releasing and refusals, over a few pages that many share."""

    @initialize(offset=st.sampled_from([0, 1 << 40]))
    def begin(self, offset):
        self.cuda = StandIn(offset)
        self.pages = HostPages(self.cuda)
        self.held = []

    def _range(self, at, nbytes):
        return BEGIN + at, min(nbytes, PAGES * PAGE - at)

    @rule(at=st.integers(0, PAGES * PAGE - 1), nbytes=st.integers(1, 3 * PAGE), io=st.booleans())
    def hold(self, at, nbytes, io):
        address, nbytes = self._range(at, nbytes)
        hold = self.pages.hold(address, nbytes, io=io)
        assert hold.pointer == address + self.cuda.offset
        self.held.append(hold)

    @rule(at=st.integers(0, PAGES * PAGE - 1), nbytes=st.integers(1, 4 * PAGE), after=st.integers(0, 3))
    def refuse(self, at, nbytes, after):
        """What fails half-way leaves everything as it was."""
        address, nbytes = self._range(at, nbytes)
        before = set(self.cuda.mapped)
        missing = pages_of(address, nbytes) - before
        self.cuda.refuse_after = after
        if len(missing) > after:
            with pytest.raises(NotAvailable, match="OUT_OF_MEMORY"):
                self.pages.hold(address, nbytes)
            assert set(self.cuda.mapped) == before
        else:
            self.held.append(self.pages.hold(address, nbytes))
        self.cuda.refuse_after = None

    @precondition(lambda self: self.held)
    @rule(data=st.data(), twice=st.booleans())
    def release(self, data, twice):
        hold = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        for _ in range(1 + twice):
            self.pages.release(hold)

    @invariant()
    def just_what_is_held_is_registered(self):
        wanted = set().union(*(pages_of(hold.address, hold.nbytes) for hold in self.held))
        assert set(self.cuda.mapped) == wanted and len(self.pages) == len(wanted)


TestHolders = Holders.TestCase


@pytest.mark.parametrize(("address", "nbytes"), [(BEGIN, 0), (BEGIN, -1), (0, 8)])
def test_no_memory_is_refused(address, nbytes):
    with pytest.raises(BadArgument, match="no memory"):
        HostPages(StandIn()).hold(address, nbytes)


def test_pages_that_cuda_scatters_are_refused_and_given_back():
    cuda = StandIn()
    cuda.pointer = lambda address: address + (1 << 30) * (address // PAGE % 2)
    pages = HostPages(cuda)
    with pytest.raises(NotAvailable, match="scatters"):
        pages.hold(BEGIN, 2 * PAGE)
    assert not cuda.mapped and len(pages) == 0
    assert pages.hold(BEGIN + PAGE, 8).pointer == BEGIN + PAGE + (1 << 30)


def test_many_threads_share_pages(seed):
    cuda = StandIn()
    pages = HostPages(cuda)
    failures = []

    def work(number):
        rng = np.random.default_rng((seed, number))
        try:
            held = []
            for _ in range(300):
                if held and rng.random() < 0.5:
                    pages.release(held.pop(int(rng.integers(len(held)))))
                else:
                    held.append(pages.hold(BEGIN + int(rng.integers(4 * PAGE)), int(rng.integers(1, 2 * PAGE))))
                assert all(cuda.covers(hold.address, hold.nbytes) for hold in held)
            for hold in held:
                pages.release(hold)
        except BaseException as error:  # tell the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and not cuda.mapped and len(pages) == 0
