"""Files of machines under construction: /sys, /proc and /dev as kernels with GPUs and ConnectX NICs show them.

`Tree` is a /sys; `Host` is a whole root, healthy when it is made, so that each test breaks one thing.
"""

import shutil

GPU, NIC = ("0x10de", "0x030200"), ("0x15b3", "0x020000")


class Tree:
    """A /sys under construction."""

    def __init__(self, root):
        self.root = root

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def link(self, path, target):
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / target)

    def pci(self, path, kind, numa):
        """A device at the end of "pci0000:00/0000:00:01.0/…"."""
        (vendor, code), at = kind, f"devices/{path}"
        for name, text in (("vendor", vendor), ("class", code), ("numa_node", str(numa))):
            self.write(f"{at}/{name}", text)
        self.link(f"bus/pci/devices/{path.rpartition('/')[2]}", at)
        return at

    def nic(self, name, at, *, netdev="", bond="", physical="", gid="0000:0000:0000:0000:0000:ffff:0a00:0001"):
        self.link(f"class/infiniband/{name}/device", at)
        port = f"class/infiniband/{name}/ports/1"
        for file, text in (("state", "4: ACTIVE"), ("rate", "400 Gb/sec (4X NDR)"), ("link_layer", "Ethernet")):
            self.write(f"{port}/{file}", text)
        self.write(f"{port}/gids/0", gid)
        self.write(f"{port}/gid_attrs/types/0", "RoCE v2")
        if netdev:
            self.write(f"{port}/gid_attrs/ndevs/0", netdev)
        if bond:
            self.write(f"class/net/{bond}/bonding/mode", "802.3ad 4")
            self.link(f"class/net/{netdev}/master", f"class/net/{bond}")
        if physical:
            self.link(f"{at}/physfn", physical)


class Host:
    """Two GPUs and two ConnectX-7 of one RoCE port each, a pair behind each of two switches; all is well."""

    def __init__(self, root):
        self.root = root
        self.tree = Tree(root / "sys")
        self.nics = []
        for i in range(2):
            host, bus = f"pci0000:{0x10 * (i + 1):02x}", 0x10 * (i + 1)
            switch = f"{host}/0000:{bus:02x}:01.0/0000:{bus + 1:02x}:00.0"
            gpu = self.tree.pci(f"{switch}/0000:{bus + 2:02x}:00.0/0000:{bus + 3:02x}:00.0", GPU, i)
            nic = self.tree.pci(f"{switch}/0000:{bus + 2:02x}:01.0/0000:{bus + 4:02x}:00.0", NIC, i)
            self.tree.link(f"{nic}/driver", "bus/pci/drivers/mlx5_core")
            self.nics.append(nic)
            gid = f"0000:0000:0000:0000:0000:ffff:0a00:{i + 1:02x}01"
            self.tree.nic(f"mlx5_{i}", nic, netdev=f"eth{i}", gid=gid)
            self.sys(f"class/net/eth{i}/mtu", "9000")
            self.sys(f"class/net/eth{i}/ecn/roce_rp/enable/3", "1")
            self.sys(f"class/infiniband/mlx5_{i}/ports/1/hw_counters/packet_seq_err", "0")
            for name, text in (("current", "32.0 GT/s PCIe"), ("max", "32.0 GT/s PCIe")):
                self.sys(f"{nic}/{name}_link_speed", text)
                self.sys(f"{nic}/{name}_link_width", "16")
            for device in (gpu, nic):
                self.sys(f"{device}/iommu_group/type", "identity")
            self.write(f"dev/infiniband/uverbs{i}", "")
        (self.tree.root / "bus/pci/drivers/mlx5_core").mkdir(parents=True)
        for module in ("ib_uverbs", "mlx5_core", "mlx5_ib", "nvidia", "nvidia_peermem"):
            self.sys(f"module/{module}/refcnt", "1")
        self.write("dev/nvidia0", "")
        self.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  "
                   "Release Build\nGCC version:  gcc version 12.2.0")  # fmt: skip
        self.params()
        self.write("proc/sys/kernel/osrelease", "6.8.0-45-generic")
        self.memlock("unlimited")

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def sys(self, path, text):
        self.tree.write(path, text)

    def remove(self, path):
        at = self.root / path
        shutil.rmtree(at) if at.is_dir() and not at.is_symlink() else at.unlink()

    def params(self, dwords="PeerMappingOverride=1;", stream=1):
        text = f'EnableMSI: 1\nEnableStreamMemOPs: {stream}\nRegistryDwords: "{dwords}"\nRegistryDwordsPerDevice: ""'
        self.write("proc/driver/nvidia/params", text)

    def memlock(self, limit, capabilities="0000000000000000"):
        self.write("proc/self/limits", "Limit                     Soft Limit           Hard Limit           Units\n"
                   f"Max locked memory         {limit:<20} {limit:<20} bytes")  # fmt: skip
        self.write("proc/self/status", f"Name:\tpython\nCapEff:\t{capabilities}")

    def no_gpus(self):
        for i in range(2):
            (self.tree.root / f"bus/pci/devices/0000:{0x10 * (i + 1) + 3:02x}:00.0").unlink()
        self.remove("dev/nvidia0")

    def no_nics(self, plugged=False):
        self.remove("sys/class/infiniband")
        if not plugged:
            for i in range(2):
                (self.tree.root / f"bus/pci/devices/0000:{0x10 * (i + 1) + 4:02x}:00.0").unlink()

    def bond(self, mode="802.3ad 4", policy="layer3+4 1", select="", down=()):
        """mlx5_0 becomes a bond of two ports; the second function has no RDMA device of its own then."""
        self.remove("sys/class/infiniband/mlx5_1")
        at = "class/net/bond0/bonding"
        for name, text in (("mode", mode), ("xmit_hash_policy", policy), ("slaves", "eth0 eth1")):
            self.sys(f"{at}/{name}", text)
        for i in range(2):
            self.sys(f"class/net/eth{i}/bonding_slave/mii_status", "down" if f"eth{i}" in down else "up")
            if select:
                self.sys(f"class/net/eth{i}/compat/devlink/lag_port_select_mode", select)
            self.tree.link(f"class/net/eth{i}/master", "class/net/bond0")
