"""Assay decides whether a LoRA fine-tune may be released."""

__version__ = "0.1.0"
