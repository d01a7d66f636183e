"""Each check of `rdmakit doctor` on a healthy machine's files, and on files where one thing is broken."""

import os
import re
from pathlib import Path

import pytest
from machine_tree import Host

from rdmakit.cli.doctor.check import Answer
from rdmakit.cli.doctor.checks import CHECKS, examine
from rdmakit.cli.doctor.machine import CAPTURED, Machine
from rdmakit.emu.uverbs.tree import Nic, write_tree

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {check.name: check for check in CHECKS}
FROM_FILES = [check.name for check in CHECKS if not check.live]


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def look(host, name, **options) -> Answer:
    return BY_NAME[name].look(Machine(host.root, **options))


HEALTHY = {
    "modules": "ib_uverbs, mlx5_core, mlx5_ib loaded",
    "uverbs": "2 in /dev/infiniband",
    "memlock": "unlimited",
    "devices": r"mlx5_0, mlx5_1 \(mlx5_core\)",
    "state": "2 ACTIVE, 400 Gb/sec$",
    "gids": "mlx5_0/1 GID 0 = ::ffff:10.0.1.1; mlx5_1/1 GID 0 = ::ffff:10.0.2.1",
    "mtu": "4096 B on 2 ports",
    "pcie": "full width and speed on 2 NICs",
    "flow": "mlx5_0/1: ECN on 3; mlx5_1/1: ECN on 3",
    "losses": "nothing lost",
    "driver": "580.65.06, open kernel modules, 2 GPUs",
    "distance": "every GPU has a NIC at PIX",
    "iommu": "no translation",
    "peermem": "nvidia_peermem and dma-buf",
    "override": "PeerMappingOverride=1, EnableStreamMemOPs=1",
}
SKIPPED_WHEN_HEALTHY = {"lag": "no RDMA device is bonded", "plan": "one active port a GPU"}


def test_a_healthy_host_passes_every_check_of_files(host):
    assert set(HEALTHY) | set(SKIPPED_WHEN_HEALTHY) == set(FROM_FILES)
    for name, words in HEALTHY.items():
        answer = look(host, name)
        assert (answer.verdict, answer.remedy) == ("PASS", ""), (name, answer)
        assert re.search(words, answer.said), (name, answer)
    for name, words in SKIPPED_WHEN_HEALTHY.items():
        answer = look(host, name)
        assert answer.verdict == "SKIP" and words in answer.said, (name, answer)


def every(host, path, text):
    for i in range(2):
        host.sys(path.format(i=i, nic=host.nics[i]), text)


PORT = "class/infiniband/mlx5_{i}/ports/1"
def infiniband_without_manager(host):
    every(host, f"{PORT}/state", "2: INIT")
    every(host, f"{PORT}/link_layer", "InfiniBand")


