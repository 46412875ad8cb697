"""Arguments of the ``crane`` command; each subcommand's module is imported when it is run."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from crane.cli.errors import UserError, user_errors


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence, without the usage around it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # ids hold what a terminal's encoding may not
    try:
        arguments = _parser().parse_args(argv)
        with user_errors():  # crane_kernels reads its environment variables when it is imported
            command = importlib.import_module(f"crane.cli.{arguments.command}")
        code = int(command.run(arguments))
        if sys.stdout is not None:  # it was closed before the process began
            sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse, after --help or a wrong argument
        return int(stop.code or 0)
    except UserError as error:
        print(f"crane {arguments.command}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from crane_kernels.dispatch import UnavailableError  # the command has imported torch by now

        if not isinstance(error, UnavailableError):
            raise
        print(f"crane {arguments.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of what is printed: those of files have been told apart by now
        print(f"crane {arguments.command}: standard output cannot be written: {error.strerror}", file=sys.stderr)
        _give_up_output()
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _give_up_output() -> None:
    """Let the interpreter's own last flush go nowhere, so that it has nothing to complain about."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="crane", description="Train, evaluate and use recommenders for items with images and text.")
    parser.add_argument("--version", action="version", version=f"crane {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_recommend(commands)
    _add_data(commands)
    _add_bench(commands)
    commands.add_parser(
        "info", help="versions, the compiled extension, devices, and what serves each operation", allow_abbrev=False
    )
    return parser


def _path(text: str) -> str:
    """``text``, which is not empty: an empty path would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("found nothing, expected a path")
    return text


def _version() -> str:
    try:
        return importlib.metadata.version("crane-recommender")
    except importlib.metadata.PackageNotFoundError:
        return "(source tree, not installed)"


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    train = commands.add_parser(
        "train",
        help="train a model, into a run folder",
        description="Train a model; all of the run goes into one folder.",
        allow_abbrev=False,
    )
    train.add_argument("--data", metavar="PATH", help="a folder or file of interactions, or 'demo', a generated set")
    train.add_argument("--model", metavar="NAME", help="crane (default), lightgcn, freedom or vbpr")
    train.add_argument("--config", type=_path, metavar="FILE", help="settings in YAML")
    train.add_argument("--mmrec", type=_path, metavar="DIR", help="settings from the configs of an MMRec folder")
    _add_set(train)
    train.add_argument("--seed", type=int, metavar="N", help="seed of all random numbers (default 0)")
    train.add_argument("--output", type=_path, metavar="DIR", help="run folder (default runs/MODEL-DATA-TIME)")
    train.add_argument("--resume", type=_path, metavar="RUN", help="continue the interrupted run in this folder")
    train.add_argument("--threads", type=int, metavar="N", help="CPU threads; results repeat for the same number")


def _add_evaluate(commands: argparse._SubParsersAction[_Parser]) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a trained model on a split", allow_abbrev=False)
    evaluate.add_argument("run", type=_path, metavar="RUN", help="run folder")
    evaluate.add_argument("--split", choices=("test", "validation"), help="default: test once it is finished")
    evaluate.add_argument(
        "--mask-validation", action="store_true", help="at test, rank no item the user has in the validation split"
    )


def _add_recommend(commands: argparse._SubParsersAction[_Parser]) -> None:
    recommend = commands.add_parser("recommend", help="the best unseen items for users", allow_abbrev=False)
    recommend.add_argument("run", type=_path, metavar="RUN", help="run folder")
    recommend.add_argument(
        "--users", required=True, metavar="IDS", help="ids with commas between, @FILE with one a line, or all"
    )
    recommend.add_argument("--k", type=int, default=20, metavar="N", help="items a user (default 20)")
    recommend.add_argument(
        "--mask",
        choices=("all", "train", "none"),
        default="all",
        help="leave out items that the user has in all of the data (default), in the training data, or none",
    )
    recommend.add_argument("--output", type=_path, metavar="FILE", help="write a .csv or .parquet file")


def _add_data(commands: argparse._SubParsersAction[_Parser]) -> None:
    data = commands.add_parser("data", help="load a data set, and say what is in it", allow_abbrev=False)
    data.add_argument("path", metavar="PATH", help="a folder or file of interactions, or 'demo'")
    _add_set(data)


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="make a page of benchmark results, or check them",
        description="Read what pytest benchmarks --benchmark-only --benchmark-json FILE wrote.",
        allow_abbrev=False,
    )
    bench.add_argument(
        "results", metavar="FILE", nargs="+", help="results in JSON; of a case in several files the medians count"
    )
    action = bench.add_mutually_exclusive_group()
    action.add_argument(
        "--output",
        type=_path,
        metavar="DIR",
        default="benchmark-report",
        help="folder of the page and pictures (default: %(default)s)",
    )
    action.add_argument(
        "--check", metavar="RATIOS", help="fail if the best of the results loses too much of a ratio recorded here"
    )
    action.add_argument("--record", metavar="RATIOS", help="record the results' ratios for --check")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a setting by its dotted name, such as training.epochs=10 or model.layers=2",
    )
