"""Which entry of a port's GID table a queue pair takes, and what becomes of entries that cannot be read."""

import itertools

import pytest
from machine_tree import Tree

from rdmakit.verbs.sysfs import GidEntry, choose_gid, gid_table

V1, V2 = "IB/RoCE v1", "RoCE v2"
IPV4, IPV6, LINK = "0000:0000:0000:0000:0000:ffff:0a00:0001", "fd00" + 6 * ":0000" + ":0001", "fe80" + 7 * ":0000"
BEST_FIRST = [(IPV4, V2), (IPV6, V2), (LINK, V2)]


@pytest.fixture
def table(tmp_path):
    """`table([(gid, kind), …])`: what is read of a port that has these entries."""

    def of(entries):
        tree = Tree(tmp_path)
        at = "class/infiniband/mlx5_0/ports/1"
        for index, (gid, kind) in enumerate(entries):
            tree.write(f"{at}/gids/{index}", gid)
            tree.write(f"{at}/gid_attrs/types/{index}", kind)
        return gid_table("mlx5_0", 1, tmp_path)

    return of


def test_roce_v2_then_routable_then_ipv4_wherever_they_stand(table):
    zero = "0000" + 7 * ":0000"
    for entries in itertools.permutations([*BEST_FIRST, (IPV4, V1), (zero, V2)]):
        found = table(entries)
        assert len(found) == 4 and choose_gid(found, False).index == found[0].index, "InfiniBand takes the first"
        for best in BEST_FIRST:
            chosen = choose_gid(found, True)
            assert entries[chosen.index] == best and chosen.kind == V2
            found.remove(chosen)
        assert choose_gid(found, True) is None, "RoCE v1 alone will not do"


def test_the_lowest_of_equals():
    alike = [GidEntry(index, f"::ffff:10.0.0.{index}", V2, "") for index in (7, 3, 5)]
    assert choose_gid(alike, True).index == 3


def test_entries_that_cannot_be_read_are_passed_over(table, tmp_path):
    """In a container the kernel answers EINVAL for entries of network devices elsewhere: a folder stands for that."""
    table([(IPV4, V2), (IPV4[:-1] + "2", V2), (IPV6, V2)])
    at = tmp_path / "class/infiniband/mlx5_0/ports/1"
    for unreadable in ("gids/0", "gid_attrs/types/1"):
        (at / unreadable).unlink()
        (at / unreadable).mkdir()
    found = gid_table("mlx5_0", 1, tmp_path)
    assert [entry.index for entry in found] == [1, 2] and found[0].kind == ""
    assert choose_gid(found, True).index == 2
