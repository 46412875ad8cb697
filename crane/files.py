"""Files that are either the old one or the whole new one, whatever happens while they are written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

TEMPORARY_SUFFIX = ".partial"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file next to ``path``, force it to disk and rename it to ``path``.

    A process that dies at any moment leaves ``path`` as it was, and at most a ``*.partial`` file beside it.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes its files unreadable for everybody else
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is durable once the folder is
        _sync(path.parent, os.O_RDONLY)


def read_lines(path: Path) -> list[str]:
    """The lines of UTF-8 text, with or without a byte order mark, each up to a line feed, a carriage return or both.

    Nothing else ends a line, unlike for ``str.splitlines``: ids may hold U+2028 and its like.
    """
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block, no other process is in such a block of the folder; the lock goes with the process.

    Where the file system or the platform has no locks of folders, the block just runs.

    Raises:
        ValueError: another process is in one.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(f"another process is writing to the folder {folder}, expected none beside this one") from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
