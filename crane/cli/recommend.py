"""``crane recommend``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import pyarrow as pa
from rich.console import Console

from crane.cli.errors import user_errors
from crane.cli.tables import plain_table
from crane.console import say
from crane.files import read_lines
from crane.recommend import check_table_path, load, save_table
from crane.training.environment import operations
from crane.words import counted, listed

_PRINTED_ROWS = 100
_PRINTED_BESIDE_FILE = 5


def run(arguments: argparse.Namespace) -> int:
    """Recommend items to users: print a table, and write a file when asked to; returns the exit code."""
    with user_errors():
        operations()  # refuses those that CRANE_IMPLEMENTATION asks for and that cannot run
        output = None if arguments.output is None else Path(arguments.output)
        if output is not None:
            check_table_path(output)
        users = _read_users(arguments.users)
        table = load(arguments.run).recommend(users, arguments.k, arguments.mask)
        if output is not None:
            save_table(table, output)
    console = Console()
    if output is None:
        _print(console, table, _PRINTED_ROWS, "; --output writes them all")
    else:
        _print(console, table, _PRINTED_BESIDE_FILE, "")
        say(console, f"{counted(table.num_rows, 'row')} written to {output}")
    if users != "all":
        _say_who_has_none(console, users, table)
    return 0


def _read_users(text: str) -> list[str] | Literal["all"]:
    """The ids that ``--users`` names, each once."""
    if text == "all":
        return "all"
    if text == "@":
        raise ValueError("users: found '@' without the name of a file after it")
    names = _read_lines(Path(text[1:])) if text.startswith("@") else text.split(",")
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def _read_lines(path: Path) -> list[str]:
    try:
        return read_lines(path)
    except OSError as error:
        raise ValueError(f"users: the file {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"users: the file {str(path)!r} is not UTF-8 text, expected one id a line") from error


def _say_who_has_none(console: Console, users: list[str], table: pa.Table) -> None:
    served = set(table["user"].unique().to_pylist())
    names = [user for user in users if user not in served]
    if names:
        say(console, f"no item is left for {counted(len(names), 'user')}: {listed(names)}")


def _print(console: Console, table: pa.Table, most: int, advice: str) -> None:
    shown = table.slice(0, most).to_pylist()
    rows = [(row["user"], row["rank"], row["item"], f"{row['score']:.4f}") for row in shown]
    console.print(plain_table(["user", "rank", "item", "score"], rows))
    if table.num_rows > len(rows):
        text = f"and {counted(table.num_rows - len(rows), 'more row')}{advice}"
        say(console, text)
