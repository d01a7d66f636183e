"""Two hosts with two ports each on any Linux machine: a throwaway virtual machine with Debian's kernel and soft-RoCE.

Leans on errors. `kernel` gets the kernel into a cache, `initramfs` makes what it starts from, `machine` runs one
command. There is no disk image: the guest sees this machine's own files, read-only, under an overlay in its memory.
"""

from rdmakit.lab.kernel import Kernel, cache_folder, download_kernel, find_kernel
from rdmakit.lab.machine import Outcome, missing_programs, run

__all__ = ["Kernel", "Outcome", "cache_folder", "download_kernel", "find_kernel", "missing_programs", "run"]
