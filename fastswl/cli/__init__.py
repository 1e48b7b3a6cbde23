"""The command line: `fastswl demo`, `explain`, `info` and `warmup`.

One module a command; each has `configure(parser)` and `run(arguments)`. They import what they need
when they run, so that `fastswl --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastswl.cli import demo, explain, info, warmup
from fastswl.cli.console import CommandError

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


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastswl",
        description="Fast softmax with cross-entropy loss on CPUs.",
        allow_abbrev=False,
    )
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
    arguments = _build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except CommandError as error:
        print(f"{arguments.prog}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader (head, less) has gone: nobody is left to tell
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print(f"{arguments.prog}: interrupted", file=sys.stderr)
        return 130
    return 0
