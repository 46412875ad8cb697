"""``crane bench``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from crane.bench import Finding, Ratios, Results, check, load, record, write_page
from crane.cli.errors import UserError, sentence, user_errors
from crane.console import say
from crane.words import counted


def run(arguments: argparse.Namespace) -> int:
    """Write the report of benchmark results, or compare them with recorded ratios; returns the exit code."""
    console = Console()
    with user_errors():
        runs = load([Path(path) for path in arguments.results])
        expected = None if arguments.check is None else Ratios.load(Path(arguments.check))
    if expected is not None:
        return _check(console, runs, expected, arguments.check)
    try:
        if arguments.record is not None:
            text = _record(runs, Path(arguments.record))
        else:
            with console.status("drawing, about a picture a second"):
                text = _report(runs, arguments.output)
    except OSError as error:
        raise UserError(sentence(error)) from error
    say(console, text)
    return 0


def _report(runs: Sequence[Results], folder: str) -> str:
    return f"report written to {write_page(runs, Path(folder))}"


def _record(runs: Sequence[Results], path: Path) -> str:
    ratios = record(runs)
    if not ratios.cases:
        raise UserError("--record: found no ratio that varies little enough between the runs, expected at least one")
    with user_errors():
        ratios.save(path)
    ratio_count = sum(len(peers) for peers in ratios.cases.values())
    return f"{counted(ratio_count, 'ratio')} of {counted(len(ratios.cases), 'case')} written to {path}"


def _check(console: Console, runs: Sequence[Results], expected: Ratios, path: str) -> int:
    if runs[0].quick != expected.quick:
        kinds = ("quick", "full") if runs[0].quick else ("full", "quick")
        raise UserError(
            f"--check: found {kinds[0]} runs and the ratios of {kinds[1]} ones in {path}, expected one kind"
        )
    findings = check(runs, expected)
    if not findings:
        raise UserError(f"--check: found no peer of {path} that runs here, expected at least one")
    # What was lost before what was not measured.
    lost = sorted((finding for finding in findings if not finding.holds), key=lambda finding: finding.found is None)
    if lost:
        header = "case, peer: recorded, least, found"
        say(console, "\n".join([header, *map(_line, lost)]))
    threads = runs[-1].machine["threads"]
    if threads != expected.threads:
        say(console, f"measured with {threads} threads, recorded with {expected.threads}: the ratios may differ")
    say(console, f"{len(findings) - len(lost)} of {len(findings)} ratios hold")
    return 1 if lost else 0


def _line(finding: Finding) -> str:
    """One line, however long: what cuts it would cut the name of what was lost."""
    found = "not measured" if finding.found is None else f"{finding.found:.2f}"
    expected = finding.expected
    return f"{finding.case}, {finding.peer}: {expected.ratio:.2f}, {expected.least:.2f}, {found}"
