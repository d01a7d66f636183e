"""A dispatch and a combine over this machine's own ports, for the cells "on real hardware": all ranks in this process,
kernels on the CPU runner, queue pairs on the ports by plan, every row compared with NumPy's.

Leans on ep, model and `nic_ports`. Hosts are played: every port sends to itself, so one machine is enough.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rdmakit.connect import ConnectedMesh, Path
from rdmakit.course.nic_ports import as_ranks, lag_of, sent_by, two_ways
from rdmakit.course.real_pair import active_devices
from rdmakit.emu.outside import OutsideWorld
from rdmakit.ep.device_hosts import RunnerHost, doorbells_of, shape_of
from rdmakit.ep.device_low_latency import DeviceInternode
from rdmakit.ep.host_trial import HostTrial, Workload
from rdmakit.errors import BadArgument
from rdmakit.model.cluster import steer_by
from rdmakit.model.execute import plan_for

__all__ = ["RealDispatch", "real_dispatch"]

Array = np.ndarray[Any, Any]

_PATIENCE_S = 60.0
_ROW_EXTRA = 512  # bytes of a row's choices and weights


class RealDispatch(NamedTuple):
    """`names` of the ports; what each has sent for the dispatch, its counts included, in `unit`, and for the combine;
    how many tokens `crossed` between hosts; `wrong`: what differs from NumPy, a clause each; `doorbells`: who rings."""

    names: list[str]
    dispatched: list[int]
    combined: list[int]
    unit: str
    crossed: int
    wrong: list[str]
    doorbells: str


class _Given(Workload):
    """Inputs that the caller has, instead of random ones."""

    def inputs(self, ranks: int, seed: int) -> tuple[list[Array], list[Array], list[Array]]:
        """x, topk_idx, topk_weights of each rank."""
        found: tuple[list[Array], list[Array], list[Array]] = self.__dict__["given"]
        return found


class _Shared:
    """The world of all ranks, for threads that are a rank each: it runs when every one of them waits.

    `moved`: what each port has sent by the end of each run, in `unit`; counts, dispatch, combine.
    """

    def __init__(self, world: OutsideWorld, ranks: int, paths: Sequence[Path]) -> None:
        self.array, self._world, self._paths, self._before = world.array, world, paths, sent_by(paths)
        self.meshes: list[ConnectedMesh] = []
        self.moved: list[list[int]] = []
        self.unit = "B"
        self._barrier = threading.Barrier(ranks, action=self._run, timeout=2 * _PATIENCE_S)

    def _run(self) -> None:
        self._world.run()
        moved = [now - old for now, old in zip(sent_by(self._paths), self._before, strict=True)]
        if not any(moved):  # a bond, whose ports do not count apart
            self.unit = "WQEBBs"
            moved = [sum(by) for by in zip(*(mesh.posted_blocks() for mesh in self.meshes), strict=True)]
        self.moved.append(moved)

    def run(self) -> None:
        self._barrier.wait()

    def abort(self) -> None:
        """A rank has failed: nobody waits for it."""
        self._barrier.abort()


def real_dispatch(
    x: Sequence[Array], topk_idx: Sequence[Array], topk_weights: Sequence[Array], experts: int, *, hosts: int = 2,
    channels: int = 4, policy: str = "planned", seed: int = 0,
) -> RealDispatch:  # fmt: skip
    """Rank r's `x[r]` (BF16, [tokens, hidden]) to the `experts` that `topk_idx[r]` names, and random answers back.

    As many tokens on each rank; ranks are spread evenly over `hosts`, each two hosts joined by `channels` queue pairs a
    rank, on two ports where this machine has them, by a plan of this `policy`. NotAvailable without an RDMA device.
    BadArgument for ranks that make no such hosts.
    """
    ranks, (tokens, hidden) = len(x), x[0].shape
    if any(rows.shape != (tokens, hidden) for rows in x) or not len(topk_idx) == len(topk_weights) == ranks:
        raise BadArgument("ranks that differ", value=[rows.shape for rows in x], rule="as many tokens on each rank",
                          remedy="cut them to one length")  # fmt: skip
    if hosts < 2 or ranks % hosts or experts % ranks:
        raise BadArgument("no such hosts", value=f"{ranks} ranks on {hosts} hosts, {experts} experts",
                          rule="as many ranks on each of 2 hosts or more, as many experts on each rank",
                          remedy="hosts=2")  # fmt: skip
    local, contexts = ranks // hosts, active_devices("rdma")
    work = _Given(tokens, hidden, experts, topk_idx[0].shape[1])
    work.__dict__["given"] = [list(each) for each in (x, topk_idx, topk_weights)]
    row = 2 * hidden + _ROW_EXTRA
    shape = shape_of(ranks, local, num_qps_per_rank=channels, rdma_bytes=2 * hosts * channels * 16 * row,
                     nvl_bytes=ranks * tokens * row, max_tokens=tokens)  # fmt: skip
    world = OutsideWorld(ranks, patience_s=_PATIENCE_S, seed=seed)
    runners = [RunnerHost(shape, host * local, world=world) for host in range(hosts)]
    paths = [two_ways(contexts) for _ in range(ranks)]
    lag = lag_of(paths[0][0].context)
    plan = plan_for(paths[0], ranks, channels=channels, ranks_per_host=local, kernel="normal", policy=policy, lag=lag)
    shared = _Shared(world, ranks, paths[0])

    def one_rank(meeting: Any) -> tuple[DeviceInternode, HostTrial]:
        runner = runners[meeting.rank // local]
        engine = runner.join(meeting, paths[meeting.rank], steer=steer_by(plan), low_latency=False)
        mesh = engine.device_queues.mesh
        mesh.count_from_here()
        shared.meshes.append(mesh)
        trial = HostTrial(engine, shared, work, num_sms=2 * channels)
        meeting.barrier()  # nobody sends before all count
        try:
            trial.normal(seed)
        except Exception:
            shared.abort()
            raise
        return engine, trial

    done = as_ranks(ranks, one_rank)
    _, there, back = shared.moved  # counts, dispatch, combine: since the beginning
    found = RealDispatch(
        [str(path) for path in paths[0]], there, [b - a for a, b in zip(there, back, strict=True)], shared.unit,
        _crossed(topk_idx, experts, hosts), [clause for _, trial in done for clause in trial.wrong],
        doorbells_of(paths[0]),
    )  # fmt: skip
    for engine, _ in done:
        engine.close()
    for context in contexts:
        with context:  # gives everything back in order
            pass
    return found


def _crossed(topk_idx: Sequence[Array], experts: int, hosts: int) -> int:
    """Tokens that travel between hosts, each once to each other host."""
    local, count = len(topk_idx) // hosts, 0
    for rank, choices in enumerate(topk_idx):
        there = np.where(choices < 0, -1, choices * hosts // experts)
        count += sum(int((there == host).any(1).sum()) for host in range(hosts) if host != rank // local)
    return count
