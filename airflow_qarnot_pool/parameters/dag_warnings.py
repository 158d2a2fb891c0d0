"""Warn of parts of a DAG, at their line in the DAG file."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import airflow.sdk

#: Folders of the code between the DAG file and a warning.
_NOT_THE_DAG = (str(Path(__file__).parent.parent), str(Path(airflow.sdk.__file__).parent))


class QarnotCommandWarning(UserWarning):
    """A command has shell characters but does not run in a shell."""


class QarnotDefaultArgsWarning(UserWarning):
    """A name in ``default_args`` is almost that of a parameter, and no operator of the DAG has it."""


def warn_at_the_dag(message: str, category: type[Warning]) -> None:
    """Warn at the line of the DAG file that is being parsed."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_DAG):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
