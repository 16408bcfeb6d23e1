"""A child has closed stdin, a deadline, a capped log and a group that dies whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from assay import process


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_goes_to_the_log_and_the_exit_code_is_kept(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    finished = process.run(python(code), cwd=tmp_path, log=tmp_path / "log", deadline_seconds=30)
    assert (finished.exit_code, finished.timed_out) == (3, False)
    assert set((tmp_path / "log").read_text().split()) == {"out", "err"}
    assert finished.peak_rss_bytes > 1_000_000


def test_a_fork_is_under_the_same_rules_as_a_program(tmp_path: Path) -> None:
    def work() -> int:
        print("out", sys.stdin.read() if os.isatty(0) else repr(os.read(0, 1)))
        subprocess.run(["sh", "-c", "echo err >&2"], check=True)
        return 3

    finished = process.fork(work, cwd=tmp_path, log=tmp_path / "log", deadline_seconds=30)
    assert (finished.exit_code, finished.timed_out) == (3, False)
    assert (tmp_path / "log").read_text().split() == ["out", "b''", "err"]
    assert finished.peak_rss_bytes > 1_000_000


def test_a_fork_that_raises_leaves_its_traceback_and_one_that_hangs_is_killed(tmp_path: Path) -> None:
    def raises() -> int:
        raise ValueError("in the fork")

    assert process.fork(raises, cwd=tmp_path, log=tmp_path / "log", deadline_seconds=30).exit_code == 1
    assert "ValueError: in the fork" in (tmp_path / "log").read_text()

    def hangs() -> int:
        time.sleep(60)
        return 0

    finished = process.fork(hangs, cwd=tmp_path, log=tmp_path / "log", deadline_seconds=0.5)
    assert (finished.exit_code, finished.timed_out) == (-9, True)


def test_stdin_is_closed(tmp_path: Path) -> None:
    code = "import sys; sys.exit(0 if sys.stdin.read() == '' else 1)"
    assert process.run(python(code), cwd=tmp_path, log=tmp_path / "log", deadline_seconds=30).exit_code == 0


def test_a_child_that_hangs_is_killed_with_its_own_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path('pid').write_text(str(child.pid)); time.sleep(60)"
    )
    started = time.monotonic()
    finished = process.run(python(code), cwd=tmp_path, log=tmp_path / "log", deadline_seconds=2)
    assert finished.timed_out
    assert finished.exit_code == -9
    assert time.monotonic() - started < 20
    assert _is_gone(int((tmp_path / "pid").read_text()))


def test_what_a_finished_child_left_running_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path('pid').write_text(str(child.pid))"
    )
    process.run(python(code), cwd=tmp_path, log=tmp_path / "log", deadline_seconds=30)
    assert _is_gone(int((tmp_path / "pid").read_text()))


def _is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # dead; whoever inherited it has not asked yet
            return True
        time.sleep(0.05)
    os.kill(pid, 9)
    return False


def test_a_log_keeps_its_beginning_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_HEAD_BYTES", 50_000)
    code = "print('first'); [print('x' * 999) for _ in range(2000)]; print('last')"
    process.run(python(code), cwd=tmp_path, log=tmp_path / "log", deadline_seconds=30)
    text = (tmp_path / "log").read_text()
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "bytes left out" in text
    assert len(text) < 250_000


def test_the_last_lines_of_a_log_leave_progress_bars_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("10%\r50%\r100%\n\nerror: no space\n")
    assert process.last_lines(tmp_path / "log") == "100%\nerror: no space"
    assert process.last_lines(tmp_path / "none") == "(no log)"


def test_a_full_disk_does_not_hang_the_child(tmp_path: Path) -> None:
    finished = process.run(python("print('x' * 10_000_000)"), cwd=tmp_path, log=Path("/dev/full"), deadline_seconds=30)
    assert (finished.exit_code, finished.timed_out) == (0, False)
