"""``crane bench``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from crane.bench import Finding, Ratios, Results, check, load, record, write_page
from crane.cli.errors import UserError, sentence, user_errors
from crane.cli.tables import plain_table
from crane.console import say


def run(arguments: argparse.Namespace) -> int:
    """Write the report of benchmark results, or compare them with recorded ratios; returns the exit code."""
    console = Console()
    with user_errors():
        runs = [load(Path(path)) for path in arguments.results]
        expected = None if arguments.check is None else Ratios.load(Path(arguments.check))
    if expected is not None:
        return _check(console, runs, expected)
    try:
        text = (
            _record(runs, Path(arguments.record)) if arguments.record is not None else _report(runs, arguments.output)
        )
    except OSError as error:
        raise UserError(sentence(error)) from error
    say(console, text)
    return 0


def _report(runs: Sequence[Results], folder: str) -> str:
    return f"report written to {write_page(runs, Path(folder))}"


def _record(runs: Sequence[Results], path: Path) -> str:
    ratios = record(runs)
    ratios.save(path)
    count = sum(len(peers) for peers in ratios.cases.values())
    return f"{count} ratios of {len(ratios.cases)} cases written to {path}"


def _check(console: Console, runs: Sequence[Results], expected: Ratios) -> int:
    findings = check(runs, expected)
    lost = [finding for finding in findings if not finding.holds]
    if lost:
        console.print(plain_table(["case", "peer", "recorded", "least", "found"], map(_cells, lost)))
    threads = runs[-1].machine["threads"]
    if threads != expected.threads:
        text = f"measured with {threads} threads, recorded with {expected.threads}: the ratios may differ"
        say(console, text)
    kept = len(findings) - len(lost)
    say(console, f"{kept} of {len(findings)} ratios hold")
    return 1 if lost else 0


def _cells(finding: Finding) -> tuple[str, ...]:
    found = "not measured" if finding.found is None else f"{finding.found:.2f}"
    expected = finding.expected
    return finding.case, finding.peer, f"{expected.ratio:.2f}", f"{expected.least:.2f}", found
