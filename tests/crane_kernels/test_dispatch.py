"""Which implementation serves a call: argument, then context, then environment, then the first that can."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from crane_kernels import dispatch, use_implementation
from crane_kernels.dispatch import Implementation


def _missing() -> str:
    return "the moon is not in reach"


def _refuses(x: int) -> str | None:
    return "x is odd" if x % 2 else None


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An operation with an implementation that is never there, one that takes even numbers, and a reference."""
    monkeypatch.setattr(dispatch, "_registry", dict(dispatch._registry))
    monkeypatch.setattr(dispatch, "_overrides", {})
    dispatch.register(
        "toy",
        Implementation("cuda", lambda x: ("cuda", x), missing=_missing),
        Implementation("cpp", lambda x: ("cpp", x), refuses=_refuses),
        Implementation("reference", lambda x: ("reference", x)),
    )
    return


def served(requested: str | None, x: int) -> Any:
    return dispatch.call("toy", requested, x)[0]


def test_first_that_can() -> None:
    assert served(None, 2) == "cpp"
    assert served(None, 3) == "reference"


def test_one_that_serves_only_requests() -> None:
    reluctant = Implementation("triton", lambda x: ("triton", x), unasked=lambda: "it waits to be asked")
    dispatch.register("toy", reluctant, Implementation("reference", lambda x: ("reference", x)))
    assert served(None, 2) == "reference"
    assert served("triton", 2) == "triton"
    assert dispatch.choose("toy", None, 2).rejected == {"triton": "it waits to be asked"}
    assert dispatch.environment_choice("toy").rejected == {"triton": "it waits to be asked"}
    with use_implementation(toy="triton"):
        assert served(None, 2) == "triton"
        assert dispatch.environment_choice("toy").implementation is reluctant


def test_argument_before_context_before_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRANE_IMPLEMENTATION", "toy=reference")
    dispatch.load_environment()
    assert served(None, 2) == "reference"
    with use_implementation(toy="cpp"):
        assert served(None, 2) == "cpp"
        assert served("reference", 2) == "reference"
    assert served(None, 2) == "reference"


def test_context_for_everything() -> None:
    with use_implementation("reference"):
        assert served(None, 2) == "reference"
        with use_implementation(toy="cpp"):
            assert served(None, 2) == "cpp"
        assert served(None, 2) == "reference"


def test_context_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), use_implementation("reference"):
        raise KeyError
    assert served(None, 2) == "cpp"


def test_request_that_cannot_be_honoured() -> None:
    with pytest.raises(RuntimeError, match="toy: implementation 'cuda' was requested but the moon is not in reach"):
        served("cuda", 2)
    with pytest.raises(RuntimeError, match="toy: implementation 'cpp' was requested but x is odd"):
        served("cpp", 3)
    with use_implementation(toy="cuda"), pytest.raises(RuntimeError, match="the moon"):
        served(None, 2)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="toy has no implementation 'triton', expected one of cuda, cpp, reference"):
        served("triton", 2)
    with pytest.raises(ValueError, match="found 'fast', expected one of reference, cpp"), use_implementation("fast"):
        pass
    with pytest.raises(ValueError, match="found operation 'toys'"), use_implementation(toys="cpp"):
        pass
    for ask in (dispatch.implementations, lambda name: dispatch.choose(name, None)):
        with pytest.raises(ValueError, match="operation: found operation 'toys', expected one of"):
            ask("toys")


def test_choice_says_why() -> None:
    choice = dispatch.choose("toy", None, 3)
    assert choice.implementation.name == "reference"
    assert choice.rejected == {"cuda": "the moon is not in reach", "cpp": "x is odd"}
    assert not choice.requested
    choice = dispatch.environment_choice("toy")
    assert (choice.implementation.name, choice.rejected) == ("cpp", {"cuda": "the moon is not in reach"})
    with use_implementation("reference"):
        assert dispatch.environment_choice("toy").requested


def test_implementations_are_listed_fastest_first() -> None:
    assert dispatch.implementations("toy") == ("cuda", "cpp", "reference")


def test_reference_is_always_there() -> None:
    with pytest.raises(ValueError, match="must list a reference implementation last"):
        dispatch.register("other", Implementation("cpp", abs))
    for operation in dispatch.operations():
        assert dispatch._registry[operation][-1].name == "reference"


def test_environment_variable_with_an_unknown_name() -> None:
    environment = os.environ | {"CRANE_IMPLEMENTATION": "spmm=cpu"}
    command = [sys.executable, "-P", "-c", "import crane_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "CRANE_IMPLEMENTATION: spmm has no implementation 'cpu'" in done.stderr
