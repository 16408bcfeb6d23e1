"""A gate is a pytest test with a public id. What a gate makes, a later gate may take as a prerequisite."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from assay.errors import NoRoom

Per = Literal["run", "dataset", "candidate", "adapter"]
_GIVEN = ("evidence", "candidate", "adapter", "prompts", "probes", "max_new_tokens", "scored_tokens", "gguf_dtype")
"""Fixtures that are no prerequisite: nothing has to be made or judged for them."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    id: str
    """Stable and public. `<adapter>` in it stands for the adapter's name."""
    per: Per
    """Whether it is judged once per run, per candidate, per adapter, or for the dataset that was trained on."""
    body: Callable[..., Any]
    """Judges. Returns what it made, which a prerequisite hands on."""

    @property
    def route(self) -> str:
        """The family it belongs to: the name of its file, `test_<route>.py`."""
        return self._module.removeprefix("test_")

    @property
    def title(self) -> str:
        """What the gate claims: the first line of the docstring."""
        return (inspect.getdoc(self.body) or "").partition("\n")[0].strip()

    @property
    def guide(self) -> str:
        """Why it matters and what to do when it fails: the rest of the docstring."""
        return (inspect.getdoc(self.body) or "").partition("\n")[2].strip()

    @property
    def needs(self) -> tuple[str, ...]:
        """The fixtures that are its prerequisites."""
        return tuple(name for name in inspect.signature(self.body).parameters if name not in _GIVEN)

    @property
    def test(self) -> str:
        """`file::function`, for pytest."""
        return f"{self._module}.py::{self.body.__name__}"

    @property
    def _module(self) -> str:
        return self.body.__module__.rpartition(".")[2]

    def name_for(self, adapter: str | None) -> str:
        return self.id.replace("<adapter>", adapter or "<adapter>")


class GateFailed(AssertionError):
    """What was judged is not as it must be.

    Args:
        code: why, as a stable word that causes, tests and the fault coverage refer to.
        text: why, for people: subject, seen, expected. It may change, and nothing parses it.
        details: values that a cause's text may name.
    """

    def __init__(self, code: str, text: str, **details: str | float) -> None:
        super().__init__(text)
        self.code = code
        self.details = details


def require(condition: object, code: str, text: str, **details: str | float) -> None:
    """Fail the gate unless the condition holds.

    Raises:
        GateFailed: it does not.
    """
    if not condition:
        raise GateFailed(code, text, **details)


def require_none(found: Sequence[object], code: str, text: str) -> None:
    """Fail the gate if anything was found.

    Args:
        text: what is wrong with what was found, as in `tensors of the base are missing`. Number and first come with it.

    Raises:
        GateFailed: something was found.
    """
    if found:
        raise GateFailed(code, f"{len(found)} {text}. The first: {found[0]}")


_Skipped: Any = pytest.skip.Exception  # mypy does not see a class in it


class Blocked(_Skipped):  # type: ignore[misc]
    """A prerequisite did not get there. `by` is the id of the gate that tells why."""

    def __init__(self, by: str, reason: str) -> None:
        super().__init__(f"blocked by {by}: {reason}")
        self.by = by
        self.reason = reason


def gate(id: str, *, per: Per) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a function a gate and a pytest test. The function may return what it made, which pytest does not see."""

    def mark(body: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(body)
        def test(**given: Any) -> None:
            body(**given)

        test.gate = Gate(id=id, per=per, body=body)  # type: ignore[attr-defined]
        return test

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
    body, id = (own.body, own.id) if own else (check, of or check.__name__)

    @functools.wraps(body)
    def fixture(**given: Any) -> Any:
        if "evidence" in given:
            # What a prerequisite looks at is its own gate's evidence, and none of the gate that needs it.
            given["evidence"] = given["evidence"].apart()
        try:
            return body(**given)
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
            if found is not None and found.body.__module__ == file.stem:
                gates.append(found)
    return gates
