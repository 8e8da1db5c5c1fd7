"""What the benchmarks share: peak memory, rows of results.json, tables, and one process a measurement."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from petct_lib.common.files import read_json, write_json

RESULTS = Path(__file__).parent / "results.json"
README = Path(__file__).parent / "README.md"


def peak_mb() -> float:
    """Largest resident size of this program. Not getrusage's, which a process has from the one that started it."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def in_process(script: str, *arguments: str, limit_s: float | None = None) -> dict:
    """What a call of a benchmark in a process of its own prints; subprocess.TimeoutExpired beyond `limit_s` seconds."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=limit_s)
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, mine: float | None, peer: float, peer_name: str, unit: str, *, more_is_better: bool = False) -> dict:
    """One row of results.json; a ratio above 1 means that ours is better. mine: None where it was never reached."""
    ratio = 0.0 if mine is None else mine / peer if more_is_better else peer / mine
    return {
        "name": name, "ours": None if mine is None else round(mine, 3), "peer": round(peer, 3), "peer_name": peer_name,
        "ratio": round(ratio, 2), "unit": unit,
    }  # fmt: skip


def show_and_save(rows: list[dict]) -> None:
    """Prints a table and puts the rows into results.json, in the place of rows of the same names."""
    print(f"{'':<32}{'ours':>10}{'peer':>10}{'ratio':>8}  unit  peer")
    for r in rows:
        mine = "never" if r["ours"] is None else f"{r['ours']:.2f}"
        print(f"{r['name']:<32}{mine:>10}{r['peer']:>10.2f}{r['ratio']:>8.2f}  {r['unit']:<6}{r['peer_name']}")
    names = {r["name"] for r in rows}
    others = [r for r in (read_json(RESULTS) if RESULTS.exists() else []) if r["name"] not in names]
    write_json(others + rows, RESULTS)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def into_readme(name: str, text: str) -> None:
    """`text` between the README's markers of `name`, in the place of what was there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = README.read_text().partition(begin)
    _, result, after = rest.partition(end)
    if not result:
        raise SystemExit(f"{README}: the markers {begin} and {end} are missing")
    README.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def provenance() -> str:
    """Machine, date, commit and command, as a line of the README."""
    import torch

    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=README.parent, capture_output=True, text=True, check=False).stdout.strip()
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    return (
        f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} threads; {date.today()}; commit "
        f"{commit or 'unknown'}; `{command}`"
    )
