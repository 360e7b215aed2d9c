"""Files that are there whole or not at all, and whether a place can be written to, asked before the work."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from krs.errors import KrsError

_UNFINISHED = ".krs-"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file in one step: what the block writes to the path that it gets, `path` holds afterwards.

    The file is written beside its place, synced and renamed, so that a reader, a crash or a full disk never meets
    half of it. It gets the permissions of the file that it replaces, or those of the user's umask.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "notes" / "a.txt"
    >>> with replacing(file) as unfinished:
    ...     _ = unfinished.write_text("all of it")
    >>> file.read_text(), len(list(file.parent.iterdir()))
    ('all of it', 1)

    Missing folders are made. Raises `KrsError` where the file cannot be written; what was there before stays.
    """
    final = Path(os.path.realpath(path))
    unfinished = _beside(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch(exist_ok=False)
        mode = (final if final.exists() else unfinished).stat().st_mode & 0o777
        yield unfinished
        unfinished.chmod(mode)
        _sync(unfinished)
        os.replace(unfinished, final)
        _sync(final.parent)
    except OSError as reason:
        raise KrsError(
            f"cannot write {str(path)!r} ({reason.strerror or reason}): free some space there, or give another place"
        ) from reason
    finally:
        _remove(unfinished)


def write_text(path: str | Path, text: str) -> None:
    """Replace a file by a text (UTF-8) in one step; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file in one step; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def clear_unfinished(folder: Path, *, deep: bool = False) -> None:
    """Remove what a killed process was writing in a folder (`deep`: and below it); only where nobody else writes."""
    for torn in (folder.rglob if deep else folder.glob)(f"{_UNFINISHED}*"):
        _remove(torn)


def check_writable(path: str | Path, what: str, size: int = 0) -> None:
    """Raise `KrsError` if a file could not be written to `path` later; leaves nothing behind.

    A small file is written there and taken away again, and so are the folders that it needed.

    Args:
        path: the file.
        what: how the caller calls it, such as `"checkpoint"`.
        size: how many bytes it will have, as far as that is known.
    """
    final = Path(os.path.realpath(path))
    if os.path.isdir(final):  # unlike Path's, not an error for an impossible name
        raise KrsError(f"{what}: {str(path)!r} is a directory: give the name of a file")
    missing = [folder for folder in final.parents if not os.path.exists(folder)]
    probe = _beside(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"krs")
        if not final.exists():
            os.replace(probe, final)
            final.unlink()
        free = shutil.disk_usage(final.parent).free
    except OSError as reason:
        raise KrsError(
            f"{what}: {str(path)!r} cannot be written ({reason.strerror or reason}): give another place"
        ) from None
    finally:
        _remove(probe)
        for folder in missing:
            _remove_folder(folder)
    if free < size:
        raise KrsError(
            f"{what}: {str(path)!r} will take {_size(size)}, and {_size(free)} are free there: free some space, or "
            "give another place"
        )


def check_folder(folder: str | Path, names: list[str], what: str = "output", size: int = 0) -> None:
    """`check_writable` for the files of a directory that the caller is going to write."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise KrsError(f"{what}: {str(folder)!r} is a file: give a directory")
    for name in names:
        check_writable(Path(folder) / name, what, size)


def rescued(save: Callable[[Path], object], path: Path) -> str:
    """Save something that its own place did not take among the temporary files, and say where it is now."""
    spare = Path(tempfile.gettempdir()) / f"{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        save(spare)
    except KrsError:
        return "the directory for temporary files does not take it either"
    return f"it was saved to {str(spare)!r} instead"


def save_in_the_end(save: Callable[[Path], object], path: Path, what: str, result: object) -> None:
    """Save what a long call ends with. Where its place does not take it, `KrsError` has it as `partial`, and says where
    else it is.

    Args:
        save: writes it to a path.
        path: its place.
        what: how the message calls it, such as `"the account"`.
        result: it.
    """
    try:
        save(path)
    except KrsError as reason:
        failed = KrsError(
            f"{what} is complete, but {reason}. It is in the exception's attribute `partial`, and {rescued(save, path)}"
        )
        failed.partial = result
        raise failed from reason


def _beside(final: Path) -> Path:
    """An unused name in the same folder, with the same ending (which says what kind of file it is)."""
    return final.with_name(f"{_UNFINISHED}{uuid.uuid4().hex[:12]}.tmp{final.suffix}")


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk; not every file system does folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # its folder is none: then there is no file either
        return


def _remove_folder(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # somebody else writes there by now
        return


def _size(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"
