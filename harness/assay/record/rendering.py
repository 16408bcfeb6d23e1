"""Renders a run's record: HTML, JUnit, Markdown, the terminal. Pure functions of the record; nothing is judged here."""

from __future__ import annotations

from pathlib import Path

from assay.record.html import render_html
from assay.record.junit import render_junit
from assay.record.record import read_run
from assay.record.text import render_markdown, terminal_lines

__all__ = ["terminal_lines", "write_reports"]


def write_reports(folder: Path) -> list[Path]:
    """Render `report.html`, `junit.xml` and `summary.md` into the run's folder, each whole or not at all."""
    run = read_run(folder)
    written = []
    renderings = {"report.html": render_html, "junit.xml": render_junit, "summary.md": render_markdown}
    for name, render in renderings.items():
        path = folder / name
        part = path.with_name(f".{name}.part")
        part.write_text(render(run), encoding="utf-8")
        part.replace(path)
        written.append(path)
    return written
