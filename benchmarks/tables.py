"""Tables that benchmarks print and keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mtrl.files import write_json_atomic
from mtrl.provenance import library_versions, machine

RESULTS = Path(__file__).parent / "results"


def print_and_keep(
    title: str, rows: Sequence[Mapping[str, object]], *, command: str, name: str
) -> None:
    """Print rows, whose keys are the columns, and keep them as benchmarks/results/NAME.json."""
    table = Table(title=title)
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    Console(width=140).print(table)
    result = {
        "command": command,
        "rows": rows,
        "versions": library_versions(),
        "machine": machine(),
    }
    write_json_atomic(RESULTS / f"{name}.json", result)
