"""Finding out what lies at a path, and loading it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from crane.data.config import DEMO, DataConfig
from crane.data.dataset import Dataset
from crane.data.demo import demo_dataset
from crane.data.mmrec import load_mmrec
from crane.data.plain import INTERACTIONS, load_plain
from crane.data.recbole import load_recbole
from crane.data.table import PARQUET_SUFFIXES, Source

_LOADERS = {"mmrec": load_mmrec, "recbole": load_recbole, "plain": load_plain}
_PLAIN = tuple(INTERACTIONS + suffix for suffix in (".csv", ".tsv", *PARQUET_SUFFIXES))


def load_dataset(config: DataConfig) -> Dataset:
    """Load what ``config`` describes (see ``docs/data.md``).

    Raises:
        ValueError: one sentence that names the file, and the row where there is one.
    """
    if config.path == DEMO:
        _refuse_settings_of_files(config)
        return demo_dataset(config.seed)
    path = _interactions_file(Path(config.path).expanduser(), config)
    kind = _detect(path) if config.format == "auto" else config.format
    return _LOADERS[kind](path, config)


def _refuse_settings_of_files(config: DataConfig) -> None:
    for name, value in asdict(replace(DataConfig(), path=config.path, seed=config.seed)).items():
        found = getattr(config, name)
        if found != value:
            raise ValueError(f"data.{name} is {found!r}, but {DEMO} is generated, expected the default, {value!r}")


def _interactions_file(path: Path, config: DataConfig) -> Path:
    """The file itself, or the interactions in the folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"data.path is {config.path!r}, which is neither a folder nor a file nor {DEMO!r}")
    atomic = [] if config.format == "plain" else sorted(path.glob("*.inter"))
    tables = sorted(file for file in path.iterdir() if file.name.lower() in _PLAIN)
    plain = [] if config.format in ("mmrec", "recbole") else tables
    found = atomic or plain
    named = [file for file in found if file.stem == path.resolve().name]
    if len(named) == 1 or len(found) == 1:
        return (named or found)[0]
    if found:
        raise ValueError(
            f"data.path is {config.path!r}, which has {', '.join(f.name for f in found)}: name one of them"
        )
    expected = {"plain": _PLAIN[0], "auto": f"NAME.inter or {_PLAIN[0]}"}.get(config.format, "NAME.inter")
    raise ValueError(f"data.path is {config.path!r}, a folder without interactions, expected {expected} in it")


def _detect(path: Path) -> str:
    if path.suffix != ".inter":
        return "plain"
    return "recbole" if any(":" in name for name in Source.of(path).header()) else "mmrec"
