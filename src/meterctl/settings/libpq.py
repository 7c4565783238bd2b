"""What libpq knows, and what other programs put into a database address instead.

Parameters: PostgreSQL 18 documentation, 32.1.2 "Parameter Key Words".
"""

from collections.abc import Mapping

SCHEMES = ("postgresql://", "postgres://")
"""How a URL for libpq begins; in lower case only."""

PARAMETERS = frozenset(
    {
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "passfile",
        "require_auth",
        "channel_binding",
        "connect_timeout",
        "client_encoding",
        "options",
        "application_name",
        "fallback_application_name",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "replication",
        "gssencmode",
        "sslmode",
        "sslnegotiation",
        "sslcompression",
        "sslcert",
        "sslkey",
        "sslkeylogfile",
        "sslpassword",
        "sslcertmode",
        "sslrootcert",
        "sslcrl",
        "sslcrldir",
        "sslsni",
        "requirepeer",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "min_protocol_version",
        "max_protocol_version",
        "krbsrvname",
        "gsslib",
        "gssdelegation",
        "scram_client_key",
        "scram_server_key",
        "oauth_issuer",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_scope",
        "service",
        "target_session_attrs",
        "load_balance_hosts",
    }
)

SECRET_PARAMETERS = frozenset(
    {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)

CHOICES: Mapping[str, tuple[str, ...]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}
"""Parameters with a fixed set of values."""

WHOLE_NUMBERS = frozenset(
    {"connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"}
)

_POOL = "a setting of a connection pool; remove it, meterctl opens the few connections it needs"
_SEARCH_PATH = "not libpq's; write the schema in the table's name (\"schema.table\"), or options=-csearch_path%3DSCHEMA"
_STATEMENTS = "a setting of another driver; remove it"

FOREIGN_PARAMETERS: Mapping[str, str] = {
    "pgbouncer": "Prisma's; remove it, meterctl works behind PgBouncer without being told",
    "schema": _SEARCH_PATH,
    "currentschema": _SEARCH_PATH,
    "search_path": _SEARCH_PATH,
    "connection_limit": _POOL,
    "pool_timeout": _POOL,
    "pool_size": _POOL,
    "max_overflow": _POOL,
    "pool_recycle": _POOL,
    "pool_pre_ping": _POOL,
    "pool_max_conns": _POOL,
    "pool_min_conns": _POOL,
    "conn_max_age": _POOL,
    "conn_health_checks": _POOL,
    "socket_timeout": "Prisma's; remove it, or set connect_timeout",
    "timeout": "another driver's; write connect_timeout, in seconds",
    "command_timeout": "asyncpg's; remove it",
    "statement_cache_size": _STATEMENTS,
    "prepared_statement_cache_size": _STATEMENTS,
    "preparethreshold": _STATEMENTS,
    "default_query_exec_mode": _STATEMENTS,
    "server_settings": "asyncpg's; use options=-cNAME%3DVALUE",
    "sslaccept": "Prisma's; use sslmode=verify-full, or sslmode=require to accept any certificate",
    "sslidentity": "Prisma's; use sslcert and sslkey",
    "ssl": "another driver's; use sslmode=require or sslmode=verify-full",
    "ssl_mode": "another program's; use sslmode",
    "ssl_require": "Django's; use sslmode=require",
    "uselibpqcompat": "node-postgres's; remove it",
    "applicationname": "JDBC's; use application_name",
    "username": "not libpq's; use user",
    "database": "not libpq's; use dbname",
    "db": "not libpq's; use dbname",
    "charset": "another database's; use client_encoding",
    "encoding": "another driver's; use client_encoding",
    "timezone": "not libpq's; use options=-ctimezone%3DUTC",
}
"""Parameters of other programs, in lower case → whose, and what to do."""

DIALECTS = frozenset(
    {"postgresql", "postgres", "postgis", "pgsql", "psql", "pg", "timescale", "timescaledb", "timescalegis", "redshift"}
    | {"django_postgrespool", "cockroachdb", "cockroach", "asyncpg", "psycopg", "psycopg2", "jdbc:postgresql"}
)
"""Schemes by which other programs mean PostgreSQL, without the driver that may follow a `+`."""

OTHER_DATABASES = frozenset(
    {"mysql", "mariadb", "sqlite", "sqlite3", "oracle", "mssql", "sqlserver", "mongodb", "redis", "http", "https"}
)
