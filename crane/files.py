"""Files that are either the old one or the whole new one, whatever happens while they are written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

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
    _sync(path.parent, os.O_RDONLY)  # the rename itself is durable once the folder is


def read_lines(path: Path) -> list[str]:
    """The lines of UTF-8 text, with or without a byte order mark, each up to a line feed, a carriage return or both.

    Nothing else ends a line, unlike for ``str.splitlines``: ids may hold U+2028 and its like.
    """
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest of the folders above it that exists."""
    return next(candidate for candidate in (path, *path.absolute().parents) if candidate.exists())


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class Lock:
    """Keeps a file or folder from the locks of others, until it is released or the process ends.

    Where the file system has no such locks, nothing is locked.
    """

    def __init__(self, path: Path) -> None:
        """Lock ``path``.

        Raises:
            BlockingIOError: another lock holds it.
        """
        # Writable, as network file systems ask for; a folder cannot be opened so.
        self._descriptor: int | None = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise
        except OSError:
            pass

    def release(self) -> None:
        """Let others lock it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.release()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
