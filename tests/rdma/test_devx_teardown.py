"""Queues that commands make (queues=devx): closed in any order, left open, forked; nothing remains of them."""

import errno
import os
import re

import numpy as np
import pytest

import rdmakit
from rdmakit.device import Refused
from rdmakit.errors import ObjectBusy
from rdmakit.layout.prm_commands import CREATE_OUT, CREATE_QP_IN, CommandOp
from rdmakit.verbs import _verbs
from rdmakit.verbs.devx_commands import create_cq
from rdmakit.verbs.devx_memory import HostQueueMemory, Placed

emulated = pytest.mark.skipif("SYSFS_PATH" not in os.environ, reason="the emulated device alone tells or takes it")


FORK = """
import os, sys, numpy as np, rdmakit
from rdmakit.device import connected_pair
from rdmakit.errors import BadState
here, there = (rdmakit.open(name + ":queues=devx") for name in sys.argv[1:])
near, far = connected_pair(here, there)
source = near.pd.register(np.arange(64, dtype=np.uint8))
target = far.pd.register(np.zeros(64, np.uint8), "local_write|remote_write")
child = os.fork()
if child == 0:
    try: near.query()
    except BadState as error: os._exit(40 + ("before fork" in str(error)))
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 41
child = os.fork()
if child == 0:
    del near, far, here, there, source, target  # destroys nothing
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
near.post_write(source, target.remote())
near.send_cq.wait()
assert target.bytes.tolist() == list(range(64))
"""


def test_a_child_of_fork_is_told_and_destroys_nothing(devices, spelled, program):
    spelled(devices[0], "devx")
    done = program(FORK, *devices)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 4, 0, 3, 1), (1, 0, 4, 2, 3)])
def test_names_may_be_dropped_in_any_order(devices, spelled, order):
    spelled(devices[0], "devx")
    context = _verbs.Context(devices[0], devx=True)
    pd, uar = context.alloc_pd(), _verbs.Uar(context)
    placed = Placed(context, HostQueueMemory(), None, 1 << 14, "both")
    with rdmakit.open(f"{devices[0]}:queues=devx") as other:
        eqn = other._provider._eqn
    command = create_cq(4, 64, False, False, ring=placed.ring_umem, record=placed.record_umem,
                        record_offset=placed.record_offset, uar=uar.page_id, eqn=eqn)  # fmt: skip
    cq = _verbs.DevxObject(context, command, holds=(*placed.umems, uar))
    cqn = CREATE_OUT.get(cq.answer, "number")
    qp = _verbs.DevxObject(context, CREATE_QP_IN.pack({
        "opcode": CommandOp.CREATE_QP, "wq_umem_id": placed.ring_umem, "wq_umem_valid": 1, "qpc.pm_state": 3,
        "qpc.pd": pd.number, "qpc.uar_page": uar.page_id, "qpc.log_sq_size": 4, "qpc.cqn_snd": cqn, "qpc.cqn_rcv": cqn,
        "qpc.rq_type": 3, "qpc.dbr_umem_valid": 1, "qpc.dbr_umem_id": placed.record_umem,
        "qpc.dbr_addr": placed.record_offset,
    }), holds=(pd, cq, *placed.umems, uar))  # fmt: skip
    with pytest.raises(Refused) as refused:
        placed.umems[0].close()
    assert refused.value.code in (errno.EBUSY, errno.EREMOTEIO)
    with pytest.raises(Refused):
        cq.close()
    objects = [context, pd, uar, cq, qp]
    del context, pd, uar, cq, qp, placed
    for index in order:
        objects[index] = None
    again = _verbs.Context(devices[0], devx=True)
    again.alloc_pd().close()


def test_parents_in_use_are_not_closed(devx_ends):
    near, _ = devx_ends
    for parent in (near.pd, near.send_cq, near.context):
        with pytest.raises(ObjectBusy):
            parent.close()
    view, record = near.sq_view(), near.dbrec_view()
    near.close()
    near.send_cq.close()
    assert view.view(np.uint8).sum() >= 0 and record["snd"] == 0, "views outlive it"


LEAVE = """
import sys, numpy as np, rdmakit
from rdmakit.device import connected_pair
from rdmakit.errors import RdmakitError
here, there = (rdmakit.open(name + ":queues=devx") for name in sys.argv[2:])
near, far = connected_pair(here, there, rq_wqes=4)
kept = [near.pd.register(np.zeros(64, np.uint8)) for _ in range(3)]
for _ in range(20):
    here.create_cq(16, collapsed=True)
    near.pd.create_qp(here.create_cq(64))
try: near.udp_sport = 1
except RdmakitError: pass
how = sys.argv[1]
if how == "cycle":
    cycle = [near, far]; cycle.append(cycle); near.extra = cycle
    here = there = near = far = None
elif how == "blocks":
    with here, there: pass
elif how == "error": near.modify("ERR")
"""


@emulated
@pytest.mark.parametrize("how", ["open", "cycle", "blocks", "error"])
def test_nothing_is_left_whatever_a_program_leaves_open(devices, how, program):
    done = program(LEAVE, how, *devices, RDMAKIT_UVERBS_TRACE="1")
    said = [line for line in done.stderr.splitlines() if "attributes:" not in line and "RTS2RTS" not in line]
    assert done.returncode == 0 and done.stdout == "", done.stderr
    counted = [re.fullmatch(r"uverbs: closed with (\d+) DevX objects, (\d+) umems", line) for line in said]
    assert len(counted) == 2 and all(counted), said
    assert all(match.groups() == ("0", "0") for match in counted), said
