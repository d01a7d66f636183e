"""The PODs of an HCA that is made of warps, as NumPy dtypes: cuda/rdmakit/hca_key.cuh and hca_state.cuh.

Leans on device.handle. Tests compare the offsets with what g++ says.
"""

from __future__ import annotations

from rdmakit.device.handle import WATCH, struct

__all__ = ["EVENT_BITS", "HCA_CQ", "HCA_GROUP", "HCA_HANDLE", "HCA_QP", "HCA_SINK", "KEY_ENTRY", "KEY_TABLE"]

HCA_GROUP = 16  # kHcaGroup
EVENT_BITS = {1 << 0: "cq_error", 1 << 1: "qp_fatal", 1 << 2: "qp_request_error", 1 << 3: "qp_access_error"}  # kHca*

KEY_ENTRY = struct(
    40,
    addr=(0, "<u8"),
    len=(8, "<u8"),
    base=(16, "<u8"),
    key=(24, "<u4"),
    access=(28, "<u4"),
    pd=(32, "<u4"),
    state=(36, "<u4"),
)

KEY_TABLE = struct(16, entries=(0, "<u8"), count=(8, "<u4"))

HCA_CQ = struct(
    128,
    entries=(0, "<u8"),
    dbrec=(8, "<u8"),
    cqn=(16, "<u4"),
    log_entries=(20, "<u4"),
    log_stride=(24, "<u4"),
    collapsed=(28, "<u4"),
    overrun_ignore=(32, "<u4"),
    shared=(36, "<u4"),
    produced=(64, "<u8"),
    room=(72, "<u8"),
    overwritten=(80, "<u8"),
    turn=(88, "<u4"),
    dead=(92, "<u4"),
)

HCA_QP = struct(
    512,
    layout_version=(0, "<u4"),
    qpn=(4, "<u4"),
    sq=(8, "<u8"),
    rq=(16, "<u8"),
    dbrec=(24, "<u8"),
    send_cq=(32, "<u8"),
    recv_cq=(40, "<u8"),
    peer=(48, "<u8"),
    attend=(56, "<u8"),
    keys=(64, KEY_TABLE),
    peer_keys=(80, KEY_TABLE),
    log_sq=(96, "<u4"),
    log_rq=(100, "<u4"),
    rq_stride=(104, "<u4"),
    max_recv_sge=(108, "<u4"),
    pd=(112, "<u4"),
    access=(116, "<u4"),
    doorbell=(120, "<u4"),
    sq_sig_all=(124, "<u4"),
    user_index=(128, "<u4"),
    max_rd_atomic=(132, "<u4"),
    max_dest_rd_atomic=(136, "<u4"),
    rnr_retry=(140, "<u4"),
    in_order=(144, "<u4"),
    same_gpu=(148, "<u4"),
    turn=(256, "<u4"),
    state=(260, "<u4"),
    producer=(264, "<u8"),
    completed=(272, "<u8"),
    doorbells=(280, "<u8"),
    ignored=(288, "<u8"),
    send_wqes=(296, "<u8"),
    send_bbs=(304, "<u8"),
    atomics=(312, "<u8"),
    cqes=(320, "<u8"),
    errors=(328, "<u8"),
    flushed=(336, "<u8"),
    sent_bytes=(344, "<u8"),
    fetched_bytes=(352, "<u8"),
    events=(360, "<u4"),
    respond=(384, "<u4"),
    receive_events=(388, "<u4"),
    rq_consumed=(392, "<u8"),
    receive_wqes=(400, "<u8"),
    receive_cqes=(408, "<u8"),
    receive_errors=(416, "<u8"),
    receive_flushed=(424, "<u8"),
    not_ready=(432, "<u8"),
)

HCA_HANDLE = struct(
    80,
    layout_version=(0, "<u4"),
    count=(4, "<u4"),
    qps=(8, "<u8"),
    registers=(16, "<u8"),
    heard=(24, "<u8"),
    attend=(32, "<u8"),
    left=(40, "<u8"),
    leavers=(48, "<u4"),
    reserved=(52, "<u4"),
    watch=(56, WATCH),
)

HCA_SINK = struct(
    80,
    layout_version=(0, "<u4"),
    qpn=(4, "<u4"),
    sq=(8, "<u8"),
    doorbell=(16, "<u8"),
    cqe_tail=(24, "<u8"),
    log_sq=(32, "<u4"),
    opcode=(36, "<u4"),
    until=(40, "<u8"),
    taken=(48, "<u8"),
    wrong=(56, "<u8"),
    sum=(64, "<u8"),
    steps=(72, "<u8"),
)
