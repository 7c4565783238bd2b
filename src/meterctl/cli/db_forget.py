"""`db forget-test`: show the test-mode ledger, and forget it. Imported by the command, for it imports psycopg."""

import json
import sys
from typing import Any

from meterctl.cli.locking import all_meters_locked
from meterctl.cli.wiring import open_database
from meterctl.core.value import formatted
from meterctl.errors import ExitCode
from meterctl.postgres.forget import Forgettable, MeterPart, Rows, find_forgettable
from meterctl.postgres.forgetting import Forgotten, forget
from meterctl.render.tables import table
from meterctl.render.values import printable
from meterctl.settings import Settings

SCHEMA = "meterctl.db_forget_test/1"

NOTES = {
    "foreign": "rows were stamped before their test event was accepted, by somebody else: these stamps stay",
    "gone": "rows are not in the table any more",
    "changed": "rows have another time than what was billed: stamp and event will stay",
    "unseen": "rows are not visible to this role or through this view: stamp and event will stay",
}
"""What a row may be → what a person should know of it."""


def forget_test_ledger(settings: Settings, *, yes: bool, as_json: bool) -> ExitCode:
    """Show what there is to forget; with `yes`, forget it. Nothing is changed before all of it was found possible."""
    with open_database(settings) as connection:
        if not yes:
            found = find_forgettable(connection, settings)
            _show(found, None, as_json=as_json)
            if not found.is_empty:
                _say("nothing was changed; to do it: meterctl db forget-test --yes")
            return ExitCode.OK
        names = find_forgettable(connection, settings).event_names
        with all_meters_locked(settings, names) as locks:
            found = find_forgettable(connection, settings)
            if not as_json:
                _show(found, None, as_json=False)
            done = Forgotten() if found.is_empty else forget(connection, found.parts, between=locks.keep)
    _tell(found, done, as_json=as_json)
    return ExitCode.PROBLEMS if done.kept_count else ExitCode.OK


def _show(found: Forgettable, done: Forgotten | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_document(found, done)))
        return
    if found.is_empty:
        print("there is nothing to forget: this ledger is new")
        return
    if found.parts:
        heads = ["meter", "events", "units", "table", "stamps to take off"]
        print(table(heads, [_line(part) for part in found.parts], console=sys.stdout.isatty()))
    print(f"{found.run_count} runs; the ledger belongs to {found.account or 'no account'} in test mode", flush=True)
    for part in found.parts:
        for verdict, note in NOTES.items():
            if (rows := part.rows.get(verdict)) is not None:
                _say(f"note: {part.meter}: {rows.count} {note} {_samples(rows)}")


def _line(part: MeterPart) -> list[str]:
    stamped = part.rows.get("stamped", Rows()).count
    name = part.table.name if part.table else "-"
    return [printable(part.meter), str(part.event_count), formatted(part.units), name, str(stamped)]


def _samples(rows: Rows) -> str:
    return f"(e.g. {', '.join(map(printable, rows.sample_ids))})"


def _tell(found: Forgettable, done: Forgotten, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_document(found, done)))
    for one in done.kept:
        row = f", row {printable(one.row_id)}" if one.row_id is not None else ""
        _say(f"{one.meter}: event {one.event_id}{row} stays: {printable(one.reason)}")
    if found.is_empty:
        return
    _say(f"forgot {done.event_count} events and {done.run_count} runs, took {done.unstamped_count} stamps off")
    if done.kept_count:
        _say(f"{done.kept_count} events stay, and with them test mode; mend the cause, then run it again")
    elif done.left_test_mode:
        _say("the ledger belongs to nobody: the next report claims it, and bills every row without a stamp")


def _document(found: Forgettable, done: Forgotten | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "exit_code": int(ExitCode.PROBLEMS if done and done.kept_count else ExitCode.OK),
        "account": found.account,
        "runs": found.run_count,
        "meters": [_part_dict(part) for part in found.parts],
        "done": _done_dict(done) if done else None,
    }


def _part_dict(part: MeterPart) -> dict[str, Any]:
    counts = {verdict: rows.count for verdict, rows in part.rows.items()}
    return {
        "meter": part.meter,
        "events": part.event_count,
        "units": formatted(part.units),
        "table": part.table.name if part.table else None,
        "rows": {verdict: counts.get(verdict, 0) for verdict in ("stamped", "unstamped", *NOTES)},
    }


def _done_dict(done: Forgotten) -> dict[str, Any]:
    kept = [{"meter": k.meter, "id": k.event_id, "row": k.row_id, "reason": k.reason} for k in done.kept]
    return {
        "events": done.event_count,
        "stamps": done.unstamped_count,
        "runs": done.run_count,
        "left_test_mode": done.left_test_mode,
        "kept": done.kept_count,
        "kept_samples": kept,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)
