"""`config …`: write a configuration to begin with, prove that one is sound, and show the one in force."""

import json
from pathlib import Path
from typing import Annotated

import typer

from meterctl.cli.options import Json, Live
from meterctl.errors import UsageError

app = typer.Typer(help="Write, check and show the configuration.", no_args_is_help=True)

SHOW_SCHEMA = "meterctl.config_show/1"

Output = Annotated[Path | None, typer.Option("--output", help="Write it there instead of on stdout.", metavar="FILE")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file.")]
File = Annotated[
    Path | None, typer.Argument(help="Default: the file that other commands would read.", metavar="[FILE]")
]


@app.command("generate")
def generate(*, output: Output = None, force: Force = False) -> None:
    """Print the shipped configuration with its comments, to begin a file of your own with."""
    from meterctl.settings import shipped_text

    if output is None:
        print(shipped_text(), end="")
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(shipped_text())
    except FileExistsError:
        raise UsageError(f"{output} exists already", hint="name another file, or overwrite it with --force") from None
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}", hint="name another file") from error


@app.command("validate")
def validate(context: typer.Context, file: File = None) -> None:
    """Say all that is wrong with a configuration, the environment's part included; the database is not asked."""
    from meterctl.cli.wiring import open_settings

    settings = open_settings(context, require_database=False, file=file)
    enabled = ", ".join(settings.enabled_meters) or "none"
    print(f"{settings.file or 'no file, shipped defaults'}: valid; enabled meters: {enabled}")


@app.command("show")
def show(context: typer.Context, *, live: Live = False, as_json: Json = False) -> None:
    """Show the configuration in force, and where each value came from; of secrets only whether they are set."""
    from meterctl.cli.wiring import open_settings
    from meterctl.settings.effective import as_toml, entries

    settings = open_settings(context, live=live, require_database=False)
    found = entries(settings)
    if not as_json:
        print(f"# file: {settings.file or 'none'}\n{as_toml(found)}")
        return
    keys = [{"key": one.key, "value": one.plain, "source": one.source, "secret": one.secret} for one in found]
    file = str(settings.file) if settings.file else None
    print(json.dumps({"schema": SHOW_SCHEMA, "file": file, "settings": keys}, indent=2, ensure_ascii=False))
