"""The memory of normal dispatch and combine: what lies in each rank's heap, the rings between hosts, and the PODs that
tell the kernels where.

Leans on ep.mesh, ep.heap, ep.abi, ep.layout. The device code that reads it is cuda/rdmakit/{channel,ep}.cuh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from rdmakit.device.handle import LAYOUT_VERSION
from rdmakit.ep import abi
from rdmakit.ep.heap import HeapLayout, sixteens
from rdmakit.ep.layout import check_sizes, check_topology
from rdmakit.ep.mesh import Mesh
from rdmakit.ep.wiring import Wiring
from rdmakit.errors import BadArgument

__all__ = ["NormalShape", "connect_rails", "rank_pods"]

Array = NDArray[Any]

# Words of a ring that different NICs and GPUs write: a cache line each.
WORD = 128


@dataclass(frozen=True)
class NormalShape:
    """The sizes that everything follows from; see NormalBuffer. BadArgument for sizes that make no buffer.

    >>> NormalShape(hosts=2, local_ranks=2, hidden=256, topk=4, experts=16, max_tokens=8, capacity=32, channels=2,
    ...             slots=16, chunk=4).meta_stride
    48
    """

    hosts: int
    local_ranks: int
    hidden: int
    topk: int
    experts: int
    max_tokens: int
    capacity: int
    channels: int
    slots: int
    chunk: int

    def __post_init__(self) -> None:
        check_topology(self.experts, self.ranks, self.local_ranks)
        check_sizes(
            self.hidden,
            topk=self.topk,
            max_tokens=self.max_tokens,
            channels=self.channels,
            slots=self.slots,
            chunk=self.chunk,
        )
        if self.hosts > abi.MAX_HOSTS or self.local_ranks > abi.MAX_LOCAL_RANKS:
            raise BadArgument(
                "too many hosts or GPUs a host",
                value=(self.hosts, self.local_ranks),
                rule=f"at most {abi.MAX_HOSTS} hosts of {abi.MAX_LOCAL_RANKS} GPUs",
                remedy="spread the ranks otherwise: more GPUs a host, or fewer hosts",
            )
        for name in ("slots", "chunk"):
            value = getattr(self, name)
            if value & (value - 1):
                raise BadArgument(
                    f"{name} is no power of two", value=value, rule="a power of two", remedy="round it up"
                )
        if self.slots < 2 * self.chunk:
            raise BadArgument(
                "a ring holds fewer than two chunks",
                value=(self.slots, self.chunk),
                rule="slots >= 2 * chunk",
                remedy="more slots or a smaller chunk",
            )

    @property
    def ranks(self) -> int:
        return self.hosts * self.local_ranks

    @property
    def local_experts(self) -> int:
        return self.experts // self.ranks

    def row_stride(self, *, fp8: bool) -> int:
        """Bytes of a ring's slot: an FP8 row with its scales, or a BF16 row, which is the longer one.

        >>> NormalShape(2, 2, 7168, 8, 256, 64, 64, 10, 64, 8).row_stride(fp8=True)
        7392
        """
        return sixteens(self.hidden + 4 * (self.hidden // 128)) if fp8 else 2 * self.hidden

    @property
    def meta_stride(self) -> int:
        """Bytes of a slot's metadata: token_meta_bytes, ep.cuh."""
        return sixteens(4 * (1 + self.local_ranks + 2 * self.topk))

    @property
    def notify_bytes(self) -> int:
        """Bytes of a notification: NotifyMessage, ep.cuh."""
        return sixteens(4 * (self.local_ranks * (1 + self.local_experts) + self.channels))

    @property
    def count_bytes(self) -> int:
        """Bytes of a source's row of counts: count_row_bytes, ep.cuh."""
        return sixteens(16 + 4 * self.local_experts)

    @property
    def scratch_bytes(self) -> int:
        """Bytes that each warp of combine sums its own host's rows into."""
        return sixteens(2 * self.hidden + 4 * self.topk)

    def heap_layout(self) -> HeapLayout:
        """The regions of a heap: those of EpHeap by their names there, then rings and words by (host, channel)."""
        rows, hosts = self.capacity, self.hosts
        layout = HeapLayout()
        for name, nbytes in {
            "notify_out": 2 * hosts * self.notify_bytes,
            "notify_in": 2 * hosts * self.notify_bytes,
            "notify_tail": 8 * hosts,
            "counts": 2 * self.ranks * self.count_bytes,
            "start": 4 * (self.ranks + 1),
            "start_read": 8,
            "start_epoch": 8,
            "arrived": 8,
            "recv_x": rows * 2 * self.hidden,
            "recv_scales": rows * 4 * (self.hidden // 128),
            "recv_topk": rows * 4 * self.topk,
            "recv_weights": rows * 4 * self.topk,
            "recv_source": rows * 4,
            "combine_x": rows * 2 * self.hidden,
            "combine_weights": rows * 4 * self.topk,
            "combine_epoch": 8,
            "combine_done": 8,
        }.items():
            layout.add(name, nbytes)
        for name in ("ring_payload", "staging_payload"):
            layout.add(name, hosts * self.channels * self.slots * self.row_stride(fp8=False))
        for name in ("ring_meta", "staging_meta"):
            layout.add(name, hosts * self.channels * self.slots * self.meta_stride)
        for name in ("tail", "head", "sent", "received"):
            layout.add(name, hosts * self.channels * WORD)
        return layout

    def plan_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """The int32 arrays of EpPlan, by their names there."""
        return {
            "tokens_per_rank": (self.ranks,),
            "tokens_per_expert": (self.experts,),
            "channel_counts": (self.hosts, self.channels),
            "order": (max(tokens, 1), self.ranks),
            "host_slot": (max(tokens, 1), self.hosts),
            "forward_counts": (self.hosts, self.channels),
            "forward_order": (self.hosts, self.max_tokens, self.local_ranks),
            "start": (self.local_ranks, self.ranks + 1),
            "totals": (1 + self.local_experts,),
        }


def connect_rails(mesh: Mesh, shape: NormalShape, wiring: Wiring) -> None:
    """Joins ranks with the same place on different hosts by as many QPs as the wiring says."""
    for a in range(shape.ranks):
        for b in range(a + shape.local_ranks, shape.ranks, shape.local_ranks):
            mesh.connect(a, b, wiring.total_qps(shape.channels))


def _offset(mesh: Mesh, shape: NormalShape, name: str, host: int, channel: int) -> int:
    """Where the ring or word of (host, channel) lies in a heap."""
    each = mesh.layout.size[name] // (shape.hosts * shape.channels)
    return mesh.layout.offset[name] + (host * shape.channels + channel) * each


def _rails(mesh: Mesh, shape: NormalShape, wiring: Wiring, rank: int) -> Array:
    """ChannelHandle[hosts][channels] of one rank; those of its own host stay zero."""
    side = mesh.sides[rank]
    rails: Array = mesh.world.array((shape.hosts, shape.channels), abi.CHANNEL_HANDLE)
    ours = ("staging_payload", "staging_meta", "head", "ring_payload", "ring_meta", "tail", "sent", "received")
    theirs = {"peer_payload": "ring_payload", "peer_meta": "ring_meta", "peer_tail": "tail", "peer_head": "head"}
    for host in range(shape.hosts):
        if host == side.host:
            continue
        peer = host * shape.local_ranks + side.local
        far = mesh.sides[peer]
        for channel in range(shape.channels):
            rail = rails[host, channel]
            rail["qp"] = side.handles[peer, wiring.qp_of(channel)].array[0]
            rail["credit_qp"] = side.handles[peer, wiring.credit_qp_of(channel, shape.channels)].array[0]
            rail["fenced"] = wiring.fenced
            for name in ours:
                rail[name] = side.heap.base + _offset(mesh, shape, name, host, channel)
            for field, name in theirs.items():
                rail[field] = (far.mr.address + _offset(mesh, shape, name, side.host, channel), far.mr.rkey)
            rail["staging_lkey"] = side.mr.lkey
            rail["slots"], rail["chunk"] = shape.slots, shape.chunk
            rail["payload_stride"], rail["meta_stride"] = shape.row_stride(fp8=False), shape.meta_stride
    return rails


def rank_pods(mesh: Mesh, shape: NormalShape, wiring: Wiring, rank: int) -> tuple[Array, Array]:
    """EpRank[1] of one rank, for BF16 rows and for FP8 rows, which divide the same rings into shorter slots. The mesh
    keeps alive what they point at.
    """
    side = mesh.sides[rank]
    rails = _rails(mesh, shape, wiring, rank)
    pod: Array = mesh.world.array((1,), abi.EP_RANK)
    values = {
        "layout_version": LAYOUT_VERSION,
        "rank": rank,
        "ranks": shape.ranks,
        "host": side.host,
        "hosts": shape.hosts,
        "local": side.local,
        "local_ranks": shape.local_ranks,
        "channels": shape.channels,
        "experts": shape.experts,
        "local_experts": shape.local_experts,
        "topk": shape.topk,
        "hidden": shape.hidden,
        "capacity": shape.capacity,
        "notify_bytes": shape.notify_bytes,
        "heaps": mesh.heap_table(rank),
        "rail_heaps": mesh.remote_table([h * shape.local_ranks + side.local for h in range(shape.hosts)]),
        "rails": mesh.keep(rails),
        "max_tokens": shape.max_tokens,
        "count_bytes": shape.count_bytes,
    }
    for name, value in values.items():
        pod[0][name] = value
    for name in abi.EP_HEAP.names or ():
        pod[0]["at"][name] = mesh.layout.offset[name]
    mesh.watch(pod[0]["watch"], rank)
    fp8, shorter = mesh.world.array((1,), abi.EP_RANK), mesh.world.array(rails.shape, abi.CHANNEL_HANDLE)
    fp8[...], shorter[...] = pod, rails
    shorter["payload_stride"] = shape.row_stride(fp8=True)
    fp8[0]["rails"] = mesh.keep(shorter)
    return pod, fp8
