"""CREATE_CQ, CREATE_QP, the changes of a queue pair's state, QUERY_*: which field lies at which bit.

Leans on prm. Names are those of the C structs that each field cites: IFC is rdma-core providers/mlx5/mlx5_ifc.h; what
it lacks is in the kernel's include/linux/mlx5/mlx5_ifc.h. tests/unit/test_prm_commands.py compares them with the field
lists of rdma-core's tests, and with what the emulated device reads (rdmakit/emu/uverbs/prm.hpp).

>>> CREATE_QP_IN.fields["qpc.log_sq_size"].source
'rdma-core providers/mlx5/mlx5_ifc.h mlx5_ifc_qpc_bits.log_sq_size'
>>> len(CREATE_QP_IN.pack({"opcode": CommandOp.CREATE_QP, "qpc.log_sq_size": 7}))
272
"""

from __future__ import annotations

from enum import IntEnum

from rdmakit.layout.prm import PrmStructure

__all__ = [
    "ANSWER",
    "CREATE_CQ_IN",
    "CREATE_OUT",
    "CREATE_QP_IN",
    "GENERAL_CAPABILITIES",
    "MODIFY_QP_IN",
    "QUERY_CAPABILITIES_IN",
    "QUERY_CQ_OUT",
    "QUERY_IN",
    "QUERY_LAG_IN",
    "QUERY_LAG_OUT",
    "QUERY_QP_OUT",
    "CommandOp",
    "CommandStatus",
    "DeviceQpState",
]

IFC = "rdma-core providers/mlx5/mlx5_ifc.h mlx5_ifc"
KERNEL = "kernel include/linux/mlx5/mlx5_ifc.h mlx5_ifc"


class CommandOp(IntEnum):
    """MLX5_CMD_OP_*: kernel include/linux/mlx5/mlx5_ifc.h."""

    QUERY_HCA_CAP = 0x100
    CREATE_CQ = 0x400
    QUERY_CQ = 0x402
    CREATE_QP = 0x500
    RST2INIT_QP = 0x502
    INIT2RTR_QP = 0x503
    RTR2RTS_QP = 0x504
    RTS2RTS_QP = 0x505
    SQERR2RTS_QP = 0x506
    TO_ERR_QP = 0x507  # MLX5_CMD_OP_2ERR_QP
    TO_RST_QP = 0x50A  # MLX5_CMD_OP_2RST_QP
    QUERY_QP = 0x50B
    QUERY_LAG = 0x842


class CommandStatus(IntEnum):
    """MLX5_CMD_STAT_*: kernel include/linux/mlx5/device.h."""

    OK = 0x0
    INT_ERR = 0x1
    BAD_OP_ERR = 0x2
    BAD_PARAM_ERR = 0x3
    BAD_SYS_STATE_ERR = 0x4
    BAD_RES_ERR = 0x5
    RES_BUSY = 0x6
    LIM_ERR = 0x8
    BAD_RES_STATE_ERR = 0x9
    IX_ERR = 0xA
    NO_RES_ERR = 0xF
    BAD_QP_STATE_ERR = 0x10
    BAD_PKT_ERR = 0x30
    BAD_SIZE_OUTS_CQES_ERR = 0x40
    BAD_INP_LEN_ERR = 0x50
    BAD_OUTP_LEN_ERR = 0x51


class DeviceQpState(IntEnum):
    """qpc.state: kernel include/linux/mlx5/qp.h enum mlx5_qp_state, which has SQER before SQD."""

    RST = 0
    INIT = 1
    RTR = 2
    RTS = 3
    SQER = 4
    SQD = 5
    ERR = 6


_HEAD = {"opcode": (0x0, 16), "uid": (0x10, 16), "op_mod": (0x30, 16)}
_ANSWER = {"status": (0x0, 8), "syndrome": (0x20, 32)}

