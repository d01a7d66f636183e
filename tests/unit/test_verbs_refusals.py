"""What libibverbs refuses becomes an error of its kind, with the errno's name, the call, its arguments and a remedy."""

import errno
import os
import re
from pathlib import Path

import pytest

import rdmakit.verbs
from rdmakit.device.lifetime import typed_refusal
from rdmakit.errors import BadArgument, DeviceFault, NotAvailable, ObjectBusy, OutOfMemory
from rdmakit.verbs.refusals import refused

SOURCES = Path(rdmakit.verbs.__file__).parent
CALLS = sorted({
    call
    for path in SOURCES.iterdir()
    if path.suffix in (".pxi", ".py", ".pyx")
    for call in re.findall(r'refused\(\s*"(\w+)"', path.read_text())
})  # fmt: skip
KINDS = {
    errno.EINVAL: BadArgument, errno.EFAULT: BadArgument, errno.EBADF: BadArgument, errno.ETIMEDOUT: BadArgument,
    errno.ENOMEM: OutOfMemory, errno.EBUSY: ObjectBusy, errno.EOPNOTSUPP: NotAvailable,
    errno.EPROTONOSUPPORT: NotAvailable, errno.ENOSYS: NotAvailable, errno.EACCES: NotAvailable,
    errno.EPERM: NotAvailable, errno.ENODEV: DeviceFault, errno.EIO: DeviceFault,
}  # fmt: skip


def test_the_calls_are_found():
    assert {"ibv_reg_mr", "ibv_create_qp", "ibv_modify_qp", "mlx5dv_modify_qp_lag_port"} <= set(CALLS)


@pytest.mark.parametrize("code", KINDS, ids=errno.errorcode.get)
def test_each_has_its_kind_and_a_remedy(code):
    for call in CALLS:
        with pytest.raises(KINDS[code]) as caught, typed_refusal("doing it", port=1):
            raise refused(call, code, device="mlx5_0", absent=None)
        error, name = caught.value, "EOPNOTSUPP" if code == errno.EOPNOTSUPP else errno.errorcode[code]
        assert type(error) is KINDS[code] and f"was refused with {name}" in error.what and error.facts["port"] == 1
        assert error.rule == f"{call}: {os.strerror(code)} (device mlx5_0)" and len(error.remedy) > 10


@pytest.mark.parametrize(
    ("call", "code", "remedy"),
    [
        ("ibv_open_device", errno.EACCES, "/dev/infiniband"),
        ("ibv_reg_mr", errno.ENOMEM, "ulimit -l"),
        ("ibv_create_cq", errno.ENOMEM, "ulimit -l"),
        ("ibv_alloc_pd", errno.ENODEV, "unplugged"),
        ("ibv_poll_cq", errno.EIO, "close everything and open it again"),
        ("ibv_open_device", errno.EMFILE, "ulimit -n"),
        ("no_such_call", errno.ERANGE, "man no_such_call"),
    ],
)
def test_the_remedy_fits_the_reason(call, code, remedy):
    assert remedy in refused(call, code).remedy


def test_a_call_that_fails_without_an_errno_says_so():
    found = refused("ibv_open_device", 0)
    assert found.code == errno.EIO and "without an errno" in found.message and found.remedy
