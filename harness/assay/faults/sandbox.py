"""What a case may break: a candidate's files in copies of its own, the toolchain, what a worker's libraries do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from assay import paths
from assay.faults.fault import NotApplicable
from assay.files import write_json
from assay.inputs.bases import find_base
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.dataset import read_dataset
from assay.inputs.lora import CONFIG, WEIGHTS
from assay.inputs.toolchain import Toolchain, find_toolchain, home
from assay.steps import catalogue as steps
from assay.steps.step import Step

Edit = Callable[[dict[str, Any]], None]


class Sandbox:
    """One case's world. Nothing of the user's is written to: what is asked for here is a copy.

    Args:
        folder: empty, thrown away afterwards.
        candidate: the healthy one.
        adapter: the one of its adapters that the case is about.
        store: the healthy candidate's finished steps, of which unbroken ones are reused.
    """

    def __init__(self, folder: Path, candidate: Candidate, adapter: Adapter, store: Path) -> None:
        self.folder = folder
        self.candidate = candidate
        self.name = adapter.name
        self.original = adapter
        # One text of prose and fewer positions than in a release: a faults of a hundred is to end within the hour.
        (folder / "probes").mkdir()
        prose = (paths.GATES / "probes" / "bridge.txt").read_text(encoding="utf-8")
        (folder / "probes" / "bridge.txt").write_text(prose[:700], encoding="utf-8")
        self.options = ["--max-new-tokens", "32", "--scored-tokens", "420", "--probes", str(folder / "probes")]
        """Of pytest."""
        self.asks_task = False
        """Whether the evaluation samples are asked before the gates run, as `python -m train evaluate` does."""
        self.recorded = True
        """Whether candidate.json was written after the fault entered, and so knows no better."""
        self.in_workers: list[tuple[str, Callable[[], None]]] = []
        """Worker to what is done in its process before it starts."""
        self.cache = folder / "cache"
        (self.cache / "store").mkdir(parents=True)
        (self.cache / "bases").symlink_to(paths.cache() / "bases")
        (self.cache / "toolchains").symlink_to(paths.cache() / "toolchains")
        for slot in store.iterdir():
            if slot.is_dir() and (slot / "artifact.json").exists():
                (self.cache / "store" / slot.name).symlink_to(slot)

    @cached_property
    def adapter(self) -> Path:
        """The adapter's folder."""
        copy = self.folder / "adapter"
        copy.mkdir()
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(self.original.path / name, copy / name)
        return copy

    @cached_property
    def base(self) -> Path:
        """The base's folder: links, of which a broken one becomes a file of its own."""
        copy = self.folder / "base"
        copy.mkdir()
        for file in self.candidate.base.path.iterdir():
            if file.is_file():
                (copy / file.name).symlink_to(file.resolve())
        return copy

    @cached_property
    def data(self) -> Path:
        """The dataset's folder.

        Raises:
            NotApplicable: the candidate was trained elsewhere.
        """
        if not self.candidate.trained_here:
            raise NotApplicable("the candidate does not say what it was trained on")
        return Path(shutil.copytree(self.candidate.training.dataset.path, self.folder / "data"))

    @cached_property
    def toolchain(self) -> Toolchain:
        """A whole copy of the toolchain, where Assay looks for its own."""
        real = find_toolchain()
        (self.cache / "toolchains").unlink()
        copy = self.cache / "toolchains" / home().name
        shutil.copytree(real.bin, copy / "bin", symlinks=True)
        shutil.copytree(real.binding, copy / "python")
        (copy / "source").mkdir()
        for name in ("conversion", "gguf-py"):
            shutil.copytree(real.source / name, copy / "source" / name)
        shutil.copyfile(real.source / "convert_hf_to_gguf.py", copy / "source" / "convert_hf_to_gguf.py")
        facts = {"bin": "bin", "source": "source", "commit": real.commit, "release": real.release}
        write_json(copy / "toolchain.json", facts)
        os.environ.pop("ASSAY_LLAMA_CPP", None)
        return Toolchain(path=copy)

    def in_worker(self, worker: str, do: Callable[[], None]) -> None:
        """Do something in the process of a worker before it starts: its libraries and tools misbehave from then on.

        The step is named otherwise for it, so that neither it nor what is made of it is taken from a healthy run.
        """
        self.in_workers.append((worker, do))
        for step in vars(steps).values():
            if isinstance(step, type) and issubclass(step, Step) and getattr(step, "worker", None) == worker:
                step.packages = (*step.packages, f"faults-{self.folder.name}")

    def arguments(self) -> list[str]:
        """pytest's arguments that name the candidate as it is now."""
        record = None
        if self.candidate.trained_here:
            assert self.candidate.record is not None
            recorded = self.candidate.record
            made = "data" in vars(self)
            data = self.data if made else self.candidate.training.dataset.path
            digest = read_dataset(data).digest if self.recorded and made else recorded["dataset"]["digest"]
            record = {**recorded, "dataset": {**recorded["dataset"], "path": str(data), "digest": digest}}
        broken_base, broken_adapter = "base" in vars(self), "adapter" in vars(self)
        base = self.base if broken_base else self.candidate.base.path
        adapter = Adapter(name=self.name, source=str(self.adapter if broken_adapter else self.original.path))
        file = self.folder / "candidate.json"
        write_json(
            file,
            {
                "version": 1,
                "name": self.candidate.name,
                "base": {"id": str(base), "revision": None, "digest": self._digest_of_base(base)},
                "adapters": {self.name: {"path": adapter.source, "digest": self._digest_of(adapter)}},
                **({"training": record} if record else {}),
            },
        )
        return ["--candidate", str(file), *self.options]

    def _digest_of_base(self, base: Path) -> str | None:
        """As training would have recorded it; None where the base cannot even be read, which its own gate tells."""
        if not self.recorded:
            return self.candidate.base.digest
        try:
            return find_base(str(base)).digest
        except Exception:
            return None

    def _digest_of(self, adapter: Adapter) -> str | None:
        if not self.recorded:
            return self.original.digest
        try:
            return adapter.digest
        except Exception:
            return None


def edit_json(file: Path, edit: Edit) -> None:
    """Change a JSON file; a link becomes a file of its own."""
    data = json.loads(file.read_text(encoding="utf-8"))
    edit(data)
    replace_text(file, json.dumps(data, ensure_ascii=False, indent=2))


def replace_text(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.write_text(text, encoding="utf-8")


def edit_tensors(file: Path, edit: Edit) -> None:
    """Change a safetensors file's tensors, as torch tensors by name; a link becomes a file of its own."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    edit(tensors)
    file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def edit_checkpoint(folder: Path, edit: Edit) -> None:
    """The same for a model folder; one of several shards becomes one file."""
    from safetensors.torch import load_file, save_file

    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    edit(tensors)
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(file: Path, share: float) -> None:
    """Keep the first part of a file; a link becomes a file of its own."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: int(share * len(content))])


def around(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function for good by `wrapper(original, *args, **kwargs)`. For `in_worker`, whose process ends soon."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))
