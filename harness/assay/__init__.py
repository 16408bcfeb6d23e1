"""Assay decides whether a LoRA fine-tune may be released."""

from importlib.metadata import version

__version__ = version("adapter-assay")