ADS = PrmStructure("ads", 44, f"{IFC}_ads_bits", {
    "pkey_index": (0x10, 16), "grh": (0x28, 1), "mlid": (0x29, 7), "rlid": (0x30, 16), "ack_timeout": (0x40, 5),
    "src_addr_index": (0x48, 8), "stat_rate": (0x54, 4), "hop_limit": (0x58, 8), "tclass": (0x64, 8),
    "flow_label": (0x6C, 20), "rgid_rip": (0x80, 128), "dscp": (0x10A, 6), "udp_sport": (0x110, 16),
    "eth_prio": (0x121, 3), "sl": (0x124, 4), "vhca_port_num": (0x128, 8), "rmac": (0x130, 48),
}, elsewhere={"rmac": f"{IFC}_ads_bits.rmac_47_32, rmac_31_0"})  # fmt: skip

QPC = PrmStructure("qpc", 232, f"{IFC}_qpc_bits", {
    "state": (0x0, 4), "lag_tx_port_affinity": (0x4, 4), "st": (0x8, 8), "pm_state": (0x13, 2), "pd": (0x28, 24),
    "mtu": (0x40, 3), "log_msg_max": (0x43, 5), "log_rq_size": (0x49, 4), "log_rq_stride": (0x4D, 3),
    "no_sq": (0x50, 1), "log_sq_size": (0x51, 4), "ts_format": (0x58, 2), "uar_page": (0x68, 24),
    "user_index": (0x88, 24),
    "log_page_size": (0xA3, 5), "remote_qpn": (0xA8, 24), "log_ack_req_freq": (0x380, 4), "log_sra_max": (0x388, 3),
    "retry_count": (0x38D, 3), "rnr_retry": (0x390, 3), "next_send_psn": (0x3C8, 24), "cqn_snd": (0x3E8, 24),
    "log_rra_max": (0x488, 3), "atomic_mode": (0x48C, 4), "rre": (0x490, 1), "rwe": (0x491, 1), "rae": (0x492, 1),
    "page_offset": (0x494, 6), "min_rnr_nak": (0x4A3, 5), "next_rcv_psn": (0x4A8, 24), "cqn_rcv": (0x4E8, 24),
    "dbr_addr": (0x500, 64), "rq_type": (0x565, 3), "srqn_rmpn_xrqn": (0x568, 24), "hw_sq_wqebb_counter": (0x5A0, 16),
    "sw_sq_wqebb_counter": (0x5B0, 16), "hw_rq_counter": (0x5C0, 32), "sw_rq_counter": (0x5E0, 32),
    "cs_req": (0x630, 8), "cs_res": (0x638, 8), "dbr_umem_valid": (0x683, 1), "dbr_umem_id": (0x720, 32),
}, parts={"primary_address_path": (0xC0, ADS), "secondary_address_path": (0x220, ADS)},
    elsewhere={"ts_format": f"{KERNEL}_qpc_bits.ts_format"})  # fmt: skip

CQC = PrmStructure("cqc", 64, f"{KERNEL}_cqc_bits", {
    "status": (0x0, 4), "dbr_umem_valid": (0x6, 1), "cqe_sz": (0x8, 3), "cc": (0xB, 1), "oi": (0xE, 1), "st": (0x14, 4),
    "dbr_umem_id": (0x20, 32), "page_offset": (0x54, 6), "log_cq_size": (0x63, 5), "uar_page": (0x68, 24),
    "c_eqn": (0xB8, 8), "log_page_size": (0xC3, 5), "consumer_counter": (0x148, 24), "producer_counter": (0x168, 24),
    "dbr_addr": (0x1C0, 64),
}, elsewhere={
    "dbr_umem_id": "rdma-core tests/mlx5_prm_structs.py SwCqc.dbr_umem_id",
    "c_eqn": f"{KERNEL}_cqc_bits.c_eqn_or_apu_element (before 6.0: c_eqn)",
})  # fmt: skip

# 0x880 bits each, without a list of physical addresses: the rings lie in umems.
CREATE_CQ_IN = PrmStructure("create_cq_in", 272, f"{KERNEL}_create_cq_in_bits", {
    **_HEAD, "cq_umem_offset": (0x280, 64), "cq_umem_id": (0x2C0, 32), "cq_umem_valid": (0x2E0, 1),
}, parts={"cqc": (0x80, CQC)})  # fmt: skip

