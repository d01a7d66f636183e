"""Queues that commands make (queues=devx): what a device says that refuses, or takes no commands."""

import errno
import os

import numpy as np
import pytest

import rdmakit
from rdmakit.device.endpoint import gid_bytes
from rdmakit.device.lifetime import typed_refusal
from rdmakit.errors import BadArgument, BadState, NotAvailable
from rdmakit.layout.prm_commands import CREATE_QP_IN, MODIFY_QP_IN, CommandOp
from rdmakit.verbs import _verbs
from rdmakit.verbs.backend import open_devx
from rdmakit.verbs.devx_memory import HostQueueMemory, QueuePlacement

emulated = pytest.mark.skipif("SYSFS_PATH" not in os.environ, reason="the emulated device alone tells or takes it")


class TooLittle(HostQueueMemory):
    def allocate(self, nbytes, label):
        return super().allocate(nbytes // 2, label)


def test_a_refused_command_has_status_and_syndrome(devices, spelled):
    spelled(devices[0], "devx")
    context = _verbs.Context(devices[0], devx=True)
    command = CREATE_QP_IN.pack({"opcode": CommandOp.CREATE_QP, "wq_umem_id": 0xABCDEF, "wq_umem_valid": 1})
    verdict = r"CREATE_QP: status 0x\w+ BAD_\w+, syndrome 0x"
    with pytest.raises(BadArgument, match=verdict) as caught, typed_refusal("making a queue pair"):
        _verbs.DevxObject(context, command)
    facts = caught.value.facts
    assert facts["command"] == "CREATE_QP" and facts["status"].startswith("BAD_") and caught.value.remedy
    if "SYSFS_PATH" in os.environ:
        assert int(facts["syndrome"], 16) == errno.EINVAL, "there the errno stands for a line of the firmware"


def test_memory_that_is_too_little(devices, spelled):
    spelled(devices[0], "devx")
    with open_devx(devices[0], QueuePlacement(TooLittle())) as context:
        with pytest.raises(BadArgument, match="less than was asked") as caught:
            context.create_cq(1024)
        assert caught.value.value < 64 * 1024
        assert context.alloc_pd().register(np.zeros(8, np.uint8)).lkey, "the device is none the worse"


def test_changes_of_state_that_cannot_be(devx_ends):
    near, _ = devx_ends
    with pytest.raises(BadArgument, match="BAD_PARAM_ERR") as caught:
        near.udp_sport = 0x1234
    assert caught.value.facts["command"] == "RTS2RTS_QP"
    with pytest.raises(BadState, match="RTS to INIT"):
        near.modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0)
    with pytest.raises(BadArgument, match=r"RTS to RTS does not take rq_psn"):
        near.modify("RTS", rq_psn=1)
    near.modify("RTS", min_rnr_timer=9, qp_access_flags="local_write|remote_read")
    after = near.query()
    assert (after["min_rnr_timer"], after["qp_access_flags"]) == (9, 4)
    with pytest.raises(NotAvailable, match="no command from RTS to SQD"):
        near.modify("SQD")
    near.modify("RESET")
    near.modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0)
    with pytest.raises(BadArgument, match="lacks path_mtu, dest_qp_num"):
        near.modify("RTR", dgid=near.endpoint().gid, rq_psn=0, max_dest_rd_atomic=1, min_rnr_timer=1)


@emulated
def test_the_emulated_firmware_migrates_no_paths_and_limits_no_rate(devx_ends):
    """What our own code does not send where capabilities lack it: `apm`, `stat_rate_support`."""
    near, far = devx_ends
    provider = near.context._provider
    assert provider.capabilities["apm"] == provider.capabilities["stat_rate_support"] == 0
    made, migrated, rearm = provider._made["qp", near.qpn][0], 3, 1

    def change(opcode, **fields):
        said = {name.replace("__", "."): value for name, value in fields.items()}
        made.modify(MODIFY_QP_IN.pack({"opcode": opcode, "qpn": near.qpn, **said}))

    change(CommandOp.RTS2RTS_QP, opt_param_mask=1 << 10, qpc__pm_state=migrated)
    for wrong in ({"opt_param_mask": 1}, {"opt_param_mask": 1 << 10, "qpc__pm_state": rearm}):
        with pytest.raises(BadArgument, match="BAD_PARAM_ERR"), typed_refusal("changing it"):
            change(CommandOp.RTS2RTS_QP, **wrong)
    near.modify("RESET").modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0)
    way = {"qpc__primary_address_path__rgid_rip": int.from_bytes(gid_bytes(far.endpoint().gid), "big"), "qpc__mtu": 3,
           "qpc__remote_qpn": far.qpn}  # fmt: skip
    for wrong in ({"qpc__primary_address_path__stat_rate": 3}, {"opt_param_mask": 1}):
        with pytest.raises(BadArgument, match="BAD_PARAM_ERR"), typed_refusal("changing it"):
            change(CommandOp.INIT2RTR_QP, **way, **wrong)
        assert near.state.name == "INIT"
    change(CommandOp.INIT2RTR_QP, **way)
    assert near.state.name == "RTR"


@emulated
def test_a_peer_whose_address_does_not_resolve(devices):
    with rdmakit.open(f"{devices[0]}:queues=devx") as context:
        qp = context.alloc_pd().create_qp(context.create_cq(4))
        with pytest.raises(BadArgument, match="ibv_create_ah") as caught:
            qp.connect({"qpn": 77, "gid": "::ffff:10.99.98.97", "mtu": 1024})
        assert "route" in caught.value.remedy and qp.state.name == "INIT"


def test_more_than_the_device_has(devx_ends):
    near, _ = devx_ends
    most = near.context._provider.capabilities
    near.context._provider.capabilities = {**most, "log_max_cq_sz": 9, "log_max_qp_sz": 6}
    with pytest.raises(BadArgument, match="1024 entries: the device has 512 at most"):
        near.context.create_cq(1024)
    with pytest.raises(BadArgument, match="128 basic blocks: the device has 64 at most"):
        near.pd.create_qp(near.context.create_cq(512), sq_wqebbs=128)


@pytest.mark.parametrize("option", [{"sq_sig_all": True}, {"out_of_order": True}])
def test_options_that_no_field_has(devx_ends, option):
    near, _ = devx_ends
    with pytest.raises(NotAvailable, match="has no field") as caught:
        near.pd.create_qp(near.context.create_cq(4), **option)
    assert "queues=mlx5" in caught.value.remedy


# ---- without DevX
OPEN = (
    "import sys, rdmakit\n"
    "from rdmakit.errors import NotAvailable\n"
    "try: rdmakit.open(sys.argv[1] + ':queues=devx')\n"
    "except NotAvailable as error: print(type(error).__name__, error)\n"
    "print(rdmakit.open(sys.argv[1]).device.where)\n"
)


def test_without_libmlx5_the_reason_is_told(devices, program):
    done = program(OPEN, devices[0], RDMAKIT_LIBMLX5="/nowhere/libmlx5.so.1")
    assert done.returncode == 0, done.stderr
    assert "NotAvailable" in done.stdout and "mlx5dv_open_device" in done.stdout and "queues=mlx5" in done.stdout
    assert done.stdout.endswith("proxied queues\n")


@emulated
def test_firmware_that_takes_no_commands(devices, program):
    done = program(OPEN, devices[0], RDMAKIT_UVERBS_DEVX="off")
    assert done.returncode == 0, done.stderr
    assert "mlx5dv_open_device" in done.stdout and "UCTX_EN" in done.stdout
    assert done.stdout.endswith("mlx5 queues\n"), "the device's own queues do without"
