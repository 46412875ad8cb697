"""Every example in README and docs is right: Python runs, commands are run where that is cheap and else parsed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from crane.cli import main
from crane.cli.main import _parser
from crane.cli.train import _configuration

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
FENCE = re.compile(
    r"(?:<!-- not tested: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```", re.M | re.S
)
RUN = {"data", "info", "evaluate", "recommend", "bench"}
OTHER_TOOLS = {"pip", "pytest", "ruff", "mypy", "mkdocs", "python", "cd", "git"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``reason`` says why it cannot be tested, if the page does."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start("text")].count("\n") + 1, found["language"], found["text"], found["reason"])
        for found in FENCE.finditer(text)
    ]


def commands(page: str) -> list[tuple[int, list[str]]]:
    """Line and words of each command of the page's tested bash blocks, without comments and settings of variables."""
    found = []
    for block in blocks(page):
        if block.language == "bash" and block.reason is None:
            for number, line in enumerate(block.text.replace("\\\n", " ").splitlines()):
                words = shlex.split(line, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words = words[1:]
                if words:
                    found.append((block.line + number, words))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what the pages take for granted: data, two trained runs, results of benchmarks."""
    folder = tmp_path_factory.mktemp("pages")
    data = folder / "path" / "to" / "folder"
    data.mkdir(parents=True)
    write_interactions(data)
    write_mmrec(data.parent / "MMRec")
    short = ["--threads", "1", "--set", "training.epochs=1", "training.eval_every=1"]
    assert main(["train", "--data", str(data), "--output", str(folder / "runs" / "mine"), *short]) == 0
    assert main(["train", "--data", "demo", "--output", str(folder / "runs" / "demo"), *short]) == 0
    write_results(folder / "results.json")
    (folder / "benchmarks").mkdir()
    for name in ("ratios.json", "ratios-quick.json"):
        assert main(["bench", str(folder / "results.json"), "--record", str(folder / "benchmarks" / name)]) == 0
    return folder


def write_interactions(data: Path) -> None:
    """Two groups of users who take items of their own group, in the plain format, and features of the items."""
    generator = np.random.default_rng(0)
    users = ["B00A1", "B00B2", *(f"u{n}" for n in range(28))]
    pairs = [
        f"{user},i{2 * item + number % 2}"
        for number, user in enumerate(users)
        for item in generator.choice(20, 8, replace=False)
    ]
    (data / "interactions.csv").write_text("\n".join(["user,item", *pairs]) + "\n")
    (data / "item_ids.txt").write_text("".join(f"i{n}\n" for n in range(40)))
    for name in ("image", "text"):
        np.save(data / f"{name}_feat.npy", generator.standard_normal((40, 8), dtype=np.float32))


def write_mmrec(toolbox: Path) -> None:
    """An MMRec folder with a small data set and configuration files."""
    data, generator = toolbox / "data" / "baby", np.random.default_rng(0)
    data.mkdir(parents=True)
    rows = [f"{user}\t{item}\t0" for user in range(30) for item in generator.choice(40, 6, replace=False)]
    (data / "baby.inter").write_text("\n".join(["userID\titemID\tx_label", *rows]) + "\n")
    for name in ("image", "text"):
        np.save(data / f"{name}_feat.npy", generator.standard_normal((40, 8), dtype=np.float32))
    overall = "learning_rate: 0.001\nmetrics: [Recall, NDCG]\ntopk: [10, 20]\nvalid_metric: Recall@20\nseed: [999]\n"
    files = {"overall": overall, "dataset/baby": "inter_file_name: baby.inter\n", "model/CRANE": "n_mm_layers: 1\n"}
    for name, text in {**files, "model/FREEDOM": "dropout: [0.8, 0.9]\n"}.items():
        path = toolbox / "src" / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_results(path: Path) -> None:
    """What a run of one benchmark leaves."""
    info = {
        **dict.fromkeys(("operation", "case", "scale", "unit", "implementation"), "x"),
        **{"backend": "cpu", "size": 1, "seconds": 1.0, "peak_bytes": None, "not_run": {}, "quick": False},
        "peers": {"y": {"seconds": 2.0, "ratio": 2.0, "peak_bytes": None}},
    }
    facts = {"processor": "p", "cores": 1, "threads": 1, "instruction_set": None, "devices": ["cpu"], "versions": {}}
    facts["versions"] = {"torch": "2.13.0"}
    document = {
        "benchmarks": [{"extra_info": info}],
        "machine_info": {"crane": facts},
        "limits": {},
        "not_run": [],
        "datetime": "2026-01-02T03:04:05",
    }
    path.write_text(json.dumps(document))


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, entered."""
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page: str, there: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            source = "\n" * (block.line - 1) + block.text  # a traceback then shows the page's own line
            exec(compile(source, str(ROOT / page), "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_commands_work(page: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            (there / "settings.yaml").write_text(block.text)
    for line, words in commands(page):
        assert words[0] == "crane" or words[0] in OTHER_TOOLS, f"{page}:{line}: {words[0]} is no command known here"
        if words[0] != "crane":
            continue
        arguments = _parser().parse_args(words[1:])
        if arguments.command in RUN:
            code = main(words[1:])
            assert code == 0, f"{page}:{line}: {shlex.join(words)}: {capsys.readouterr().err}"
        elif arguments.resume is None:
            _configuration(arguments)


def test_pages_hold_examples() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert sum(block.language == "python" for block in found) >= 3
    assert sum(len(commands(page)) for page in PAGES) >= 10


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = re.sub(FENCE, "", (ROOT / page).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
