"""Our declarations of libibverbs and libmlx5 against the distribution's headers, compiled: sizes and offsets."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rdmakit.device import MigrationState, StaticRate

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: apt-get install g++"),
    pytest.mark.skipif(
        not Path("/usr/include/infiniband/mlx5dv.h").exists(), reason="no headers: apt-get install libibverbs-dev"
    ),
]

# Ours: theirs, members (ours = theirs where one word stands). A size is compared unless ours is only the beginning.
STRUCTS = {
    ("Sge", "ibv_sge", True): "addr length lkey",
    (
        "SendWr",
        "ibv_send_wr",
        True,
    ): "wr_id next sg_list num_sge opcode send_flags imm_data wr.rdma.remote_addr wr.rdma.rkey "
    "wr.atomic.compare_add wr.atomic.swap wr.atomic.rkey",
    ("RecvWr", "ibv_recv_wr", True): "wr_id next sg_list num_sge",
    (
        "Wc",
        "ibv_wc",
        True,
    ): "wr_id status opcode vendor_err byte_len imm_data qp_num src_qp wc_flags pkey_index slid sl dlid_path_bits",
    ("ContextOps", "ibv_context_ops", True): "poll_cq req_notify_cq post_send post_recv",
    ("Context", "ibv_context", True): "device ops cmd_fd async_fd num_comp_vectors abi_compat",
    ("Pd", "ibv_pd", True): "context handle",
    ("Mr", "ibv_mr", True): "context pd addr length handle lkey rkey",
    ("CompChannel", "ibv_comp_channel", True): "context fd refcnt",
    ("Cq", "ibv_cq", False): "context channel cq_context handle cqe",
    ("Qp", "ibv_qp", False): "context qp_context pd send_cq recv_cq srq handle qp_num state qp_type",
    ("GidEntry", "ibv_gid_entry", True): "gid gid_index port_num gid_type ndev_ifindex",
    ("GlobalRoute", "ibv_global_route", True): "dgid flow_label sgid_index hop_limit traffic_class",
    ("AhAttr", "ibv_ah_attr", True): "grh dlid sl src_path_bits static_rate is_global port_num",
    ("QpCap", "ibv_qp_cap", True): "max_send_wr max_recv_wr max_send_sge max_recv_sge max_inline_data",
    ("QpAttr", "ibv_qp_attr", True): "qp_state cur_qp_state path_mtu path_mig_state qkey rq_psn sq_psn dest_qp_num "
    "qp_access_flags cap ah_attr alt_ah_attr pkey_index en_sqd_async_notify sq_draining max_rd_atomic "
    "max_dest_rd_atomic min_rnr_timer port_num timeout retry_cnt rnr_retry alt_pkey_index alt_port_num "
    "alt_timeout rate_limit",
    ("QpInitAttr", "ibv_qp_init_attr", True): "send_cq recv_cq srq cap qp_type sq_sig_all",
    (
        "QpInitAttrEx",
        "ibv_qp_init_attr_ex",
        True,
    ): "send_cq recv_cq srq cap qp_type sq_sig_all comp_mask pd create_flags source_qpn send_ops_flags",
    ("CqInitAttrEx", "ibv_cq_init_attr_ex", True): "cqe channel comp_vector wc_flags comp_mask flags parent_domain",
    (
        "PortAttr",
        "ibv_port_attr",
        False,
    ): "state max_mtu active_mtu gid_tbl_len port_cap_flags max_msg_sz pkey_tbl_len lid "
    "sm_lid active_width active_speed phys_state link_layer flags",
    (
        "DeviceAttr",
        "ibv_device_attr",
        True,
    ): "fw_ver node_guid max_mr_size vendor_id vendor_part_id hw_ver max_qp max_qp_wr "
    "max_sge max_cq max_cqe max_mr max_pd max_qp_rd_atom max_qp_init_rd_atom atomic_cap phys_port_cnt",
    ("AsyncEvent", "ibv_async_event", True): "element event_type",
    (
        "Mlx5Qp",
        "mlx5dv_qp",
        True,
    ): "dbrec sq.buf sq.wqe_cnt sq.stride rq.buf bf.reg bf.size comp_mask uar_mmap_offset sqn",
    ("Mlx5Cq", "mlx5dv_cq", True): "buf dbrec cqe_cnt cqe_size cq_uar cqn comp_mask",
    ("Mlx5Obj", "mlx5dv_obj", True): "qp.in qp.out cq.in cq.out ah.in ah.out pd.in pd.out",
    ("Mlx5CqInitAttr", "mlx5dv_cq_init_attr", True): "comp_mask flags cqe_size",
    ("Mlx5QpInitAttr", "mlx5dv_qp_init_attr", True): "comp_mask create_flags send_ops_flags",
    ("Mlx5Allocators", "mlx5dv_ctx_allocators", True): "alloc free data",
    ("Mlx5ContextAttr", "mlx5dv_context_attr", True): "flags comp_mask",
    ("DevxUar", "mlx5dv_devx_uar", True): "reg_addr base_addr page_id mmap_off comp_mask",
    ("DevxUmem", "mlx5dv_devx_umem", True): "umem_id",
    ("DevxUmemIn", "mlx5dv_devx_umem_in", True): "addr size access pgsz_bitmap comp_mask dmabuf_fd",
    ("DevxEventChannel", "mlx5dv_devx_event_channel", True): "fd",
    ("DevxEvent", "mlx5dv_devx_async_event_hdr", False): "cookie",
    ("Mlx5Pd", "mlx5dv_pd", True): "pdn comp_mask",
    ("Mlx5Ah", "mlx5dv_ah", True): "av comp_mask",
    ("Mlx5Av", "mlx5_wqe_av", True): "key dqp_dct stat_rate_sl fl_mlid rlid rmac tclass hop_limit grh_gid_fl rgid",
}
CONSTANTS = {
    "kQpTypeRc": "IBV_QPT_RC", "kInitAttrPd": "IBV_QP_INIT_ATTR_PD", "kCqInitAttrFlags": "IBV_CQ_INIT_ATTR_MASK_FLAGS",
    "kCqIgnoreOverrun": "IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN", "kAccessOptional": "IBV_ACCESS_OPTIONAL_RANGE",
    "kWrWrite": "IBV_WR_RDMA_WRITE", "kWrWriteImm": "IBV_WR_RDMA_WRITE_WITH_IMM", "kWrSend": "IBV_WR_SEND",
    "kWrSendImm": "IBV_WR_SEND_WITH_IMM", "kWrRead": "IBV_WR_RDMA_READ", "kWrCmpSwap": "IBV_WR_ATOMIC_CMP_AND_SWP",
    "kWrFetchAdd": "IBV_WR_ATOMIC_FETCH_AND_ADD", "kSendFence": "IBV_SEND_FENCE", "kSendSignaled": "IBV_SEND_SIGNALED",
    "kSendSolicited": "IBV_SEND_SOLICITED", "kSendInline": "IBV_SEND_INLINE", "kEventCqError": "IBV_EVENT_CQ_ERR",
    "kObjQp": "MLX5DV_OBJ_QP", "kObjCq": "MLX5DV_OBJ_CQ", "kCqCqeSize": "MLX5DV_CQ_INIT_ATTR_MASK_CQE_SIZE",
    "kQpCreateFlags": "MLX5DV_QP_INIT_ATTR_MASK_QP_CREATE_FLAGS", "kAttrAllocators": "MLX5DV_CTX_ATTR_BUF_ALLOCATORS",
    "kQpNoScatterToCqe": "MLX5DV_QP_CREATE_DISABLE_SCATTER_TO_CQE",
    "kQpScatterToCqe": "MLX5DV_QP_CREATE_ALLOW_SCATTER_TO_CQE", "kContextDevx": "MLX5DV_CONTEXT_FLAGS_DEVX",
    "kUarBlueFlame": "MLX5DV_UAR_ALLOC_TYPE_BF", "kUarNonCached": "MLX5DV_UAR_ALLOC_TYPE_NC",
    "kUmemDmabuf": "MLX5DV_UMEM_MASK_DMABUF", "kObjAh": "MLX5DV_OBJ_AH",
    "kOmitEventData": "MLX5DV_DEVX_CREATE_EVENT_CHANNEL_FLAGS_OMIT_EV_DATA", "kObjPd": "MLX5DV_OBJ_PD",
}  # fmt: skip


def test_structs_and_constants(tmp_path):
    checks = []
    for (ours, theirs, whole), members in STRUCTS.items():
        if whole:
            checks.append((f"sizeof(v::{ours})", f"sizeof(struct {theirs})"))
        checks += [(f"offsetof(v::{ours}, {m})", f"offsetof(struct {theirs}, {m})") for m in members.split()]
    checks += [(f"(long long)v::{ours}", f"(long long){theirs}") for ours, theirs in CONSTANTS.items()]
    checks += [(f"{rate:d}LL", f"(long long)IBV_{rate.name}") for rate in StaticRate]
    checks += [(f"{state:d}LL", f"(long long)IBV_MIG_{state.name}") for state in MigrationState]
    body = "\n".join(f'if ({a} != {b}) std::printf("{a} is %lld, {b} is %lld\\n", (long long){a}, (long long){b});'
                     for a, b in checks)  # fmt: skip
    source = tmp_path / "abi.cpp"
    source.write_text(
        "#include <cstdio>\n#include <cstddef>\n#include <infiniband/verbs.h>\n#include <infiniband/mlx5dv.h>\n"
        f'#include "native/abi_devx.hpp"\nnamespace v = rdmakit::verbs;\nint main() {{\n{body}\n}}\n'
    )
    program = tmp_path / "abi"
    subprocess.run(["g++", "-std=c++17", "-Wno-invalid-offsetof", f"-I{ROOT / 'rdmakit/verbs'}", "-o", program, source],
                   check=True, capture_output=True, text=True)  # fmt: skip
    assert len(checks) > 150
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout == ""
