"""The compiled libraries: what they depend on, how they are found, and what is said when they are not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import crane_kernels
from crane_kernels import extension

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def package_without_libraries(folder: Path) -> Path:
    shutil.copytree(
        Path(crane_kernels.__file__).parent,
        folder / "crane_kernels",
        ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__"),
    )
    return folder


@pytest.mark.usefixtures("compiled")
def test_depends_on_torch_by_name_alone() -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    dynamic = subprocess.run([readelf, "-d", extension.OPERATORS], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert {name for name in needed if "torch" in name or "c10" in name} == {"libtorch_cpu.so"}
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


@pytest.mark.usefixtures("compiled")
def test_instruction_sets() -> None:
    sets = extension.instruction_sets()
    assert sets[0] == "baseline"
    assert extension.instruction_set() == os.environ.get("CRANE_ISA", sets[-1])


@pytest.mark.usefixtures("compiled")
def test_unknown_instruction_set_is_refused() -> None:
    done = python("import crane_kernels", CRANE_ISA="mmx")
    assert "CRANE_ISA: found 'mmx', expected one this machine runs: baseline" in done.stderr


def test_pure_python_package_works_and_says_why(tmp_path: Path) -> None:
    folder = package_without_libraries(tmp_path)
    (folder / "crane_kernels" / "_build.json").write_text(json.dumps({"built": False, "reason": "of the weather"}))
    code = (
        "import torch, crane_kernels as ck; from crane_kernels import dispatch, extension;"
        "g = ck.Graph.from_edges([0], [1], shape=(2, 2)); print(ck.spmm(g, torch.ones(2, 1)).tolist());"
        "print(extension.missing()); print(dispatch.environment_choice('spmm').rejected['cpp']);"
        "ck.spmm(g, torch.ones(2, 1), implementation='cpp')"
    )
    done = python(code, PYTHONPATH=str(folder))
    reason = "the compiled extension is not installed: of the weather"
    assert done.stdout.splitlines() == ["[[1.0], [0.0]]", reason, reason], done.stderr
    assert f"UnavailableError: spmm: implementation 'cpp' was requested but {reason}" in done.stderr


def test_broken_library_is_reported(tmp_path: Path) -> None:
    folder = package_without_libraries(tmp_path)
    (folder / "crane_kernels" / "_ops.so").write_bytes(b"no library")
    done = python("from crane_kernels import extension; print(extension.missing())", PYTHONPATH=str(folder))
    assert "the compiled extension does not load" in done.stdout


@pytest.mark.usefixtures("compiled")
def test_library_of_another_version_is_reported(tmp_path: Path) -> None:
    folder = package_without_libraries(tmp_path)
    for library in Path(crane_kernels.__file__).parent.glob("*.so"):
        shutil.copy(library, folder / "crane_kernels")
    module = folder / "crane_kernels" / "extension.py"
    module.write_text(module.read_text().replace('    "spmm",\n', '    "spmm",\n    "of_tomorrow",\n'))
    code = (
        "import torch, crane_kernels as ck; from crane_kernels import extension; print(extension.missing());"
        "print(ck.spmm(ck.Graph.from_edges([0], [1], shape=(2, 2)), torch.ones(2, 1)).tolist())"
    )
    reason = "the compiled extension was built from another version of the source: build it again"
    done = python(code, PYTHONPATH=str(folder))
    assert done.stdout.splitlines() == [reason, "[[1.0], [0.0]]"], done.stderr


def test_expected_operators_are_those_of_the_source() -> None:
    path = ROOT / "csrc" / "registration" / "ops.cpp"
    if not path.exists():
        pytest.skip("the tests run without the source tree's csrc")
    assert sorted(re.findall(r'm\.def\(\s*"(\w+)\(', path.read_text())) == sorted(extension.EXPECTED_OPERATORS)


@pytest.fixture
def backend() -> ModuleType:
    path = ROOT / "build_backend.py"
    if not path.exists():
        pytest.skip("the tests run without the source tree's build_backend.py")
    spec = importlib.util.spec_from_file_location("build_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_torch(folder: Path, version: str) -> Path:
    header = folder / "torch/include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (folder / "torch/version.py").write_text(f"__version__ = '{version}'\n")
    (folder / "torch/__init__.py").touch()
    return folder


def test_backend_finds_torch(backend: ModuleType) -> None:
    folder, version = backend.find_torch()
    assert (folder / "lib").is_dir()
    assert version.startswith("2.")
    assert backend._torch_requirement() == []


def test_backend_asks_for_torch_where_there_is_none(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CRANE_BUILD", raising=False)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda kind: str(tmp_path))
    monkeypatch.setattr(backend.site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr(backend, "find_compiler", lambda: "/usr/bin/c++")
    assert backend._torch_requirement() == ["torch>=2.13"]
    fake_torch(tmp_path, "2.12.1")
    assert backend._torch_requirement() == ["torch>=2.13"]
    (tmp_path / "torch/version.py").write_text("__version__ = '2.14.1+cu130'\n")
    assert backend._torch_requirement() == []
    assert backend.find_torch() == (tmp_path / "torch", "2.14.1+cu130")


def test_backend_asks_for_nothing_that_it_will_not_use(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backend, "find_torch", lambda: None)
    monkeypatch.setenv("CRANE_BUILD", "0")
    assert backend._torch_requirement() == []
    monkeypatch.delenv("CRANE_BUILD")
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert backend.find_compiler() is None
    assert backend._torch_requirement() == []
