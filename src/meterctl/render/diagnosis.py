"""What checks found: a table on a terminal, a line for each finding elsewhere."""

from collections.abc import Iterable, Sequence
from typing import Any

from meterctl.core.diagnosis import Finding
from meterctl.render.tables import table
from meterctl.render.values import printable

Named = Sequence[tuple[str, Finding]]
"""Findings with the name of the check or the meter that they belong to."""


def shown_findings(head: str, findings: Named, *, console: bool, colour: bool) -> str:
    """Return the findings as text without a newline at its end; `head` is what their names are names of."""
    if not console:
        return "\n".join(f"{one.status:<5} {printable(name)}: {printable(one.line)}" for name, one in findings)
    rows = [
        [one.status.value, printable(name), printable(one.message), printable(one.remedy or "")]
        for name, one in findings
    ]
    return table(["", head, "found", "what to do"], rows, console=True, colour=colour)


def finding_dicts(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return findings as our JSON documents hold them."""
    return [
        {"status": finding.status.value.lower(), "message": finding.message, "remedy": finding.remedy}
        for finding in findings
    ]
