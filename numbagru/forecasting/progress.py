"""Progress of several trainings in one bar."""

from __future__ import annotations

import sys
from typing import Any

from numbagru.training.callbacks import Callback


class Stages:
    """Shows which training runs: a tqdm bar, or a line for each.

    Lines when tqdm is not installed or standard error is no terminal.

    Parameters
    ----------
    count : int
        Number of trainings.
    quiet : bool, default False
        Show nothing.

    Notes
    -----
    Writes to standard error. Use as a context manager; call with the title of each
    training to get its callbacks.
    """

    def __init__(self, count: int, quiet: bool = False) -> None:
        self.count = count
        self.quiet = quiet
        self._bar: Any = None
        self._started = 0

    def __enter__(self) -> Stages:
        """Open the bar."""
        if not self.quiet:
            self._bar = _tqdm(self.count)
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            if error[0] is None:
                self._bar.update(self.count - self._bar.n)
            self._bar.close()

    def __call__(self, title: str) -> list[Callback]:
        """Begin a training; return the callbacks that move the bar."""
        self._started += 1
        if self.quiet:
            return []
        title = f"{self._started}/{self.count} {title}"
        if self._bar is None:
            sys.stderr.write(f"{title}\n")
            return []
        self._bar.set_description_str(title)
        self._bar.update(self._started - 1 - self._bar.n)
        return [_Share(self._bar)]


class _Share(Callback):
    """Moves a bar by one over a whole training."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update(1 / (self.params["epochs"] * self.params["steps"]))


def _tqdm(total: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    # Nothing is left of it: the table that follows says it all.
    shape = "{percentage:3.0f}% |{bar:20}| {elapsed} {desc}"
    return tqdm(total=total, bar_format=shape, leave=False)
