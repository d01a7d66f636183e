"""Every example in the docstrings of rdmakit.layout, rdmakit.errors and `rdmakit decode` runs as written."""

import doctest
import importlib
import pkgutil

import pytest

from rdmakit import layout

MODULES = [f"rdmakit.layout.{module.name}" for module in pkgutil.iter_modules(layout.__path__)]
WITHOUT_EXAMPLES = {"constants", "decode_cqe", "decode_wqe", "segments", "wqe_grammar", "encode_atomic"}


@pytest.mark.parametrize("name", [*MODULES, "rdmakit.errors", "rdmakit.cli.decode"])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name.rsplit(".")[-1] in WITHOUT_EXAMPLES


def test_all_names_exist_and_are_sorted_once():
    assert len(set(layout.__all__)) == len(layout.__all__)
    assert all(hasattr(layout, name) for name in layout.__all__)
