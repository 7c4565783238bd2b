"""docs/operating.md, section Database: the grants that it shows are all that the job needs."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cli.conftest import Shell
from roles import as_role, open_roles

OPERATING = Path(__file__).parent.parent.parent / "docs" / "operating.md"


def sql_blocks() -> list[str]:
    """Return what every job needs, and what it needs besides to keep the subscriptions."""
    return re.findall(r"^```sql\n(.*?)^```$", OPERATING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shown_grants(role: str) -> list[str]:
    """Return the statements of the page for a role of another name: roles belong to the server, not to a test."""
    block, _ = sql_blocks()
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
    warnings = [line for line in done.stdout.splitlines() if not line.startswith("OK ")]
    assert all("webhooks.subscriptions" in line for line in warnings), "that is granted apart"


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


def test_events_are_pulled_with_what_is_shown_for_them(job: Shell, shell: Shell) -> None:
    """Without it, subscriptions wait, and the GRANT is named; error reports are acted on."""
    shell.usage(1)
    shell.stripe.reject_later(customer="cus_1")
    assert job.run("report-usage", "-q").code == 0
    shell.stripe.complete_checkout(shell.stripe.create_subscription("cus_ada"), client_reference_id="ada")
    shell.stripe.clock.advance(timedelta(seconds=30))
    lacking = job.run("webhooks", "pull")
    assert (lacking.code, "GRANT" in lacking.stderr) == (77, True)
    assert shell.sql("SELECT state FROM meterctl.meter_events") == [("in_doubt",)]
    (role,) = job.sql("SELECT quote_ident(current_user)")
    shell.sql(sql_blocks()[1].replace("TO meterctl", f"TO {role[0]}"))
    assert job.run("webhooks", "pull").stdout == "0 new events (3 known); 2 processed\n"
    assert job.run("webhooks", "replay", "--force", "--since", "2020-01-01", "--yes").code == 0
    assert shell.sql("SELECT status FROM subscriptions WHERE user_id = 'ada'") == [("active",)]
    assert {line.split()[0] for line in job.run("db", "check").stdout.splitlines()} == {"OK"}
