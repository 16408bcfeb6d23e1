"""What a case does in the process of a worker: a library or a tool misbehaves there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.faults.edits.sandbox import Sandbox

Wrapper = Callable[..., Any]
"""Called as `wrapper(original, *args, **kwargs)` in place of the original."""


def around(owner: Any, name: str, wrapper: Wrapper) -> None:
    """Replace a function for good by `wrapper`. Only for a process that ends with its case."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def wrap(sandbox: Sandbox, worker: str, owner: str, name: str, wrapper: Wrapper) -> None:
    """Replace a function in the process of a worker.

    Args:
        worker: `module.function` under `assay.workers`.
        owner: what holds the function: a module, or `module:Class`. It is imported in the worker's process.
        name: the function's name there.
    """

    def do() -> None:
        module, _, attribute = owner.partition(":")
        found = importlib.import_module(module)
        around(getattr(found, attribute) if attribute else found, name, wrapper)

    sandbox.in_worker(worker, do)


def adapted_modules(model: Any) -> list[Any]:
    """The modules of a peft model that an adapter is mounted on."""
    return [module for module in model.modules() if hasattr(module, "lora_B") and len(module.lora_B)]


def scale_adapter(model: Any, factor: float) -> None:
    """Multiply the scale of a mounted adapter."""
    for module in adapted_modules(model):
        for name in module.scaling:
            module.scaling[name] *= factor


def after_mounting(sandbox: Sandbox, worker: str, change: Callable[[Any], None]) -> None:
    """Change the peft model as soon as a worker has mounted the adapter."""

    def mount(original: Any, *args: Any, **given: Any) -> Any:
        model = original(*args, **given)
        change(model)
        return model

    wrap(sandbox, worker, "peft:PeftModel", "from_pretrained", mount)


def before_merging(sandbox: Sandbox, change: Callable[[Any], None]) -> None:
    """Change the peft model just before it is merged."""
    after_mounting(sandbox, "merge.fold", change)


def after_merging(sandbox: Sandbox, change: Callable[[Path], None]) -> None:
    """Change the merged checkpoint's folder before it is compared with base and adapter."""

    def replay_merge(original: Any, base: Path, adapter: Path, merged: Path) -> Any:
        change(merged)
        return original(base, adapter, merged)

    wrap(sandbox, "merge.fold", "assay.workers.merge", "replay_merge", replay_merge)
