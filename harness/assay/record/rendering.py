"""Writes the renderings of a run: `report.html`, `junit.xml` and `summary.md`, each a pure function of the record."""

from __future__ import annotations

from pathlib import Path

from assay.record.html import render_html
from assay.record.junit import render_junit
from assay.record.reading import read_run
from assay.record.text import render_markdown

RENDERINGS = {"report.html": render_html, "junit.xml": render_junit, "summary.md": render_markdown}
"""File name to the function that renders it."""


def write_reports(folder: Path) -> list[Path]:
    """Write each rendering into the run's folder, whole or not at all; their paths."""
    run = read_run(folder)
    for name, render in RENDERINGS.items():
        part = folder / f".{name}.part"
        part.write_text(render(run), encoding="utf-8")
        part.replace(folder / name)
    return [folder / name for name in RENDERINGS]
