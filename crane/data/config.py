"""What to load, and how to split it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Format = Literal["auto", "mmrec", "recbole", "plain"]
Split = Literal["random", "time"]
InvalidFeatures = Literal["refuse", "mean"]
DEMO = "demo"
_CHOICES = {"format": get_args(Format), "split": get_args(Split), "invalid_features": get_args(InvalidFeatures)}


@dataclass(frozen=True)
class DataConfig:
    """Where interactions and features come from. ``docs/data.md`` describes the formats.

    Attributes:
        path: a folder or a file; ``"demo"`` is the generated data set (a folder of that name is ``"./demo"``).
        format: ``"auto"`` tells the formats apart by file names and the header of the ``.inter`` file.
        modalities: ``"auto"`` takes every feature file found beside the interactions; a mapping of modality to file
            (relative to the folder) takes those, in that order; an empty mapping takes none.
        split: ``"random"`` or ``"time"``, both within each user; MMRec data bring their own split.
        ratios: shares of training, validation and test, in any scale.
        seed: of the random split, and of the generated data set.
        k_core: drop users and items with fewer interactions than this until none is left; 0 keeps all. Not for MMRec.
        invalid_features: what to do with feature rows that hold NaN or infinity: ``"refuse"`` names the first,
            ``"mean"`` replaces them by the mean of the valid rows.
        user_column, item_column, timestamp_column: names in the interactions' header, without RecBole's type; empty
            for the format's own (``user``, ``item``, ``timestamp``; ``userID``, ``itemID``; ``user_id``, ``item_id``).
    """

    path: str = DEMO
    format: Format = "auto"
    modalities: Literal["auto"] | dict[str, str] = "auto"
    split: Split = "random"
    ratios: tuple[float, float, float] = (8.0, 1.0, 1.0)
    seed: int = 0
    k_core: int = 0
    invalid_features: InvalidFeatures = "refuse"
    user_column: str = ""
    item_column: str = ""
    timestamp_column: str = ""

    def __post_init__(self) -> None:
        """Check what the types leave open.

        Raises:
            ValueError: ``path`` is empty, or a choice, the ratios, ``seed`` or ``k_core`` is out of its range.
        """
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"data.{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        if not self.path:
            raise ValueError(f"data.path is empty, expected a folder, a file or {DEMO!r}")
        train, *rest = self.ratios
        if len(rest) != 2 or not train > 0 or not all(0 <= ratio < float("inf") for ratio in self.ratios):
            raise ValueError(f"data.ratios is {self.ratios}, expected three numbers of 0 or more, the first above 0")
        for name in ("seed", "k_core"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} is {getattr(self, name)}, expected 0 or more")
