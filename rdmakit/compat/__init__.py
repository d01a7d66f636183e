"""Other libraries' names for what rdmakit does: `rdmakit.compat.deep_ep` is DeepEP V1's.

This directory on PYTHONPATH makes `import deep_ep` find it, in programs and frameworks that are not to be changed, and
in the processes that they start: `PYTHONPATH=$(python -m rdmakit.compat) python program.py`. So nothing else is here.
"""
