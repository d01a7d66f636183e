"""Commands that make a CQ and a queue pair and take it through its states, of the numbers that ibv_modify_qp takes.

Leans on layout and device. Pure: numbers in, bytes out. Which field a transition sets, and which bit of the mask lets
an optional one through, is as in kernel drivers/infiniband/hw/mlx5/qp.c (__mlx5_ib_modify_qp, mlx5_set_path, opt_mask).
"""

from __future__ import annotations

import errno
from typing import Any

from rdmakit.device.address_vector import ALTERNATE, MigrationState, StaticRate
from rdmakit.device.provider import QpRequest, Refused
from rdmakit.device.qp_attributes import QPState, transition
from rdmakit.layout.prm_commands import (
    CREATE_CQ_IN,
    CREATE_QP_IN,
    MODIFY_QP_IN,
    QUERY_QP_OUT,
    CommandOp,
    DeviceQpState,
)

__all__ = ["attributes_of", "change_state", "create_cq", "create_qp", "device_state", "stat_rate", "steer"]

_STATES = dict(zip(DeviceQpState, (0, 1, 2, 3, 5, 4, 6), strict=True))  # qpc.state → ibv_qp_state
_PATH, _ALTERNATE_PATH = "qpc.primary_address_path.", "qpc.secondary_address_path."
_RC = 0  # MLX5_QPC_ST_RC
# MLX5_QPC_PM_STATE_*; 2 is reserved
_PM_STATES = {MigrationState.MIGRATED: 3, MigrationState.REARM: 1, MigrationState.ARMED: 0}
_MIGRATED = _PM_STATES[MigrationState.MIGRATED]
_NO_RQ = 3  # qpc.rq_type: zero-length RQ
_TIMESTAMPS = 1  # MLX5_QPC_TIMESTAMP_FORMAT_DEFAULT
_UP_TO_64_BITS = 3  # qpc.atomic_mode: MLX5_ATOMIC_MODE_8B
_CS_REQ, _CS_RES = 0x11, 0x1  # MLX5_REQ_SCAT_DATA32_CQE, MLX5_RES_SCAT_DATA32_CQE
_LOG_MSG_MAX = 30  # 1 GiB a message
_ACK_REQ_FREQ = 8  # MLX5_IB_ACK_REQ_FREQ: the responder is asked to acknowledge every 2^8 packets, and at the end
_WRITE, _READ, _ATOMIC = 1 << 1, 1 << 2, 1 << 3  # ibv_access_flags
# MLX5_QP_OPTPAR_* (include/linux/mlx5/qp.h); MLX5_QPC_OPT_MASK_32_UDP_SPORT (mlx5_ifc.h)
_OPT_RRE, _OPT_RAE, _OPT_RWE, _OPT_RNR_TIMEOUT, _OPT_LAG = 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 15
_OPT_ALTERNATE_PATH, _OPT_PM_STATE = 1 << 0, 1 << 10
_OPT_UDP_SPORT = 1 << 2
_OPT_ACCESS = _OPT_RRE | _OPT_RAE | _OPT_RWE

# (from, to) → the command; the attributes that it needs; those that it may have besides (kernel core/verbs.c,
# qp_state_table).
_AV = ("path_mtu", "dest_qp_num", "rq_psn", "max_dest_rd_atomic", "min_rnr_timer")
_TIMERS = ("timeout", "retry_cnt", "rnr_retry", "sq_psn", "max_rd_atomic")
_MAY = ("qp_access_flags", "min_rnr_timer", "path_mig_state", *ALTERNATE)
_CHANGES: dict[tuple[int, int], tuple[CommandOp, tuple[str, ...], tuple[str, ...]]] = {
    (QPState.RESET, QPState.INIT): (CommandOp.RST2INIT_QP, ("pkey_index", "port_num", "qp_access_flags"), ()),
    (QPState.INIT, QPState.RTR): (CommandOp.INIT2RTR_QP, _AV, ("qp_access_flags", *ALTERNATE)),
    (QPState.RTR, QPState.RTS): (CommandOp.RTR2RTS_QP, _TIMERS, _MAY),
    (QPState.RTS, QPState.RTS): (CommandOp.RTS2RTS_QP, (), _MAY),
    (QPState.SQE, QPState.RTS): (CommandOp.SQERR2RTS_QP, (), ("qp_access_flags", "min_rnr_timer")),
}
_ALWAYS = ("qp_state", "cur_qp_state")
_ADDRESS = ("dgid", "dlid", "flow_label", "sgid_index", "ah_port_num", "hop_limit", "traffic_class", "sl",
            "static_rate", "src_path_bits", "is_global")  # fmt: skip
