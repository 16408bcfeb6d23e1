"""The command `assay`. Only the module of the command that is called is imported: all of them together take seconds."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from assay import __version__
from assay.errors import AssayError, Inconclusive
from assay.paths import commands_here

COMMANDS = {
    "run": "Judge a candidate on every deployment route.",
    "verdict": "Print a run's verdict and exit with it.",
    "report": "Render a run's record: report.html, junit.xml, summary.md.",
    "explain": "Say why gates did not pass: cause, fix, evidence.",
    "list": "List every gate: id, route, severity, what it needs.",
    "doctor": "Predict in seconds which gates will fail.",
    "plan": "Say what a base and its LoRA take: bytes, memory, card.",
    "check-merge": "Say how a checkpoint was merged, or what is wrong with it.",
    "strength": "Say which adapter, at what strength, is in a file.",
    "faults": "Measure which faults the gates catch.",
    "toolchain": "Build llama.cpp from the pinned source, once.",
    "train": "Train, evaluate and select candidates.",
}
"""Name and summary, in the order of the help. The module of `check-merge` is `assay.cli.check_merge`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; 2 also for a command line that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        assemble(arguments[0] if arguments else "")(arguments, prog_name="assay")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def assemble(called: str) -> typer.Typer:
    """The Typer app: the command `called` whole, and of every other one the name and the summary."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Typer's coloured help imports rich, which takes as long as everything else together.
        rich_markup_mode=None,
        context_settings={"max_content_width": 120},
    )
    app.callback()(_root)
    for name, summary in COMMANDS.items():
        if name == called:
            _add(app, name, summary)
        else:
            app.command(name, help=summary)(_not_called)
    return app


def _add(app: typer.Typer, name: str, summary: str) -> None:
    module = import_module(f"assay.cli.{name.replace('-', '_')}")
    codes = "\n".join(f"  {code}  {meaning}" for code, meaning in module.EXIT_CODES.items())
    # After \b, click keeps a paragraph's lines as they are.
    epilog = f"\b\nExample:\n  {module.EXAMPLE}\n\n\b\nExit codes:\n{codes}"
    text = f"{summary}\n\n{inspect.getdoc(module.command) or ''}"
    app.command(name, help=text, epilog=epilog, **getattr(module, "SETTINGS", {}))(_exiting(module.command))


def _exiting(command: Callable[..., int]) -> Callable[..., NoReturn]:
    """The command, whose exit code is what it returns, and whose errors are a sentence each."""

    @functools.wraps(command)
    def run(**given: object) -> NoReturn:
        try:
            code = command(**given)
        except (AssayError, OSError) as problem:
            print(commands_here(f"assay: {problem}"), file=sys.stderr)
            code = 3 if isinstance(problem, Inconclusive) else 2
        raise typer.Exit(code)

    return run


def _not_called() -> None:
    """Stands for a command whose module is not imported."""


def _show_version(asked: bool) -> None:
    if asked:
        print(f"assay {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Decides whether a LoRA fine-tune may be released. `assay COMMAND --help` has an example and the exit codes."""
