"""How ranks of several processes and hosts meet, and how their queue pairs are joined.

Leans on device. `rendezvous` exchanges small values, through files, TCP, a torch store or mpi4py; `mesh` makes and
connects all queue pairs of a rank at once. Nobody is launched here: torchrun, mpirun and Slurm do that.

>>> from rdmakit.connect import FileStore, StoreRendezvous, connect_mesh
"""

from __future__ import annotations

from rdmakit.connect.mesh import ConnectedMesh, Joined, connect_mesh
from rdmakit.connect.paths import Path, open_paths
from rdmakit.connect.rendezvous import MpiRendezvous, Rendezvous, StoreRendezvous, meet
from rdmakit.connect.route import Route, Steer, by_turns
from rdmakit.connect.stores import FileStore, Store, TcpStore, TorchStore

__all__ = [
    "ConnectedMesh",
    "FileStore",
    "Joined",
    "MpiRendezvous",
    "Path",
    "Rendezvous",
    "Route",
    "Steer",
    "Store",
    "StoreRendezvous",
    "TcpStore",
    "TorchStore",
    "by_turns",
    "connect_mesh",
    "meet",
    "open_paths",
]
