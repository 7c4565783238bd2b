"""A command that is killed in the midst of one of its writes, which is lost with it, as with its host."""

from collections.abc import Iterator
from contextlib import contextmanager

from cli.conftest import Shell
from cli.waiting import until

Write = tuple[str, str, str]
"""Table, operation, and a condition on the row."""


def killed_as_it_writes(shell: Shell, write: Write, *command: str) -> None:
    """Run the command until it writes that, and kill it with the write not done."""
    with _held_up(shell, write):
        child = shell.start(*command)
        until(lambda: _asleep(shell, "pid"))
        child.kill()
        child.communicate()
        assert _asleep(shell, "pg_terminate_backend(pid)") == 1
        until(lambda: not _asleep(shell, "pid"))


@contextmanager
def _held_up(shell: Shell, write: Write) -> Iterator[None]:
    table, operation, condition = write
    shell.sql(
        "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(60); RETURN NEW; END$$"
    )
    shell.sql(
        f"CREATE TRIGGER hold_up BEFORE {operation} ON {table} FOR EACH ROW WHEN ({condition})"
        " EXECUTE FUNCTION hold_up()"
    )
    yield
    shell.sql(f"DROP TRIGGER hold_up ON {table}; DROP FUNCTION hold_up()")


def _asleep(shell: Shell, action: str) -> int:
    """Ask `action` of the backend that sleeps in the trigger; return how many there are."""
    text = f"SELECT {action} FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"  # noqa: S608 -- our own words
    return len(shell.sql(text))
