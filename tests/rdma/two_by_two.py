"""Two hosts of two ranks each, every rank a process; devices join the hosts."""

import process_rig as rig
from hosts_rig import shared_out

HOSTS, LOCAL = 2, 2
RANKS = HOSTS * LOCAL


def start(names):
    """Their processes: devices of `names` are shared out among the hosts."""
    devices = [",".join(of_host) for of_host in shared_out(names, HOSTS)]
    of_all = {"RDMAKIT_RANKS_PER_HOST": str(LOCAL)}
    return rig.Ranks([{"RDMAKIT_DEVICES": devices[rank // LOCAL], **of_all} for rank in range(RANKS)])
