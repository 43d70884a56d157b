"""`vram`: what memory there is, and who has it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time

from ..vram.gauges import MIB, Device, Gauges, Snapshot
from .terminal import AddParser, say

_BAR = 32


def add_commands(add_parser: AddParser) -> None:
    parser = add_parser(
        "vram",
        help="say what memory there is, and who has it",
        description="Every GPU, the processes that hold its memory, and RAM: once, or live. No GPU is taken into use for it.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON, in bytes")
    how.add_argument("--watch", action="store_true", help="go on, once a second, until Ctrl+C")
    parser.set_defaults(run=_vram)


def _vram(options: argparse.Namespace) -> int:
    if sys.platform == "darwin":
        importlib.import_module("torch")  # through which Apple's GPUs are seen
    gauges = Gauges()
    try:
        if options.json:
            print(json.dumps(gauges.read().as_json(), indent=2))
        elif options.watch:
            _watch(gauges)
        else:
            snapshot = gauges.read()
            print("\n".join(_table(snapshot)))
            if snapshot.problem:
                say(snapshot.problem)
    finally:
        gauges.close()
    return 0


def _watch(gauges: Gauges) -> None:
    is_terminal = sys.stdout.isatty()
    lines = 0
    told: list[str] = []
    try:
        while True:
            snapshot = gauges.read()
            if is_terminal:
                table = [*_table(snapshot), *([snapshot.problem] if snapshot.problem else [])]
                print((f"\x1b[{lines}A\x1b[J" if lines else "") + "\n".join(table), flush=True)
                lines = len(table)
            else:
                problems = [f"{device.index}: {device.problem}" for device in snapshot.devices if device.problem] + ([snapshot.problem] if snapshot.problem else [])
                for problem in problems:
                    if problem not in told:
                        say(problem)
                told = problems
                print(_line(snapshot), flush=True)
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `| head` has read enough; what Python still wants to write at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(snapshot: Snapshot) -> str:
    parts = [time.strftime("%H:%M:%S", time.localtime(snapshot.time))]
    parts += [f"{device.index}: {device.used / MIB:.0f}/{device.total / MIB:.0f} MiB" for device in snapshot.devices]
    return "  ".join([*parts, f"RAM: {snapshot.host.used / MIB:.0f}/{snapshot.host.total / MIB:.0f} MiB"])


def _table(snapshot: Snapshot) -> list[str]:
    lines: list[str] = []
    for device in snapshot.devices:
        lines.append(f"{device.index}: {device.name}{_facts(device)}")
        if device.total:
            lines.append(_bar(device.used, device.total))
        lines += [f"   {_size(process.used):>12}  {process.name or 'a process'} ({process.pid})" for process in device.others]
        if device.problem:
            lines.append(f"   {device.problem}")
    lines.append("RAM")
    lines.append(_bar(snapshot.host.used, snapshot.host.total))
    return lines


def _facts(device: Device) -> str:
    facts = [
        None if device.utilisation is None else f"{device.utilisation} % busy",
        None if device.temperature is None else f"{device.temperature:.0f} °C",
        None if device.power is None else f"{device.power:.0f} W" + (f" of {device.power_limit:.0f}" if device.power_limit else ""),
    ]
    told = ", ".join(fact for fact in facts if fact)
    return f"  ({told})" if told else ""


def _bar(used: int, total: int) -> str:
    filled = round(_BAR * used / total) if total else 0
    return f"   [{'#' * filled}{'.' * (_BAR - filled)}] {_size(used)} of {_size(total)}"


def _size(size: int | None) -> str:
    return "not told" if size is None else f"{size / MIB:,.0f} MiB"
