"""The command line: `fastswl demo`, `explain`, `info` and `warmup`.

One module a command; each has `configure(parser)` and `run(arguments)`. They import what they need
when they run, so that `fastswl --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fastswl.cli import demo, explain, info, warmup
from fastswl.cli.console import CommandError, numba_settings

COMMANDS = {
    "demo": (demo, "train a small network on real digits and compare with plain NumPy"),
    "explain": (explain, "walk the computational graph of the loss on one row of logits"),
    "info": (info, "show versions, threads, CPU features and where the cache lies"),
    "warmup": (warmup, "compile what users commonly call, in parallel processes"),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class _Version(argparse.Action):
    """Print the version; unlike argparse's own, this looks it up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import fastswl

        print(f"{parser.prog} {fastswl.__version__}")
        parser.exit()


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastswl",
        description="Fast softmax with cross-entropy loss on CPUs.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=_Parser)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=module.__doc__, allow_abbrev=False)
        module.configure(command)
        command.set_defaults(run=module.run, prog=command.prog)
    return parser


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    # a leading blank keeps argparse from taking -1e3 for an option; float() and int() drop it
    argv = [f" {text}" if text.startswith("-") and _is_number(text) else text for text in argv]
    prog = "fastswl"
    try:
        try:
            arguments = _build_parser().parse_args(argv)
            prog = arguments.prog
            arguments.run(arguments)
        except SystemExit:
            # of --help and --version, whose output is written here as that of a command is below
            _flush_output()
            raise
        _flush_output()
    except CommandError as error:
        return _fail(prog, str(error))
    except BrokenPipeError:
        # the reader (head, less) has gone: nobody is left to tell
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        return _fail(prog, str(error))
    except (ValueError, RuntimeError, ImportError) as error:
        # what is wrong outside comes as these, a setting that Numba refuses or a library that is not there;
        # other exceptions are mistakes in fastswl, and keep their traceback
        settings = ", ".join(f"{name}={value}" for name, value in numba_settings().items())
        return _fail(prog, f"{error} (with {settings})" if settings else str(error))
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0


def _fail(prog: str, message: str) -> int:
    """Say in one line what went wrong; return the exit status."""
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _flush_output() -> None:
    """Write what is printed while an error can still be told: at its exit, Python shows a traceback for it."""
    # there is no stream when the descriptor was closed (>&-)
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_output() -> None:
    """Forget what cannot be written, or Python tries it again at its exit and complains."""
    try:
        _flush_output()
    except OSError:
        # writes once more, in vain, but is closed then
        with contextlib.suppress(OSError):
            sys.stdout.close()
