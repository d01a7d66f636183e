"""What is wrong is refused by name, with errno, object and remedy; nothing hangs, and nothing is left behind."""

import os
import resource

import numpy as np
import pytest
from two_hosts import on_both, pull, resources

import rdmakit
from rdmakit.device import RemoteMemory
from rdmakit.errors import BadArgument, CompletionError, HangError, RdmakitError, UnknownDevice

ROUNDS = 4


def queue_pair(host, port=0, **options):
    context = host.open(port)
    return context.alloc_pd().create_qp(context.create_cq(16), **options)


@pytest.mark.parametrize("wrong", ["outside", "key", "right"])
def test_remote_memory_that_is_not_ours(wrong):
    """Outside the region, a key that is none, a right that was not given: REM_ACCESS_ERR, and the memory is whole."""

    def near(host):
        qp = host.connect(queue_pair(host))
        target = RemoteMemory.from_json(host.hear())
        at = {
            "outside": (target.address + 60, target.rkey),
            "key": (target.address, target.rkey ^ 0xFFFF00),
            "right": (target.address, target.rkey),
        }[wrong]
        source = qp.pd.register(np.ones(8, np.uint8))
        qp.post_write(source, at)
        with pytest.raises(CompletionError) as caught:
            qp.send_cq.wait()
        state = qp.state.name
        host.tell("done")
        return caught.value.wc_status, caught.value.remedy, state

    def far(host):
        qp = host.connect(queue_pair(host))
        access = "local_write|remote_read" if wrong == "right" else "local_write|remote_write"
        memory = qp.pd.register(np.full(64, 0xA5, np.uint8), access)
        host.tell(memory.remote().to_json())
        host.hear()
        return bool((memory.bytes == 0xA5).all())

    (status, remedy, state), whole = on_both(near, far)
    assert status == "REM_ACCESS_ERR" and remedy and state == "ERR" and whole


def alone(function):
    """Run it on h0 only."""
    return on_both(function, lambda host: None)[0]


def test_a_port_that_is_down_is_named():
    """The link goes before anything is posted: its state shows, and a WRITE ends in an error instead of a hang."""

    def near(host):
        qp = host.connect(queue_pair(host))
        assert qp.context.port(1).up
        pull(0, 0)
        up = qp.context.port(1).up
        source = qp.pd.register(np.ones(8, np.uint8))
        qp.post_write(source, (4096, 1))
        with pytest.raises((CompletionError, HangError)) as caught:
            qp.send_cq.wait(timeout=10)
        row = qp.context.port(1)._row()["state"]
        host.tell("done")
        return up, row, type(caught.value).__name__, str(caught.value)

    def far(host):
        host.connect(queue_pair(host))
        host.hear()

    (up, row, kind, text), _ = on_both(near, far)
    print(kind, text)
    assert (up, row) == (False, "DOWN")


def test_gids_that_are_none():
    def near(host):
        with pytest.raises(BadArgument, match=r"no such GID[\s\S]*10\.9\.0\.1") as unset:
            rdmakit.open(f"{host.name(0)}:gid_index=77")
        qp = queue_pair(host)
        nowhere = {"qpn": 17, "gid": "::ffff:203.0.113.9", "mtu": 1024}
        with pytest.raises(RdmakitError) as unreachable:
            qp.connect(nowhere)
        with pytest.raises(BadArgument, match="not a GID"):
            queue_pair(host).connect({"qpn": 17, "gid": "10.9.0.2", "mtu": 1024})
        with pytest.raises(UnknownDevice, match="h0r0"):
            rdmakit.open("h1r0")  # the other host's
        return unset.value.remedy, str(unreachable.value)

    remedy, text = alone(near)
    print(text)
    assert remedy and "ibv_modify_qp" in text and ("route" in text or "reachable" in text)


def test_too_little_locked_memory(rng):
    """As a user whose limit is 64 KiB: ENOMEM of ibv_reg_mr, with the commands that raise it. A page still goes."""

    def near(host):
        pd = host.open(0).alloc_pd()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))
        os.setuid(65534)  # root may lock what it likes
        with pytest.raises(RdmakitError) as caught:
            pd.register(np.zeros(1 << 20, np.uint8))
        small = pd.register(np.zeros(4096, np.uint8))
        return type(caught.value).__name__, str(caught.value), small.nbytes

    kind, text, nbytes = alone(near)
    print(kind, text)
    assert kind == "OutOfMemory" and all(word in text for word in ("ENOMEM", "ibv_reg_mr", "ulimit -l"))
    assert nbytes == 4096


def test_nothing_is_left_by_a_process_that_lives_on(rng):
    """Objects made, broken, refused and closed, again and again; then `rdma resource` counts none, not a context."""

    def near(host):
        assert not any(resources().values())
        busy = {}
        for _ in range(ROUNDS):
            with host.open(0) as context:
                qp = context.alloc_pd().create_qp(context.create_cq(16), rq_wqes=4)
                host.connect(qp, rnr_retry=0)
                mr = qp.pd.register(rng.integers(0, 256, 4096, np.uint8))
                theirs = RemoteMemory.from_json(host.hear())
                qp.post_write(mr, theirs)
                qp.send_cq.wait()
                qp.post_write(mr, (theirs.address, theirs.rkey ^ 0xFFFF00))
                qp.send_cq.wait(check=False)
                with pytest.raises(BadArgument):
                    qp.pd.register(np.zeros(8, np.uint8), "remote_write")
                qp.post_recv(mr)
                busy = busy or resources()
            host.tell("closed")
        return busy, resources()

    def far(host):
        for _ in range(ROUNDS):
            with host.open(0) as context:
                qp = host.connect(context.alloc_pd().create_qp(context.create_cq(16)))
                memory = qp.pd.register(np.zeros(4096, np.uint8))
                host.tell(memory.remote().to_json())
                host.hear()
        return resources()

    (busy, near_left), far_left = on_both(near, far)
    assert busy["qp"] >= 1 and busy["mr"] >= 1 and busy["pd"] >= 1 and busy["cq"] >= 1
    for left in (near_left, far_left):
        assert not {kind: count for kind, count in left.items() if count}
