"""Every figure in README and docs is one of the published report, rounded to two digits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "report" / "index.html"
COO = "torch.sparse COO, uncoalesced"
SHUFFLED = "torch.sparse COO, in random order"
MODALITIES = "swap, training step, attention over modalities"
BACKWARD = "forward and backward"

# Beginning of a table's row: title and scale of the case in the report, and the peers whose ratios it gives.
README = {
    "an epoch of LightGCN": ("epoch, lightgcn, part of an epoch", "amazon-baby", ["research code"]),
    "an epoch of CRANE": ("epoch, crane, part of an epoch", "amazon-baby", ["research code"]),
    "evaluation": ("evaluation, part of the users", "amazon-baby", ["metrics in Python"]),
    "`spmm`, forward |": ("spmm, forward", "amazon-baby", ["torch.sparse CSR", COO, SHUFFLED]),
    "`spmm`, forward and": (f"spmm, {BACKWARD}", "amazon-baby", ["torch.sparse CSR", COO, SHUFFLED]),
    "`propagate`": (f"propagate, {BACKWARD}", "amazon-baby", ["torch.sparse CSR", COO, SHUFFLED]),
    "`recursive_cross_modal_attention`": (
        f"recursive_cross_modal_attention, {BACKWARD}", "baby", ["direct form in plain PyTorch"],
    ),
    "`modality_attention`": (f"modality_attention, {BACKWARD}", "baby", ["nn.MultiheadAttention"]),
    "`info_nce`": (f"info_nce, {BACKWARD}", "2,048 rows", ["plain PyTorch"]),
    "`masked_topk`": ("masked_topk", "baby", ["blocks of scores and torch.topk"]),
    "`prune_edges`": ("sampling, pruning", "baby", ["loop over users"]),
    "`sample_negatives`": ("sampling, negatives of a batch", "baby", ["loop over users"]),
}  # fmt: skip
SWAP = {
    "over an item's modalities": (f"{MODALITIES}, 4096-wide images", "amazon-baby", ["before"]),
    "the same": (f"{MODALITIES}, 192-wide features", "amazon-baby", ["before"]),
    "over all items": ("swap, training step, attention over items, 4096-wide images", "amazon-baby", ["before"]),
    "none: LightGCN": ("swap, training step, LightGCN", "amazon-baby", ["before"]),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What the report says of a peer: its time and memory as printed, and how many times as fast this package is."""

    cost: str
    ratio: float


@dataclass(frozen=True)
class Case:
    """A case of the report at a scale: this package's time and memory as printed, and its peers."""

    cost: str
    peers: dict[str, Cell]


def cases() -> dict[tuple[str, str], Case]:
    """The report's cases by title and scale."""
    found = {}
    text = REPORT.read_text(encoding="utf-8")
    for title, body in re.findall(r"<h3>(.*?)</h3>(.*?)(?=<h[23]|</body>)", text, re.S):
        table = body[body.index("<table") : body.index("</table>")]
        header = [unescape(name) for name in re.findall(r"<th>(.*?)</th>", table)]
        for row in re.findall(r"<tr>(<td>.*?)</tr>", table, re.S):
            scale, _, ours, _, _, *others = re.findall(r"<td>(.*?)</td>", row, re.S)
            peers = {
                name: Cell(re.findall(r"<small>(.*?)</small>", cell)[-1], float(cell.partition("×")[0]))
                for name, cell in zip(header[5:], others, strict=True)
                if "×" in cell
            }
            found[unescape(title), unescape(scale)] = Case(re.sub(r"<small>(.*?)</small>", r", \1", ours), peers)
    return found


def table_row(page: str, beginning: str) -> list[str]:
    """The cells of the page's only table row that begins so."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(beginning)}.*$", text, re.M)
    return [cell.strip() for cell in row.strip("|").split("|")]


def rounded(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{float(f'{value:.2g}'):.0f}"


FIGURES = [("README.md", row) for row in README] + [("docs/swap.md", row) for row in SWAP]


@pytest.mark.parametrize(("page", "beginning"), FIGURES)
def test_ratios_are_the_report_s(page: str, beginning: str) -> None:
    title, scale, peers = (README if page == "README.md" else SWAP)[beginning]
    measured = cases()[title, scale].peers
    assert table_row(page, beginning)[-1] == " / ".join(rounded(measured[peer].ratio) for peer in peers)


@pytest.mark.parametrize("order", ["in random order", "by rows"])
def test_ratios_of_ten_products_are_the_report_s(order: str) -> None:
    found = cases()
    expected = [
        rounded(found[f"swap, ten products, entries {order}, {case}", "amazon-baby"].peers["torch.sparse.mm"].ratio)
        for case in ("forward", BACKWARD)
    ]
    assert table_row("docs/swap.md", order)[1:] == expected


@pytest.mark.parametrize("beginning", SWAP)
def test_times_and_memory_of_steps_are_the_report_s(beginning: str) -> None:
    title, scale, _ = SWAP[beginning]
    case = cases()[title, scale]
    assert table_row("docs/swap.md", beginning)[1:3] == [case.peers["before"].cost, case.cost]
