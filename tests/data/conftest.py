"""A fixture that the tests of concepts share."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Write something to a file: text as it is, anything else as JSON."""

    def write(value, name="mine.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write
