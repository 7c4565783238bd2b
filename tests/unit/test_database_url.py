"""DATABASE_URL: as libpq reads it; other dialects with their remedy; the password in no message, however mangled."""

from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterctl.settings import database_passwords, database_url_faults, describe_database
from meterctl.settings.libpq import PARAMETERS

SECRET = "hunter2"  # noqa: S105 -- fake

ACCEPTED = {
    "postgresql://meterctl:hunter2@db.internal:5433/billing": (
        'database "billing", host db.internal, port 5433, user "meterctl"'
    ),
    "postgres://db.internal": "host db.internal",
    "postgresql:///billing": 'database "billing"',
    "postgresql:///billing?host=/run/pg&user=me": 'database "billing", host /run/pg, user "me"',
    "postgresql://%2Frun%2Fpg/billing": 'database "billing", host /run/pg',
    "postgresql://[::1]:5432/billing": 'database "billing", host ::1, port 5432',
    "postgresql://a:1,b:2/billing?target_session_attrs=primary": 'database "billing", host a,b, port 1,2',
    "postgresql://u:p%40%2F%3A%25@h/d": 'database "d", host h, user "u"',
    "postgresql://u:hunter2?#:@h/d": 'database "d", host h, user "u"',
    "postgresql://u@h/d?sslmode=verify-full&sslrootcert=system&connect_timeout=5": 'database "d", host h, user "u"',
    "postgresql://h/d?ssl=true": 'database "d", host h',
    "postgresql://ü@h/dätabase": 'database "dätabase", host h, user "ü"',
    "postgresql://h/d?options=-csearch_path%3Dbilling": 'database "d", host h',
    "postgresql://?service=billing": 'service "billing"',
    "host=db.internal dbname=billing user=meterctl password=hunter2": (
        'database "billing", host db.internal, user "meterctl"'
    ),
    r"dbname = 'my \'db\'' password='hunter2 \\ x' host=h": "database \"my 'db'\", host h",
    "service=billing": 'service "billing"',
    "host=@abstract dbname=d": 'database "d", host @abstract',
    "": "the database of libpq's PG* variables",
}


@pytest.mark.parametrize(("url", "described"), ACCEPTED.items())
def test_what_libpq_takes_is_taken_and_described_without_the_password(url: str, described: str) -> None:
    assert database_url_faults(url) == ()
    assert describe_database(url) == described
    psycopg.conninfo.conninfo_to_dict(url)


