"""Two connected queue pairs with random memory on either side, in worlds of every kind."""

import numpy as np

import rdmakit
from rdmakit.device import connected_pair

WORLDS = [
    {"policy": "fast"},
    {"policy": "timed"},
    {"policy": "explore"},
    {"doorbell": "register"},
    {"doorbell": "no_dbr"},
    {"roce": False, "mtu": 1024},
    {"lag": "hash"},
    {"lag": "affinity", "ports": 2},
    {"ports": 1},
]


class Rig:
    """Two hosts, a queue pair on each, and 4 KiB of random bytes on either side."""

    def __init__(self, seed, **options):
        self.world = rdmakit.World(hosts=2, seed=seed, **options)
        self.near, self.far = connected_pair(self.world.open(0), self.world.open(1), rq_wqes=8, max_recv_sge=2)
        rng = np.random.default_rng(seed)
        self.here = rng.integers(0, 256, 4096, dtype=np.uint8)
        self.there = rng.integers(0, 256, 4096, dtype=np.uint8)
        self.mine = self.near.pd.register(self.here, name="mine")
        self.theirs = self.far.pd.register(self.there, name="theirs")

    def done(self, count=1):
        return self.near.send_cq.wait(count)
