"""The `tq` command: registers the subcommands. Each imports what it needs when it runs, so that help is quick."""

import io
import sys
from typing import Annotated

import typer

from tqcli.cli.convert import convert_command
from tqcli.cli.inspect import inspect_command
from tqcli.cli.push import push_command
from tqcli.cli.serve import serve_command
from tqcli.version import __version__

app = typer.Typer(
    name="tq",
    help="Convert Hugging Face checkpoints to compressed ones, and prove that they are right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("convert", no_args_is_help=True)(convert_command)
app.command("inspect", no_args_is_help=True)(inspect_command)
app.command("serve", no_args_is_help=True)(serve_command)
app.command("push", no_args_is_help=True)(push_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Convert Hugging Face checkpoints to compressed ones, and prove that they are right."""


def main() -> None:
    """Entry point of the `tq` script."""
    for stream in (sys.stdout, sys.stderr):
        # Names that the terminal's encoding lacks are spelled out; they must not end a conversion.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