REFUSED = {
    "postgresql+psycopg://u:hunter2@h/d": "begins with postgresql+psycopg://, which libpq does not know; write",
    "postgresql+asyncpg://u:hunter2@h/d": "begins with postgresql+asyncpg://, which libpq does not know",
    "postgres+pool://u:hunter2@h/d": "begins with postgres+pool://, which libpq does not know; write postgresql://",
    "postgis://u:hunter2@h/d": "begins with postgis://, which libpq does not know; write postgresql:// instead",
    "POSTGRES://u:hunter2@h/d": "begins with POSTGRES://, which libpq does not know; write postgresql:// instead",
    "postgres:u:hunter2@h/d": "begins with postgres:, which libpq does not know; write postgresql:// instead",
    "postgresql:/u:hunter2@h/d": "begins with postgresql:/, which libpq does not know; write postgresql:// instead",
    "jdbc:postgresql://h/d?user=u&password=hunter2": "begins with jdbc:postgresql://, which libpq does not know",
    "mysql://u:hunter2@h/d": "begins with mysql://, but meterctl reads PostgreSQL; give an address like postgresql://",
    "sqlite:///hunter2.db": "begins with sqlite://, but meterctl reads PostgreSQL",
    "prisma://h/?api_key=hunter2": "begins with prisma://, the address of Prisma's proxy; give PostgreSQL's own",
    "prisma+postgres://h/?api_key=hunter2": "begins with prisma+postgres://, the address of Prisma's proxy",
    "hunter2://u:hunter2@h/d": "begins with neither postgresql:// nor postgres://; write postgresql://USER@",
    "u:hunter2@h/d": "begins with neither postgresql:// nor postgres://",
    "hunter2": "begins with neither postgresql:// nor postgres://",
    "//u:hunter2@h/d": "begins with neither postgresql:// nor postgres://",
    "postgresql://u:hunter2@h/d?pgbouncer=true": "parameter `pgbouncer` is Prisma's; remove it, meterctl works behind",
    "postgresql://u:hunter2@h/d?schema=public": "parameter `schema` is not libpq's; write the schema in",
    "postgresql://u:hunter2@h/d?connection_limit=5": "parameter `connection_limit` is a setting of a connection pool",
    "postgresql://u:hunter2@h/d?currentSchema=x": "parameter `currentSchema` is not libpq's; write the schema in",
    "postgresql://u:hunter2@h/d?ssl=require": "parameter `ssl` is another driver's; use sslmode=require",
    "postgresql://u:hunter2@h/d?sslmod=require": "parameter `sslmod` is not one of libpq's; did you mean `sslmode`?",
    "postgresql://u:hunter2@h/d?sslmode=on": "parameter `sslmode` has a value that libpq does not know; use one of dis",
    "postgresql://u:hunter2@h/d?connect_timeout=5s": "parameter `connect_timeout` is not a whole number; write",
    "postgresql://u:hunter2@h/d?zzz=1": "parameter `zzz` is not one of libpq's; remove it",
    "postgresql://u:hunter2@h/d?sslmode": "parameter `sslmode` has no value; parameters after the ? are written",
    "postgresql://u:x@h/d?password=a&hunter2": "a parameter has no value; parameters after the ? are",
    "postgresql://h/d?password=a&hunter2=b": "a parameter that libpq does not know; a password with spaces",
    "postgresql://h/d?options=-cx=y": "parameter `options` has a second =; write a = that belongs to the value as %3D",
    "postgresql://u:hunter2%zz@h/d": "the password has a % that two hexadecimal digits do not follow; write a plain %",
    "postgresql://u:hunter2%@h/d": "the password has a % that two hexadecimal digits do not follow",
    "postgresql://u:hunter2%00@h/d": "the password has a % that two hexadecimal digits do not follow",
    "postgresql://u%x:hunter2@h/d": "the user has a % that two hexadecimal digits do not follow",
    "postgresql://u:hunter2@h%/d": "the host has a % that two hexadecimal digits do not follow",
    "postgresql://u:hunter2@h/d%": "the database's name has a % that two hexadecimal digits do not follow",
    "postgresql://u:hunter2@h/d?sslmode=%": "parameter `sslmode` has a % that two hexadecimal digits do not follow",
    "postgresql://u:hunter2%ff@h/d": "the password has %-escapes that are not UTF-8; write each of its bytes in UTF-8",
    "postgresql://u:hunter2\udcff@h/d": "has a character that is not UTF-8; write it as % and two hexadecimal digits",
    "postgresql://u:hunter2 x@h/d": "the password has a space or a line break; remove it, or write a space as %20",
    "postgresql://u:hunter2@h /d": "the host has a space or a line break; remove it",
    "postgresql://u:hunter2@h/d\nx": "the database's name has a space or a line break; remove it",
    " postgresql://u:hunter2@h/d": "spaces or quotes around it; remove them",
    "postgresql://u:hunter2@h/d\n": "spaces or quotes around it; remove them",
    '"postgresql://u:hunter2@h/d"': "spaces or quotes around it; remove them",
    "postgresql://u:p@hunter2@h/d": "more than one @; write an @ that belongs to user, password or a parameter as %40",
    "postgresql://u:hunter2/x@h/d": "a / before the @; write a / that belongs to user or password as %2F",
    "postgresql://u:12/hunter2?y=z@h/d": "a / before the @; write a / that belongs to user or password as %2F",
    "postgresql://u:hunter2": "the port is not a number from 1 to 65535; write user:password@host:port",
    "postgresql://u:x@h:hunter2/d": "the port is not a number from 1 to 65535; write host:port, and a : in a password",
    "postgresql://u:hunter2@h:99999/d": "the port is not a number from 1 to 65535",
    "postgresql://u:hunter2@h:0/d": "the port is not a number from 1 to 65535",
    "postgresql://u:hunter2@/d": "the host is missing; write it after the @, or ?host=/var/run/postgresql for a local",
    "postgresql://:5432/d": "the host is missing; write it after the @",
    "postgresql://": "names neither host nor database; write postgresql://USER@HOST/DATABASE",
    "postgresql:///": "names neither host nor database",
    "postgresql://u:hunter2@[::1/d": "the host has unpaired brackets; write an IPv6 address as [::1]",
    "postgresql://u:hunter2@${DB_HOST}/d": "parameter `host` is not a host's name; is there a variable in it",
    "host=h password=my hunter2": "something without a = after parameter 2; a value with spaces",
    "host=h password=my hunter2=x": "a parameter that libpq does not know; a password with spaces stands in single",
    "password='hunter2 host=h": "quotes that do not pair; put \\ before a quote or \\ inside a value",
    "password='x'hunter2 host=h": "quotes that do not pair; put \\ before a quote or \\ inside a value",
    "host=h port=hunter2": "parameter `port` is not a number from 1 to 65535; write the number alone",
    "dbname=postgres://u:hunter2@h/d": "parameter `dbname` holds a whole address; give the database's name alone",
    "host=u:hunter2@h dbname=d": "parameter `host` is not a host's name",
    "hots=h dbname=d": "parameter `hots` is not one of libpq's; did you mean `host`?",
    "username=u host=h": "parameter `username` is not libpq's; use user",
}


