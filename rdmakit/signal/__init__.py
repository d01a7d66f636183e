"""Signals that cannot overtake their data: the in-QP sequence lock, its strategies as data, its truth in NumPy."""

from rdmakit.signal.host_receiver import HostReceiver
from rdmakit.signal.host_sender import HostSender
from rdmakit.signal.lock import SequenceLock, handles
from rdmakit.signal.story import Story
from rdmakit.signal.strategies import Cost, Ordering, Reader, Strategy, cost, is_right, is_strong, right_modes

__all__ = [
    "Cost",
    "HostReceiver",
    "HostSender",
    "Ordering",
    "Reader",
    "SequenceLock",
    "Story",
    "Strategy",
    "cost",
    "handles",
    "is_right",
    "is_strong",
    "right_modes",
]