# ads.stat_rate of the rates that have a number of their own; of those up to 120 Gb/s it is enum ibv_rate and 5 (kernel
# hw/mlx5/qp.c, ib_to_mlx5_rate_map). Four bits: others have none.
_STAT_RATES = {
    StaticRate.RATE_MAX: 0, StaticRate.RATE_56_GBPS: 1, StaticRate.RATE_25_GBPS: 2, StaticRate.RATE_100_GBPS: 3,
    StaticRate.RATE_200_GBPS: 4, StaticRate.RATE_50_GBPS: 5, StaticRate.RATE_400_GBPS: 6,
    **{StaticRate(rate): rate + 5 for rate in range(StaticRate.RATE_2_5_GBPS, StaticRate.RATE_120_GBPS + 1)},
}  # fmt: skip


def device_state(answer: bytes) -> QPState:
    """Of an answer to QUERY_QP."""
    return QPState(_STATES[DeviceQpState(QUERY_QP_OUT.get(answer, "qpc.state"))])


def create_cq(log_entries: int, cqe_bytes: int, collapsed: bool, overrun_ignore: bool, *, ring: int, record: int,
              record_offset: int, uar: int, eqn: int) -> bytes:  # fmt: skip
    """CREATE_CQ: `ring` and `record` are umems, the ring begins at the first one's beginning."""
    return CREATE_CQ_IN.pack({
        "opcode": CommandOp.CREATE_CQ, "cq_umem_id": ring, "cq_umem_valid": 1, "cqc.cqe_sz": int(cqe_bytes == 128),
        "cqc.cc": collapsed, "cqc.oi": overrun_ignore, "cqc.log_cq_size": log_entries, "cqc.uar_page": uar,
        "cqc.c_eqn": eqn, "cqc.dbr_umem_valid": 1, "cqc.dbr_umem_id": record, "cqc.dbr_addr": record_offset,
    })  # fmt: skip


def create_qp(request: QpRequest, log_rq_wqes: int, rq_stride: int, *, pd: int, rings: int, record: int,
              record_offset: int, uar: int) -> bytes:  # fmt: skip
    """CREATE_QP: in the umem `rings` the receive ring (`rq_stride` 0: none), behind it the send ring."""
    receives = {"qpc.log_rq_size": log_rq_wqes, "qpc.log_rq_stride": rq_stride.bit_length() - 5}  # counts 16 bytes
    scatter = {"qpc.cs_req": _CS_REQ, "qpc.cs_res": _CS_RES} if request.scatter_to_cqe else {}
    return CREATE_QP_IN.pack({
        "opcode": CommandOp.CREATE_QP, "wq_umem_id": rings, "wq_umem_valid": 1, "qpc.st": _RC,
        "qpc.pm_state": _MIGRATED, "qpc.pd": pd, "qpc.uar_page": uar, "qpc.log_sq_size": request.log_sq_wqebbs,
        "qpc.ts_format": _TIMESTAMPS, "qpc.cqn_snd": request.send_cqn, "qpc.cqn_rcv": request.recv_cqn,
        "qpc.dbr_umem_valid": 1, "qpc.dbr_umem_id": record, "qpc.dbr_addr": record_offset,
        **(receives if rq_stride else {"qpc.rq_type": _NO_RQ}), **scatter,
    })  # fmt: skip


def _access(flags: int) -> dict[str, int]:
    return {
        "qpc.rre": int(bool(flags & _READ)),
        "qpc.rwe": int(bool(flags & _WRITE)),
        "qpc.rae": int(bool(flags & _ATOMIC)),
    }


def stat_rate(rate: int, supported: int) -> int:
    """ads.stat_rate of an enum ibv_rate. Refused (EOPNOTSUPP) for one that is not among `supported`, the capability
    stat_rate_support; a kernel takes the next slower one without a word.

    >>> stat_rate(StaticRate.RATE_100_GBPS, 1 << 3)
    3
    """
    code = _STAT_RATES.get(StaticRate(rate))
    if code == 0 or (code is not None and supported >> code & 1):
        return int(code)
    there = [one.name.removeprefix("RATE_") for one, bit in _STAT_RATES.items() if bit and supported >> bit & 1]
    raise Refused(errno.EOPNOTSUPP, f"static_rate {StaticRate(rate).name.removeprefix('RATE_')}: the device has "
                  f"{', '.join(there) or 'none'} (stat_rate_support {supported:#x})",
                  "one of these, or leave it out")  # fmt: skip


