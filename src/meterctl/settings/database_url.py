"""DATABASE_URL: what libpq takes is taken, what other programs write instead is refused with the remedy.

Nothing here connects, and nothing here returns a value that could be a password.
"""

import re
from difflib import get_close_matches
from urllib.parse import unquote

from meterctl.settings.conninfo import Address, is_port, parse_keywords, parse_url
from meterctl.settings.libpq import (
    CHOICES,
    DIALECTS,
    FOREIGN_PARAMETERS,
    OTHER_DATABASES,
    PARAMETERS,
    SCHEMES,
    SECRET_PARAMETERS,
    WHOLE_NUMBERS,
)

_SCHEME = re.compile(r"(?P<name>(?:jdbc:)?[A-Za-z][A-Za-z0-9_.-]*)(?:\+(?P<driver>[A-Za-z0-9_]+))?:(?P<slashes>/{0,2})")
_URL_SHAPE = re.compile(r"[A-Za-z][A-Za-z0-9+.:_-]*:/")
_PASSWORD_IN_URL = re.compile(r"://[^:]*:(?P<password>.*)@", re.DOTALL)
_PASSWORD_IN_TEXT = re.compile(r"password\s*=\s*(?P<password>'(?:[^'\\]|\\.)*'|[^\s&]+)", re.IGNORECASE)
_UNREADABLE = "the database of DATABASE_URL"


def database_url_faults(url: str) -> tuple[str, ...]:
    """Given a database address, return what is wrong with it, each as "what; what to do"; nothing if libpq can use it.

    The empty address is fine: libpq then uses its own PG* variables and files.
    """
    return tuple(_examined(url).faults)


def describe_database(url: str) -> str:
    """Given a database address, return host, port, database and user in words. Never the password."""
    address = _examined(url)
    if address.faults:
        return _UNREADABLE
    parts = [
        f'{word} "{value}"' if word in {"database", "user", "service"} else f"{word} {value}"
        for name, word in _DESCRIBED.items()
        if (value := address.get(name))
    ]
    return ", ".join(parts) or "the database of libpq's PG* variables"


_DESCRIBED = {
    "service": "service",
    "dbname": "database",
    "host": "host",
    "hostaddr": "address",
    "port": "port",
    "user": "user",
}


def database_passwords(url: str) -> tuple[str, ...]:
    """Given a database address, even a faulty one, return every text in it that may be a password, for redaction."""
    found = [match["password"] for match in (_PASSWORD_IN_URL.search(url),) if match]
    found += [match["password"].strip("'") for match in _PASSWORD_IN_TEXT.finditer(url)]
    address = _examined(url)
    found += [value for name, value in address.parameters if name in SECRET_PARAMETERS]
    if address.faults:
        before_at = url.rpartition("@")[0]
        found += [before_at[colon.end() :].lstrip("/") for colon in re.finditer(":", before_at)]
    return tuple(dict.fromkeys(text for each in found for text in (each, unquote(each)) if text))


def _examined(url: str) -> Address:
    """Take the address apart and note all that is wrong with it."""
    if not url:
        return Address()
    if url != url.strip() or url[0] in "\"'":
        return Address().broken("spaces or quotes around it; remove them")
    if not url.isascii() and url != url.encode(errors="replace").decode():
        return Address().broken("has a character that is not UTF-8; write it as % and two hexadecimal digits")
    if url.startswith(SCHEMES):
        address = parse_url(url)
    elif fault := _foreign_scheme(url):
        address = _foreign_address(url, fault)
    else:
        address = parse_keywords(url)
    _check_parameters(address)
    return address


def _foreign_scheme(url: str) -> str | None:
    """Return what is wrong with how a URL begins; None if it is no URL. Shows the scheme only if it is a known one."""
    scheme = _SCHEME.match(url)
    name = scheme["name"].lower() if scheme else ""
    known = name in DIALECTS or name in OTHER_DATABASES or name.startswith("prisma")
    if scheme and known:
        driver = f"+{scheme['driver']}" if scheme["driver"] else ""
        return _remedy(f"{scheme['name']}{driver}:{scheme['slashes']}", name)
    if _URL_SHAPE.match(url) or "=" not in url:
        return "begins with neither postgresql:// nor postgres://; write postgresql://USER@HOST:PORT/DATABASE"
    return None


def _remedy(begins: str, name: str) -> str:
    if name.startswith("prisma"):
        return f"begins with {begins}, the address of Prisma's proxy; give PostgreSQL's own address, postgresql://…"
    if name in OTHER_DATABASES:
        return (
            f"begins with {begins}, but meterctl reads PostgreSQL; give an address like postgresql://USER@HOST/DATABASE"
        )
    return f"begins with {begins}, which libpq does not know; write postgresql:// instead"


def _foreign_address(url: str, fault: str) -> Address:
    """Examine what follows another program's scheme too, so that everything is said at once."""
    _, slashes, rest = url.partition("://")
    known = _SCHEME.match(url)
    if not slashes or known is None or known["name"].lower() not in DIALECTS:
        return Address().broken(fault)
    address = parse_url(f"{SCHEMES[0]}{rest}")
    address.faults.insert(0, fault)
    return address


def _check_parameters(address: Address) -> None:
    may_show = True
    for position, (name, value) in enumerate(address.parameters):
        known = name in PARAMETERS
        fault = _wrong_value(name, value) if known else _unknown(name, value, may_show=may_show)
        may_show = may_show and (position < address.positional or not _is_secret(name))
        if fault:
            address.faults.append(fault)


def _is_secret(name: str) -> bool:
    return name in SECRET_PARAMETERS or "pass" in name.lower() or "pwd" in name.lower()


def _unknown(name: str, value: str, *, may_show: bool) -> str | None:
    """Say what an unknown parameter is. After a password it may be a piece of it, and is shown only if well known."""
    if name == "ssl" and value == "true":
        return None  # libpq takes it for sslmode=require, for the sake of JDBC's users
    if whose := FOREIGN_PARAMETERS.get(name.lower()):
        return f"parameter `{name}` is {whose}"
    if not may_show or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,40}", name):
        return "a parameter that libpq does not know; a password with spaces stands in single quotes"
    near = get_close_matches(name.lower(), sorted(PARAMETERS), n=1)
    return f"parameter `{name}` is not one of libpq's; {f'did you mean `{near[0]}`?' if near else 'remove it'}"


def _wrong_value(name: str, value: str) -> str | None:
    """Say what is wrong with a parameter's value, where libpq allows only some. The value is not shown."""
    choices = CHOICES.get(name)
    if choices and value not in choices:
        return f"parameter `{name}` has a value that libpq does not know; use one of {', '.join(choices)}"
    if name in WHOLE_NUMBERS and not re.fullmatch(r"-?[0-9]+", value):
        return f"parameter `{name}` is not a whole number; write a number of seconds without a unit"
    if name == "port" and not all(not port or is_port(port) for port in value.split(",")):
        return "parameter `port` is not a number from 1 to 65535; write the number alone"
    if name == "dbname" and re.search(r"://|=", value):
        return "parameter `dbname` holds a whole address; give the database's name alone"
    if name == "host" and re.search(r".@|\$|://", value):
        return "parameter `host` is not a host's name; is there a variable in it that nobody filled in?"
    return None
