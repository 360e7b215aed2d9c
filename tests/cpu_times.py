"""Where the minutes go: `pytest -p tests.cpu_times` prints CPU seconds by file, those of other processes included.

Unlike the wall time of `--durations`, they say the same on a machine that is busy with something else.
"""

import os
from collections import Counter

import pytest

_SPENT: Counter[str] = Counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = os.times()
    result = yield
    _SPENT[item.nodeid.split("::")[0]] += sum(os.times()[:4]) - sum(before[:4])
    return result


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section(f"CPU seconds: {sum(_SPENT.values()):.0f}")
    for file, seconds in _SPENT.most_common(20):
        terminalreporter.write_line(f"{seconds:7.1f} {file}")
