"""From the command line to options, and from an error to one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from mtrl.errors import RunError, UserError

Options = TypeVar("Options")

Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import", metavar="MODULE...")]
"""Modules to import first, as they register tasks."""

_NAMES_AS_THEY_ARE = (tyro.conf.OmitArgPrefixes,)


def parse_options(kind: type[Options], default: Options | None = None) -> Options:
    """Read the options that a dataclass describes off the command line.

    Raises:
        UserError: If they cannot be understood; tyro's boxed explanation, put into one line.
        SystemExit: After printing what `--help` asks for.
    """
    with _told_in_one_line():
        return tyro.cli(
            kind,
            default=tyro.MISSING_NONPROP if default is None else default,
            config=_NAMES_AS_THEY_ARE,
        )


def parse_some_options(kind: type[Options], default: Options) -> Options:
    """Read those options that a dataclass describes, and leave all others, and `--help`, alone.

    Raises:
        UserError: As `parse_options` does.
    """
    with _told_in_one_line():
        parsed, _ = tyro.cli(
            kind,
            default=default,
            config=_NAMES_AS_THEY_ARE,
            add_help=False,
            return_unknown_args=True,
        )
        return parsed


def import_modules(names: Sequence[str]) -> None:
    """Import modules, which may lie in the working directory, for the tasks that they register.

    Raises:
        UserError: If one cannot be imported.
    """
    here = str(Path.cwd())
    if names and here not in sys.path:
        sys.path.append(here)  # last, where it takes no other module's place
    ours = Path(__file__).parent
    for name in names:
        if (ours / f"{name}.py").exists():  # where Python looks first
            raise UserError(f"`--import` {name}: mtrl has a script of that name; rename yours.")
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever somebody's module runs into
            raise UserError(
                f"`--import` {name}: {type(error).__name__}: {error}; name a module that can be "
                f"imported, or is in {here}, without `.py`."
            ) from error


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    explanation = io.StringIO()
    try:
        with contextlib.redirect_stderr(explanation):
            yield
    except SystemExit as ending:
        if not ending.code:
            raise
        raise UserError(_in_one_line(explanation.getvalue())) from None


def exit_with(command: Callable[[], int]) -> None:
    """Run a command; tell the user in one line what is wrong, if that is all they need to know."""
    try:
        sys.exit(command())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _in_one_line(explanation: str) -> str:
    """Keep the message of tyro's box, and the options it suggests instead of an unknown one."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", explanation) or "the options cannot be understood"
    title, *rows = (row.strip(" |+─│╭╮╰╯") for row in plain.splitlines())
    rules = [number for number, row in enumerate(rows) if not row.strip("-")]
    end = rules[0] if rules else len(rows)
    message = " ".join(rows[:end]) or title
    message = message.replace("invalid literal for int() with base 10:", "no whole number:")
    if "nrecognized" in title:
        options = re.findall(r"^--[\w-]+", "\n".join(rows[end:]), re.MULTILINE)
        if options:
            message += f"; did you mean {' or '.join(options)}?"
    return f"{message.rstrip('.')}; --help explains every option"
