"""The emulated world as Python sees it: hosts, GPUs (ranks), HCAs, a seed, a clock, and running it all.

Leans on device, provider, topology, hang and the C++ world. One thread at a time.
"""

from __future__ import annotations

import ctypes
import html
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device import QP, AsyncEvent, Context
from rdmakit.emu._world import World as Core
from rdmakit.emu.addresses import AddressBook
from rdmakit.emu.clock import Clock
from rdmakit.emu.cta_engine import SERVING, CtaEngine
from rdmakit.emu.cta_hca import CtaHca
from rdmakit.emu.faults import FAULT_NAMES, NO_FAULTS, Faults, faults_of
from rdmakit.emu.hang import ENDLESS, device_fault, endless_error, hang_error, rank_died
from rdmakit.emu.memory import ALIGNMENT, aligned_array
from rdmakit.emu.provider import EVENT_NAMES, EmulatedHca
from rdmakit.emu.runs import LaunchTime, Run
from rdmakit.emu.topology import POLICIES, Rank, Topology
from rdmakit.errors import BadArgument, BadState, LaunchError

if TYPE_CHECKING:
    from rdmakit.emu.module import Kernel, Module

__all__ = ["World"]

ENGINES = ("host", "cta")
_DONE, _HUNG, _FAILED = 0, 1, 2  # enum class RunOutcome, world.hpp


