"""A gate is a pytest test with a public id. What it makes, a later gate may take as a prerequisite."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from _pytest.outcomes import Skipped

from assay.errors import NoRoom

Per = Literal["run", "dataset", "candidate", "adapter"]
_ALWAYS_THERE = ("bench", "candidate", "adapter", "prompts", "probes", "max_new_tokens", "scored_tokens", "gguf_dtype")
"""Fixtures that are no prerequisite: nothing has to be made or judged for them."""
Body = TypeVar("Body", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Gate:
    id: str
    """Stable and public. `<adapter>` in it stands for the adapter's name."""
    per: Per
    """Whether it is judged once a run, once a candidate, once an adapter, or once for the dataset trained on."""
    route: str
    """The family it belongs to: the name of its file, `test_<route>.py`."""
    title: str
    """The first line of its docstring."""
    guide: str
    """The rest of its docstring: why it matters, what to do when it fails."""
    needs: tuple[str, ...]
    """The fixtures that are its prerequisites."""
    test: str
    """`file::function`, for pytest."""

    def name_for(self, adapter: str | None) -> str:
        return self.id.replace("<adapter>", adapter or "<adapter>")


class Blocked(Skipped):
    """A prerequisite did not get there. `by` is the id of the gate that tells why."""

    def __init__(self, by: str, reason: str) -> None:
        super().__init__(f"blocked by {by}: {reason}", _use_item_location=True)
        self.by = by
        self.reason = reason


def gate(id: str, *, per: Per) -> Callable[[Body], Body]:
    """Make a test function a gate. It may return what it made; pytest does not see that, a prerequisite does."""

    def mark(body: Body) -> Body:
        title, _, guide = (inspect.getdoc(body) or "").partition("\n")
        needs = tuple(name for name in inspect.signature(body).parameters if name not in _ALWAYS_THERE)
        body.gate = Gate(  # type: ignore[attr-defined]
            id=id,
            per=per,
            route=body.__module__.rpartition(".")[2].removeprefix("test_"),
            title=title.strip(),
            guide=guide.strip(),
            needs=needs,
            test=f"{body.__module__.rpartition('.')[2]}.py::{body.__name__}",
        )
        return body

    return mark


def gate_of(function: object) -> Gate | None:
    found = getattr(function, "gate", None)
    return found if isinstance(found, Gate) else None


def prerequisite(check: Callable[..., Any], of: str | None = None) -> Any:
    """A fixture that hands on what `check` made, once it holds.

    Args:
        check: a gate, or a part of one. Its parameters are the fixture's own prerequisites.
        of: the id of the gate that tells when `check` fails; the gate's own if `check` is one.
    """
    own = gate_of(check)
    id = of or (own.id if own else check.__name__)

    @functools.wraps(check)
    def fixture(**given: Any) -> Any:
        try:
            return check(**given)
        except NoRoom:
            raise  # The machine is at fault and not the gate, so the gate is not named.
        except Exception as problem:
            adapter = given.get("adapter")
            by = id.replace("<adapter>", adapter.name if adapter is not None else "<adapter>")
            raise Blocked(by, str(problem).split("\n")[0]) from problem

    return pytest.fixture(fixture)


def read_gates(folder: Path) -> list[Gate]:
    """Every gate in a folder of `test_*.py`, in the order of the files and of the functions in them."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    gates = []
    for file in sorted(folder.glob("test_*.py")):
        for function in vars(importlib.import_module(file.stem)).values():
            found = gate_of(function)
            if found is not None and function.__module__ == file.stem:
                gates.append(found)
    return gates
