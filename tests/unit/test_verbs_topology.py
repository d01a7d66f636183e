"""Distances between GPUs and NICs, from trees of files.

`dgx` is reconstructed from the `nvidia-smi topo -m` of NVIDIA's DGX H100 user guide (each GPU one switch away from the
ConnectX-7 of its own rail); topology_dumps has others, each with its source; fixtures/ has captured ones.
What is left are small cases of one thing each.
"""

import json
import os

import captured_trees
import pytest
from machine_tree import GPU, NIC, Tree
from topology_dumps import BONDED_RAILS, DUMPS

from rdmakit.cli import main
from rdmakit.errors import BadArgument
from rdmakit.verbs import sysfs
from rdmakit.verbs.topology import DISTANCES, distance, read_topology


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.fixture
def dgx(tree):
    """Eight switches, four a socket, with a GPU and a NIC each."""
    for i in range(8):
        host, bus = f"pci0000:{0x10 * (i + 1):02x}", 0x10 * (i + 1)
        switch = f"{host}/0000:{bus:02x}:01.0/0000:{bus + 1:02x}:00.0"
        tree.pci(f"{switch}/0000:{bus + 2:02x}:00.0/0000:{bus + 3:02x}:00.0", GPU, i // 4)
        at = tree.pci(f"{switch}/0000:{bus + 2:02x}:01.0/0000:{bus + 4:02x}:00.0", NIC, i // 4)
        tree.nic(f"mlx5_{i}", at)
    return read_topology(tree.root)


def test_each_gpu_of_a_dgx_has_its_rail(dgx):
    assert [gpu.name for gpu in dgx.gpus] == [f"GPU{i}" for i in range(8)]
    for gpu in dgx.gpus:
        assert [nic.name for nic in dgx.nearest(gpu.index)] == [f"mlx5_{gpu.index}"]
        for i, nic in enumerate(dgx.nics):
            expected = "PIX" if i == gpu.index else "NODE" if i // 4 == gpu.index // 4 else "SYS"
            assert dgx.between(gpu, nic) == expected


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.name)
def test_distances_are_those_of_public_dumps(tmp_path, dump):
    found = read_topology(dump.build(tmp_path).root)
    nics = sorted(found.nics, key=lambda nic: int(nic.name.rpartition("_")[2]))
    assert dump.rows and dump.source.startswith("https://") and dump.made == "reconstructed"
    for gpu, row in dump.rows.items():
        assert " ".join(found.between(found.gpus[gpu], nic) for nic in nics) == row, f"GPU{gpu}"


def test_what_the_dumps_say_of_bonds_planes_and_virtual_functions(tmp_path):
    rails, shared, planes, virtual = (read_topology(d.build(tmp_path / str(i)).root) for i, d in enumerate(DUMPS))
    assert [nic.ports[0].bond for nic in rails.nics] == [f"bond{i}" for i in range(8)]
    assert [[nic.name for nic in shared.nearest(gpu)] for gpu in (0, 1)] == [["mlx5_0"], ["mlx5_0", "mlx5_1"]]
    assert {nic.name for nic in planes.nearest(1)} == {f"mlx5_{i}" for i in range(4)} and len(planes.nics) == 18
    assert [nic.virtual_of for nic in virtual.nics] == ["", "", *["0000:58:00.0"] * 6]
    assert [nic.address for nic in virtual.nics][2:] == [f"0000:58:{at}" for at in ("03.4", "03.5", "03.6", "03.7",
                                                                                  "04.0", "04.1")]  # fmt: skip
    assert all(len(found.draw().splitlines()) > 2 for found in (rails, shared, planes, virtual))


@pytest.mark.parametrize("name", sorted(path.stem for path in captured_trees.FIXTURES.glob("*.tree")))
def test_captured_trees_say_so_and_can_be_read(tmp_path, name):
    title = captured_trees.build(name, tmp_path)
    assert title.startswith("captured: ")
    assert captured_trees.text_of(tmp_path, title) == (captured_trees.FIXTURES / f"{name}.tree").read_text()
    found = json.loads(json.dumps(read_topology(tmp_path / "sys").to_dict()))
    assert found["nics"] or found["gpus"]


def test_a_captured_host_of_gpus_alone(tmp_path, capsys):
    captured_trees.build("h200_pair", tmp_path)
    found = read_topology(tmp_path / "sys")
    assert [gpu.address for gpu in found.gpus] == ["0000:00:06.0", "0000:00:07.0"] and not found.nics
    assert "yes gpu         NVIDIA H200 at 0000:00:06.0, 0000:00:07.0" in said_by(capsys, "info", tmp_path)
    assert "PASS  driver     580.159.04, open kernel modules, 2 GPUs" in said_by(capsys, "doctor", tmp_path)


def said_by(capsys, command, root):
    assert main([command, "--root", str(root)]) == 0
    return capsys.readouterr().out


def test_a_captured_host_in_a_network_namespace_of_its_own(tmp_path, capsys):
    captured_trees.build("soft_roce_host", tmp_path)
    found = read_topology(tmp_path / "sys")
    assert found.draw().splitlines() == [
        f"h0r{i}: software, no driver: port 1 Ethernet ACTIVE 10 Gb/sec (1X FDR10) on p{i}" for i in range(2)
    ]
    assert len(list((tmp_path / "dev/infiniband").iterdir())) == 4, "device files of the other host's, too"
    assert [sysfs.choose_gid(sysfs.gid_table(nic.name, 1, tmp_path / "sys"), True).gid for nic in found.nics] == [
        "::ffff:10.9.0.1", "::ffff:10.9.1.1"
    ]  # fmt: skip
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "PASS  devices    h0r0, h0r1 (software)" in said and "PASS  state      2 ACTIVE, 10 Gb/sec" in said


def test_the_drawing_and_the_json_say_the_same(dgx):
    lines = dgx.draw().splitlines()
    names = lines[0].split()[:-2]
    drawn = {line.split()[0]: dict(zip(names, line.split()[1:9], strict=True)) for line in lines[1:9]}
    assert drawn == json.loads(json.dumps(dgx.to_dict()))["distances"]
    assert "mlx5_7: 0000:84:00.0, NUMA 1, no driver: port 1 Ethernet ACTIVE 400 Gb/sec (4X NDR)" in lines


def test_bonds_and_virtual_functions_show(tree):
    physical = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", NIC, 0)
    virtual = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.4", NIC, 0)
    tree.nic("mlx5_bond_0", physical, netdev="eth0", bond="bond0")
    tree.nic("mlx5_2", virtual, netdev="eth4", physical=physical)
    found = {nic.name: nic for nic in read_topology(tree.root).nics}
    assert found["mlx5_bond_0"].ports[0].bond == "bond0" and found["mlx5_2"].ports[0].bond == ""
    assert found["mlx5_2"].virtual_of == "0000:01:00.0" and found["mlx5_bond_0"].virtual_of == ""


def test_gids_may_name_the_bond_itself_and_a_bridge_is_none(tree):
    at = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0", NIC, 0)
    tree.nic("mlx5_bond_0", at, netdev="bond0")
    tree.write("class/net/bond0/bonding/mode", "802.3ad 4")
    other = tree.pci("pci0000:00/0000:00:02.0/0000:02:00.0", NIC, 0)
    tree.nic("mlx5_1", other, netdev="eth1")
    tree.write("class/net/br0/bridge/root_id", "8000.0")
    tree.link("class/net/eth1/master", "class/net/br0")
    assert [nic.ports[0].bond for nic in read_topology(tree.root).nics] == ["", "bond0"]


def test_virtual_functions_are_where_their_physical_function_is(tree):
    switch = "pci0000:10/0000:10:01.0/0000:11:00.0"
    tree.pci(f"{switch}/0000:12:00.0/0000:13:00.0", GPU, 0)
    tree.pci("pci0000:90/0000:91:00.0", GPU, 1)
    physical = tree.pci(f"{switch}/0000:12:01.0/0000:14:00.0", NIC, 0)
    tree.nic("mlx5_0", physical)
    for number in range(1, 4):
        at = tree.pci(f"{switch}/0000:12:01.0/0000:14:00.{number}", NIC, 0)
        tree.nic(f"mlx5_{number}", at, physical=physical)
    found = read_topology(tree.root)
    assert {found.between(found.gpus[0], nic) for nic in found.nics} == {"PIX"}
    assert {found.between(found.gpus[1], nic) for nic in found.nics} == {"SYS"}
    assert [nic.virtual_of for nic in found.nics] == ["", *["0000:14:00.0"] * 3]
    assert found.draw().count("virtual function of 0000:14:00.0") == 3


def test_a_container_sees_the_pci_tree_but_not_the_netdevs(tree):
    """/sys/class/net is of the container's network namespace; gid_attrs/ndevs cannot be read (EINVAL) there.

    Pods show all RDMA devices and no network device but their own: Mellanox/k8s-rdma-sriov-dev-plugin, issue 3.
    """
    at = tree.pci("pci0000:10/0000:10:01.0/0000:14:00.0", NIC, 0)
    tree.pci("pci0000:10/0000:10:02.0/0000:15:00.0", GPU, 0)
    tree.nic("mlx5_bond_0", at)
    (tree.root / "class/infiniband/mlx5_bond_0/ports/1/gid_attrs/ndevs/0").mkdir(parents=True)  # reading it fails
    tree.write("class/net/eth0/mtu", "1500")
    (nic,) = (found := read_topology(tree.root)).nics
    assert (nic.ports[0].netdev, nic.ports[0].bond) == ("", "") and found.between(found.gpus[0], nic) == "PHB"


def test_software_devices_have_no_place(tree):
    (tree.root / "devices/virtual/infiniband/rxe0").mkdir(parents=True)
    tree.nic("rxe0", "devices/virtual/infiniband/rxe0")
    tree.pci("pci0000:00/0000:01:00.0", GPU, 0)
    found = read_topology(tree.root)
    assert found.nics[0].address == "" and found.between(found.gpus[0], found.nics[0]) == "SYS"
    assert "rxe0: software" in found.draw()


def test_a_container_without_the_device_links_still_lists(tree):
    tree.write("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE")
    (nic,) = read_topology(tree.root).nics
    assert (nic.name, nic.address, nic.numa_node) == ("mlx5_0", "", -1)


def by_ancestors(a, b, numa_a, numa_b):
    """The same by walking up from one device until something is above both: slow and plain."""
    above = [a[: len(a) - up] for up in range(1, len(a))]
    common = next((node for node in above if node == b[: len(node)] and len(node) < len(b)), None)
    if a == b or common is None:
        if a == b and len(a) > 1:
            return "PIX"
        return "NODE" if numa_a == numa_b and numa_a >= 0 else "SYS"
    if len(common) == 1:
        return "PHB"
    return "PIX" if len(a) - len(common) <= 2 and len(b) - len(common) <= 2 else "PXB"


def test_distances_of_random_trees_agree_with_walking_up(rng):
    seen = set()
    for _ in range(3000):
        deep = [tuple(f"{level}.{rng.integers(0, 2)}" for level in range(rng.integers(2, 7))) for _ in range(2)]
        numa = [int(n) for n in rng.integers(-1, 2, 2)]
        if deep[0] == deep[1] or any(x[: len(y)] == y for x, y in (deep, deep[::-1])):
            continue  # a device is below no other
        got = distance(*deep, *numa)
        assert got == by_ancestors(*deep, *numa) == distance(*deep[::-1], *numa[::-1]), (deep, numa)
        seen.add(got)
    assert seen == set(DISTANCES)


def test_a_gpu_that_is_not_there(dgx):
    with pytest.raises(BadArgument, match="8 GPUs"):
        dgx.nearest(8)


def test_info_draws_links_between_gpus_where_nvml_answers(dgx, monkeypatch, capsys):
    from rdmakit.gpu import nvml

    gpus = tuple(nvml.GpuLinks(i, "H200", gpu.address, 18) for i, gpu in enumerate(dgx.gpus))
    report = nvml.NvmlReport("580.65", 13000, gpus, {(0, 1): "nvlink"})
    monkeypatch.setitem(os.environ, "SYSFS_PATH", dgx.where)
    monkeypatch.setattr(nvml, "read_gpus", lambda: report)
    main(["info", "--topology"])
    assert report.draw() in capsys.readouterr().out
    main(["info", "--topology", "--json"])
    assert json.loads(capsys.readouterr().out)["gpu_links"]["peer"]["GPU0"] == {"GPU1": "nvlink"}


def test_info_and_plan_look_at_another_machine_s_files(tmp_path, capsys):
    BONDED_RAILS.build(tmp_path / "rails/sys")
    root = str(tmp_path / "rails")
    assert main(["info", "--topology", "--root", root]) == 0
    assert "mlx5_bond_7" in (drawn := capsys.readouterr().out)
    main(["info", "--root", root, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["rdma"] == 8 == len(found["topology"]["nics"]) and found["config"]["root"] == root
    assert main(["plan", "--machine", root, "--tokens", "64", "--channels", "8"]) in (0, 1)
    assert (said := capsys.readouterr().out).startswith(drawn)
    assert "rails: 2 hosts of 8 GPUs, 8 NICs of 2 x 400 Gb/s roce, bonded (hash)" in said
    main(["plan", "--machine", root, "--tokens", "64", "--ranks", "32", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert "4 hosts of 8 GPUs" in found["config"]["cluster"] and len(found["topology"]["nics"]) == 8
    for command in ("info", "plan"):
        assert main([command, "--root" if command == "info" else "--machine", str(tmp_path / "nowhere")]) == 2
        assert "--capture" in capsys.readouterr().err
    (tmp_path / "none/sys").mkdir(parents=True)
    assert main(["plan", "--machine", str(tmp_path / "none")]) == 2
    assert "no RDMA device" in capsys.readouterr().err


def test_info_draws_and_prints_json(dgx, monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "SYSFS_PATH", dgx.where)
    main(["info", "--topology"])
    assert dgx.draw() in capsys.readouterr().out
    main(["info", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["topology"] == json.loads(json.dumps(dgx.to_dict())) and found["figures"]["rdma"] == 8
