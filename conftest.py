"""Every type and array shape that krs declares is checked at run time in the tests."""

import functools
import os
import signal
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for each other sleep, in processes that tests start too. By default they spin, and on a machine that
# is busy with something else a product on two threads took six times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Containers often set this, and installers often leave nothing compiled: each of the processes that tests start then
# compiled torch, transformers and peft for itself, 5 of the 9 seconds that importing them took.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from tests import type_checks  # noqa: E402 - after what processes inherit

type_checks.install("krs")

import pytest  # noqa: E402
import torch  # noqa: E402

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_ASKED = os.environ.get("KRS_TEST_THREADS")
_TINY_THREADS = int(_ASKED or "1")
_THREADS = torch.get_num_threads() if _ASKED else max(1, torch.get_num_threads() // _WORKERS)

_LONG_FILES = (
    "tests/test_examples.py",
    "tests/restore/test_real_model.py",
    "tests/restore/test_sites.py",
    "tests/restore/test_sweep.py",
    "tests/restore/test_wavefront.py",
    "tests/test_docs.py",
    "tests/unlearn/test_processes.py",
    "tests/unlearn/test_options.py",
)
"""What takes longest (`pytest -p tests.cpu_times`)."""


def pytest_configure(config: pytest.Config) -> None:
    """Files go to the workers in the order of collection, not those with most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: begun at the end, one of them ran on while the other workers had nothing left to do."""
    places = {file: place for place, file in enumerate(_LONG_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::", maxsplit=1)[0], len(places)))


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; the tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded_and_threaded(request) -> None:
    """One thread for tiny models (two only wait for each other), all of them for the real one."""
    torch.manual_seed(0)
    real = request.node.get_closest_marker("real") or _is_doctest_of_the_bundled_model(request.node)
    torch.set_num_threads(_THREADS if real else _TINY_THREADS)


@pytest.fixture(autouse=True)
def _figures_are_closed():
    """Left open they add up over a worker's tests, and matplotlib warns at the twenty-first."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(scope="session")
def smollm2():
    """The bundled model and its tokenizer (fetched and converted the first time)."""
    return _bundled()


@pytest.fixture(autouse=True)
def _doctests_have_the_bundled_model(request) -> None:
    if _is_doctest_of_the_bundled_model(request.node):
        _bundled()


def _is_doctest_of_the_bundled_model(item: pytest.Item) -> bool:
    return isinstance(item, pytest.DoctestItem) and "smollm2" in item.dtest.docstring


def _bundled():
    """Where the model cannot be fetched, what needs it says so and is skipped; where it has to be there, it fails."""
    model, error = _fetched()
    if error is not None and os.environ.get("KRS_REQUIRE_REAL") == "1":
        raise error
    if error is not None:
        pytest.skip(f"the bundled model is not to be had here (KRS_REQUIRE_REAL=1 makes this a failure): {error}")
    return model


@functools.cache
def _fetched():
    import krs

    try:
        return krs.load("smollm2"), None
    except krs.KrsError as error:
        return None, error


@pytest.fixture
def as_a_user():
    """Run-time type checks off, as they are outside the tests: what is left is krs's own message."""
    type_checks.switch(False)
    yield
    type_checks.switch(True)
