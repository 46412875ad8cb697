"""The ``crane`` command.

Exit codes: 0 done; 1 something failed while working; 2 what was asked for cannot be done, said in one sentence on
standard error before anything is written; 130 interrupted; 143 ended by SIGTERM.
"""

from crane.cli.main import main

__all__ = ["main"]