@pytest.mark.parametrize(("url", "expected"), REFUSED.items())
def test_what_libpq_does_not_take_is_named_with_the_remedy_and_without_the_password(url: str, expected: str) -> None:
    faults = database_url_faults(url)
    assert any(fault.startswith(expected) for fault in faults), faults
    assert all("\n" not in fault and ("; " in fault) for fault in faults)
    assert SECRET not in str(faults).replace("hunter2://", "")
    assert describe_database(url) == "the database of DATABASE_URL"


def test_all_faults_of_an_address_are_said_at_once() -> None:
    url = "postgresql+asyncpg://u:hunter2%@h/d?schema=public&pgbouncer=true&connection_limit=5"
    assert [fault.split(" ")[:2] for fault in database_url_faults(url)] == [
        ["begins", "with"],
        ["the", "password"],
        ["parameter", "`schema`"],
        ["parameter", "`pgbouncer`"],
        ["parameter", "`connection_limit`"],
    ]


def test_the_known_parameters_are_those_of_libpq() -> None:
    assert {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} == PARAMETERS


@pytest.mark.parametrize("url", [url for url in (*ACCEPTED, *REFUSED) if SECRET in url])
def test_a_password_is_found_for_redaction_wherever_it_can_be_told(url: str) -> None:
    passwords = database_passwords(url)
    if f":{SECRET}@" in url or f"password={SECRET}" in url:
        assert SECRET in passwords


def test_encoded_passwords_are_found_in_both_forms() -> None:
    assert set(database_passwords("postgresql://u:p%40ss@h/d")) == {"p%40ss", "p@ss"}
    assert database_passwords("host=h password='a b'") == ("a b",)
    assert database_passwords("postgresql://h/d") == ()


@given(st.text(min_size=1).filter(lambda text: "\0" not in text and text.isprintable()))
def test_any_password_that_is_encoded_is_taken(password: str) -> None:
    url = f"postgresql://u:{quote(password, safe='')}@h/d"
    assert database_url_faults(url) == ()
    assert password in database_passwords(url)
    assert psycopg.conninfo.conninfo_to_dict(url)["password"] == password


@given(st.text(alphabet="@/:?#&=% []'\"\\,+\n", max_size=12), st.text(alphabet="@/:?#&=% []'\"\\,+\n", max_size=12))
def test_no_password_however_mangled_is_shown(before: str, after: str) -> None:
    for url in (
        f"postgresql://user:{before}Xyzzy{after}@h/d",
        f"postgresql+psycopg://user:{before}Xyzzy{after}@h/d?x=y",
        f"host=h password={before}Xyzzy{after} dbname=d",
        f"postgresql://h/d?password={before}Xyzzy{after}&sslmode=require",
    ):
        assert "xyzzy" not in str(database_url_faults(url)).lower(), url
        assert "xyzzy" not in describe_database(url).lower(), url


@given(st.text(alphabet="abz@/:?&=%[]', \\", max_size=30))
def test_whatever_is_taken_libpq_takes_too(rest: str) -> None:
    for url in (f"postgresql://{rest}", f"host={rest}"):
        if not database_url_faults(url):
            psycopg.conninfo.conninfo_to_dict(url)
