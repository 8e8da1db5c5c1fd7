"""What the benchmarks share: peak memory, rows of results.json, the table, and one process a measurement."""

import json
import re
import subprocess
import sys
from pathlib import Path

from petct_lib.files import read_json, write_json

RESULTS = Path(__file__).parent / "results.json"


def peak_mb() -> float:
    """Largest resident size of this program. Not getrusage's, which a process has from the one that started it."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def in_process(script: str, *arguments: str) -> dict:
    """What a call of a benchmark in a process of its own prints."""
    command = [sys.executable, script, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def row(name: str, mine: float, peer: float, peer_name: str, unit: str) -> dict:
    """One row of results.json; a ratio above 1 means that ours is better."""
    return {
        "name": name, "ours": round(mine, 3), "peer": round(peer, 3), "peer_name": peer_name,
        "ratio": round(peer / mine, 2), "unit": unit,
    }  # fmt: skip


def show_and_save(rows: list[dict]) -> None:
    """Prints a table and puts the rows into results.json, in the place of rows of the same names."""
    print(f"{'':<32}{'ours':>10}{'peer':>10}{'ratio':>8}  unit  peer")
    for r in rows:
        print(f"{r['name']:<32}{r['ours']:>10.2f}{r['peer']:>10.2f}{r['ratio']:>8.2f}  {r['unit']:<6}{r['peer_name']}")
    names = {r["name"] for r in rows}
    others = [r for r in (read_json(RESULTS) if RESULTS.exists() else []) if r["name"] not in names]
    write_json(others + rows, RESULTS)
