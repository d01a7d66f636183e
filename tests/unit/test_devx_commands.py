"""Commands that make queues and change their state, byte for byte against tests/rdma/mlx5_commands.py, which has a
table of its own; and what is refused before a device sees it."""

import errno
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "rdma"))
import mlx5_commands as table
from mlx5_commands import CQC, PATH, QPC, Command

from rdmakit.device import Refused, StaticRate
from rdmakit.device.provider import QpRequest
from rdmakit.device.qp_attributes import QPState
from rdmakit.layout.prm_commands import QUERY_QP_OUT, CommandOp
from rdmakit.verbs import devx_commands
from rdmakit.verbs.devx_refusals import refused_command

INIT = {"qp_state": 1, "pkey_index": 3, "port_num": 2, "qp_access_flags": 0b1111}
RTR = {
    "qp_state": 2, "path_mtu": 4, "dest_qp_num": 0xABCDEF, "rq_psn": 0x123456, "max_dest_rd_atomic": 16,
    "min_rnr_timer": 12, "ah_port_num": 2, "sgid_index": 3, "dgid": bytes(range(16)), "flow_label": 0x54321,
    "traffic_class": 106, "sl": 5, "is_global": 1,
}  # fmt: skip
RTS = {"qp_state": 3, "timeout": 14, "retry_cnt": 7, "rnr_retry": 5, "sq_psn": 0x654321, "max_rd_atomic": 16}
MAC, SPORT, QPN = bytes.fromhex("0200aabbccdd"), 0xC123, 0x10203


def request(**changes):
    values = {
        "pd": 1, "send_cqn": 0x11, "recv_cqn": 0x22, "log_sq_wqebbs": 7, "log_rq_wqes": 5, "max_recv_sge": 2,
        "max_inline": 0, "sq_sig_all": False, "scatter_to_cqe": False, "doorbell": None, "label": "",
    }  # fmt: skip
    return QpRequest(**{**values, **changes})


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("cqe_bytes", [64, 128])
def test_create_cq(collapsed, cqe_bytes):
    where = {"ring": 5, "record": 6, "record_offset": 128, "uar": 7, "eqn": 8}
    made = devx_commands.create_cq(9, cqe_bytes, collapsed, not collapsed, **where)
    assert made == bytes(Command(table.CREATE_CQ, 272, {
        (CQC + 0x6, 1): 1, (CQC + 0x8, 3): cqe_bytes == 128, (CQC + 0xB, 1): collapsed, (CQC + 0xE, 1): not collapsed,
        (CQC + 0x20, 32): 6, (CQC + 0x63, 5): 9, (CQC + 0x68, 24): 7, (CQC + 0xB8, 8): 8, (CQC + 0x1C0, 64): 128,
        (0x2C0, 32): 5, (0x2E0, 1): 1,
    }).raw)  # fmt: skip


@pytest.mark.parametrize("scatter", [False, True])
def test_create_qp(scatter):
    where = {"pd": 0x33, "rings": 5, "record": 6, "record_offset": 64, "uar": 7}
    common = {
        (QPC + 0x13, 2): 3, (QPC + 0x28, 24): 0x33, (QPC + 0x51, 4): 7, (QPC + 0x58, 2): 1, (QPC + 0x68, 24): 7,
        (QPC + 0x3E8, 24): 0x11, (QPC + 0x4E8, 24): 0x22, (QPC + 0x500, 64): 64, (QPC + 0x683, 1): 1,
        (QPC + 0x720, 32): 6, (0x840, 32): 5, (0x860, 1): 1,
        **({(QPC + 0x630, 8): 0x11, (QPC + 0x638, 8): 1} if scatter else {}),
    }  # fmt: skip
    made = devx_commands.create_qp(request(scatter_to_cqe=scatter), 5, 32, **where)
    receives = {(QPC + 0x49, 4): 5, (QPC + 0x4D, 3): 1}  # strides of two 16-byte entries
    assert made == bytes(Command(table.CREATE_QP, 272, {**common, **receives}).raw)
    made = devx_commands.create_qp(request(scatter_to_cqe=scatter, max_recv_sge=0), 0, 0, **where)
    assert made == bytes(Command(table.CREATE_QP, 272, {**common, (QPC + 0x565, 3): 3}).raw)


def changed(opcode, fields, pm_state=3):
    return bytes(Command(opcode, 272, {(0x48, 24): QPN, (QPC + 0x13, 2): pm_state, **fields}).raw)


