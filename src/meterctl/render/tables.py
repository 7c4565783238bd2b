"""Tables: drawn by rich on a terminal, plain aligned columns everywhere else."""

import os
import sys
from collections.abc import Sequence

NAME_AND_VALUE = 2
"""Columns of a table that is a list of values already."""

WIDEST = 10_000
"""Columns of no terminal: how wide a table would like to be."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, console: bool, colour: bool = True) -> str:
    """Given column heads and rows of text, return the table as text without a newline at its end.

    `console`: for a terminal, fitted to its width; where that would break words, a line for each value instead.
    Numbers are set to the right.
    """
    return _drawn(columns, rows, colour=colour) if console else _plain(columns, rows)


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()


def _right(rows: Sequence[Sequence[str]], index: int) -> bool:
    cells = [row[index] for row in rows if row[index] not in {"", "-"}]
    return bool(cells) and all(map(_is_number, cells))


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    right = [_right(rows, i) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (columns, *rows)
    )


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], *, colour: bool) -> str:
    from rich.console import Console  # noqa: PLC0415 -- cron has no terminal, and need not wait for rich
    from rich.measure import Measurement  # noqa: PLC0415 -- as above
    from rich.table import Table  # noqa: PLC0415 -- as above
    from rich.text import Text  # noqa: PLC0415 -- as above

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        drawn.add_column(name, justify="right" if _right(rows, index) else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    plain = not colour or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    console = Console(file=sys.stdout, color_system=None if plain else "auto", highlight=False)
    breaks_words = Measurement.get(console, console.options.update(width=WIDEST), drawn).minimum > console.width
    if breaks_words and len(columns) > NAME_AND_VALUE:
        return _expanded(columns, rows)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n")


def _expanded(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return each row as lines of name and value, as psql does for what is too wide."""
    width = max(map(len, columns))
    return "\n\n".join(
        "\n".join(f"{name.ljust(width)}  {cell}".rstrip() for name, cell in zip(columns, row, strict=True))
        for row in rows
    )
