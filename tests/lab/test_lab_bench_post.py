"""`rdmakit bench post` on soft-RoCE: libibverbs's calls end in the kernel there, for all bindings alike."""

import math

import pytest

two_hosts = pytest.importorskip("two_hosts", reason="the lab's tests share it")

from rdmakit.cli.bench_post import OTHERS, measure  # noqa: E402

pytestmark = pytest.mark.timeout(300)


def test_posting_and_polling_beside_other_bindings(figure):
    """One device, to itself: its queue pairs have no rings of ours, so there is one way."""
    result = measure(20, ["h0r0"])
    figures, absent = result["figures"], result["config"]["absent"]
    assert result["ok"] and "ns_per_wr_direct" not in figures
    for name in ("wr", "cqe", "read"):
        for binding in ("", *(f"_{other.name}" for other in OTHERS if other.name not in absent)):
            assert math.isfinite(figures[f"ns_per_{name}{binding}"]) and figures[f"ns_per_{name}{binding}"] > 0
            figure(f"ns_per_{name}{binding}", figures[f"ns_per_{name}{binding}"])
