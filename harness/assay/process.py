"""Runs one child process: closed stdin, a deadline, a capped log, its own process group, which is killed whole.

A child is a program, or a fork of this process: whoever runs the same libraries many times imports them once.

It does not restrict what the child may read or write, and a child that leaves its process group is not followed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOG_HEAD_BYTES = 2_000_000
"""What a log keeps from its beginning; of the rest it keeps the last LOG_TAIL_CHUNKS chunks."""
LOG_TAIL_CHUNKS = 16
_CHUNK_BYTES = 8192
_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a child process left."""

    exit_code: int
    """Negative: the signal that ended it."""
    timed_out: bool
    seconds: float
    peak_rss_bytes: int
    """Of the child or of the largest of its own children."""


def run(
    command: list[str],
    *,
    cwd: Path,
    log: Path,
    deadline_seconds: float,
    env: dict[str, str] | None = None,
    own_group: bool = True,
) -> Finished:
    """Run `command` to its end or to its deadline; stdout and stderr go to `log`.

    With `own_group` off, the child stays in the caller's process group, whose end is then its own.

    Raises:
        OSError: the program cannot be started.
    """
    child = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=own_group,
    )
    assert child.stdout is not None
    finished = _attend(child.pid, child.stdout, log, deadline_seconds, own_group)
    child.returncode = finished.exit_code
    return finished


def fork(work: Callable[[], int], *, cwd: Path, log: Path, deadline_seconds: float) -> Finished:
    """Run `work` in a fork of this process, under the same rules. What it returns is the exit code.

    A process that has computed with torch must not fork: its threads would be missing in the child.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(writes)
        return _attend(child, os.fdopen(reads, "rb", buffering=0), log, deadline_seconds, own_group=True)
    code = 1
    try:
        os.close(reads)
        os.setsid()
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(writes, 1)
        os.dup2(writes, 2)
        # Whatever captured the parent's output (pytest) is not the child's.
        sys.stdout, sys.stderr = (os.fdopen(at, "w", buffering=1, closefd=False) for at in (1, 2))
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        # Whatever happens, no second copy of the parent goes on from here.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _attend(child: int, output: IO[bytes], log: Path, deadline_seconds: float, own_group: bool) -> Finished:
    """Log what the child writes until it has ended, or end it."""
    started = time.monotonic()
    # Unbuffered: a buffer that a full disk refused would raise again when the file is closed.
    with log.open("ab", buffering=0) as file:
        reader = threading.Thread(target=_copy_capped, args=(output, file), daemon=True)
        reader.start()
        timed_out = False
        try:
            while True:
                pid, wait_status, usage = os.wait4(child, os.WNOHANG)
                if pid:
                    break
                if not timed_out and time.monotonic() - started > deadline_seconds:
                    timed_out = True
                    _kill(child, own_group)
                time.sleep(_POLL_SECONDS)
        finally:
            # Also what a finished child left running: a step owns nothing once it has ended.
            _kill(child, own_group)
            reader.join(timeout=5)
            output.close()
    return Finished(
        exit_code=os.waitstatus_to_exitcode(wait_status),
        timed_out=timed_out,
        seconds=time.monotonic() - started,
        peak_rss_bytes=usage.ru_maxrss * 1024,
    )


def _kill(child: int, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(child, signal.SIGKILL)


def _copy_capped(pipe: IO[bytes], file: IO[bytes]) -> None:
    # On a full disk the log ends early, but the pipe is still emptied: a child must not hang on its own output.
    with contextlib.suppress(OSError):
        _copy(pipe, file)
    while os.read(pipe.fileno(), _CHUNK_BYTES):
        pass


def _copy(pipe: IO[bytes], file: IO[bytes]) -> None:
    written, dropped = 0, 0
    tail: deque[bytes] = deque(maxlen=LOG_TAIL_CHUNKS)
    while chunk := os.read(pipe.fileno(), _CHUNK_BYTES):
        if written < LOG_HEAD_BYTES:
            file.write(chunk)
            written += len(chunk)
        else:
            dropped += len(chunk)
            tail.append(chunk)
    if tail:
        kept = b"".join(tail)
        if dropped > len(kept):
            file.write(b"\n[... %d bytes left out ...]\n" % (dropped - len(kept)))
        file.write(kept)


def last_lines(log: Path, count: int = 12) -> str:
    """The last non-empty lines of a log, for a failure's text."""
    try:
        text = log.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    # A progress bar rewrites its line with \r; only its last state is worth keeping.
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-count:])
