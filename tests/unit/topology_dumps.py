"""Public dumps of machines, and the trees of files that they were reconstructed as.

None was captured: a dump says who is how far from whom (`nvidia-smi topo -m`), or what hangs below which bridge
(`lspci -tv`), and a tree was made for which that is so. Addresses are the dump's where it has any. `rows`: a GPU → its
distances to the NICs, in their order, as far as the dump has been seen.
"""

from dataclasses import dataclass

from machine_tree import GPU, NIC, Tree

RECONSTRUCTED = "reconstructed"


@dataclass(frozen=True)
class Dump:
    name: str
    source: str
    what: str
    gpus: list[tuple[str, int]]  # path below /sys/devices, NUMA node
    nics: list[tuple[str, str, int, dict[str, str]]]  # name, path, NUMA node, options of Tree.nic
    rows: dict[int, str]
    made: str = RECONSTRUCTED

    def build(self, root):
        tree = Tree(root)
        for path, node in self.gpus:
            tree.pci(path, GPU, node)
        for name, path, node, options in self.nics:
            tree.nic(name, tree.pci(path, NIC, node), **options)
        return tree


def _below(bus, *bridges, device):
    """Root port, then a bridge a bus, then a device: pci0000:BB/0000:BB:01.0/…"""
    path = [f"pci0000:{bus:02x}", f"0000:{bus:02x}:01.0"]
    path += [f"0000:{bus + 1 + i:02x}:{slot}" for i, slot in enumerate(bridges)]
    return "/".join([*path, f"0000:{device}"])


def _rails(bonded):
    """A host bridge for each of 8 GPUs, four a socket; its NIC is below a second switch of the same bridge: PXB."""
    gpus, nics = [], []
    for i in range(8):
        bus = 0x10 * (i + 1)
        gpus.append((_below(bus, "00.0", "00.0", device=f"{bus + 5:02x}:00.0"), i // 4))
        at = _below(bus, "00.0", "01.0", "00.0", "00.0", device=f"{bus + 8:02x}:00.0")
        options = {"netdev": f"eth{2 * i}", "bond": f"bond{i}"} if bonded else {}
        nics.append((f"mlx5_bond_{i}" if bonded else f"mlx5_{i}", at, i // 4, options))
    return gpus, nics


def _words(*counted):
    return " ".join(word for word, count in counted for _ in range(count))


def _rail_row(i):
    return " ".join("PXB" if j == i else "NODE" if j // 4 == i // 4 else "SYS" for j in range(8))


BONDED_RAILS = Dump(
    "8 GPUs, 8 bonds of two RoCE ports", "https://github.com/NVIDIA/nccl/pull/2150",
    "802.3ad with queue affinity; each GPU one rail, across two switches",
    *_rails(bonded=True), {i: _rail_row(i) for i in range(8)},
)  # fmt: skip


def _h20():
    bus = [0x10 * (i + 1) for i in range(8)]
    gpus = [(_below(b, "00.0", "00.0", device=f"{b + 3:02x}:00.0"), i // 4) for i, b in enumerate(bus)]
    beside = {0: 0, 1: 2, 2: 4, 4: 6}  # NIC → the GPU behind whose switch it is
    nics = []
    for i in range(5):
        if i in beside:
            b = bus[beside[i]]
            nics.append((f"mlx5_{i}", _below(b, "00.0", "01.0", device=f"{b + 4:02x}:00.0"), beside[i] // 4, {}))
        else:
            nics.append((f"mlx5_{i}", _below(0xA0, device="a1:00.0"), 1, {}))
    return gpus, nics


FEWER_NICS = Dump(
    "8 H20, 5 NICs", "https://github.com/deepseek-ai/DeepEP/issues/137",
    "RoCE; every second GPU has a NIC behind its switch, its neighbour has to share it",
    *_h20(), {0: "PIX NODE SYS SYS SYS", 1: "NODE NODE SYS SYS SYS", 2: "NODE PIX SYS SYS SYS",
              3: "NODE NODE SYS SYS SYS", 4: "SYS SYS PIX NODE NODE", 5: "SYS SYS NODE NODE NODE",
              6: "SYS SYS NODE NODE PIX"},
)  # fmt: skip


def _planes():
    """GPUs 0 and 1 with NICs 0 … 3, GPUs 2 and 3 with NICs 6 … 9; NICs 4 and 5 elsewhere, the rest on socket 1."""
    gpus, nics = [], []
    for i in range(4):
        bus = 0x20 * (1 + i // 2)
        gpus.append((_below(bus, "00.0", f"{i % 2:02x}.0", device=f"{bus + 3 + i % 2:02x}:00.0"), 0))
    for i in range(18):
        group = {0: 0x20, 1: 0x20, 2: 0x20, 3: 0x20, 6: 0x40, 7: 0x40, 8: 0x40, 9: 0x40}.get(i)
        if group is not None:  # four functions of one card, behind a switch of their own
            function = i if group == 0x20 else i - 6
            at = _below(group, "00.0", "02.0", "00.0", "00.0", device=f"{group + 8:02x}:00.{function}")
            nics.append((f"mlx5_{i}", at, 0, {"netdev": f"eth{i}"}))
        else:
            bus = 0x60 if i in (4, 5) else 0x80 + i
            nics.append((f"mlx5_{i}", _below(bus, device=f"{bus + 1:02x}:00.{i % 2}"), int(i > 9), {}))
    return gpus, nics


PLANES = Dump(
    "4 planes for two GPUs", "https://github.com/deepseek-ai/DeepEP/issues/145",
    "18 NICs; each pair of GPUs has four ports at the same distance, each a device",
    *_planes(), {0: _words(("PXB", 4), ("NODE", 6), ("SYS", 8)), 1: _words(("PXB", 4), ("NODE", 6), ("SYS", 8)),
                 2: _words(("NODE", 6), ("PXB", 4), ("SYS", 8)), 3: _words(("NODE", 6), ("PXB", 4), ("SYS", 8))},
)  # fmt: skip

_V100 = "pci0000:53/0000:53:00.0/0000:54:00.0/0000:55:04.0/0000:56:00.0"
_CX5 = f"{_V100}/0000:57:04.0"
VIRTUAL_FUNCTIONS = Dump(
    "V100s beside a ConnectX-5 with virtual functions", "https://github.com/NVIDIA/nccl/issues/246",
    "lspci -tv: functions 03.4 to 04.1 of bus 58 are virtual ones of 00.0; the GPUs are behind the same switch",
    [(f"{_V100}/0000:57:08.0/0000:5c:00.0", 0), (f"{_V100}/0000:57:0c.0/0000:60:00.0", 0)],
    [("mlx5_0", f"{_CX5}/0000:58:00.0", 0, {}), ("mlx5_1", f"{_CX5}/0000:58:00.1", 0, {}),
     *((f"mlx5_{2 + i}", f"{_CX5}/0000:58:{at}", 0, {"physical": f"devices/{_CX5}/0000:58:00.0"})
       for i, at in enumerate(("03.4", "03.5", "03.6", "03.7", "04.0", "04.1")))],
    {0: _words(("PIX", 8)), 1: _words(("PIX", 8))},
)  # fmt: skip

DUMPS = [BONDED_RAILS, FEWER_NICS, PLANES, VIRTUAL_FUNCTIONS]
