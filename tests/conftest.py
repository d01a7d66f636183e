"""What all tests share: one seed, printed, that replays the whole run."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest

SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=lambda text: int(text, 0),
        default=os.environ.get("RDMAKIT_SEED"),
        help="seed of every randomised test (default: RDMAKIT_SEED, else a fresh one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    of_all = getattr(config, "workerinput", {}).get("seed")  # in one of the processes of pytest-xdist
    given = config.getoption("--seed") if of_all is None else of_all
    config.stash[SEED] = random.SystemRandom().getrandbits(32) if given is None else given


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["seed"] = node.config.stash[SEED]


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.stash[SEED]} (replay: --seed={config.stash[SEED]} or RDMAKIT_SEED)"


@pytest.fixture(scope="session")
def run_seed(pytestconfig: pytest.Config) -> int:
    """The run's seed, for fixtures that live longer than a test; tests take `seed`, which says what it is."""
    return pytestconfig.stash[SEED]


@pytest.fixture
def seed(run_seed: int) -> Iterator[int]:
    """This test's seed: the run's own, so that one number replays one test or all of them."""
    print(f"RDMAKIT_SEED={run_seed}")
    yield run_seed


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A NumPy generator made from the run's seed."""
    return np.random.default_rng(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed and "seed" in getattr(item, "fixturenames", ()):
        number = item.config.stash[SEED]
        report.sections.append(("seed", f"replay: RDMAKIT_SEED={number} python -m pytest '{item.nodeid}'"))
    return report