def test_reset_to_init():
    made = devx_commands.change_state(QPN, QPState.RESET, INIT, lag_port=2)
    assert made == changed(table.RST2INIT, {
        (QPC + 0x4, 4): 2, (QPC + 0x490, 3): 0b111, (QPC + 0x48C, 4): 3, (PATH + 0x10, 16): 3, (PATH + 0x128, 8): 2,
    })  # fmt: skip
    for flags, bits in ((0b0001, 0b000), (0b0010, 0b010), (0b0100, 0b100), (0b1000, 0b001)):  # rre rwe rae
        made = devx_commands.change_state(QPN, QPState.RESET, {**INIT, "qp_access_flags": flags})
        assert table.field(made, QPC + 0x490, 3) == bits


@pytest.mark.parametrize("most, log", [(0, 0), (1, 0), (2, 1), (3, 2), (16, 4)])
def test_init_to_rtr_over_ethernet(most, log):
    values = {**RTR, "max_dest_rd_atomic": most}
    made = devx_commands.change_state(QPN, QPState.INIT, values, mac=MAC, sport=SPORT)
    assert made == changed(table.INIT2RTR, {
        (QPC + 0x40, 3): 4, (QPC + 0x43, 5): 30, (QPC + 0xA8, 24): 0xABCDEF, (QPC + 0x4A8, 24): 0x123456,
        (QPC + 0x488, 3): log, (QPC + 0x4A3, 5): 12, (PATH + 0x128, 8): 2, (PATH + 0x48, 8): 3, (PATH + 0x58, 8): 64,
        (PATH + 0x64, 8): 106, (PATH + 0x6C, 20): 0x54321, (PATH + 0x80, 128): int.from_bytes(bytes(range(16)), "big"),
        (PATH + 0x10A, 6): 106 >> 2, (PATH + 0x110, 16): SPORT, (PATH + 0x121, 3): 5,
        (PATH + 0x130, 48): int.from_bytes(MAC, "big"),
    })  # fmt: skip


def test_init_to_rtr_over_infiniband():
    without = ("dgid", "sgid_index", "flow_label", "is_global")
    values = {name: value for name, value in RTR.items() if name not in without}
    made = devx_commands.change_state(QPN, QPState.INIT, {**values, "dlid": 0x77})
    assert made == changed(table.INIT2RTR, {
        (QPC + 0x40, 3): 4, (QPC + 0x43, 5): 30, (QPC + 0xA8, 24): 0xABCDEF, (QPC + 0x4A8, 24): 0x123456,
        (QPC + 0x488, 3): 4, (QPC + 0x4A3, 5): 12, (PATH + 0x128, 8): 2, (PATH + 0x30, 16): 0x77, (PATH + 0x124, 4): 5,
    })  # fmt: skip
    made = devx_commands.change_state(QPN, QPState.INIT, {**RTR, "dlid": 0x77})
    assert table.field(made, PATH + 0x28, 1) == 1 and table.field(made, PATH + 0x130, 48) == 0, "across subnets"


def test_rtr_to_rts_and_what_may_change_there():
    made = devx_commands.change_state(QPN, QPState.RTR, {**RTS, "min_rnr_timer": 9})
    assert made == changed(table.RTR2RTS, {
        (0x80, 32): 1 << 6, (QPC + 0x388, 3): 4, (QPC + 0x38D, 3): 7, (QPC + 0x390, 3): 5, (QPC + 0x3C8, 24): 0x654321,
        (QPC + 0x380, 4): 8, (QPC + 0x4A3, 5): 9, (PATH + 0x40, 5): 14,
    })  # fmt: skip
    made = devx_commands.change_state(QPN, QPState.RTS, {"qp_state": 3, "qp_access_flags": 4})
    assert made == changed(table.RTS2RTS, {(0x80, 32): 0b1110, (QPC + 0x48C, 4): 3, (QPC + 0x490, 1): 1})


ALTERNATE = {
    "alt_ah_attr": {"dlid": 0x99, "sl": 6, "src_path_bits": 0x15, "port_num": 2}, "alt_pkey_index": 5,
    "alt_port_num": 2, "alt_timeout": 17,
}  # fmt: skip
ALT_PATH = QPC + 0x220


