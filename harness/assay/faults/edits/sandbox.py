"""What a case may alter: copies of the candidate's files, a copy of the toolchain, the processes of workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from assay import paths
from assay.files import write_json
from assay.inputs.bases import find_base
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.dataset import read_dataset
from assay.inputs.lora import CONFIG, WEIGHTS
from assay.inputs.toolchain import Toolchain, find_toolchain, home
from assay.steps import catalogue as steps
from assay.steps.step import Step


class NotApplicable(Exception):
    """This candidate or this machine cannot have the case; the text says why."""


class Sandbox:
    """Where one case takes place. It hands out copies, so that nothing of the user's is written to.

    Args:
        folder: empty; the caller deletes it afterwards.
        candidate: the healthy candidate.
        adapter: the one of its adapters that the case alters.
        store: the finished steps of the healthy candidate. Steps that the case does not alter are reused.
    """

    def __init__(self, folder: Path, candidate: Candidate, adapter: Adapter, store: Path) -> None:
        self.folder = folder
        self.candidate = candidate
        self.name = adapter.name
        self.original = adapter
        # One text and fewer positions than for a release, so that two hundred cases end within hours.
        (folder / "probes").mkdir()
        prose = (paths.GATES / "probes" / "bridge.txt").read_text(encoding="utf-8")
        (folder / "probes" / "bridge.txt").write_text(prose[:700], encoding="utf-8")
        self.options = ["--max-new-tokens", "32", "--scored-tokens", "420", "--probes", str(folder / "probes")]
        """pytest's."""
        self.asks_task = False
        """Whether the evaluation samples are asked before the gates run, as `python -m train evaluate` does."""
        self.recorded = True
        """Whether candidate.json has the digests of the altered files, as if it had been written after the edits."""
        self.in_workers: list[tuple[str, Callable[[], None]]] = []
        """A worker, and what is called in its process before the worker."""
        self.cache = folder / "cache"
        (self.cache / "store").mkdir(parents=True)
        (self.cache / "bases").symlink_to(paths.cache() / "bases")
        (self.cache / "toolchains").symlink_to(paths.cache() / "toolchains")
        for slot in store.iterdir():
            if slot.is_dir() and (slot / "artifact.json").exists():
                (self.cache / "store" / slot.name).symlink_to(slot)

    @cached_property
    def adapter(self) -> Path:
        """A copy of the adapter's folder."""
        copy = self.folder / "adapter"
        copy.mkdir()
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(self.original.path / name, copy / name)
        return copy

    @cached_property
    def base(self) -> Path:
        """A folder of links to the base's files. An edit replaces a link by a file."""
        copy = self.folder / "base"
        copy.mkdir()
        for file in self.candidate.base.path.iterdir():
            if file.is_file():
                (copy / file.name).symlink_to(file.resolve())
        return copy

    @cached_property
    def data(self) -> Path:
        """A copy of the dataset's folder.

        Raises:
            NotApplicable: the candidate was trained elsewhere.
        """
        if not self.candidate.trained_here:
            raise NotApplicable("the candidate does not say what it was trained on")
        return Path(shutil.copytree(self.candidate.training.dataset.path, self.folder / "data"))

    @cached_property
    def toolchain(self) -> Toolchain:
        """A copy of the toolchain, in the place where Assay looks for its own."""
        real = find_toolchain()
        (self.cache / "toolchains").unlink()
        copy = self.cache / "toolchains" / home().name
        shutil.copytree(real.bin, copy / "bin", symlinks=True)
        shutil.copytree(real.binding, copy / "python")
        copy_converter(real.source, copy / "source")
        facts = {"bin": "bin", "source": "source", "commit": real.commit, "release": real.release}
        write_json(copy / "toolchain.json", facts)
        os.environ.pop("ASSAY_LLAMA_CPP", None)
        return Toolchain(path=copy)

    def in_worker(self, worker: str, do: Callable[[], None]) -> None:
        """Call `do` in the process of a worker before the worker: its libraries and tools misbehave from then on.

        The step's digest changes too, so that neither its result nor what is made of it comes from a healthy run.
        """
        self.in_workers.append((worker, do))
        for step in vars(steps).values():
            if isinstance(step, type) and issubclass(step, Step) and getattr(step, "worker", None) == worker:
                step.packages = (*step.packages, f"faults-{self.folder.name}")

    def arguments(self) -> list[str]:
        """pytest's arguments, which name the altered candidate."""
        record = None
        if self.candidate.trained_here:
            assert self.candidate.record is not None
            recorded = self.candidate.record
            altered = "data" in vars(self)
            data = self.data if altered else self.candidate.training.dataset.path
            digest = read_dataset(data).digest if self.recorded and altered else recorded["dataset"]["digest"]
            record = {**recorded, "dataset": {**recorded["dataset"], "path": str(data), "digest": digest}}
        altered_base, altered_adapter = "base" in vars(self), "adapter" in vars(self)
        base = self.base if altered_base else self.candidate.base.path
        adapter = Adapter(name=self.name, source=str(self.adapter if altered_adapter else self.original.path))
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
        """As training would have recorded it. None if the base cannot be read, which `base_quant_load_ok` reports."""
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


def copy_converter(source: Path, to: Path) -> None:
    """Copy the converter and the packages beside it, which it imports, out of llama.cpp's source."""
    to.mkdir(parents=True, exist_ok=True)
    for name in ("conversion", "gguf-py"):
        shutil.copytree(source / name, to / name)
    shutil.copyfile(source / "convert_hf_to_gguf.py", to / "convert_hf_to_gguf.py")
