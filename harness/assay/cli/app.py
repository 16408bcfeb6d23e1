"""The command `assay`. Every message goes to people; exit codes are 0 release (or done), 1 hold, 2 cannot judge."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from assay import __version__, paths
from assay.errors import AssayError, Inconclusive, InputError
from assay.gating.gate import Gate, read_gates
from assay.gating.policy import read_policy
from assay.inputs.candidate import Candidate, chosen_candidate
from assay.record.reading import newest_run, read_run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="assay", description="Decides whether a LoRA fine-tune may be released.")
    parser.add_argument("--version", action="version", version=f"assay {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    report = commands.add_parser("report", help="render a run's record: report.html, junit.xml, summary.md")
    verdict = commands.add_parser("verdict", help="print a run's verdict; exit 0 release, 1 hold, 2 cannot judge")
    for command in (report, verdict):
        command.add_argument("run", nargs="?", type=Path, help="the run's folder (default: the newest in reports/)")
    listing = commands.add_parser("list", help="every gate: id, route, severity, what it needs")
    listing.add_argument("--markdown", action="store_true", help="as the reference in docs/gates.md")
    plan = commands.add_parser("plan", help="what a base and a LoRA on it take: bytes, memory to train, which card")
    plan.add_argument("base", help="a folder with config.json, that file, a hub id, or smollm2-135m-instruct")
    plan.add_argument("--adapter", help="folder or hub id (default: the thesis's LoRA, r=16 on q, k, v, o)")
    plan.add_argument("--revision", help="revision of a hub base")
    plan.add_argument("--batch", type=int, default=8, help="samples a training step (default: 8)")
    plan.add_argument("--tokens", type=int, default=512, help="tokens a sample (default: 512)")
    plan.add_argument("--context", type=int, default=4096, help="tokens of context when deployed (default: 4096)")
    plan.add_argument("--json", action="store_true", help="as JSON, in bytes")
    check = commands.add_parser(
        "check-merge", help="how a checkpoint was merged, or what is wrong with it; exit 0 healthy, 1 defect, 3 unknown"
    )
    strength = commands.add_parser(
        "strength", help="which adapter, at what strength, is in a file; exit 0 right, 1 not, 3 cannot tell"
    )
    check.add_argument("--adapter", required=True, help="folder or hub id")
    check.add_argument("merged", type=Path, metavar="MERGED", help="the merged checkpoint's folder")
    strength.add_argument("--adapter", action="append", required=True, metavar="[NAME=]WHERE", help="may be repeated")
    strength.add_argument("file", type=Path, metavar="FILE", help="a GGUF, a safetensors file or a checkpoint's folder")
    for command in (check, strength):
        command.add_argument("--base", required=True, help="a folder, a hub id, or smollm2-135m-instruct")
        command.add_argument("--json", action="store_true", help="as JSON, every layer")
    explain = commands.add_parser("explain", help="why gates did not pass, and what to do: cause, fix, evidence")
    explain.add_argument("run", nargs="?", type=Path, help="the run's folder (default: the newest in reports/)")
    explain.add_argument("gate", nargs="?", help="one gate, as in merge_ok or 'merge_ok [style]' (default: all)")
    doctor = commands.add_parser("doctor", help="what will go wrong, in seconds; exit 0 nothing, 1 a gate will fail")
    faults = commands.add_parser("faults", help="what the gates catch: faults and healthy variants of a candidate")
    for command in (doctor, faults):
        command.add_argument(
            "--candidate", type=Path, metavar="FILE", help="candidate.json (default: the quickstart's)"
        )
        command.add_argument("--base", help="base model: a folder, a hub id, or smollm2-135m-instruct")
        command.add_argument("--revision", help="revision of a hub base")
        command.add_argument("--adapter", metavar="NAME=WHERE", action="append", default=[], help="folder or hub id")
        command.add_argument("--trained-on", metavar="NAME", help="your word that the recorded base NAME is this base")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    faults.add_argument("cases", nargs="*", metavar="CASE", help="these only (default: all)")
    faults.add_argument("--list", action="store_true", help="every fault and healthy variant, and what is out of reach")
    faults.add_argument(
        "--quick", action="store_true", help="only what shows before a model is loaded: minutes, not an hour"
    )
    faults.add_argument(
        "--jobs", type=int, default=1, help="cases at a time, each on its share of the cores (default: 1)"
    )
    faults.add_argument(
        "--run", type=Path, metavar="DIR", help="folder of the records; what is judged there already is kept"
    )
    faults.add_argument("--publish", action="store_true", help="write docs/coverage.json and docs/coverage.md")
    toolchain = commands.add_parser("toolchain", help="build llama.cpp from the pinned source, once")
    cuda = toolchain.add_mutually_exclusive_group()
    cuda.add_argument("--cuda", action="store_true", default=None, help="build for NVIDIA GPUs even if none is seen")
    cuda.add_argument("--no-cuda", dest="cuda", action="store_false", help="build for the processor only")

    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "report":
            return _report(arguments.run)
        if arguments.command == "verdict":
            return _verdict(arguments.run)
        if arguments.command == "list":
            return _list(arguments.markdown)
        if arguments.command == "plan":
            from assay.cli import plan as plan_command

            return plan_command.run(
                arguments.base,
                arguments.adapter,
                arguments.revision,
                batch=arguments.batch,
                length=arguments.tokens,
                context=arguments.context,
                as_json=arguments.json,
            )
        if arguments.command == "explain":
            from assay.cli import explain as explain_command

            return explain_command.run(*_run_and_gate(arguments.run, arguments.gate))
        if arguments.command == "doctor":
            from assay.cli import doctor as doctor_command

            return doctor_command.run(_candidate(arguments), as_json=arguments.json)
        if arguments.command == "faults":
            from assay.cli import faults as faults_command

            if arguments.list:
                return faults_command.listing()
            return faults_command.run(
                _candidate(arguments),
                arguments.cases,
                quick=arguments.quick,
                jobs=arguments.jobs,
                folder=arguments.run,
                publish=arguments.publish,
            )
        if arguments.command in ("check-merge", "strength"):
            from assay.cli import fidelity as fidelity_command

            if arguments.command == "check-merge":
                return fidelity_command.check_merge(
                    arguments.base, arguments.adapter, arguments.merged, as_json=arguments.json
                )
            return fidelity_command.strength(arguments.base, arguments.adapter, arguments.file, as_json=arguments.json)
        return _toolchain(arguments.cuda)
    except Inconclusive as problem:
        print(f"assay: {problem}", file=sys.stderr)
        return 3
    except (AssayError, OSError) as problem:
        print(f"assay: {problem}", file=sys.stderr)
        return 2


def _candidate(of: argparse.Namespace) -> Candidate | None:
    return chosen_candidate(of.candidate, of.base, of.adapter, of.revision, of.trained_on)


def _run_and_gate(run: Path | None, gate: str | None) -> tuple[Path, str | None]:
    """`assay explain merge_ok` names a gate of the newest run: a run is a folder."""
    if run is not None and gate is None and not run.is_dir():
        return newest_run(paths.REPORTS), str(run)
    return run or newest_run(paths.REPORTS), gate


def _report(folder: Path | None) -> int:
    from assay.record.rendering import write_reports

    for path in write_reports(folder or newest_run(paths.REPORTS)):
        print(path)
    return 0


def _verdict(folder: Path | None) -> int:
    from assay.record.text import terminal_lines

    run = read_run(folder or newest_run(paths.REPORTS))
    print("\n".join(terminal_lines(run)))
    return run.verdict.exit_code


def _list(markdown: bool) -> int:
    gates = read_gates(paths.GATES)
    if not gates:
        raise InputError(f"{paths.GATES}: no gates there. Assay runs from its repository: `pip install -e '.[all]'`.")
    if markdown:
        print(reference(gates), end="")
        return 0
    policy = read_policy(paths.GATES / "policy.toml", [gate.id for gate in gates])
    table = Table(box=None)
    table.add_column("gate", no_wrap=True)
    for name in ("route", "severity", "per", "needs"):
        table.add_column(name)
    for id, severity in policy.severity.items():
        gate = next(gate for gate in gates if gate.id == id)
        table.add_row(id, gate.route, severity.value, gate.per, ", ".join(gate.needs) or "–")
    Console().print(table)
    return 0


def reference(gates: list[Gate]) -> str:
    """The gate reference, from the gates' own docstrings."""
    lines = ["# Gates", "", "Generated by `assay list --markdown`; the text is each gate's docstring.", ""]
    for gate in gates:
        needs = ", ".join(f"`{name}`" for name in gate.needs) or "nothing"
        lines += [f"## `{gate.id}`", "", f"{gate.title}", "", gate.guide, ""]
        lines += [f"Route `{gate.route}`, once per {gate.per}, needs {needs}. Test: `gates/{gate.test}`.", ""]
    return "\n".join(lines)


def _toolchain(cuda: bool | None) -> int:
    from assay.inputs.toolchain import build_toolchain

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("toolchain", total=1.0)
        told = -1

        def show(done: float, doing: str) -> None:
            nonlocal told
            progress.update(task, completed=done, description=doing)
            # A log file has no bar: say so every tenth.
            if not console.is_terminal and int(done * 10) > told:
                told = int(done * 10)
                console.print(f"{doing}: {done:.0%}")

        toolchain = build_toolchain(cuda=cuda, show=show)
        progress.update(task, completed=1.0, description="toolchain ready")
    print(f"llama.cpp {toolchain.commit}: {toolchain.path}")
    return 0
