"""One module a notebook, ``nb00.py`` … ``nb14.py``: the checks of its exercises, registered with
`rdmakit.course.exercise`.

A check is imported when it is first asked for, so that a notebook pays for no other notebook's checks.
"""
