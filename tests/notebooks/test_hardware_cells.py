"""The cells "on real hardware" that an RDMA device is enough for: each does something there, and says what it expects.

That they run, on an emulated ConnectX, and what they say then, test_notebooks.py sees.
"""

from __future__ import annotations

import re

import pytest
from nic_cells import SAYS, asks_for_a_nic
from test_notebooks import FOLDER, each_notebook

from rdmakit.course.build import absent
from rdmakit.course.form import INSTALL, read, sources, tags

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(bool(absent()), reason=f"{', '.join(absent())} not installed: {INSTALL}"),
]
# What moves bytes on a real device, or asks it for what only it can say.
DOES = re.compile(r"course\.real_(?:pair|ports|transfers|dispatch)\(")


def test_every_notebook_has_such_a_cell():
    having = {path.name[:2] for path in sources(FOLDER) if any(map(asks_for_a_nic, read(path).cells))}
    assert having == set(SAYS) == {path.name[:2] for path in sources(FOLDER)}


@each_notebook
def test_the_cell_does_something_and_the_text_says_what_to_expect(source):
    cells = read(source).cells
    at = [i for i, cell in enumerate(cells) if asks_for_a_nic(cell)]
    assert at and all(DOES.search(cells[i].source) for i in at)
    near = cells[min(at) - 2 : max(at) + 1]
    texts = [cell.source for cell in near if cell.cell_type == "markdown" or "hardware" in tags(cell)]
    assert "xpect" in "".join(texts), "what is to be expected is not said"
