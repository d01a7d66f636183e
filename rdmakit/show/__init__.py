"""Pictures and tables for notebooks and terminals, made from plain data with nothing but the standard
library.

Every function takes lists, dicts or NumPy arrays, never a device, and returns an object that Jupyter draws
(``_repr_html_``, ``_repr_svg_``) and a terminal prints (``str``). Titles state the finding; each function
writes one when none is given.
"""

from rdmakit.show.addressmap import address_map
from rdmakit.show.bands import band_rows
from rdmakit.show.bars import port_bars
from rdmakit.show.figure import Figure
from rdmakit.show.grid import byte_grid
from rdmakit.show.groups import group_bars
from rdmakit.show.heatmap import heat_map
from rdmakit.show.lines import line_chart
from rdmakit.show.ring import queue_ring
from rdmakit.show.routes import route_map
from rdmakit.show.sequence import message_chart
from rdmakit.show.statemachine import qp_states
from rdmakit.show.steps import step_chart
from rdmakit.show.table import Table, data_table
from rdmakit.show.timeline import time_lanes
from rdmakit.show.topology import host_map
from rdmakit.show.waterfall import waterfall

__all__ = [
    "Figure",
    "Table",
    "address_map",
    "band_rows",
    "byte_grid",
    "data_table",
    "group_bars",
    "heat_map",
    "host_map",
    "line_chart",
    "message_chart",
    "port_bars",
    "qp_states",
    "queue_ring",
    "route_map",
    "step_chart",
    "time_lanes",
    "waterfall",
]