# What is broken → the check that says so, its verdict, words of its sentence, words of its remedy.
BROKEN = {
    "driver of the NIC not loaded": (
        lambda h: h.remove("sys/module/mlx5_ib"), "modules", "FAIL", "mlx5_ib not loaded", "modprobe mlx5_ib"),
    "a container without device files": (
        lambda h: h.remove("dev/infiniband"), "uverbs", "FAIL", "container", "--device /dev/infiniband"),
    "one device file of two": (
        lambda h: h.remove("dev/infiniband/uverbs1"), "uverbs", "WARN", "1 device files for 2", "pass all"),
    "little locked memory": (lambda h: h.memlock(8 << 20), "memlock", "FAIL", "only 8 MiB", "ulimit -l unlimited"),
    "a limit of locked memory": (lambda h: h.memlock(16 << 30), "memlock", "WARN", "16 GiB", "LimitMEMLOCK"),
    "a ConnectX without RDMA": (
        lambda h: h.no_nics(plugged=True), "devices", "FAIL", "0000:14:00.0, 0000:24:00.0", "modprobe mlx5_ib"),
    "one ConnectX without RDMA": (
        lambda h: h.remove("sys/class/infiniband/mlx5_1"), "devices", "WARN", "0000:24:00.0", "enable_roce"),
    "all ports down": (
        lambda h: every(h, f"{PORT}/state", "1: DOWN"), "state", "FAIL", "mlx5_0/1 DOWN, mlx5_1/1 DOWN", "ip link"),
    "one port down": (
        lambda h: h.sys("class/infiniband/mlx5_1/ports/1/state", "1: DOWN"),
        "state", "WARN", "1 ACTIVE, 400 Gb/sec; not: mlx5_1/1", "cable"),
    "a subnet manager missing": (
        infiniband_without_manager, "state", "FAIL", "INIT", "opensm"),
    "ports of unequal rate": (
        lambda h: h.sys("class/infiniband/mlx5_1/ports/1/rate", "200 Gb/sec (4X HDR)"),
        "state", "WARN", "400 Gb/sec and 200 Gb/sec: ports of unequal rate", "same rate"),
    "RoCE v1 only": (
        lambda h: every(h, f"{PORT}/gid_attrs/types/0", "IB/RoCE v1"),
        "gids", "FAIL", r"mlx5_0/1 has no RoCE v2 GID (IB/RoCE v1)", "ip addr add"),
    "no address": (
        lambda h: every(h, f"{PORT}/gids/0", "fe80:0000:0000:0000:0200:00ff:fe01:0001"),
        "gids", "WARN", "link-local", "ip addr add ADDRESS/24 dev eth0"),
    "a netdev of 1500 bytes": (
        lambda h: h.sys("class/net/eth1/mtu", "1500"), "mtu", "WARN", "1024 B on mlx5_1/1: 4 times",
        "ip link set eth1 mtu 4200"),
    "half the PCIe lanes": (
        lambda h: every(h, "{nic}/current_link_width", "8"), "pcie", "WARN", "mlx5_0 x8 at 32 GT/s of x16", "slot"),
    "a slower PCIe link": (
        lambda h: every(h, "{nic}/current_link_speed", "16.0 GT/s PCIe"), "pcie", "WARN", "x16 at 16 GT/s", "slot"),
    "no ECN": (
        lambda h: h.sys("class/net/eth0/ecn/roce_rp/enable/3", "0"), "flow", "WARN",
        "mlx5_0/1: no ECN, PFC cannot be seen", "dev eth0 prio-pfc 3:on"),
    "packets out of sequence": (
        lambda h: h.sys("class/infiniband/mlx5_1/ports/1/hw_counters/packet_seq_err", "4711"),
        "losses", "WARN", "mlx5_1/1: packet_seq_err 4711", "rdmakit ports"),
    "a bond in active-backup": (
        lambda h: h.bond("active-backup 1"), "lag", "WARN", "mlx5_0 on bond0 (active-backup): one port", "802.3ad"),
    "a bond that hashes MAC addresses": (
        lambda h: h.bond(policy="layer2 0"), "lag", "WARN", "hashes layer2", "xmit_hash_policy layer3+4"),
    "a bond with one link down": (
        lambda h: h.bond(down=["eth1"]), "lag", "WARN", "eth1 down", "ip link set eth1 up"),
    "no driver of the GPUs": (
        lambda h: h.remove("proc/driver/nvidia"), "driver", "FAIL", "2 GPUs on the PCI bus and no driver", "nvidia"),
    "a translating IOMMU": (
        lambda h: every(h, "{nic}/iommu_group/type", "DMA-FQ"), "iommu", "WARN", "2 of 4", "iommu=pt"),
    "PeerMappingOverride unset": (
        lambda h: h.params(dwords=""), "override", "WARN", "CPU proxy", "NVreg_RegistryDwords"),
    "PeerMappingOverride 0": (
        lambda h: h.params(dwords="PeerMappingOverride=0;"), "override", "WARN", "not set", "modprobe.d"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_named_with_its_remedy(host, broken):
    harm, check, verdict, said, remedy = BROKEN[broken]
    harm(host)
    answer = look(host, check)
    assert answer.verdict == verdict and said in answer.said and remedy in answer.remedy, answer


@pytest.mark.parametrize(
    ("kind", "said"), [("hash", "(balance-xor): hash, UDP source ports steer"),
                       ("affinity", "(802.3ad): each queue pair has a LAG port")],
)  # fmt: skip
def test_the_bonds_of_emulated_nics_are_well_until_they_use_one_port(tmp_path, kind, said):
    """What `rdmakit connectx --lag` shows is what a host shows on which it works."""
    write_tree(tmp_path / "sys", [Nic("mlx5_bond_0", ("10.0.0.1",), lag=kind)])
    (tmp_path / "proc").mkdir()
    look_at = BY_NAME["lag"].look
    answer = look_at(Machine(tmp_path))
    assert answer.verdict == "PASS" and said in answer.said, answer
    (tmp_path / "sys/class/net/bond0/bonding/mode").write_text("active-backup 1\n")
    answer = look_at(Machine(tmp_path))
    assert answer.verdict == "WARN" and "(active-backup): one port carries everything" in answer.said
    assert "mode 802.3ad" in answer.remedy


def test_every_check_of_files_is_seen_both_ways():
    """PASS in HEALTHY or below, and WARN or FAIL in BROKEN or below: no check answers the same whatever it sees."""
    broken = {check for _, check, *_ in BROKEN.values()}
    assert set(FROM_FILES) - broken == {"distance", "peermem", "plan"}  # which have tests of their own


# ---- checks with more than one thing to look at
def test_closed_modules_without_peermem_leave_no_way_to_gpu_memory(host):
    host.remove("sys/module/nvidia_peermem")
    assert look(host, "peermem").verdict == "PASS", "open modules export dma-bufs"
    host.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12")
    answer = look(host, "peermem")
    assert answer.verdict == "FAIL" and "closed kernel modules" in answer.said and "nvidia-peermem" in answer.remedy
    assert look(host, "driver").facts["driver"] == "535.183.01" and look(host, "driver").facts["modules"] == "closed"


def test_dmabuf_needs_a_kernel_that_has_it(host):
    host.remove("sys/module/nvidia_peermem")
    host.write("proc/sys/kernel/osrelease", "5.4.0-150-generic")
    answer = look(host, "peermem")
    assert answer.verdict == "FAIL" and "Linux 5.4" in answer.said


def test_a_capability_lifts_the_limit_of_locked_memory(host):
    host.memlock(65536, capabilities=f"{1 << 14:016x}")
    assert look(host, "memlock").verdict == "PASS" and "CAP_IPC_LOCK" in look(host, "memlock").said
    host.memlock(65536, capabilities=f"{(1 << 41) - 1 - (1 << 14):016x}")  # all but that one
    assert look(host, "memlock").verdict == "FAIL"


def test_a_tree_without_dev_or_modules_says_nothing_of_them(host):
    host.remove("dev")
    host.remove("sys/module")
    assert look(host, "uverbs").verdict == look(host, "modules").verdict == "SKIP"


def test_device_files_that_cannot_be_opened(host, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("uverbs1"))
    answer = look(host, "uverbs")
    assert answer.verdict == "FAIL" and "uverbs1" in answer.said and "uverbs0" not in answer.said


def test_gpus_and_nics_of_different_sockets_are_far_apart(host):
    (host.tree.root / "bus/pci/devices/0000:13:00.0").unlink()
    host.remove("sys/class/infiniband/mlx5_1")
    answer = look(host, "distance")  # the GPU behind the second switch is left with the NIC behind the first
    assert answer.verdict == "WARN" and "GPU0 to mlx5_0 is SYS: data crosses the CPU" in answer.said
    assert answer.facts == {"GPU0": {"nic": "mlx5_0", "distance": "SYS"}}


@pytest.mark.parametrize("select, how", [("queue_affinity", "each queue pair has a LAG port"), ("hash", "hash, UDP")])
def test_a_bond_that_spreads(host, select, how):
    host.bond(select=select)
    answer = look(host, "lag")
    assert answer.verdict == "PASS" and how in answer.said
    plan = look(host, "plan")
    assert plan.verdict == "PASS" and plan.facts["ports"] == 2
    assert plan.facts["mechanism"] == ("lag_port" if select == "queue_affinity" else "udp_source_port")
    assert 1 <= plan.facts["max_over_min"] < 1.15
    assert look(host, "devices").verdict == "PASS", "the second function of a bond is not lost"


def test_a_bond_has_ecn_where_all_its_links_have(host):
    host.bond()
    host.remove("sys/class/net/eth0/master")  # mlx5_ib names the bond itself as the netdev of its GIDs
    host.sys("class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0", "bond0")
    host.sys("class/net/bond0/mtu", "9000")
    assert look(host, "lag").facts["mlx5_0"]["bond"] == "bond0"
    assert look(host, "flow").verdict == "PASS" and look(host, "mtu").verdict == "PASS"
    host.sys("class/net/eth1/ecn/roce_rp/enable/3", "0")
    answer = look(host, "flow")
    assert answer.verdict == "WARN" and "no ECN" in answer.said and "dev eth0" in answer.remedy


@pytest.mark.parametrize("trouble", [{"mode": "active-backup 1"}, {"policy": "layer2+3 2"}, {"down": ["eth0"]}])
def test_what_a_bond_does_not_spread_no_plan_spreads(host, trouble):
    host.bond(**trouble)
    lag, plan = look(host, "lag"), look(host, "plan")
    assert (plan.verdict, plan.remedy) == ("WARN", lag.remedy) and "as the bond is now" in plan.said


def test_debugfs_tells_how_ports_are_selected_as_well(host):
    host.bond()
    assert look(host, "lag").facts["mlx5_0"]["select"] == ""
    host.sys("kernel/debug/mlx5/0000:14:00.0/lag/port_sel_mode", "queue_affinity")
    assert look(host, "lag").facts["mlx5_0"]["select"] == "queue_affinity"


def test_a_bond_in_another_network_namespace_is_known_by_its_name(host):
    for path in ("infiniband", "net"):
        host.remove(f"sys/class/{path}")
    host.tree.nic("mlx5_bond_0", host.nics[0])
    answer = look(host, "lag")
    assert answer.verdict == "SKIP" and "another network namespace" in answer.said
    assert look(host, "plan").facts["ports"] == 2


def test_ports_of_one_rank_are_those_that_its_gpu_has_for_itself(host):
    assert look(host, "plan").verdict == "SKIP"
    host.no_gpus()
    plan = look(host, "plan")
    assert plan.verdict == "PASS" and plan.facts["mechanism"] == "port_num" and "2 ports" in plan.said


def test_a_plan_that_cannot_be_even_warns(host, monkeypatch):
    from rdmakit.cli.doctor import spread

    host.bond()
    monkeypatch.setattr(spread, "_CHANNELS", 3)  # two ports cannot share three queue pairs a peer
    plan = look(host, "plan")
    assert plan.verdict == "WARN" and plan.facts["max_over_min"] == 2 and "4 queue pairs a peer" in plan.remedy


def test_a_virtual_function_is_sent_to_its_host(host):
    physical = host.tree.pci("pci0000:90/0000:91:00.0", ("0x15b3", "0x020000"), 0)
    host.remove("sys/class/infiniband/mlx5_1")
    host.tree.link(f"{host.nics[0]}/physfn", physical)
    host.sys("class/infiniband/mlx5_0/ports/1/state", "1: DOWN")
    answer = look(host, "state")
    assert answer.verdict == "FAIL" and "0000:91:00.0" in answer.remedy and "vf N state" in answer.remedy
    assert "virtual functions: mlx5_0" in look(host, "devices").said
    assert look(host, "devices").facts["lost"] == ["0000:24:00.0", "0000:91:00.0"], "the function itself is none"


def test_infiniband_needs_neither_roce_gids_nor_pfc(host):
    every(host, f"{PORT}/link_layer", "InfiniBand")
    every(host, f"{PORT}/gid_attrs/types/0", "IB/RoCE v1")
    every(host, f"{PORT}/gids/0", "fe80:0000:0000:0000:b859:9f03:00d4:0a06")
    assert look(host, "gids").verdict == "PASS"
    assert look(host, "flow").verdict == "PASS" and "credits" in look(host, "flow").said


@pytest.mark.parametrize("mtu, rdma", [(1500, 1024), (2144, 2048), (4191, 2048), (4192, 4096), (9000, 4096)])
def test_an_rdma_mtu_is_what_fits_behind_the_headers(host, mtu, rdma):
    every(host, "class/net/eth{i}/mtu", str(mtu))
    assert look(host, "mtu").facts == {"mlx5_0/1": rdma, "mlx5_1/1": rdma}


# ---- machines without
def test_without_nics_all_that_is_about_them_is_skipped(host):
    host.no_nics()
    about = ("modules", "uverbs", "devices", "state", "gids", "mtu", "pcie", "flow", "losses", "lag", "plan",
             "distance", "peermem", "override")  # fmt: skip
    answers = {name: look(host, name) for name in about}
    assert {answer.verdict for answer in answers.values()} == {"SKIP"}, answers
    assert all("no RDMA device" in answer.said for answer in answers.values()), answers
    assert look(host, "driver").verdict == "PASS"
    assert look(host, "devices", needed=frozenset({"rdma"})).verdict == "FAIL"


def test_without_gpus_all_that_is_about_them_is_skipped(host):
    host.no_gpus()
    for name in ("driver", "distance", "iommu", "peermem", "override"):
        answer = look(host, name)
        assert answer.verdict == "SKIP" and "no NVIDIA GPU" in answer.said, (name, answer)
    assert look(host, "state").verdict == "PASS"
    assert look(host, "driver", needed=frozenset({"gpu"})).verdict == "FAIL"


def test_a_sandbox_that_shows_device_files_only(host):
    host.no_gpus()
    host.write("dev/nvidia3", "")
    answer = look(host, "driver")
    assert answer.verdict == "PASS" and answer.facts["gpus"] == 1
    host.remove("proc/driver/nvidia")
    answer = look(host, "driver")
    assert answer.verdict == "SKIP" and "nvidia3 in /dev" in answer.said


def test_a_hidden_proc_is_no_fault(host):
    host.remove("proc")
    assert look(host, "memlock").verdict == "SKIP" and look(host, "override").verdict == "SKIP"


def test_a_captured_tree_opens_nothing(host):
    results = list(examine(Machine.here(host.root)))
    live = [result for result in results if result.check.live]
    assert live and all(result.answer == Answer("SKIP", CAPTURED, "", {}) for result in live)
    assert [result.check.name for result in results] == [check.name for check in CHECKS]


# ---- the page
def headings(text):
    """Anchors as Markdown renderers make them of headings."""
    found = re.findall(r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in found}


def test_every_link_leads_to_a_section_that_speaks_of_its_check():
    from rdmakit.cli.doctor.ranks import AGREEMENT, REACH

    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    assert f"{len(CHECKS)} checks" in page
    for check in (*CHECKS, AGREEMENT, REACH):
        path, _, anchor = check.link.partition("#")
        assert path == "docs/doctor.md" and anchor in headings(page), check.link
        section = page.partition(f"## {check.section}\n")[2].partition("\n## ")[0]
        assert f"`{check.name}`" in section, f"section {check.section} does not name `{check.name}`"


def test_names_are_words_of_their_own():
    assert len(BY_NAME) == len(CHECKS)
