"""Run folders: who gets which, and what stays of one that was refused."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from crane.config import RunConfig
from crane.training.folder import RunFolder, new_folder


def config(seed: int) -> RunConfig:
    return RunConfig.from_mapping({"model": "lightgcn", "seed": seed})


def test_a_numbered_folder_is_nobody_elses_even_where_it_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "run"
    with new_folder(path, numbered=True) as one, new_folder(path, numbered=True) as other:
        assert [one.path.name, other.path.name] == ["run", "run-2"]
    (tmp_path / "runs" / "run-3").write_text("a file")
    with new_folder(path, numbered=True) as third:
        assert third.path.name == "run-4"


def test_a_folder_of_a_block_that_fails_is_gone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for path, numbered in ((tmp_path / "a" / "b", True), (tmp_path / "c", False), (tmp_path / "mine", False)):
        with pytest.raises(KeyboardInterrupt), new_folder(path, numbered=numbered):
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_of_two_that_make_a_run_in_one_folder_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = RunConfig.save

    def save_after_another_has_come(self: RunConfig, path: Path) -> None:
        with pytest.raises(ValueError, match="another process is making the run"):
            RunFolder(tmp_path / "run").create(config(2), {})
        save(self, path)

    monkeypatch.setattr(RunConfig, "save", save_after_another_has_come)
    folder = RunFolder(tmp_path / "run")
    folder.create(config(1), {})
    assert RunConfig.load(folder.config).seed == 1
    with pytest.raises(ValueError, match="is not empty: name a new one"):
        RunFolder(tmp_path / "run").create(config(2), {})


def test_file_systems_without_locks_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    folder = RunFolder(tmp_path / "run")
    folder.create(config(1), {})
    before = os.listdir("/dev/fd")
    folder.claim()
    folder.claim()
    folder.release()
    folder.claim()
    del folder
    assert os.listdir("/dev/fd") == before