def _path(values: dict[str, Any], port: int, mac: bytes | None, sport: int, rates: int) -> dict[str, int]:
    """An address path: of an Ethernet port with `mac`, of an InfiniBand one without."""
    path = {"vhca_port_num": port, "stat_rate": stat_rate(int(values.get("static_rate", 0)), rates)}
    is_global = bool(values.get("is_global", "dgid" in values))
    if mac is not None:
        tclass = int(values.get("traffic_class", 0))
        path |= {"rmac": int.from_bytes(mac, "big"), "udp_sport": sport, "dscp": tclass >> 2,
                 "eth_prio": int(values.get("sl", 0)) & 7}  # fmt: skip
    else:
        path |= {"rlid": int(values.get("dlid", 0)), "mlid": int(values.get("src_path_bits", 0)),
                 "sl": int(values.get("sl", 0)), "grh": int(is_global)}  # fmt: skip
    if is_global:
        path |= {
            "src_addr_index": int(values.get("sgid_index", 0)), "hop_limit": int(values.get("hop_limit", 64)),
            "tclass": int(values.get("traffic_class", 0)), "flow_label": int(values.get("flow_label", 0)),
            "rgid_rip": int.from_bytes(bytes(values.get("dgid", bytes(16))), "big"),
        }  # fmt: skip
    return path


def _below(path: str, fields: dict[str, int]) -> dict[str, int]:
    return {path + name: value for name, value in fields.items()}


def _migration(values: dict[str, Any], rates: int) -> tuple[dict[str, int], int]:
    """The alternate path and the migration state: fields, and their bits of the mask."""
    fields: dict[str, int] = {"qpc.pm_state": _MIGRATED}
    mask = 0
    if "path_mig_state" in values:
        fields["qpc.pm_state"] = _PM_STATES[MigrationState(values["path_mig_state"])]
        mask |= _OPT_PM_STATE
    if "alt_ah_attr" in values:
        fields |= _below(_ALTERNATE_PATH, {
            **_path(values["alt_ah_attr"], int(values["alt_port_num"]), None, 0, rates),
            "pkey_index": int(values["alt_pkey_index"]), "ack_timeout": int(values["alt_timeout"]),
        })  # fmt: skip
        mask |= _OPT_ALTERNATE_PATH
    return fields, mask


def _complete(
    before: QPState, target: QPState, values: dict[str, Any], needs: tuple[str, ...], may: tuple[str, ...]
) -> None:
    lacks = [name for name in needs if name not in values]
    known = {*needs, *may, *_ALWAYS, *(_ADDRESS if target is QPState.RTR else ())}
    strange = [name for name in values if name not in known]
    if target is QPState.RTR and not {"dgid", "dlid"} & set(values):
        lacks.append("dgid or dlid")
    if lacks or strange:
        said = f"lacks {', '.join(lacks)}" if lacks else f"does not take {', '.join(strange)}"
        raise Refused(errno.EINVAL, f"{before.name} to {target.name} {said}",
                      f"give it {', '.join(needs) or 'what may change there: ' + ', '.join(may)}")  # fmt: skip


def change_state(qpn: int, before: QPState, values: dict[str, Any], *, mac: bytes | None = None, sport: int = 0,
                 lag_port: int = 0, rates: int = 0) -> bytes:  # fmt: skip
    """The command for ibv_modify_qp with these attributes (plain numbers, `dgid` 16 bytes), from state `before`.

    `mac` and `sport` go into the path of a RoCE queue pair, `lag_port` into the context at INIT; `rates` is the
    device's stat_rate_support. Refused (EINVAL) for a change that there is not, or with other attributes than it takes;
    EOPNOTSUPP for one that has no command, and for a rate that the device has not.
    """
    target = QPState(values.get("qp_state", before))
    head = {"qpn": qpn}
    if not transition(before, target)[0]:
        raise Refused(errno.EINVAL, f"there is no way from {before.name} to {target.name}")
    if target in (QPState.RESET, QPState.ERR):
        opcode = CommandOp.TO_RST_QP if target is QPState.RESET else CommandOp.TO_ERR_QP
        return MODIFY_QP_IN.pack({**head, "opcode": opcode})
    if (before, target) not in _CHANGES:
        raise Refused(errno.EOPNOTSUPP, f"mlx5 has no command from {before.name} to {target.name}",
                      "go through RESET, or through ERR")  # fmt: skip
    opcode, needs, may = _CHANGES[before, target]
    _complete(before, target, values, needs, may)
    migration, mask = _migration(values, rates)
    fields: dict[str, int] = {**head, "opcode": opcode, **migration}
    if "qp_access_flags" in values:
        fields |= {**_access(int(values["qp_access_flags"])), "qpc.atomic_mode": _UP_TO_64_BITS}
        mask |= 0 if opcode is CommandOp.RST2INIT_QP else _OPT_ACCESS
    if "min_rnr_timer" in values:
        fields["qpc.min_rnr_nak"] = int(values["min_rnr_timer"])
        mask |= 0 if opcode is CommandOp.INIT2RTR_QP else _OPT_RNR_TIMEOUT
    if opcode is CommandOp.RST2INIT_QP:
        fields |= {
            _PATH + "pkey_index": int(values["pkey_index"]), _PATH + "vhca_port_num": int(values["port_num"]),
            "qpc.lag_tx_port_affinity": lag_port,
        }  # fmt: skip
    elif opcode is CommandOp.INIT2RTR_QP:
        fields |= {
            **_below(_PATH, _path(values, int(values.get("ah_port_num", 1)), mac, sport, rates)),
            "qpc.mtu": int(values["path_mtu"]), "qpc.log_msg_max": _LOG_MSG_MAX,
            "qpc.remote_qpn": int(values["dest_qp_num"]), "qpc.next_rcv_psn": int(values["rq_psn"]),
            "qpc.log_rra_max": max(0, int(values["max_dest_rd_atomic"]) - 1).bit_length(),
        }  # fmt: skip
    elif opcode is CommandOp.RTR2RTS_QP:
        fields |= {
            _PATH + "ack_timeout": int(values["timeout"]), "qpc.retry_count": int(values["retry_cnt"]),
            "qpc.rnr_retry": int(values["rnr_retry"]), "qpc.next_send_psn": int(values["sq_psn"]),
            "qpc.log_sra_max": max(1, int(values["max_rd_atomic"])).bit_length() - 1,
            "qpc.log_ack_req_freq": _ACK_REQ_FREQ,
        }  # fmt: skip
    return MODIFY_QP_IN.pack({**fields, "opt_param_mask": mask})


