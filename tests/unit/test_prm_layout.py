"""Where fields of mlx5 commands lie (rdmakit/emu/uverbs/prm.hpp), against the field lists of rdma-core's own tests."""

import ast
import gzip
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "rdmakit/emu/uverbs/prm.hpp"
STRUCTS = Path("/usr/share/doc/rdma-core/tests/mlx5_prm_structs.py.gz")

# Namespace of the header (in it a constant's name) → class, and in it the field's name where it is not the same words.
NAMES = {
    "qpc": ("SwQpc", {
        "Transport": "st", "Srqn": "srqn_rmpn_xrqn", "HwSqCounter": "hw_sq_wqebb_counter",
        "SwSqCounter": "sw_sq_wqebb_counter",
    }),
    "ads": ("SwAds", {}),
    "cqc": ("SwCqc", {
        "CqeSize": "cqe_sz", "Collapsed": "cc", "OverrunIgnore": "oi", "Compression": "cqe_compression_en",
        "LogSize": "log_cq_size", "Eqn": "c_eqn", "Consumer": "consumer_counter", "Producer": "producer_counter",
    }),
    "mkc": ("SwMkc", {
        "AccessMode4To2": "access_mode_4_2", "AccessMode1To0": "access_mode_1_0",
        "RelaxedWrite": "relaxed_ordering_write", "Umr": "umr_en", "Atomic": "a", "RemoteWrite": "rw",
        "RemoteRead": "rr", "LocalWrite": "lw", "LocalRead": "lr",
        "LowByte": "mkey_7_0", "Start": "start_addr", "Length": "len",
    }),
    "hca_cap": ("CmdHcaCap", {
        "LogMaxQpSize": "log_max_qp_sz", "LogMaxCqSize": "log_max_cq_sz", "RelaxedWrite": "relaxed_ordering_write",
        "LogMaxMrSize": "log_max_mrw_sz", "Rts2RtsUdpSport": "rts2rts_udp_sport",
        "Rts2RtsLagPort": "rts2rts_lag_tx_port_affinity", "Init2LagPort": "init2_lag_tx_port_affinity",
        "ScatterToCqe": "sctr_data_cqe", "LogPage": "log_pg_sz", "BlueFlame": "bf", "MaxWqeSq": "max_wqe_sz_sq",
        "MaxWqeRq": "max_wqe_sz_rq", "GeneralObjects": "general_obj_types", "UarsPerPage": "num_of_uars_per_page",
        "Uar4k": "uar_4k",
    }),
}  # fmt: skip
# There in two halves.
ELSEWHERE = {("cqc", "DbrAddr")}
WIDTHS = {"ByteField": 8, "ShortField": 16, "IntField": 32, "LongField": 64, "MACField": 48}


def width(call):
    kind = call.func.id
    if kind == "BitField":
        return ast.literal_eval(call.args[2])
    if kind in WIDTHS:
        return WIDTHS[kind]
    if kind == "StrFixedLenField":
        return 8 * next(ast.literal_eval(k.value) for k in call.keywords if k.arg == "length")
    # A structure, a list that is empty here, or the 16 bytes of a GID.
    sizes = {"SwAds": 352, "SwQpc": 1856, "SwCqc": 512, "SwPas": 0}
    return next((sizes[a.id] for a in call.args if getattr(a, "id", "") in sizes), 128)


def rdma_core_fields(structures):
    """(class, field) → (first bit, width), of these classes of rdma-core's tests."""
    found = {}
    for node in ast.parse(gzip.decompress(STRUCTS.read_bytes())).body:
        if getattr(node, "name", "") not in structures:
            continue
        at = 0
        for call in node.body[-1].value.elts:
            found[node.name, ast.literal_eval(call.args[0])] = (at, width(call))
            at += width(call)
    return found


@pytest.fixture(scope="module")
def fields():
    if not STRUCTS.exists():
        pytest.skip("no rdma-core tests: apt-get install python3-pyverbs")
    return rdma_core_fields([structure for structure, _ in NAMES.values()])


def constants():
    text = HEADER.read_text()
    for block in re.finditer(r"namespace (\w+) \{\n((?:(?!\nnamespace).)*?)\n\}  // namespace \1", text, re.DOTALL):
        for name, at, bits in re.findall(r"k(\w+)\{(0x[0-9a-f]+|\d+), (\d+)\}", block[2]):
            if block[1] in NAMES:
                yield block[1], name, (int(at, 0), int(bits))


def words(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@pytest.mark.parametrize(("space", "name", "place"), [pytest.param(*c, id=f"{c[0]}.{c[1]}") for c in constants()])
def test_a_field_lies_where_rdma_core_has_it(fields, space, name, place):
    if (space, name) in ELSEWHERE:
        pytest.skip("in two halves there")
    structure, other = NAMES[space]
    field = other.get(name, words(name))
    assert (structure, field) in fields, f"{structure} has no {field}"
    assert fields[structure, field] == place
