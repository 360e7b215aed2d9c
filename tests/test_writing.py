"""Files come whole or not at all, with the user's permissions; places are tried and left as they were."""

import os
import resource
from contextlib import contextmanager

import pytest

from krs import KrsError
from krs.writing import check_folder, check_writable, replacing, save_in_the_end, write_bytes, write_text


@contextmanager
def full_disk(size):
    """No file may grow beyond so many bytes: the real error of a real write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_was_there_stays_until_all_of_the_new_is_written(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "before")
    try:
        with replacing(file) as unfinished:
            unfinished.write_text("half")
            assert file.read_text() == "before"
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    with full_disk(1000), pytest.raises(KrsError, match=r"cannot write '.*a.txt' \(File too large\): free some space"):
        write_bytes(file, b"x" * 5000)
    assert file.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077], indirect=True)
def test_a_new_file_gets_the_users_umask_and_an_old_one_keeps_its_permissions(tmp_path, umask):
    write_text(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~umask
    (tmp_path / "new").chmod(0o640)
    write_text(tmp_path / "new", "y")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_a_link_goes_on_pointing_at_the_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "x"


def test_text_that_utf_8_cannot_hold_is_escaped(tmp_path):
    write_text(tmp_path / "a", "\udc80")
    assert (tmp_path / "a").read_text() == "\\udc80"


def test_trying_a_place_leaves_nothing_there(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "a.txt", "checkpoint")
    (tmp_path / "old").write_text("mine")
    check_writable(tmp_path / "old", "checkpoint", size=100)
    check_folder(tmp_path / "out", ["a", "b/c"])
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "mine"


def test_places_that_take_no_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(KrsError, match=r"checkpoint: '.*' is a directory: give the name of a file"):
        check_writable(tmp_path, "checkpoint")
    with pytest.raises(KrsError, match=r"output: '.*a.txt' cannot be written \(.*\): give another place"):
        check_writable(tmp_path / "file" / "a.txt", "output")
    with pytest.raises(KrsError, match=r"cannot be written \(File name too long\)"):
        check_writable(tmp_path / ("x" * 300), "output")
    with pytest.raises(KrsError, match=r"will take 1000000000.0 GB, and .* GB are free there: free some space, or"):
        check_writable(tmp_path / "a.txt", "output", size=10**18)
    with pytest.raises(KrsError, match=r"output: '.*file' is a file: give a directory"):
        check_folder(tmp_path / "file", ["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_long_call_ends_with_is_handed_over_where_its_place_does_not_take_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    (tmp_path / "file").write_text("x")
    result = {"all": "of it"}
    save_in_the_end(lambda path: write_text(path, "all"), tmp_path / "out" / "a.txt", "the account", result)
    assert (tmp_path / "out" / "a.txt").read_text() == "all"
    said = r"the account is complete, but cannot write .*`partial`, and it was saved to '.*a-.*.txt' instead"
    with pytest.raises(KrsError, match=said) as stop:
        save_in_the_end(lambda path: write_text(path, "all"), tmp_path / "file" / "a.txt", "the account", result)
    assert stop.value.partial is result
    (spare,) = (tmp_path / "spare").glob("a-*.txt")
    assert spare.read_text() == "all"
