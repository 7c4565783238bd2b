r"""Reading a database address as libpq reads it, without libpq: URLs and `key=value` strings.

Grammar: PostgreSQL documentation, "Connection Strings", and `conninfo_uri_parse_options` in libpq's fe-connect.c. Where
libpq would guess at a misplaced `@` or `/`, this refuses, for its guess may take part of the password for a name.
Faults name parts and parameters, never values, which may be secret.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_to_bytes

from meterctl.settings.libpq import FOREIGN_PARAMETERS, PARAMETERS, SCHEMES

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_STRAY = re.compile(r"[\s\x00-\x1f\x7f]")
_ASSIGNMENT = re.compile(r"\s*(?P<name>[^\s=]+)\s*=\s*", re.DOTALL)
_VALUE = re.compile(r"'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<bare>(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(slots=True)
class Address:
    """A database address taken apart: parameters in order, decoded, and what is wrong, as "what; what to do".

    The first `positional` parameters stood before the ? of a URL and are not named there.
    """

    parameters: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    positional: int = 0

    def broken(self, fault: str) -> "Address":
        """Give up: what stands where is unclear."""
        self.faults.append(fault)
        self.parameters.clear()
        return self

    def put(self, name: str, value: str) -> None:
        """Add a parameter of the address that is not empty."""
        if value:
            self.parameters.append((name, value))

    def get(self, name: str) -> str | None:
        """Return a parameter's value; the last one counts, as with libpq."""
        return dict(self.parameters).get(name)


def parse_url(text: str) -> Address:
    """Given a URL that begins with one of libpq's schemes, return it taken apart."""
    address = Address()
    rest = text[len(next(scheme for scheme in SCHEMES if text.startswith(scheme))) :]
    userinfo, at, location = rest.rpartition("@")
    if "@" in userinfo:
        return address.broken("more than one @; write an @ that belongs to user, password or a parameter as %40")
    if "/" in userinfo:
        return address.broken(
            "a / before the @; write a / that belongs to user or password as %2F (and an @ in a parameter as %40)"
        )
    authority, database, query = _split(location)
    if at:
        user, _, password = userinfo.partition(":")
        address.put("user", _decoded(address, "the user", user))
        address.put("password", _decoded(address, "the password", password))
    if not _read_hosts(address, authority, userinfo_given=bool(at)):
        return address
    address.put("dbname", _decoded(address, "the database's name", database))
    address.positional = len(address.parameters)
    for parameter in query.split("&") if query else []:
        _read_parameter(address, parameter)
    _check_complete(address, userinfo_given=bool(at))
    return address


def _split(location: str) -> tuple[str, str, str]:
    path, _, query = location.partition("?")
    authority, _, database = path.partition("/")
    return authority, database, query


def _read_hosts(address: Address, authority: str, *, userinfo_given: bool) -> bool:
    """Read `host:port,host:port`. Return False where user and password may be mistaken for them."""
    hosts, ports = [], []
    for each in authority.split(","):
        host, port, sound = _host_and_port(each)
        if not sound:
            address.broken("the host has unpaired brackets; write an IPv6 address as [::1]")
            return False
        if port and not is_port(port):
            hint = "write host:port" if userinfo_given else "write user:password@host:port"
            address.broken(f"the port is not a number from 1 to 65535; {hint}, and a : in a password as %3A")
            return False
        hosts.append(_decoded(address, "the host", host))
        ports.append(port)
    address.put("host", ",".join(hosts) if any(hosts) else "")
    address.put("port", ",".join(ports) if any(ports) else "")
    return True


def _host_and_port(text: str) -> tuple[str, str, bool]:
    """Return host, port, and whether brackets pair up."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        return host, port.removeprefix(":"), bool(host and bracket) and (not port or port.startswith(":"))
    host, _, port = text.partition(":")
    return host, port, not set(text) & {"[", "]"}


def is_port(text: str) -> bool:
    """Whether a text is the number of a TCP port."""
    return text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65_535  # noqa: PLR2004 -- the highest port


def _read_parameter(address: Address, text: str) -> None:
    name, equals, value = text.partition("=")
    shown = f"parameter `{name}`" if name in PARAMETERS or name.lower() in FOREIGN_PARAMETERS else "a parameter"
    if not equals:
        address.faults.append(f"{shown} has no value; parameters after the ? are written name=value, joined by &")
    elif "=" in value:
        address.faults.append(f"{shown} has a second =; write a = that belongs to the value as %3D")
    address.parameters.append((unquote(name), _decoded(address, shown, value)))


def _decoded(address: Address, part: str, text: str) -> str:
    """Return a part with its %-escapes undone; note an escape that is none, and spaces."""
    if _BAD_ESCAPE.search(text):
        address.faults.append(f"{part} has a % that two hexadecimal digits do not follow; write a plain % as %25")
    if _STRAY.search(text):
        address.faults.append(f"{part} has a space or a line break; remove it, or write a space as %20")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        address.faults.append(f"{part} has %-escapes that are not UTF-8; write each of its bytes in UTF-8")
        return ""


def _check_complete(address: Address, *, userinfo_given: bool) -> None:
    names = {name for name, _ in address.parameters}
    if not names:
        address.faults.append("names neither host nor database; write postgresql://USER@HOST/DATABASE")
    elif not names & {"host", "hostaddr", "service"} and (userinfo_given or "port" in names):
        address.faults.append(
            "the host is missing; write it after the @, or ?host=/var/run/postgresql for a local socket"
        )


def parse_keywords(text: str) -> Address:
    """Given `key=value key='other value'`, return it taken apart."""
    address = Address()
    position, after = 0, ""
    while text[position:].strip():
        assignment = _ASSIGNMENT.match(text, position)
        if assignment is None:
            return address.broken(
                f"something without a ={after}; a value with spaces stands in single quotes, with \\ before a quote"
            )
        value = _VALUE.match(text, assignment.end())
        end = value.end() if value else assignment.end()
        if value is None or (end < len(text) and not text[end].isspace()):
            return address.broken(f"quotes that do not pair{after}; put \\ before a quote or \\ inside a value")
        raw = value["quoted"] if value["quoted"] is not None else value["bare"] or ""
        address.parameters.append((assignment["name"], _ESCAPE.sub(r"\1", raw)))
        position, after = end, f" after parameter {len(address.parameters)}"
    return address
