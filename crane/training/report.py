"""What remains of a run for people: ``curves.png`` and ``report.md``."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from crane.config import EvaluationConfig, RunConfig
from crane.data import Dataset
from crane.data.dataset import SPLITS
from crane.files import write_atomically, write_text
from crane.training.checkpoint import TrainingState
from crane.training.folder import RunFolder


def write_report(folder: RunFolder, config: RunConfig, dataset: Dataset, state: TrainingState) -> None:
    """Write curves and report of a run from its metrics."""
    records = folder.read_metrics(state.epoch)
    _write_curves(folder, config.training.metric, records, state.best_epoch)
    sections = [
        f"# {config.model} on {dataset.name}",
        _results(config.evaluation, records, state),
        "![Loss and validation metric](curves.png)",
        "## Data",
        data_table(dataset),
        "## Time",
        _times(records),
        "## Settings",
        "```yaml\n" + yaml.safe_dump(config.to_mapping(), sort_keys=False, allow_unicode=True) + "```",
        "## Implementations",
        _implementations(folder.read_environment()),
    ]
    write_text(folder.report, "\n\n".join(sections) + "\n")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def data_table(dataset: Dataset) -> str:
    """Counts of a data set, in Markdown."""
    rows: list[tuple[str, str]] = [("users", f"{dataset.n_users:,}"), ("items", f"{dataset.n_items:,}")]
    rows += [(f"{name} interactions", f"{len(getattr(dataset, name)):,}") for name in SPLITS]
    rows += [(f"{name} features", str(matrix.shape[1])) for name, matrix in dataset.features.items()]
    return markdown_table(["", dataset.name], rows)


def _results(evaluation: EvaluationConfig, records: Sequence[dict[str, Any]], state: TrainingState) -> str:
    validation = records[state.best_epoch - 1]["validation"]
    text = [f"Best epoch: {state.best_epoch} of {state.epoch} trained ({state.finished})."]
    for title, values in (("Validation, best epoch", validation), ("Test, weights of that epoch", state.test)):
        if values:
            header = [title, *(f"@{k}" for k in evaluation.ks)]
            text.append(markdown_table(header, evaluation.rows(values)))
    return "\n\n".join(text)


def _times(records: Sequence[dict[str, Any]]) -> str:
    rows = []
    for key, title in (("train_seconds", "training"), ("evaluate_seconds", "evaluation")):
        seconds = [record[key] for record in records if record[key] is not None]
        if seconds:
            rows.append((title, f"{statistics.median(seconds):.3f}", f"{sum(seconds):.1f}"))
    return markdown_table(["", "median seconds an epoch", "seconds in all"], rows)


def _implementations(environment: dict[str, Any]) -> str:
    rows = []
    for name, choice in environment["operations"].items():
        why = "; ".join(f"{other}: {reason}" for other, reason in choice["rejected"].items())
        rows.append((name, choice["implementation"], why))
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    facts = f"{versions}; {environment['processor']}, {environment['threads']} threads."
    return facts + "\n\n" + markdown_table(["operation", "implementation", "why no other"], rows)


def _write_curves(folder: RunFolder, metric: str, records: Sequence[dict[str, Any]], best_epoch: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([r["epoch"] for r in records], [r["loss"] for r in records], label="loss")
    for name in records[0]["parts"]:
        left.plot([r["epoch"] for r in records], [r["parts"][name] for r in records], label=name, linewidth=1)
    left.set(xlabel="epoch", title="training loss")
    left.legend()
    evaluated = [r for r in records if r["validation"] is not None]
    right.plot([r["epoch"] for r in evaluated], [r["validation"][metric] for r in evaluated])
    right.axvline(best_epoch, color="grey", linestyle=":", label=f"best epoch {best_epoch}")
    right.set(xlabel="epoch", title=f"validation {metric}")
    right.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomically(folder.curves, lambda temporary: temporary.write_bytes(image.getvalue()))
