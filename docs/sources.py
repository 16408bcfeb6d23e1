"""What the source of a gate says: its stages and its failure codes. Nothing is run, the syntax tree is read."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.gating import gate as gate_module
from assay.gating.causes import known_stages
from assay.gating.gate import Gate, gate_of
from assay.paths import GATES, PACKAGE
from assay.steps.step import Stage, Step


@dataclass
class Source:
    """What the source of a gate, and of the helpers that it calls, says."""

    stages: dict[str, Stage[Any]] = field(default_factory=dict)
    """Stages that it reads, by id."""
    attributes: set[str] = field(default_factory=set)
    """Names of the attributes that it reads, of facts and of anything else."""
    codes: dict[str, None] = field(default_factory=dict)
    """Failure codes, in order. `*` stands for a part that is chosen when the gate runs."""


def read_source(gate: Gate) -> Source:
    """Read a gate's source.

    Raises:
        TypeError: a failure code is no literal.
    """
    found = Source()
    for tree, names in _functions(gate.body):
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        for call in sorted(calls, key=lambda node: node.lineno):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            at = {"require": 1, "require_none": 1, "GateFailed": 0}.get(name)
            if at is not None:
                found.codes[_pattern(call.args[at], gate)] = None
        for node in ast.walk(tree):
            stage = _stage(node, names)
            if stage is not None:
                found.stages[stage.id] = stage
            if isinstance(node, ast.Attribute):
                found.attributes.add(node.attr)
    found.stages = {id: stage for id, stage in known_stages().items() if id in found.stages}
    return found


def _functions(body: Callable[..., Any]) -> Iterator[tuple[ast.AST, dict[str, Any]]]:
    """The syntax trees of a gate's body and of its helpers, each with the names that its module knows."""
    found = [body]
    for function in found:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        names = inspect.unwrap(function).__globals__
        yield tree, names
        used = [names.get(node.id) for node in ast.walk(tree) if isinstance(node, ast.Name)]
        found += [one for one in used if _is_helper(one) and one not in found]


def _is_helper(value: object) -> bool:
    """Whether it is a function that gates share: one beside them that is no gate, or one of the room `gating`."""
    if not inspect.isfunction(value) or gate_of(value) is not None or value.__module__ == gate_module.__name__:
        return False
    return Path(inspect.getfile(value)).parent in (GATES, PACKAGE / "gating")


def _pattern(code: ast.expr, gate: Gate) -> str:
    if isinstance(code, ast.Constant):
        return str(code.value)
    if isinstance(code, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in code.values)
    raise TypeError(f"{gate.test}: the failure code {ast.unparse(code)} is no literal, so it cannot be documented.")


def _stage(node: ast.AST, names: dict[str, Any]) -> Stage[Any] | None:
    """The stage that an expression such as `QuantizeQ4.inspected` or `COMPARED` names."""
    found = names.get(node.id) if isinstance(node, ast.Name) else None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        step = names.get(node.value.id)
        found = vars(step).get(node.attr) if isinstance(step, type) and issubclass(step, Step) else None
    return found if isinstance(found, Stage) else None