def steer(qpn: int, *, sport: int | None = None, lag_port: int | None = None) -> bytes:
    """RTS2RTS that changes the UDP source port, or the port of the bond, while it works (rdma-core mlx5.c
    _mlx5dv_modify_qp_udp_sport, modify_qp_lag_port)."""
    fields: dict[str, int] = {"opcode": CommandOp.RTS2RTS_QP, "qpn": qpn}
    if sport is not None:
        fields |= {"opt_param_mask_95_32": _OPT_UDP_SPORT, _PATH + "udp_sport": sport}
    if lag_port is not None:
        fields |= {"opt_param_mask": _OPT_LAG, "qpc.lag_tx_port_affinity": lag_port}
    return MODIFY_QP_IN.pack(fields)


def _address_of(path: dict[str, int]) -> dict[str, Any]:
    rate = next((rate for rate, code in _STAT_RATES.items() if code == path["stat_rate"]), StaticRate.RATE_MAX)
    return {
        "dgid": path["rgid_rip"].to_bytes(16, "big"), "dlid": path["rlid"], "flow_label": path["flow_label"],
        "sgid_index": path["src_addr_index"], "hop_limit": path["hop_limit"], "traffic_class": path["tclass"],
        "sl": path["sl"] or path["eth_prio"], "static_rate": int(rate), "src_path_bits": path["mlid"],
        "is_global": int(path["grh"] or path["rmac"] != 0),
    }  # fmt: skip


def attributes_of(answer: bytes) -> dict[str, Any]:
    """What ibv_query_qp would say, of an answer to QUERY_QP, by the names that `ibv_modify_qp` takes."""
    qpc = QUERY_QP_OUT.unpack(answer)
    path, alternate = (
        {name[len(at) :]: value for name, value in qpc.items() if name.startswith(at)}
        for at in (_PATH, _ALTERNATE_PATH)
    )
    state = int(device_state(answer))
    access = qpc["qpc.rwe"] * _WRITE | qpc["qpc.rre"] * _READ | qpc["qpc.rae"] * _ATOMIC
    migration = next((one for one, code in _PM_STATES.items() if code == qpc["qpc.pm_state"]), MigrationState.MIGRATED)
    return {
        "qp_state": state, "cur_qp_state": state, "path_mtu": qpc["qpc.mtu"], "rq_psn": qpc["qpc.next_rcv_psn"],
        "sq_psn": qpc["qpc.next_send_psn"], "dest_qp_num": qpc["qpc.remote_qpn"], "qp_access_flags": access,
        "pkey_index": path["pkey_index"], "port_num": path["vhca_port_num"], "timeout": path["ack_timeout"],
        "retry_cnt": qpc["qpc.retry_count"], "rnr_retry": qpc["qpc.rnr_retry"], "min_rnr_timer": qpc["qpc.min_rnr_nak"],
        "max_rd_atomic": 1 << qpc["qpc.log_sra_max"], "max_dest_rd_atomic": 1 << qpc["qpc.log_rra_max"],
        **_address_of(path), "ah_port_num": path["vhca_port_num"], "udp_source_port": path["udp_sport"],
        "lag_port": qpc["qpc.lag_tx_port_affinity"], "rmac": path["rmac"].to_bytes(6, "big"),
        "path_mig_state": int(migration),
        "alt_ah_attr": {**_address_of(alternate), "port_num": alternate["vhca_port_num"]},
        "alt_pkey_index": alternate["pkey_index"], "alt_port_num": alternate["vhca_port_num"],
        "alt_timeout": alternate["ack_timeout"],
    }  # fmt: skip
