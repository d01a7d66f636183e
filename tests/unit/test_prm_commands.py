"""Where fields of our commands lie, against rdma-core's own tests, and against what the emulated device reads."""

import re
from pathlib import Path

import pytest
from test_prm_layout import STRUCTS, constants, rdma_core_fields, words

from rdmakit.errors import BadArgument
from rdmakit.layout import prm_commands
from rdmakit.layout.prm_commands import ADS, CQC, CREATE_CQ_IN, CREATE_QP_IN, GENERAL_CAPABILITIES, LAGC, QPC

ROOT = Path(__file__).resolve().parents[2]
# Ours → the class of rdma-core's tests, and in it the names that differ.
STRUCTURES = {
    "ads": (ADS, "SwAds", {}),
    "qpc": (QPC, "SwQpc", {}),
    "cqc": (CQC, "SwCqc", {}),
    "create_cq_in": (CREATE_CQ_IN, "CreateCqIn", {"cq_umem_offset": "e_mtt_pointer_or_cq_umem_offset"}),
    "create_qp_in": (CREATE_QP_IN, "CreateQpIn", {"wq_umem_offset": "e_mtt_pointer_or_wq_umem_offset"}),
    "modify_qp_in": (prm_commands.MODIFY_QP_IN, "ModifyQpIn", {}),
    "query_qp_out": (prm_commands.QUERY_QP_OUT, "QueryQpOut", {}),
    "create_out": (prm_commands.CREATE_OUT, "CreateQpOut", {"number": "qpn"}),
    "query_in": (prm_commands.QUERY_IN, "QueryQpIn", {"number": "qpn"}),
}
# There in two halves, or not there: the kernel's mlx5_ifc.h has them.
ELSEWHERE = {"cqc.dbr_addr", "modify_qp_in.opt_param_mask_95_32"}
# The device's names (rdmakit/emu/uverbs/prm.hpp) that are not ours in other letters.
DEVICE = {
    "transport": "st", "srqn": "srqn_rmpn_xrqn", "hw_sq_counter": "hw_sq_wqebb_counter",
    "sw_sq_counter": "sw_sq_wqebb_counter", "cqe_size": "cqe_sz", "collapsed": "cc", "overrun_ignore": "oi",
    "log_size": "log_cq_size", "eqn": "c_eqn", "consumer": "consumer_counter", "producer": "producer_counter",
    "log_max_qp_size": "log_max_qp_sz", "log_max_cq_size": "log_max_cq_sz", "rts2_rts_udp_sport": "rts2rts_udp_sport",
    "rts2_rts_lag_port": "rts2rts_lag_tx_port_affinity", "max_wqe_sq": "max_wqe_sz_sq",
    "general_objects": "general_obj_types",
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    """(class, field) → (first bit, width), of rdma-core's tests."""
    if not STRUCTS.exists():
        pytest.skip("no rdma-core tests: apt-get install python3-pyverbs")
    return rdma_core_fields({name for _, name, _ in STRUCTURES.values()})


def own(structure):
    """Fields that are the structure's own, not a part's."""
    return [name for name in structure.fields if "." not in name]


@pytest.mark.parametrize("name", STRUCTURES)
def test_fields_lie_where_rdma_core_has_them(theirs, name):
    structure, other, renamed = STRUCTURES[name]
    compared = 0
    for field in own(structure):
        if f"{name}.{field}" in ELSEWHERE:
            continue
        assert theirs[other, renamed.get(field, field)] == structure.fields[field][:2], field
        compared += 1
    assert compared >= 2


def test_parts_begin_where_rdma_core_has_them(theirs):
    for structure, part, other, inner, name in (
        (CREATE_QP_IN, QPC, "CreateQpIn", "sw_qpc", "qpc"), (CREATE_CQ_IN, CQC, "CreateCqIn", "sw_cqc", "cqc"),
        (prm_commands.MODIFY_QP_IN, QPC, "ModifyQpIn", "sw_qpc", "qpc"),
        (prm_commands.QUERY_QP_OUT, QPC, "QueryQpOut", "sw_qpc", "qpc"),
        (QPC, ADS, "SwQpc", "primary_address_path", "primary_address_path"),
    ):  # fmt: skip
        base = theirs[other, inner][0]
        for field, (at, width, _) in part.fields.items():
            assert structure.fields[f"{name}.{field}"][:2] == (base + at, width), field


def test_the_emulated_device_reads_the_same_places():
    """It was written from the manual by itself: two tables that agree."""
    ours = {"qpc": QPC, "ads": ADS, "cqc": CQC}
    compared = set()
    for space, name, place in constants():
        field = DEVICE.get(words(name), words(name))
        if space in ours and field in ours[space].fields:
            assert ours[space].fields[field][:2] == place, (space, name)
            compared.add((space, field))
        elif space == "hca_cap" and field in GENERAL_CAPABILITIES.fields:
            at, width, _ = GENERAL_CAPABILITIES.fields[field]
            assert (at - 0x80, width) == place, name
            compared.add((space, field))
    assert len(compared) > 60, compared
    header = (ROOT / "rdmakit/emu/uverbs/prm.hpp").read_text()
    for structure, field, name in (
        (CREATE_QP_IN, "wq_umem_offset", "kWqUmemOffset"), (CREATE_QP_IN, "wq_umem_id", "kWqUmemId"),
        (CREATE_QP_IN, "wq_umem_valid", "kWqUmemValid"), (CREATE_CQ_IN, "cq_umem_offset", "kCqUmemOffset"),
        (CREATE_CQ_IN, "cq_umem_id", "kCqUmemId"), (CREATE_CQ_IN, "cq_umem_valid", "kCqUmemValid"),
        (prm_commands.MODIFY_QP_IN, "opt_param_mask_95_32", "kOptMask95To32"),
        (prm_commands.QUERY_LAG_OUT, "ctx.lag_state", "kLagState"),
        (prm_commands.QUERY_LAG_OUT, "ctx.port_select_mode", "kPortSelectMode"),
        (prm_commands.QUERY_LAG_OUT, "ctx.tx_remap_affinity_1", "kTxRemapAffinity1"),
        (prm_commands.QUERY_LAG_OUT, "ctx.tx_remap_affinity_2", "kTxRemapAffinity2"),
    ):  # fmt: skip
        at, width = re.search(rf"{name}{{(0x[0-9a-f]+), (\d+)}}", header).groups()
        assert structure.fields[field][:2] == (int(at, 16), int(width)), name


@pytest.mark.parametrize("structure", [QPC, ADS, CQC, CREATE_CQ_IN, CREATE_QP_IN, LAGC], ids=lambda s: s.name)
def test_fields_do_not_overlap_and_each_cites_its_source(structure):
    taken = set()
    for name, (at, width, source) in structure.fields.items():
        bits = set(range(at, at + width))
        assert not bits & taken and at + width <= structure.nbytes * 8, name
        assert "mlx5_ifc.h mlx5_ifc_" in source or "mlx5_prm_structs.py" in source, name
        taken |= bits


@pytest.mark.parametrize("structure", [CREATE_QP_IN, CREATE_CQ_IN, prm_commands.MODIFY_QP_IN], ids=lambda s: s.name)
def test_what_is_packed_is_read_back(structure, rng):
    for _ in range(20):
        widths = {name: field.width for name, field in structure.fields.items()}
        values = {name: int(rng.integers(0, 1 << 62)) % (1 << width) for name, width in widths.items()}
        raw = structure.pack(values)
        assert len(raw) == structure.nbytes and structure.unpack(raw) == values


def test_what_does_not_fit():
    with pytest.raises(BadArgument, match="24 bits"):
        CREATE_QP_IN.pack({"qpc.pd": 1 << 24})
    with pytest.raises(BadArgument, match="no such field"):
        CREATE_QP_IN.pack({"qpc.pdn": 1})
    assert CREATE_QP_IN.get(b"\x05\x00", "qpc.pd") == 0, "an answer that ends before it"
