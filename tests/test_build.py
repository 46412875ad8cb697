"""The package's own build: what ``pip install`` and ``pip wheel`` make of ``setup.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, dict[str, Any]]:
    """``setup.py`` as a module, and what it asks of setuptools."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", asked.update)
    monkeypatch.setattr(setuptools, "find_packages", lambda **_: [])
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, asked


@pytest.mark.filterwarnings("ignore::setuptools.SetuptoolsDeprecationWarning")
@pytest.mark.parametrize("built", [True, False])
def test_a_wheel_is_compiled_once(
    script: tuple[ModuleType, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: bool
) -> None:
    module, asked = script
    calls = []

    def build_libraries(_work: Path, target: Path) -> dict[str, Any]:
        calls.append(target)
        if not built:
            raise module.NotBuiltError("there is no compiler")
        target.mkdir(parents=True, exist_ok=True)
        (target / "_ops.so").touch()
        return {"built": True}

    monkeypatch.setattr(module, "build_libraries", build_libraries)
    monkeypatch.delenv("CRANE_BUILD", raising=False)
    monkeypatch.chdir(tmp_path)
    distribution = setuptools.Distribution({"name": "crane", "version": "1", **asked})
    distribution.script_name = "setup.py"
    distribution.run_command("bdist_wheel")
    (wheel,) = tmp_path.glob("dist/*.whl")
    assert wheel.name.endswith("-none-any.whl") != built
    assert len(calls) == 1
