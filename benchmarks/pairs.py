"""Means of samples in pairs of mirrored noise, as `Translator` draws them, and of as many with independent noise.

    .venv/bin/python benchmarks/pairs.py --run runs/quick

On some slices of the run's validation patients. The peer is the mean of as many independent samples.
"""

import argparse
from pathlib import Path

import numpy as np
from report import row, show_and_save

from petct_lib.data.prepare import Prepared
from petct_lib.data.splits import read_splits
from petct_lib.evaluation.cases import load_case
from petct_lib.imaging.directions import DIRECTIONS, TARGET
from petct_lib.inference.translator import Translator

PAIRS, STEPS = 16, 4
EVERY = 10  # slices of a patient: each so many
DRAWS = 100  # of n of the samples
SHOWN = {"ct": ("HU", 1), "pet": ("mSUV", 1000)}  # unit, and the target's own in it


def drawn(run: Path, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples (2 · PAIRS, voxels of the body) in pairs, and the real image there, in the target's unit."""
    translator, prepared = Translator(run), Prepared(run / "prepared")
    stacks, reals = [], []
    for patient in read_splits(run)["refine"]:
        case, some = load_case(prepared, patient, direction), slice(EVERY // 2, None, EVERY)
        x, coarse = (images[some] for images in translator.start(case.source, direction, case.lengths))
        body = case.body[some]
        stacks.append(translator.samples(x, coarse, direction, samples=2 * PAIRS, steps=STEPS, seed=0)[:, body])
        reals.append(case.real[some][body])
    return np.concatenate(stacks, axis=1), np.concatenate(reals)


def compared(samples: np.ndarray, real: np.ndarray, direction: str) -> list[dict]:
    """MAE of the mean of 2, 4 and 8 samples, over DRAWS choices of them; prints the correlation within pairs."""
    rng, (unit, scale) = np.random.default_rng(0), SHOWN[TARGET[direction]]
    apart = samples - samples.mean(axis=0)
    alike, other = (
        np.mean([np.corrcoef(apart[k], apart[(k + by) % len(apart)])[0, 1] for k in range(0, len(apart), 2)])
        for by in (1, 2)
    )  # k is even: with its mirror, and with the next pair's first
    print(f"{direction}: correlation of two samples {alike:.2f} in a pair, {other:.2f} else")
    rows = []
    for n in (2, 4, 8):
        of_pairs, of_others = [], []
        for _ in range(DRAWS):
            pairs = rng.choice(PAIRS, n // 2, replace=False)
            of_pairs.append(np.abs(samples[[*(2 * pairs), *(2 * pairs + 1)]].mean(axis=0) - real).mean())
            others = 2 * rng.choice(PAIRS, n, replace=False) + rng.integers(0, 2, n)  # one of each pair
            of_others.append(np.abs(samples[others].mean(axis=0) - real).mean())
        mine, peer = (scale * float(np.mean(errors)) for errors in (of_pairs, of_others))
        rows.append(row(f"pairs_{direction}_mean_of_{n}", mine, peer, "independent samples", unit))
    return rows


def main() -> None:
    """Prints the table and adds it to results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    args = parser.parse_args()
    show_and_save([one for d in DIRECTIONS for one in compared(*drawn(args.run, d), d)])


if __name__ == "__main__":
    main()