CREATE_QP_IN = PrmStructure("create_qp_in", 272, f"{IFC}_create_qp_in_bits", {
    **_HEAD, "opt_param_mask": (0x80, 32), "wq_umem_offset": (0x800, 64), "wq_umem_id": (0x840, 32),
    "wq_umem_valid": (0x860, 1),
}, parts={"qpc": (0xC0, QPC)}, elsewhere={"wq_umem_offset": f"{KERNEL}_create_qp_in_bits.wq_umem_offset"})  # fmt: skip

# One layout for every change of state; RTS2RTS alone reads the upper part of the mask.
MODIFY_QP_IN = PrmStructure("modify_qp_in", 272, f"{IFC}_rts2rts_qp_in_bits", {
    **_HEAD, "qpn": (0x48, 24), "opt_param_mask": (0x80, 32), "opt_param_mask_95_32": (0x840, 64),
}, parts={"qpc": (0xC0, QPC)},
    elsewhere={"opt_param_mask": f"{IFC}_init2rtr_qp_in_bits.opt_param_mask"})  # fmt: skip

ANSWER = PrmStructure("out", 16, f"{IFC}_rst2init_qp_out_bits", _ANSWER)
CREATE_OUT = PrmStructure("create_out", 16, f"{IFC}_create_qp_out_bits", {**_ANSWER, "number": (0x48, 24)}, elsewhere={
    "number": f"{IFC}_create_qp_out_bits.qpn, {KERNEL}_create_cq_out_bits.cqn",
})  # fmt: skip

QUERY_IN = PrmStructure("query_in", 16, f"{IFC}_query_qp_in_bits", {**_HEAD, "number": (0x48, 24)}, elsewhere={
    "number": f"{IFC}_query_qp_in_bits.qpn, {KERNEL}_query_cq_in_bits.cqn",
})  # fmt: skip
QUERY_QP_OUT = PrmStructure("query_qp_out", 272, f"{IFC}_query_qp_out_bits", _ANSWER, parts={"qpc": (0xC0, QPC)})
QUERY_CQ_OUT = PrmStructure("query_cq_out", 272, f"{KERNEL}_query_cq_out_bits", _ANSWER, parts={"cqc": (0x80, CQC)})

LAGC = PrmStructure("lagc", 8, f"{IFC}_lagc_bits", {
    "port_select_mode": (0x15, 3), "lag_state": (0x1D, 3), "tx_remap_affinity_2": (0x34, 4),
    "tx_remap_affinity_1": (0x3C, 4),
}, elsewhere={"port_select_mode": f"{KERNEL}_lagc_bits.port_select_mode"})  # fmt: skip
QUERY_LAG_IN = PrmStructure("query_lag_in", 16, f"{IFC}_query_lag_in_bits", _HEAD)
QUERY_LAG_OUT = PrmStructure("query_lag_out", 16, f"{IFC}_query_lag_out_bits", _ANSWER, parts={"ctx": (0x40, LAGC)})

QUERY_CAPABILITIES_IN = PrmStructure("query_hca_cap_in", 16, f"{IFC}_query_hca_cap_in_bits", _HEAD)
# op_mod 1: what is in use, of the general capabilities (MLX5_SET_HCA_CAP_OP_MOD_GENERAL_DEVICE | HCA_CAP_OPMOD_GET_CUR)
GENERAL_CAPABILITIES = PrmStructure("query_hca_cap_out", 16 + 4096, f"{IFC}_cmd_hca_cap_bits", {
    **_ANSWER, "log_max_qp_sz": (0x80 + 0x88, 8), "log_max_cq_sz": (0x80 + 0xC8, 8),
    "log_max_ra_req_qp": (0x80 + 0x14A, 6),
    "rts2rts_udp_sport": (0x80 + 0x151, 1), "rts2rts_lag_tx_port_affinity": (0x80 + 0x152, 1),
    "log_max_ra_res_qp": (0x80 + 0x15A, 6), "stat_rate_support": (0x80 + 0x1E0, 16), "cq_oi": (0x80 + 0x220, 1),
    "apm": (0x80 + 0x22E, 1), "lag_tx_port_affinity": (0x80 + 0x278, 1),
    "lag_master": (0x80 + 0x27B, 1), "num_lag_ports": (0x80 + 0x27C, 4), "max_wqe_sz_sq": (0x80 + 0x290, 16),
    "general_obj_types": (0x80 + 0x400, 64),
})  # fmt: skip
