"""`deep_ep.buffer` of DeepEP V1."""

from rdmakit.ep.buffer import Buffer
from rdmakit.ep.config import Config
from rdmakit.ep.events import EventHandle, EventOverlap

__all__ = ["Buffer", "Config", "EventHandle", "EventOverlap"]
