"""Processes that take their steps in turn, so that whatever else the machine does slows them alike; and what they hold. Linux only: memory is read from /proc."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MIB = 2**20


# In a worker process


class Turns:
    """Takes a step for each line on stdin and answers each with a line of JSON on stdout."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever a library prints stays out of the way
        self._began = 0.0, 0.0

    def wait(self) -> None:
        """Until it is this process's turn; its time begins then."""
        sys.stdin.readline()
        self._began = time.perf_counter(), time.process_time()

    def done(self) -> None:
        self.answer(wall=time.perf_counter() - self._began[0], cpu=time.process_time() - self._began[1])

    def answer(self, **values: float) -> None:
        self._out.write(json.dumps(values) + "\n")


def memory(key: str) -> int:
    """A figure of this process from /proc, in bytes. VmHWM, its peak, is free of what the parent process had (ru_maxrss is not)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{key}:\s+(\d+) kB", status).group(1)) * 1024  # type: ignore[union-attr]


def forget_peak() -> None:
    """VmHWM begins anew at what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


# In the parent process


class Worker:
    """A process that runs a script's worker."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def step(self) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A worker ended early: see above.")
        return json.loads(line)

    def wait(self) -> None:
        if self._process.wait():
            raise SystemExit("A worker failed at its end: see above.")


@contextmanager
def worker(script: str, *arguments: str) -> Iterator[Worker]:
    process = subprocess.Popen([sys.executable, script, *arguments], env=_env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.wait()


def call(script: str, *arguments: str, python: Path | str = sys.executable, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The last line that the script prints when called so. `env` is beside what the environment has."""
    done = subprocess.run([str(python), script, *arguments], env={**_env(), **(env or {})}, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout.strip().splitlines()[-1]


def _env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios at the same step."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def cores() -> str:
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({cpu.group(1) if cpu else platform.machine()}), {ram:.0f} GiB RAM"


def other_load(average: float) -> str:
    return f"Load average as it began: {average:.1f}{'' if average < 0.5 else ' (other programs were running; times are better measured on a quiet machine)'}."


def versions(*packages: str) -> str:
    from importlib.metadata import version

    return ", ".join(f"{package} {version(package)}" for package in packages)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
