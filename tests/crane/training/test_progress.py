"""What people see of a training."""

import io

import torch
from rich.console import Console

from crane.training.progress import BarReporter, LineReporter, console_reporter

RECORD = {
    "epoch": 1,
    "loss": 0.5,
    "validation": {"recall@20": 0.25},
    "train_seconds": 1.0,
    "evaluate_seconds": 0.5,
}


def test_a_terminal_gets_a_bar_and_a_line_an_epoch() -> None:
    stream = io.StringIO()
    reporter = console_reporter(Console(file=stream, force_terminal=True, width=120, color_system=None))
    assert isinstance(reporter, BarReporter)
    with reporter:
        reporter.start(epochs=2, steps=3, done=0)
        reporter.read_at -= 1  # the loss is read for display again
        reporter.step(torch.tensor(0.75))
        assert reporter.bar.tasks[0].fields["loss"] == "0.7500"
        reporter.step(torch.tensor(0.5))
        assert (reporter.bar.tasks[0].completed, reporter.bar.tasks[0].total) == (2, 6)
        reporter.epoch(RECORD, "recall@20", (1, 0.25))
        assert reporter.bar.tasks[0].fields["epoch"] == "2/2"
        assert reporter.bar.tasks[0].fields["metric"] == "best recall@20 0.2500"
    assert "epoch 1/2  loss 0.5000  recall@20 0.2500  (best 0.2500 at 1)  1.50 s" in stream.getvalue()


def test_elsewhere_there_is_one_line_an_epoch_of_any_length() -> None:
    stream = io.StringIO()
    reporter = console_reporter(Console(file=stream, width=20))
    assert isinstance(reporter, LineReporter)
    with reporter:
        reporter.start(epochs=3, steps=3, done=0)
        reporter.step(torch.tensor(0.75))
        reporter.epoch(RECORD, "recall@20", (1, 0.25))
    line = "epoch 1/3  loss 0.5000  recall@20 0.2500  (best 0.2500 at 1)  1.50 s  at most 0:00:03 left"
    assert stream.getvalue() == line + "\n"
