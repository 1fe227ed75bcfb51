"""The frame of every program: a group of lazily loaded verbs, and what is said when one of them fails.

A verb's module is imported when the verb is called, and it imports what it needs when it runs, so
`--help` is quick everywhere.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import click

from nvlm_deploy import __version__
from nvlm_deploy.errors import NvlmError, UsageError, did_you_mean

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Verb(NamedTuple):
    """Where a verb's command is, and its line in the group's help."""

    module: str
    function: str
    line: str


class LazyGroup(click.Group):
    """A group that knows its verbs' names and imports one only to call it."""

    def __init__(self, program: str, verbs: Mapping[str, Verb], text: str) -> None:
        """`text` is the group's help; `program` is the name that users type."""
        super().__init__(program, help=text, context_settings={"help_option_names": ["-h", "--help"]})
        self.verbs = verbs
        version = click.version_option(__version__, prog_name=program, message="%(prog)s %(version)s")
        version(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = self.verbs.get(cmd_name)
        if verb is None:
            return None
        command: click.Command = getattr(importlib.import_module(verb.module), verb.function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.verbs and not name.startswith("-"):
            raise UsageError(f"there is no verb '{name}'", hint=did_you_mean(name, self.verbs))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.line) for name, verb in self.verbs.items()])


def run_program(group: LazyGroup, arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit code, with every expected failure said on stderr."""
    words = list(arguments) if arguments is not None else None
    try:
        code: Any = group.main(words, prog_name=group.name, standalone_mode=False)
    except NvlmError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else group.name
        return _fail(error.format_message().rstrip("."), f"{path} --help", UsageError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", None, EXIT_INTERRUPTED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", None, EXIT_FAILURE)
    return code if isinstance(code, int) else 0


def run_process(group: LazyGroup) -> None:
    """Run this process's command line and exit; the body of an entry point."""
    signal.signal(signal.SIGTERM, _exit_on_signal)
    sys.exit(run_program(group))


def _fail(message: str, hint: str | None, code: int) -> int:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"\nhint: {hint}", err=True)
    return code


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    # An exception, and not the default sudden end, so that temporary directories are removed.
    raise SystemExit(EXIT_TERMINATED)
