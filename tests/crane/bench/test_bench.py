"""The report and the regression guard, on results written by hand."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from crane.bench import Ratios, Results, check, record, write_page
from crane.bench import load as load_runs
from crane.bench.results import exponent, merged
from crane.cli import main

SCALES = {"baby": 1000, "sports": 2000, "elec": 8000}
MACHINE = {
    "crane": {
        "processor": "a processor <&>",
        "cores": 2,
        "threads": 2,
        "instruction_set": "avx2",
        "devices": ["cpu"],
        "versions": {"torch": "2.13.0", "triton": None},
    },
}
LIMITS = {"cpu": {"stream": 3e10, "gather": {"1048576": 6e10}, "matmul": 1e11}}


def entry(scale: str, **changes: Any) -> dict[str, Any]:
    """One benchmark of the JSON: spmm at a scale, three times as fast as one peer and half as fast as another."""
    size = SCALES[scale]
    seconds = 1e-6 * size
    info = {
        "operation": "spmm",
        "case": "forward",
        "scale": scale,
        "backend": "cpu",
        "size": size,
        "unit": "edges",
        "implementation": "cpp",
        "seconds": seconds,
        "peak_bytes": 256 * size,
        "fraction": 0.5,
        "bound": "gather",
        "peers": {
            "slow": {"seconds": 3 * seconds, "ratio": 3.0, "peak_bytes": 512 * size},
            "fast": {"seconds": seconds / 2, "ratio": 0.5, "peak_bytes": None},
        },
        "not_run": {"torch_sparse": "not installed"},
        "quick": False,
    }
    return {"name": "x", "extra_info": info | changes}


def write(path: Path, entries: list[dict[str, Any]], **changes: Any) -> Path:
    skipped = {"name": "n", "operation": "spmm", "scale": "baby", "backend": "cuda", "reason": "no CUDA device"}
    document = {"benchmarks": entries, "machine_info": MACHINE, "limits": LIMITS, "not_run": [skipped]}
    path.write_text(json.dumps(document | {"datetime": "2026-01-02T03:04:05", "interrupted": False} | changes))
    return path


def load(path: Path) -> Results:
    return load_runs([path])[0]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write(tmp_path / "results.json", [entry(scale) for scale in SCALES])


def with_ratio(path: Path, ratio: float) -> Path:
    peers = {"slow": {"seconds": 1.0, "ratio": ratio, "peak_bytes": None}}
    return write(path, [entry("baby", peers=peers)])


class _Page(HTMLParser):
    """Collects tags, what they refer to, and the cells of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self._in_cell = tag == "td" or (self._in_cell and tag == "small")
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


