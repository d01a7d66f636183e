"""The ladder: six ways to wire the same device code, each with one optimisation more.

Leans on ep.wiring. What a step changes is data: who posts, how many queue pairs, which ports, what stands between
data and signal. The kernels are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from rdmakit.errors import BadArgument

__all__ = ["FEW_QPS", "STEPS", "Step", "step_of"]

FEW_QPS = 4  # of two ranks, where channels share them


@dataclass(frozen=True)
class Step:
    """`proxy`: a thread of the host posts. `qps`: between two ranks, None is one for each channel. `policy`: of the
    plan, see plan.POLICIES. `credit_qps`: credits have queue pairs of their own. `fenced`: data is waited for before
    its signal.
    """

    number: int
    title: str
    proxy: bool
    qps: int | None
    policy: str
    credit_qps: bool
    fenced: bool


STEPS = (
    Step(0, "CPU proxy, one QP a peer, fence and a signal by itself", True, 1, "fixed", False, True),
    Step(1, "several QPs a peer", True, FEW_QPS, "fixed", False, True),
    Step(2, "QPs planned onto all ports and paths", True, FEW_QPS, "planned", False, True),
    Step(3, "GPUs ring the doorbell (IBGDA)", False, FEW_QPS, "planned", False, True),
    Step(4, "one channel, one QP; credits off the data QPs", False, None, "planned", True, True),
    Step(5, "the signal in the data's QP, no fence", False, None, "planned", True, False),
)


def step_of(number: int) -> Step:
    """BadArgument when there is none."""
    if not isinstance(number, int) or not 0 <= number < len(STEPS):
        raise BadArgument(
            "no such step of the ladder",
            value=number,
            rule=f"0 … {len(STEPS) - 1}",
            remedy="rdmakit ladder lists them",
        )
    return STEPS[number]
