"""docs/operating.md, section Database: the grants that it shows are all that the job needs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Shell
from roles import as_role, open_roles

OPERATING = Path(__file__).parent.parent.parent / "docs" / "operating.md"


def shown_grants(role: str) -> list[str]:
    """Return the statements of the page for a role of another name: roles belong to the server, not to a test."""
    (block,) = re.findall(r"^```sql\n(.*?)^```$", OPERATING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [f"{re.sub(r'TO meterctl$', f'TO {role}', text.strip())};" for text in block.split(";") if text.strip()]


@pytest.fixture
def job(shell: Shell) -> Iterator[Shell]:
    """The command as a role that has got what the page says, and nothing else."""
    with open_roles() as roles:
        role = roles.create(shell.database_url)
        for grant in shown_grants(role):
            shell.sql(grant)
        yield Shell(database_url=as_role(shell.database_url, role), stripe=shell.stripe, home=shell.home)


def test_the_grants_that_are_shown_satisfy_the_check(job: Shell) -> None:
    done = job.run("db", "check")
    assert done.code == 0, done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"OK"}


def test_the_grants_that_are_shown_suffice_for_a_night(job: Shell, shell: Shell) -> None:
    shell.usage(30, customers=3)
    assert job.run("report", "-q").code == 0
    assert (shell.total, job.run("summary", "--max-age", "26h", "-q").code) == (30, 0)


def test_what_a_later_migration_creates_is_granted_too(job: Shell, shell: Shell) -> None:
    shell.sql("CREATE TABLE meterctl.later (id integer)")
    role = re.search(r"//(\w+)@", job.database_url)
    assert role is not None
    rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
    granted = [
        shell.sql("SELECT has_table_privilege(%s, 'meterctl.later', %s)", role[1], right)[0][0] for right in rights
    ]
    assert granted == [True, True, True, False]