def test_page_is_self_contained_and_complete(results: Path, tmp_path: Path) -> None:
    path = write_page([load(results)], tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert path.name == "index.html"
    assert all(reference.startswith("#") for reference in page.references)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert page.tags.count("svg") == 3  # overview, limits, spmm
    assert page.tags.count("table") >= 1 + page.tags.count("svg")
    assert "a processor <&>, 2 cores, 2 threads used" in page.cells
    assert "8,000" in page.cells
    assert "3×24 ms, 3.9 MiB" in page.cells
    assert "0.5×4 ms, memory unknown" in page.cells
    assert "not run: no CUDA device" in page.cells
    assert "torch_sparse: not run, not installed." in text
    assert "∝ n^1.00" in text
    ticks = [part.partition("<")[0] for part in text.replace("</text>", "<").split(">")]
    assert {"5 ms", "5 k", "1 MB"} <= set(ticks)


def test_pictures_are_transparent_and_follow_the_page(results: Path, tmp_path: Path) -> None:
    folder = write_page([load(results)], tmp_path / "report").parent
    names = {path.name for path in folder.glob("*.png")}
    assert names == {"speed-up.png", "fraction-of-limit.png", "spmm-forward.png"}
    for name in names:
        picture = matplotlib.image.imread(folder / name)
        assert picture.shape[2] == 4
        assert picture[0, 0, 3] == 0
        assert picture[..., 3].max() == 1
    text = (folder / "index.html").read_text(encoding="utf-8")
    for svg in text.split("<svg")[1:]:
        element = ET.fromstring("<svg" + svg.partition("</svg>")[0] + "</svg>")
        assert element.get("viewBox")
        assert "var(--ink)" in svg


def test_identifiers_of_pictures_do_not_clash(results: Path, tmp_path: Path) -> None:
    text = write_page([load(results)], tmp_path / "report").read_text(encoding="utf-8")
    pictures = [{part.split('"')[0] for part in svg.split(' id="')[1:]} for svg in text.split("<svg")[1:]]
    for number, found in enumerate(pictures):
        assert all(not found & other for other in pictures[number + 1 :])


def test_a_case_of_several_runs_counts_by_its_medians(results: Path, tmp_path: Path) -> None:
    peers = {"slow": {"seconds": 9.0, "ratio": 5.0, "peak_bytes": None}}
    later = [entry("elec", seconds=seconds, peers=peers) for seconds in (1.0, 2.0)]
    runs = [results, *(write(tmp_path / f"{n}.json", [run]) for n, run in enumerate(later))]
    found = merged([load(path) for path in runs])
    baby, sports, elec = found.rows
    assert (elec.seconds, elec.peers["slow"].seconds, elec.peers["slow"].ratio) == (1.0, 9.0, 5.0)
    assert elec.peers["slow"].peak_bytes == 512 * 8000
    assert elec.peers["fast"].ratio == 0.5
    assert (baby.seconds, sports.seconds) == (1e-3, 2e-3)
    page = write_page([load(path) for path in runs], tmp_path / "report").read_text(encoding="utf-8")
    assert "1 s<small>" in page
    assert "8 ms<small>" not in page
    assert "medians of 3 runs" in page


def test_the_ratios_of_several_runs_are_shown_with_their_range(results: Path, tmp_path: Path) -> None:
    runs = [load(with_ratio(tmp_path / f"{value}.json", value)) for value in (4.0, 2.5, 3.0)]
    found = merged([merged(runs[:2]), runs[2]]).rows[0].peers["slow"]
    assert sorted(found.ratios) == [2.5, 3.0, 4.0]
    assert found.ratio == 3.0
    assert "3×<small>2.5× to 4×</small>" in write_page(runs, tmp_path / "several").read_text(encoding="utf-8")
    assert "× to " not in write_page(runs[:1], tmp_path / "one").read_text(encoding="utf-8")


def test_a_peer_that_ran_once_is_not_said_to_be_missing(tmp_path: Path) -> None:
    absent = write(tmp_path / "absent.json", [entry("baby", peers={}, not_run={"slow": "not installed"})])
    (row,) = merged([load(with_ratio(tmp_path / "present.json", 4.0)), load(absent)]).rows
    assert row.peers["slow"].ratio == 4.0
    assert row.not_run == {"torch_sparse": "not installed"}


def test_overview_shows_the_largest_scale_that_has_peers(tmp_path: Path) -> None:
    runs = [load(write(tmp_path / "results.json", [entry("baby"), entry("elec", peers={})]))]
    page = write_page(runs, tmp_path / "report").read_text(encoding="utf-8")
    overview = page[page.index('id="overview"') : page.index('id="limits"')]
    assert "spmm, forward, baby" in overview
    assert "spmm, forward, elec" not in overview


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    bare = entry("baby", peak_bytes=None, peers={}, fraction=None, bound=None)
    page = write_page([load(write(tmp_path / "results.json", [bare]))], tmp_path / "report").read_text(encoding="utf-8")
    assert "not measured" in page
    assert "memory unknown" in page


def test_exponent() -> None:
    assert exponent((n, 3 * n**1.5) for n in (10, 100, 1000)) == pytest.approx(1.5)
    assert exponent([(10, 1), (100, 2)]) is None
    assert exponent([(10, 1), (100, 2), (100, 3)]) is None


def test_record_tolerates_what_runs_differ_by_and_leaves_out_noise(tmp_path: Path) -> None:
    runs = [load(with_ratio(tmp_path / f"{n}.json", ratio)) for n, ratio in enumerate((4.0, 3.0, 4.4))]
    found = record(runs)
    ratio = found.cases["spmm, forward, baby"]["slow"]
    assert (ratio.ratio, ratio.tolerance) == (4.0, 0.375)
    assert (found.threads, found.torch) == (2, "2.13.0")
    steady = record(runs[:1]).cases["spmm, forward, baby"]["slow"]
    assert (steady.ratio, steady.tolerance) == (4.0, 0.2)
    wild = [load(with_ratio(tmp_path / f"w{n}.json", ratio)) for n, ratio in enumerate((4.0, 1.0, 4.4))]
    assert record(wild).cases == {}


@pytest.mark.parametrize(("ratio", "holds"), [(4.0, True), (3.21, True), (3.19, False), (9.0, True)])
def test_a_fifth_may_be_lost(tmp_path: Path, ratio: float, holds: bool) -> None:
    expected = record([load(with_ratio(tmp_path / "before.json", 4.0))])
    (finding,) = check([load(with_ratio(tmp_path / "now.json", ratio))], expected)
    assert finding.holds is holds


def test_the_best_of_two_runs_counts(tmp_path: Path) -> None:
    expected = record([load(with_ratio(tmp_path / "before.json", 4.0))])
    runs = [load(with_ratio(tmp_path / f"{ratio}.json", ratio)) for ratio in (4.1, 1.0)]
    (finding,) = check(runs, expected)
    assert finding.found == 4.1


def test_a_case_that_is_gone_fails_and_a_peer_that_is_not_installed_does_not(tmp_path: Path) -> None:
    expected = record([load(with_ratio(tmp_path / "before.json", 4.0))])
    gone = load(write(tmp_path / "gone.json", [entry("elec")]))
    assert [finding.holds for finding in check([gone], expected)] == [False]
    absent = load(write(tmp_path / "absent.json", [entry("baby", peers={}, not_run={"slow": "not installed"})]))
    assert check([absent], expected) == []
    expected.save(tmp_path / "ratios.json")
    assert main(["bench", str(tmp_path / "absent.json"), "--check", str(tmp_path / "ratios.json")]) == 2


def test_ratios_survive_their_file(tmp_path: Path) -> None:
    expected = record([load(with_ratio(tmp_path / "before.json", 4.0))])
    expected.save(tmp_path / "ratios.json")
    assert Ratios.load(tmp_path / "ratios.json") == expected


def test_command(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratios, report = str(tmp_path / "ratios.json"), tmp_path / "report"
    assert main(["bench", str(results), "--output", str(report)]) == 0
    assert (report / "index.html").is_file()
    assert main(["bench", str(results), "--record", ratios]) == 0
    assert "6 ratios of 3 cases" in capsys.readouterr().out
    assert main(["bench", str(results), "--check", ratios]) == 0
    assert "6 of 6 ratios hold" in capsys.readouterr().out
    assert main(["bench", str(results), "--record", ratios]) == 0  # in the place of the former


def test_command_fails_on_a_loss_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, now = with_ratio(tmp_path / "before.json", 4.0), with_ratio(tmp_path / "now.json", 2.0)
    ratios = str(tmp_path / "ratios.json")
    assert main(["bench", str(before), "--record", ratios]) == 0
    assert main(["bench", str(now), "--check", ratios]) == 1
    output = capsys.readouterr().out
    assert "spmm, forward, baby, slow: 4.00, 3.20, 2.00" in output
    assert "0 of 1 ratios hold" in output


def test_command_says_when_threads_differ(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratios = tmp_path / "ratios.json"
    assert main(["bench", str(results), "--record", str(ratios)]) == 0
    ratios.write_text(ratios.read_text().replace('"threads": 2', '"threads": 8'))
    assert main(["bench", str(results), "--check", str(ratios)]) == 0
    assert "2 threads, recorded with 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        *(b"not json", b"\xff\xfe\xff", b"[" * 100_000, b"{}", b"[]", b"null", b'{"benchmarks": {}}'),
        b'{"benchmarks": [], "machine_info": {}, "not_run": []}',
    ],
)
def test_command_refuses_what_are_no_results(
    tmp_path: Path, text: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.json").write_bytes(text)
    assert main(["bench", "wrong.json"]) == 2
    assert "wrong.json: found no results of these benchmarks (" in capsys.readouterr().err
    assert main(["bench", "wrong.json", "--check", "wrong.json"]) == 2
    assert os.listdir() == ["wrong.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("seconds", "size", "operation", "quick", "peers") for value in (None, [])),
        *(("seconds", value) for value in (0, -1.0, math.nan, math.inf, "1", True)),
        *(("size", value) for value in (-1, 1.5, True)),
        *(("fraction", value) for value in ("1", -1.0)),
        *(("peak_bytes", value) for value in ("1", -1, 1.5)),
        ("not_run", ["x"]),
        ("not_run", {"x": 1}),
        ("peers", {"slow": None}),
        *(("peers", {"slow": {"seconds": 1.0, "ratio": value}}) for value in (None, "3", 0, math.nan, math.inf)),
    ],
)
def test_command_refuses_cases_of_wrong_values(
    tmp_path: Path, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "wrong.json", [entry("baby", **{name: value})])
    for action in (["--output", str(tmp_path / "report")], ["--record", str(tmp_path / "ratios.json")]):
        assert main(["bench", str(path), *action]) == 2
        assert f"{path}: found no results of these benchmarks (" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "changes",
    [
        *({"datetime": value} for value in (None, 3)),
        *({"not_run": value} for value in (None, ["x"], [{}], [{"operation": "x", "backend": 1, "reason": "y"}])),
        *({"limits": value} for value in (None, {"cpu": {}}, {"cpu": {**LIMITS["cpu"], "gather": {"x": 1}}})),
        *({"machine_info": value} for value in (None, {}, {"crane": {}}, {"crane": MACHINE["crane"] | {"cores": "2"}})),
        {"machine_info": {"crane": MACHINE["crane"] | {"devices": [3]}}},
        {"machine_info": {"crane": MACHINE["crane"] | {"versions": {}}}},
    ],
)
def test_command_refuses_runs_of_wrong_values(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "wrong.json", [entry("baby")], **changes)
    assert main(["bench", str(path), "--output", str(tmp_path / "report")]) == 2
    assert f"{path}: found no results of these benchmarks (" in capsys.readouterr().err


def test_command_refuses_what_is_no_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for entries, changes, text in (
        ([entry("baby")], {"interrupted": True}, "found the results of a run that was interrupted"),
        ([entry("baby"), entry("baby")], {}, "the case spmm, forward, baby is there twice"),
        ([entry("baby"), entry("elec", quick=True)], {}, "some cases are of a quick run"),
    ):
        path = write(tmp_path / "wrong.json", entries, **changes)
        assert main(["bench", str(path), "--output", str(tmp_path / "report")]) == 2
        assert text in capsys.readouterr().err


def test_command_refuses_runs_that_do_not_go_together(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick, ratios = write(tmp_path / "quick.json", [entry("baby", quick=True)]), str(tmp_path / "ratios.json")
    assert main(["bench", str(results), str(quick)]) == 2
    assert "found quick runs beside others" in capsys.readouterr().err
    assert main(["bench", str(results), str(tmp_path / "." / results.name)]) == 2
    assert "found the same file twice" in capsys.readouterr().err
    assert main(["bench", str(results), "--record", ratios]) == 0
    assert main(["bench", str(quick), "--check", ratios]) == 2
    assert "found quick runs and the ratios of full ones" in capsys.readouterr().err


def test_command_takes_nothing_but_ratios_for_ratios(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results.read_bytes()
    for action in ("--record", "--check"):
        assert main(["bench", str(results), action, str(results)]) == 2
        assert "found no ratios" in capsys.readouterr().err
    assert results.read_bytes() == before


def test_command_refuses_results_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(write(tmp_path / "empty.json", []))]) == 2
    assert "found no measured case" in capsys.readouterr().err


def test_command_says_what_cannot_be_written(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bench", str(results), "--output", str(tmp_path / "file")]) == 2
    assert "file: Not a directory" in capsys.readouterr().err
    assert main(["bench", str(results), "--record", str(tmp_path / "no" / "ratios.json")]) == 2
    assert "no/ratios.json: No such file or directory" in capsys.readouterr().err
    assert main(["bench", str(results), "--record", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == {results, tmp_path / "file"}


@pytest.mark.parametrize(
    "changes",
    [
        *({"cases": value} for value in (None, {}, {"x": {}}, {"x": 1}, {"x": {"y": 1}}, {"x": {"y": {"ratio": 1}}})),
        *({"cases": {"x": {"y": {"ratio": value, "tolerance": 0.2}}}} for value in (None, "1", math.nan, 0)),
        *({"cases": {"x": {"y": {"ratio": 2, "tolerance": value}}}} for value in (None, "1", math.nan, 1, -1)),
        *({"threads": value} for value in (None, "two")),
        {"quick": 1},
        {"torch": None},
    ],
)
def test_command_refuses_what_are_no_ratios(
    results: Path, tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ratios.json"
    right = {"threads": 2, "torch": "2", "quick": False, "cases": {"x": {"y": {"ratio": 2, "tolerance": 0.2}}}}
    path.write_text(json.dumps(right | changes))
    assert main(["bench", str(results), "--check", str(path)]) == 2
    assert f"{path}: found no ratios (" in capsys.readouterr().err
