"""Which engine a Buffer gets, by machines, ranks, the environment and what is asked: each choice, each refusal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rdmakit.ep import device_gpus
from rdmakit.ep import engine as engines
from rdmakit.errors import BadArgument, NotAvailable

SIZES = {"num_nvl_bytes": 64, "num_rdma_bytes": 128, "enable_shrink": False}


class Ranks:
    """A rendezvous in which rank r is on `machines[r]`, and all else is as with this rank."""

    def __init__(self, machines, rank=0, changed=()):
        self.machines, self.rank, self.size, self.changed = machines, rank, len(machines), dict(changed)

    def all_gather(self, value):
        told = [(machine, *value[1:]) for machine in self.machines]
        for rank, answer in self.changed.items():
            told[rank] = (self.machines[rank], *answer)
        return told


@pytest.fixture
def choose(monkeypatch):
    """`choose(machines, devices=…, **options)`: which module's `connect` was called, with what; and hosts."""
    for variable in ("RDMAKIT_KERNELS", "RDMAKIT_DEVICES", "RDMAKIT_RANKS_PER_HOST"):
        monkeypatch.delenv(variable, raising=False)

    def module(name):
        return SimpleNamespace(connect=lambda rendezvous, **options: (name.removeprefix("rdmakit.ep."), options))

    monkeypatch.setattr(engines, "import_module", module)

    def choose(machines, *, devices="", kernels="gpu", changed=(), **options):
        monkeypatch.setenv("RDMAKIT_DEVICES", devices)
        monkeypatch.setenv("RDMAKIT_KERNELS", kernels)
        (name, given), hosts = engines.open_engine(Ranks(machines.split(), changed=changed), **{**SIZES, **options})
        return name, hosts, given

    return choose


@pytest.mark.parametrize(
    ("machines", "options", "engine", "hosts", "each"),
    [
        ("a a", {}, "nvlink", 1, None),
        ("a a", {"devices": "mlx5_0"}, "nvlink", 1, None),
        ("a a", {"ranks_per_host": 1}, "internode", 2, 1),
        ("a a", {"ranks_per_host": 1, "devices": "mlx5_0"}, "device_gpus", 2, 1),
        ("a a a a", {"ranks_per_host": 2, "devices": "mlx5_0,mlx5_1"}, "device_gpus", 2, 2),
        ("a b", {}, "device_gpus", 2, 1),
        ("a a b b", {}, "device_gpus", 2, 2),
        ("a a b b", {"ranks_per_host": 1}, "device_gpus", 4, 1),
        ("a b c c", {"ranks_per_host": 1}, "device_gpus", 4, 1),
        ("a a", {"kernels": "cpu"}, "process_rank", 1, None),
        ("a a", {"kernels": "cpu", "devices": "mlx5_0"}, "process_rank", 1, None),
        ("a a", {"kernels": "cpu", "ranks_per_host": 1}, "device_engine", 2, 1),
        ("a a b b", {"kernels": "cpu"}, "device_engine", 2, 2),
        ("a b", {"kernels": "cpu"}, "device_engine", 2, 1),
    ],
)
def test_engines(choose, machines, options, engine, hosts, each):
    name, count, given = choose(machines, **options)
    assert (name, count, given.get("ranks_per_host")) == (engine, hosts, each)
    assert given["num_nvl_bytes"] == 64


@pytest.mark.parametrize(("kernels", "engine"), [("gpu", "device_gpus"), ("cpu", "device_engine")])
@pytest.mark.parametrize(("machines", "nvlink"), [("a b", True), ("a b", False), ("a a b b", True)])
def test_low_latency_goes_over_devices_with_or_without_nvlink(choose, machines, nvlink, kernels, engine):
    options = {"low_latency": True, "low_latency_over_nvlink": nvlink, "num_qps_per_rank": 5, "kernels": kernels}
    name, _, given = choose(machines, **options)
    assert name == engine and given["low_latency"] and given["num_qps_per_rank"] == 5
    assert given["num_rdma_bytes"] == 128


@pytest.mark.parametrize(
    ("kind", "text", "machines", "options"),
    [
        (NotAvailable, "allow_nvlink_for_low_latency_mode=False", "a a",
         {"low_latency": True, "low_latency_over_nvlink": False}),
        (NotAvailable, "among ranks of one host .value 4 ranks on 2 hosts", "a a b b",
         {"low_latency": True, "low_latency_over_nvlink": False}),
        (NotAvailable, "among ranks of one host .value 2 ranks on 1 hosts", "a a",
         {"low_latency": True, "low_latency_over_nvlink": False, "kernels": "cpu"}),
        (NotAvailable, "low_latency_mode is not supported between hosts", "a a",
         {"low_latency": True, "ranks_per_host": 1}),
        (NotAvailable, "enable_shrink is not supported between hosts", "a b", {"enable_shrink": True}),
        (BadArgument, r"not spread evenly over hosts, host by host .value \[1, 4\]", "a b b b b", {}),
        (BadArgument, "on several machines .value ranks 0 … 3", "a a b b", {"ranks_per_host": 4}),
        (BadArgument, "on several machines .value ranks 0 … 1", "a b a b", {"ranks_per_host": 2}),
        (BadArgument, r"not spread evenly .*value \[1, 1, 1, 1\]", "a b a b", {}),
        (BadArgument, r"not spread evenly .*value \[3, 1\]", "a a a b", {}),
        (BadArgument, "do not agree on ranks_per_host", "a a", {"changed": {1: (1, False)}}),
        (BadArgument, "do not agree on whether devices join hosts", "a a",
         {"ranks_per_host": 1, "changed": {1: (1, True)}}),
    ],
)  # fmt: skip
def test_refusals(choose, kind, text, machines, options):
    with pytest.raises(kind, match=text) as caught:
        choose(machines, **options)
    assert caught.value.rule and caught.value.remedy


def test_what_devices_cannot_join(monkeypatch):
    """Refused before anything is opened or allocated: hosts without a device."""
    monkeypatch.delenv("RDMAKIT_DEVICES", raising=False)
    monkeypatch.setattr("rdmakit.verbs.backend.device_names", lambda: ([], "libibverbs is not there"))
    sizes = {"num_nvl_bytes": 64, "num_rdma_bytes": 128, "num_qps_per_rank": 4, "low_latency": False}
    for machines, each in (("a b", 1), ("a a b b", 2)):
        with pytest.raises(NotAvailable, match=r"no RDMA device .*libibverbs is not there") as caught:
            device_gpus.connect(Ranks(machines.split()), ranks_per_host=each, **sizes)
        assert caught.value.rule and caught.value.remedy