def test_an_alternate_path_and_its_migration_state():
    made = devx_commands.change_state(QPN, QPState.RTR, {**RTS, **ALTERNATE, "path_mig_state": 1})
    second = {
        (ALT_PATH + 0x10, 16): 5, (ALT_PATH + 0x29, 7): 0x15, (ALT_PATH + 0x30, 16): 0x99, (ALT_PATH + 0x40, 5): 17,
        (ALT_PATH + 0x124, 4): 6, (ALT_PATH + 0x128, 8): 2,
    }  # fmt: skip
    first = {
        (QPC + 0x388, 3): 4, (QPC + 0x38D, 3): 7, (QPC + 0x390, 3): 5, (QPC + 0x3C8, 24): 0x654321, (QPC + 0x380, 4): 8,
        (PATH + 0x40, 5): 14,
    }  # fmt: skip
    assert made == changed(table.RTR2RTS, {(0x80, 32): 1 << 0 | 1 << 10, **first, **second}, 1)
    made = devx_commands.change_state(QPN, QPState.RTS, {"qp_state": 3, **ALTERNATE})
    assert made == changed(table.RTS2RTS, {(0x80, 32): 1, **second})
    for state, code in ((0, 3), (1, 1), (2, 0)):  # MIGRATED, REARM, ARMED
        made = devx_commands.change_state(QPN, QPState.RTS, {"qp_state": 3, "path_mig_state": state})
        assert made == changed(table.RTS2RTS, {(0x80, 32): 1 << 10}, code)
        assert devx_commands.attributes_of(QUERY_QP_OUT.pack({"qpc.pm_state": code}))["path_mig_state"] == state
    across = {**ALTERNATE["alt_ah_attr"], "dgid": bytes(range(16)), "sgid_index": 3, "hop_limit": 9,
              "flow_label": 0xABCDE}  # fmt: skip
    made = devx_commands.change_state(QPN, QPState.INIT, {**RTR, "dlid": 7, **ALTERNATE, "alt_ah_attr": across})
    said = devx_commands.attributes_of(made)  # the context lies at the same bits in commands and answers
    assert table.field(made, 0x80, 32) == 1
    assert said["alt_ah_attr"] == {**across, "is_global": 1, "traffic_class": 0, "static_rate": 0}
    assert [said[name] for name in ("alt_pkey_index", "alt_port_num", "alt_timeout")] == [5, 2, 17]


# ads.stat_rate: kernel hw/mlx5/qp.c, ib_to_mlx5_rate_map.
RATES = {"56": 1, "25": 2, "100": 3, "200": 4, "50": 5, "400": 6, "2_5": 7, "10": 8, "30": 9, "5": 10, "20": 11,
         "40": 12, "60": 13, "80": 14, "120": 15}  # fmt: skip


@pytest.mark.parametrize("name", RATES)
def test_a_static_rate_that_the_device_has(name):
    rate, code = StaticRate[f"RATE_{name}_GBPS"], RATES[name]
    for values, mac in ((RTR, MAC), ({**RTR, "dlid": 7}, None)):
        asked = {**values, "static_rate": int(rate)}
        made = devx_commands.change_state(QPN, QPState.INIT, asked, mac=mac, rates=1 << code)
        assert table.field(made, PATH + 0x54, 4) == code
        assert devx_commands.attributes_of(made)["static_rate"] == rate
        with pytest.raises(Refused, match=f"static_rate {name}_GBPS: the device has ") as refused:
            devx_commands.change_state(QPN, QPState.INIT, asked, mac=mac, rates=0xFFFE & ~(1 << code))
        assert refused.value.code == errno.EOPNOTSUPP


def test_static_rates_that_no_device_has():
    without = [rate for rate in StaticRate if rate and rate.name[5:].removesuffix("_GBPS") not in RATES]
    assert StaticRate.RATE_800_GBPS in without
    for rate in without:
        with pytest.raises(Refused, match="25_GBPS"):
            devx_commands.stat_rate(rate, 0xFFFF)
    with pytest.raises(Refused, match="the device has none"):
        devx_commands.stat_rate(StaticRate.RATE_25_GBPS, 0)


def test_to_error_and_to_reset():
    for state in QPState:
        if state is not QPState.RESET:
            made = devx_commands.change_state(QPN, state, {"qp_state": 6})
            assert made == bytes(Command(table.TO_ERR, 272, {(0x48, 24): QPN}).raw)
        made = devx_commands.change_state(QPN, state, {"qp_state": 0})
        assert made == bytes(Command(0x50A, 272, {(0x48, 24): QPN}).raw)


