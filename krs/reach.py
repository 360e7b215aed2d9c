"""Is the hub of models there? Asked without importing torch."""

from __future__ import annotations

import math
import socket
import time
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

_PATIENCE = 5.0
_VALID = 60.0
_ANSWERS: dict[str, tuple[float, bool]] = {}
"""By address, when it was asked and whether it was there: a pair of models is two names and several questions."""


def is_reachable() -> bool:
    """Whether the hub can be reached, asked once with a few seconds' patience.

    The hub's own library tries each file of a model several times, with pauses: a minute and more without a network.
    Anything but a network that is not there counts as reachable, for the library knows better what to make of it.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    asked, answer = _ANSWERS.get(constants.ENDPOINT, (-math.inf, False))
    if time.monotonic() - asked > _VALID:
        answer = _answers(constants.ENDPOINT)
        _ANSWERS[constants.ENDPOINT] = time.monotonic(), answer
    return answer


def _answers(endpoint: str) -> bool:
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=_PATIENCE).close()
    except HTTPError:
        return True
    except URLError as failed:
        return not isinstance(failed.reason, socket.gaierror | ConnectionError | TimeoutError)
    except (TimeoutError, ConnectionError):
        return False
    return True
