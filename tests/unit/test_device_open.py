"""Opening devices by a string, and what importing the package costs."""

import gc
import subprocess
import sys

import pytest

import rdmakit
from rdmakit.device import backends, register_backend
from rdmakit.errors import BadArgument, NotAvailable, UnknownDevice


@pytest.fixture
def context():
    return rdmakit.World().open()


def test_importing_loads_nothing():
    code = "import sys, rdmakit; print([m for m in sys.modules if m.startswith(('numpy', 'rdmakit.'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_there():
    assert {"open", "World", "get_include", "BadArgument", "HangError"} <= set(dir(rdmakit))
    assert rdmakit.BadArgument is BadArgument and rdmakit.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no_such_name"):
        rdmakit.no_such_name  # noqa: B018


@pytest.mark.parametrize("spec", ["nonsense", "nonsense:host=1", "", "EMU"])
def test_unknown_device_lists_what_there_is(spec):
    with pytest.raises(UnknownDevice) as caught:
        rdmakit.open(spec)
    assert repr(spec) in str(caught.value) and "emu" in caught.value.rule and caught.value.remedy


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hots=2", "hots=2"),
        ("host", "host"),
        ("hosts=two", "two"),
        ("hosts=0", "0"),
        ("lag=both", "both"),
        ("doorbell=loud", "loud"),
        ("policy=slow", "slow"),
        ("mtu=1500", "1500"),
        ("ports=5", "5"),
        ("roce=maybe", "maybe"),
        ("hosts=1,hosts=2", "hosts"),
        ("hosts=2,host=2", "2"),
        ("nic=1", "1"),
        ("seed=-1", "-1"),
    ],
)
def test_a_bad_key_or_value_names_itself_and_the_rule(text, value):
    with pytest.raises(BadArgument) as caught:
        rdmakit.open("emu:" + text)
    assert value in str(caught.value) and caught.value.rule


def test_opens_of_one_name_share_a_world_and_others_do_not():
    a = rdmakit.open("emu:world=shared,host=0,seed=5,lag=hash")
    b = rdmakit.open("emu:world=shared,host=1")
    c = rdmakit.open("emu:host=1")
    assert a._provider.world is b._provider.world is not c._provider.world
    assert (a.device.lag, c.device.where) == ("hash", "host 1")
    with pytest.raises(BadArgument, match="exists with another seed"):
        rdmakit.open("emu:world=shared,seed=6")
    del a, b
    gc.collect()
    assert rdmakit.open("emu:world=shared,seed=6").device.lag == "none"  # the old world is gone


def test_a_backend_is_loaded_when_it_is_opened(context):
    register_backend("test-late", "rdmakit.no_such_module")
    register_backend("test-ready", lambda rest: context)
    try:
        assert {"emu", "test-late", "test-ready"} <= set(backends())
        assert rdmakit.open("test-ready:any") is context
        with pytest.raises(NotAvailable, match="test-late"):
            rdmakit.open("test-late")
        with pytest.raises(BadArgument):
            register_backend("a:b", "x")
    finally:
        from rdmakit.device import registry

        for prefix in ("test-late", "test-ready"):
            registry._BACKENDS.pop(prefix)