def test_steering():
    fields = {(0x840, 64): 1 << 2, (PATH + 0x110, 16): SPORT}
    assert devx_commands.steer(QPN, sport=SPORT) == changed(table.RTS2RTS, fields, 0)
    fields = {(0x80, 32): 1 << 15, (QPC + 0x4, 4): 2}
    assert devx_commands.steer(QPN, lag_port=2) == changed(table.RTS2RTS, fields, 0)


def test_an_answer_says_what_was_asked_for():
    fields = {}
    for before, values, options in (
        (QPState.RESET, INIT, {"lag_port": 1}), (QPState.INIT, RTR, {"mac": MAC, "sport": SPORT}),
        (QPState.RTR, RTS, {}),
    ):  # fmt: skip
        command = devx_commands.change_state(QPN, before, values, **options)
        fields.update({
            name: value for name in QUERY_QP_OUT.fields if name.startswith("qpc.")
            if (value := QUERY_QP_OUT.get(command, name))
        })  # fmt: skip  # the context lies at the same bits in commands and answers
    said = devx_commands.attributes_of(QUERY_QP_OUT.pack({**fields, "qpc.state": 3}))
    for name, value in {**INIT, **RTR, **RTS}.items():
        known = {"ah_port_num": "port_num"}.get(name, name)
        assert said[known] == (value & 0b1110 if name == "qp_access_flags" else value), name
    assert (said["udp_source_port"], said["lag_port"], said["rmac"]) == (SPORT, 1, MAC)


@pytest.mark.parametrize("state, ibv", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (5, 4), (6, 6)])
def test_mlx5_counts_two_states_the_other_way_round(state, ibv):
    assert devx_commands.device_state(QUERY_QP_OUT.pack({"qpc.state": state})) == ibv


@pytest.mark.parametrize(
    ("before", "values", "code", "text"),
    [
        (QPState.RESET, RTS, errno.EINVAL, "no way from RESET to RTS"),
        (QPState.RESET, {"qp_state": 1}, errno.EINVAL, "lacks pkey_index, port_num, qp_access_flags"),
        (QPState.INIT, {**RTR, "timeout": 1}, errno.EINVAL, "does not take timeout"),
        (QPState.INIT, {n: v for n, v in RTR.items() if n != "dgid"}, errno.EINVAL, "lacks dgid or dlid"),
        (QPState.RTS, {"qp_state": 4}, errno.EOPNOTSUPP, "no command from RTS to SQD"),
        (QPState.INIT, {**RTR, "path_mig_state": 1}, errno.EINVAL, "does not take path_mig_state"),
        (QPState.ERR, {"qp_state": 1}, errno.EINVAL, "no way from ERR to INIT"),
    ],
)
def test_what_is_refused_before_a_device_sees_it(before, values, code, text):
    with pytest.raises(Refused, match=text) as refused:
        devx_commands.change_state(QPN, before, values)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("status", "name", "code"),
    [(0x1, "INT_ERR", errno.EIO), (0x2, "BAD_OP_ERR", errno.EOPNOTSUPP), (0x5, "BAD_RES_ERR", errno.EINVAL),
     (0x6, "RES_BUSY", errno.EBUSY), (0xF, "NO_RES_ERR", errno.ENOMEM), (0x77, "0x77", errno.EIO)],
)  # fmt: skip
def test_a_verdict_has_a_name_an_errno_and_a_remedy(status, name, code):
    answer = bytes(Command(0, 16, {(0, 8): status, (0x20, 32): 0xBEEF}).raw)
    command = bytes(Command(CommandOp.CREATE_CQ, 16).raw)
    refusal = refused_command("mlx5dv_devx_obj_create", errno.EREMOTEIO, command, answer, device="mlx5_0")
    assert refusal.code == code and refusal.remedy
    assert refusal.facts == {"command": "CREATE_CQ", "status": name, "syndrome": "0xbeef"}
    assert "CREATE_CQ" in refusal.message and "mlx5_0" in refusal.message


def test_a_command_that_the_kernel_keeps_has_no_syndrome():
    refusal = refused_command("mlx5dv_devx_general_cmd", errno.EINVAL, b"\x08\x41" + bytes(14), bytes(16))
    assert refusal.code == errno.EINVAL and "the kernel refused it" in refusal.message and "0x841" in refusal.message
    assert "status" not in refusal.facts and refusal.remedy