class World:
    """Hosts with GPUs and emulated ConnectX HCAs, under one seed and one virtual clock.

    `hosts`, `gpus_per_host`; `nics_per_gpu` (may be a fraction: 0.5 gives two GPUs one NIC); `ports` a NIC, 1
    to 4. `lag`: "none", "hash" (bonded, the UDP source port decides) or "affinity" (bonded, each queue names
    its port). `doorbell`: who has the last word, "dbrec", "register" or "no_dbr". `policy`: "fast" (no
    clock), "timed" (virtual time) or "explore" (late-visible stores). `roce` False: InfiniBand. `mtu` in
    bytes, `port_gbps` in Gb/s. `faults`: what is to go wrong, a `Faults` or its text; by default what the
    variable RDMAKIT_FAULTS says. `engine`: who executes WQEs, "host" (the HCA model) or "cta" (the device code
    of hca_engine.cuh, on warps of the GPUs: no faults, no ports, no time of its own). `clock`: what things take, where
    that differs (timed only; rdmakit.model makes one from a preset). The same seed and plan
    give the same run, bit for bit. BadArgument for values that make no world.

    >>> world = World(hosts=2, gpus_per_host=2, seed=7)
    >>> len(world.ranks), world.rank(3), world.open(1).device.where
    (4, Rank(index=3, host=1, local=1, nics=(1,)), 'host 1')
    """

    _provider: type[EmulatedHca] = EmulatedHca

    def __init__(
        self,
        hosts: int = 1,
        gpus_per_host: int = 1,
        nics_per_gpu: float = 1,
        *,
        ports: int = 2,
        lag: str = "none",
        doorbell: str = "dbrec",
        policy: str = "fast",
        seed: int = 0,
        roce: bool = True,
        mtu: int = 4096,
        port_gbps: float = 400.0,
        resident_warps: int = 132 * 64,
        data_in_order: bool = False,
        faults: Faults | str | None = None,
        engine: str = "host",
        clock: Clock | None = None,
        name: str = "",
    ) -> None:
        if engine not in ENGINES:
            raise BadArgument("no such engine", value=engine, rule="one of " + ", ".join(ENGINES),
                              remedy="leave it out for the HCA model on the host")
        if clock is not None and policy != "timed":
            raise BadArgument("a clock for a world without time", value=policy, rule='policy="timed"',
                              remedy='pass policy="timed", or leave the clock out')
        self.topology = Topology(
            hosts=hosts,
            gpus_per_host=gpus_per_host,
            nics_per_gpu=nics_per_gpu,
            ports=ports,
            lag=lag,
            doorbell=doorbell,
            policy=policy,
            roce=roce,
            mtu=mtu,
            port_gbps=port_gbps,
        )
        if not 0 <= seed < 1 << 64:
            raise BadArgument("seed does not fit", value=seed, rule="0 … 2**64 − 1",
                              remedy="take a non-negative integer, as a failing run prints it")
        self.name = name
        self.seed = seed
        self.policy = policy
        self.ranks = self.topology.ranks
        self.addresses = AddressBook()
        self.launches: list[LaunchTime] = []
        self._core = Core(
            policy=POLICIES[policy],
            seed=seed,
            gpus=len(self.ranks),
            resident_warps=resident_warps,
            data_in_order=data_in_order,
        )
        self._devices = self.topology.build(self._core, clock)
        self._events: list[list[AsyncEvent]] = [[] for _ in self._devices]
        self._contexts: list[weakref.ref[Context]] = []
        self._stock: dict[str, Kernel] = {}  # not bound to this world, which would keep it alive
        self._pending: list[Any] = []  # arguments of launches that have not run yet
        self._running = False
        self._copy_payload = True
        self._faults = NO_FAULTS
        self.data_in_order = data_in_order
        self._cta = CtaEngine(self) if engine == "cta" else None
        plan = faults_of(faults)
        if plan is not NO_FAULTS:  # worlds without faults are made by the thousand
            self.faults = plan

    # ---- devices and ranks
    def open(self, host: int = 0, nic: int = 0) -> Context:
        """A context on NIC `nic` of host `host`. BadArgument when there is none."""
        provider = self._provider if self._cta is None else CtaHca
        opened = Context(provider(self, *self._device(host, nic)))
        self._contexts = [known for known in self._contexts if known() is not None] + [weakref.ref(opened)]
        return opened

    def _queue_pairs(self) -> Iterator[QP]:
        for known in self._contexts:
            opened = known()
            if opened is not None and not opened.closed:
                yield from opened._qps()

    def _peer_of(self, qp: QP) -> QP | None:
        number = qp.query()["dest_qp_num"]
        back = (other for other in self._queue_pairs() if other.qpn == number and other is not qp)
        return next((other for other in back if other.query()["dest_qp_num"] == qp.qpn), None)

    def _queue_pair(self, rank: int, qpn: int) -> QP | None:
        """By the number that a wait names: on the host of the rank that waits."""
        host = self.topology.ranks[rank].host
        mine = (qp for qp in self._queue_pairs() if qp.qpn == qpn)
        return next((qp for qp in mine if _host_of(qp, self.topology) == host), None)

    def _device(self, host: int, nic: int) -> tuple[int, Any]:
        index = self.topology.nic_index(host, nic)
        return index, self._devices[index]

    def rank(self, index: int) -> Rank:
        """GPU `index` of the world: its host, its number there, its NICs."""
        if not 0 <= index < len(self.ranks):
            raise BadArgument("no such rank", value=index, rule=f"0 … {len(self.ranks) - 1}",
                              remedy="ranks are counted from 0 over all hosts")
        return self.ranks[index]

    def open_rank(self, index: int) -> Context:
        """A context on the (first) NIC of GPU `index`."""
        rank = self.rank(index)
        return self.open(rank.host, rank.nics[0])

    def set_port_up(self, host: int, nic: int, port: int, up: bool) -> None:
        """Pull or plug a cable: physical port `port` (1 …)."""
        self._require_idle()
        index, device = self._device(host, nic)
        if not 1 <= port <= len(device.ports):
            raise BadArgument("no such port", value=port, rule=f"1 … {len(device.ports)}",
                              remedy="ports are counted from 1")
        self._core.set_port_up(index, port, up)

    # ---- faults
    @property
    def faults(self) -> Faults:
        """The plan of what goes wrong. Setting one replaces the plan and counts its messages anew."""
        return self._faults

    @faults.setter
    def faults(self, plan: Faults | str) -> None:
        self._require_idle()
        plan = faults_of(plan)
        if self._cta is not None and plan is not NO_FAULTS:
            raise BadArgument("an HCA made of warps has no faults", value=repr(plan), rule='engine="host" knows them',
                              remedy="leave out faults, or the engine")
        plan.apply(self._core, self.topology, self.policy)
        self._faults = plan

    @property
    def fault_counts(self) -> dict[str, int]:
        """How often each fault has happened since the world began; those that have not are left out."""
        return {name: n for name, n in zip(FAULT_NAMES, self._core.fault_counters(), strict=True) if n}

    @property
    def dead_ranks(self) -> dict[int, float]:
        """Ranks that have died, and when (ns of virtual time)."""
        return dict(self._core.dead_ranks())

    def revive(self, rank: int) -> None:
        """Let a rank that has died launch kernels again; what it was doing is lost."""
        self._require_idle()
        self.rank(rank)
        self._core.revive(rank)

    # ---- memory
    def array(
        self, shape: int | tuple[int, ...], dtype: Any = np.uint8, fill: Any = 0, *, name: str = ""
    ) -> np.ndarray[Any, Any]:
        """An array in the memory of the emulated GPUs: 128-byte aligned, C-contiguous, filled with `fill`.

        `name` is what reports call it. Any NumPy array works with kernels and MRs; this one is aligned and
        named.

        >>> World().array((2, 3), np.float32, 1.5)[1]
        array([1.5, 1.5, 1.5], dtype=float32)
        """
        found = self.allocate(shape, dtype)
        if not (np.isscalar(fill) and fill == 0):
            found[...] = fill
        if name:
            self.addresses.add(found, name)
        return found

    def allocate(
        self, shape: int | tuple[int, ...], dtype: Any = np.uint8, alignment: int = ALIGNMENT
    ) -> np.ndarray[Any, Any]:
        """Where all memory of this world comes from, rings and handles included: zeroed, aligned, C-contiguous."""
        return aligned_array(shape, dtype, alignment, sparse=not self._copy_payload)

    def _gpu_of(self, rank: int) -> int:
        """Which GPU a rank is: what is of gpu scope ends there."""
        return rank

    def reachable(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What kernels can read of a caller's array: itself here, a copy where GPUs are real."""
        return array

    # ---- kernels
    def compile(self, code: str, *, lanes: int | None = None, name: str = "kernel.cu") -> Module:
        """Compile device code for this world's policy; see `rdmakit.emu.compile.compile_source`."""
        from rdmakit.emu.compile import compile_source

        return compile_source(code, policy=self.policy, lanes=lanes, name=name).bind(self)

    def stock_kernel(self, name: str) -> Kernel:
        """A kernel of cuda/kernels, by name, as its sources are when this world first asks for it; see
        `rdmakit.emu.compile.stock_kernel`."""
        from rdmakit.emu.compile import stock_kernel

        found = self._stock.get(name)
        if found is None:  # looking for it reads its sources: launches are many
            found = self._stock[name] = stock_kernel(name, policy=self.policy)
        return found.bind(self)

    def _launch(
        self,
        entry: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: bytes,
        offsets: tuple[int, ...],
        shared_mem: int,
        rank: int,
        stream: int,
        section: tuple[int, int],
        keep: Any,
        what: str,
    ) -> None:
        self._require_idle()
        self.rank(rank)
        wrong = self._core.launch(
            entry, grid, block, arguments, offsets, shared_mem, rank, stream, section[0], section[1]
        )
        if wrong:
            raise LaunchError(
                f"{what} cannot be launched",
                rule=wrong,
                grid=grid,
                block=block,
                shared_mem=shared_mem,
                rank=rank,
                remedy="change the launch as the rule says",
            )
        self._pending.append(keep)
        if self._cta is not None:
            self._cta.launched(rank, stream)

    def riding(self, leavers: int) -> AbstractContextManager[list[np.ndarray[Any, Any]]]:
        """With `engine="cta"`: blocks of your own kernels serve in the runs inside, and no kernel is launched for it.

        Gives an `HcaHandle` for each device, shape (1,), as an argument of kernels: some blocks call `hca_serve`, and
        `leavers` others `hca_leave` when they have rung for the last time (hca_engine.cuh). For queue pairs that are
        there and connected when the block begins. BadState with another engine.
        """
        self._require_idle()
        if self._cta is None:
            raise BadState("no kernel serves in this world", value='engine="host"', rule="its HCAs run on the host",
                           remedy='make the world with engine="cta"')
        return self._cta.riding(leavers)

    def serve(self) -> None:
        """Queue the kernels that answer what is queued so far, with `engine="cta"`; `run` does so by itself."""
        self._require_idle()
        if self._cta is not None:
            self._cta.launch()

    # ---- running
    @property
    def queued(self) -> int:
        """Launches that have not run yet."""
        return len(self._pending)

    def run(self) -> Run:
        """Run until every launch has ended and every HCA is idle.

        HangError when launches cannot go on (its `report` says who waits for what at which line), RankDied when
        that is since a rank has died, DeviceFault when device code faults. Each ends all launches; the world
        can be used again.
        """
        self._require_idle()
        before = self._core.now_ns()
        counts = self.fault_counts
        self.serve()
        self._running = True
        try:
            outcome = self._drive()
        finally:
            self._running = False
            self._pending.clear()
            _flush_stdout()
        for hca, kind, number, syndrome in self._core.take_events():
            self._events[hca].append(AsyncEvent(EVENT_NAMES[kind], number, syndrome))
        times = self._core.take_launch_times()
        ended = [LaunchTime(k, r, b / 1e3, e / 1e3) for k, r, b, e in times if self._cta is None or k not in SERVING]
        if self._cta is not None:
            self._cta.settle(self._events, failed=outcome != _DONE)
        self.launches += ended
        errors = self._core.take_errors()
        if outcome == _FAILED:
            if errors[0]["why"].startswith(ENDLESS):
                raise endless_error(errors[0])
            raise device_fault(errors)
        if outcome == _HUNG:
            hang = hang_error(self._core.waiting(), self.addresses, self)
            raise rank_died(self.dead_ranks, hang) if self.dead_ranks else hang
        faults = {name: n - counts.get(name, 0) for name, n in self.fault_counts.items() if n != counts.get(name, 0)}
        return Run(ended, self._core.now_ns() - before, faults)

    def _drive(self) -> int:
        """Run all launches and HCAs; the outcome."""
        return int(self._core.run())

    def _require_idle(self) -> None:
        if self._running:
            raise BadState(
                "the world is running in another thread",
                value=f"world of seed {self.seed}",
                rule="a world is used by one thread at a time",
                remedy="wait for its run() to return, or give each thread a world of its own",
            )

    def _take_events(self, hca: int) -> list[AsyncEvent]:
        self._require_idle()
        for number, kind, subject, syndrome in self._core.take_events():
            self._events[number].append(AsyncEvent(EVENT_NAMES[kind], subject, syndrome))
        found, self._events[hca] = self._events[hca], []
        return found

    def add_gpu_memory(self, array: np.ndarray[Any, Any], rank: int) -> None:
        """Say that an array is memory of GPU `rank`: copies into it by another GPU of the host cross NVLink, timed."""
        self.rank(rank)
        self._core.add_gpu_memory(int(array.ctypes.data), array.nbytes, rank)

    @property
    def links(self) -> list[tuple[int, int, bool, int, int]]:
        """(leaf, spine, up, bytes, busy in ps) of each link between switches; none without a clock that has a
        network."""
        found: list[tuple[int, int, bool, int, int]] = self._core.links()
        return found

    @property
    def nvlink_use(self) -> list[tuple[int, int]]:
        """(bytes, busy in ps) of each GPU whose memory is known, as sender."""
        found: list[tuple[int, int]] = self._core.nvlink_use()
        return found

    # ---- clock, counters, switches
    @property
    def now_ns(self) -> int:
        """Virtual time; 0 unless the policy is "timed"."""
        return int(self._core.now_ns())

    @property
    def counters(self) -> dict[str, int]:
        """The scheduler's: switches, parks, wakes, events, stale_loads, sweeps."""
        found: dict[str, int] = self._core.counters()
        return found

    @property
    def copy_payload(self) -> bool:
        """False: messages of more than 4 KiB are checked, counted and completed, but not copied."""
        return self._copy_payload

    @copy_payload.setter
    def copy_payload(self, on: bool) -> None:
        self._require_idle()
        self._copy_payload = bool(on)
        self._core.set_copy_payload(self._copy_payload)

    # ---- shows itself
    def __repr__(self) -> str:
        label = f" {self.name!r}" if self.name else ""
        time = f", {self.now_ns} ns" if self.policy == "timed" else ""
        faults = f", {self.faults!r}" if self.faults else ""
        return f"<World{label}: {self.topology}, {self.policy}, seed {self.seed}{time}{faults}>"

    def _repr_html_(self) -> str:
        ups = [[bool(self._core.port_up(i, p.number)) for p in d.ports] for i, d in enumerate(self._devices)]
        try:
            show = import_module("rdmakit.show")
            down = sum(not up for states in ups for up in states)
            finding = f"; {down} port{'s' * (down != 1)} down" if down else ""
            figure = show.host_map(self.topology.hosts_for_map(ups), title=repr(self)[1:-1] + finding)
        except (ImportError, ValueError):
            return f"<pre>{html.escape(repr(self))}</pre>"
        return str(figure._repr_html_())


def _host_of(qp: QP, topology: Topology) -> int:
    provider = qp.context._provider
    assert isinstance(provider, EmulatedHca)
    return provider.index // topology.nics


def _flush_stdout() -> None:
    """What kernels printed lies in libc's buffer, which Python's own flush does not know."""
    ctypes.pythonapi.fflush(None)
