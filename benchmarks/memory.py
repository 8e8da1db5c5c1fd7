"""A training step of the quick profile's flow, with freed memory kept (`petct_lib.common.memory`) and given back.

    .venv/bin/python benchmarks/memory.py

Each in a process of its own: what keeps memory cannot be undone. The peer is the step with memory given back.
"""

import argparse
import json
import resource
import time
from statistics import median

import torch
from report import in_process, peak_mb, row, show_and_save

from petct_lib.common.memory import keep_freed_memory
from petct_lib.experiments.profiles import notebook_parameters
from petct_lib.models.networks import UNet

ROUNDS = 5  # of both, of which the median counts: the machine has other work
STEPS, FIRST = 40, 5  # steps measured, and before them


def measure() -> dict[str, float]:
    """Milliseconds of a step on random images, pages that it asks for, and the process's peak in MB."""
    p = notebook_parameters("03_diffusion_refinement", "quick")
    net = UNet(4, width=p["width"], multipliers=tuple(p["multipliers"]), patch=2).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(net.parameters(), fused=True)
    images, t = torch.randn(p["batch_size"], 4, p["crop"], p["crop"]), torch.rand(p["batch_size"])
    for step in range(FIRST + STEPS):
        if step == FIRST:
            pages, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        net(images, t).square().mean().backward()
        optimiser.step()
    seconds, pages = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
    return {"step": 1000 * seconds / STEPS, "pages": pages / STEPS, "peak": peak_mb()}


def main() -> None:
    """Prints the table and adds it to results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", choices=("kept", "given back"), help="used by the program itself")
    args = parser.parse_args()
    if args.measure:
        if args.measure == "kept":
            keep_freed_memory()
        print(json.dumps(measure()))
        return
    rounds = [[in_process(__file__, "--measure", how) for how in ("given back", "kept")] for _ in range(ROUNDS)]
    peer, ours = ({name: median(one[name] for one in item) for name in item[0]} for item in zip(*rounds, strict=True))
    units = {"step": "ms", "pages": "1", "peak": "MB"}
    show_and_save([row(f"memory_{name}", ours[name], peer[name], "given back", unit) for name, unit in units.items()])


if __name__ == "__main__":
    main()
