"""Every array shape that krs declares is checked at run time in the tests."""

import os
import signal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.type_checks import install

install("krs")

import pytest  # noqa: E402
import torch  # noqa: E402

_THREADS = torch.get_num_threads()

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; the tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded_and_threaded(request) -> None:
    """One thread for tiny models (two only wait for each other), all of them for the real one."""
    torch.manual_seed(0)
    torch.set_num_threads(_THREADS if request.node.get_closest_marker("real") else 1)


@pytest.fixture(scope="session")
def smollm2():
    """The bundled model and its tokenizer (fetched and converted the first time)."""
    import krs

    return krs.load("smollm2")


@pytest.fixture
def as_a_user():
    """Run-time type checks off, as they are outside the tests: what is left is krs's own message."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
