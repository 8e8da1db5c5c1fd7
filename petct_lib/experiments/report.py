"""A finished run as one HTML page with its pictures inside, and its model card and data card in Markdown.

Model card after Mitchell 2019 (FAT*, 220-229), data card after Pushkarna 2022 (FAccT, 1776-1826). Every number is
read from the run's own files; nothing is computed from images, and no name of a patient, file or machine is written.
"""

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import PIL.Image

from petct_lib import WARNING
from petct_lib.common.files import atomic_write, read_json
from petct_lib.common.run_folder import RunFolder
from petct_lib.evaluation import compare, tables
from petct_lib.evaluation.methods import METHODS
from petct_lib.metrics.rows import Row

METHOD = "mean"
AGAINST = ("cyclegan", "regression", "pix2pix")  # the controls that the findings name
PHANTOM = "a simulated thorax phantom (petct_lib.phantom, MIT licence): no patient's data"
OWN_DATA = (
    "DICOM given by whoever made the run. Its licence is theirs to state: Anti-PD-1_Lung "
    "(10.7937/tcia.2019.zjjwb9ip) and Soft-tissue-Sarcoma (10.7937/K9/TCIA.2015.7GO2GSKS) are CC BY 3.0 "
    "and ask to be cited"
)
PAPERS = (
    "Zhu 2017, CycleGAN (ICCV)", "Isola 2017, pix2pix (CVPR)", "Liu 2023, rectified flow (ICLR)",
    "Lipman 2023, flow matching (ICLR)", "Mardani 2023, CorrDiff (arXiv 2309.15214)",
    "Gneiting and Raftery 2007, CRPS (JASA)", "Wang 2004, SSIM (IEEE TIP)", "Carney 2006, µ-maps (Med. Phys.)",
)  # fmt: skip
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
.warning { background: #b00000; color: white; padding: .6rem 1rem; font-weight: 600 }
pre { overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: 13px; line-height: 1.35 }
table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left }
.anchor-link { display: none }
figure { margin: 1.5rem 0 } img { max-width: 100% } figcaption { color: #555; font-size: 14px }
"""


def write_report(run: Path) -> Path:
    """`report.html`, `model_card.md` and `data_card.md` in a finished run's folder; returns the page.

    Raises InputError for a folder that holds no finished run.
    """
    compare.load_run(run)  # its checks
    files = RunFolder(run)
    manifest, rows = read_json(files.manifest), tables.read_scores(files.scores)
    index = read_json(files.prepared / "index.json")
    cards = [model_card(manifest, rows), data_card(manifest, rows, index)]
    for path, text in zip((files.model_card, files.data_card), cards, strict=True):
        _write(path, text)
    _write(files.report, render_page(files.figures, cards, rows))
    return files.report


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_page(figures: Path, cards: Sequence[str], rows: Sequence[Row]) -> str:
    """The whole page as one string of HTML that needs no network."""
    from nbconvert.filters import markdown2html  # slow to import

    parts = [
        f"<p class='warning'>{WARNING}. Every translated image on this page is synthetic.</p>",
        *(markdown2html(card) for card in cards),
        "<h1>Further scores</h1>", "<h2>By region</h2>", _pre(tables.format_regions(rows)),
        "<h2>The samples as a distribution</h2>", _pre(tables.format_distribution(rows)),
        "<h2>Attenuation, lungs, lesions, coherence</h2>", _pre(tables.format_further(rows)),
        f"<h2>Against {_method(rows)}</h2>", _pre(compare.comparison_table(rows, _method(rows))),
        "<h1>Pictures</h1>", *(_figure(path) for path in sorted(figures.glob("*.png"))),
    ]  # fmt: skip
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{WARNING}</title>"
    return (
        f"<!doctype html><html lang='en'><head>{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _figure(path: Path) -> str:
    alt = escape(PIL.Image.open(path).info.get("Description", path.stem), quote=True)
    data = base64.b64encode(path.read_bytes()).decode()
    image = f"<img alt='{alt}' src='data:image/png;base64,{data}'>"
    return f"<figure>{image}<figcaption>{alt} ({path.stem})</figcaption></figure>"


def model_card(manifest: dict, rows: Sequence[Row]) -> str:
    """What was trained on what, how well it does beside its controls, where it fails, and what it must not do."""
    patients, grid, parameters = manifest["patients"], manifest["grid"], manifest["parameters"]
    stage2, sampling = manifest["stage2"], manifest["sampling"]
    lines = [
        "# Model card", "", f"> {WARNING}: research and teaching only.", "", "## Model",
        "A CycleGAN translates slices between PET and CT, from unpaired images (the coarse image).",
        "A regression predicts the target from source and coarse image.",
        "A residual rectified flow samples what the regression cannot know; `mean` is the mean of its samples.", "",
        *_table({
            "petct_lib": f"{manifest['petct_lib']}, commit {manifest['commit'] or 'unknown'}"
            + (", with uncommitted changes" if manifest["uncommitted_changes"] else ""),
            "profile": Path(manifest["profile"]).stem,
            "grid": f"{grid['size']}×{grid['size']} pixels of {grid['pixel_mm']:.2f} mm, "
            f"slices every {grid['slice_mm']} mm",
            "CycleGAN": f"{manifest['cyclegan']['steps']} steps, "
            f"batch {parameters['02_cyclegan_training'].get('batch_size', 'as in the notebook')}",
            "stage 2": f"{_list_items(stage2['steps'])} steps; pairs: {stage2['pairs']}"
            + (", and cycle pairs for `unpaired_*`" if stage2["unpaired"] else ""),
            "residual's spectrum": ", ".join(
                f"{direction} {s[0]:.3g} to {s[-1]:.3g}" for direction, s in stage2["residual_spectrum"].items()
            )
            + " in network units, coarse to fine",
            "sampling": f"{sampling['samples']} samples of {sampling['steps']} midpoint steps",
            "seeds": ", ".join(f"{name[:2]}: {p.get('seed', 'the notebook’s')}" for name, p in parameters.items()),
            "time and memory": f"{sum(manifest['seconds'].values()):.0f} s on {manifest['cores']} cores, "
            f"{manifest['peak_memory_mb']} MB at most",
        }),
        "## Trained on", f"Data: {_source(manifest)}.",
        f"The CycleGAN learned from PET of {patients['train_pet']} patients and CT of {patients['train_ct']} others, "
        f"unpaired; stage 2 of a direction from the role `refine` (patients: {patients['refine']}) and from those",
        "patients whose source images the CycleGAN never saw.",
        "## Evaluated on",
        f"Patients that no part of it, and no choice of a setting, has seen: n = {patients['test']}.",
        "", "```", tables.format_table(rows), "```",
        *_methods(rows),
        f"LPIPS: {manifest.get('lpips', 'n/a').split(':')[0]}.",
        "## What the numbers say", *(f"- {line}" for line in findings(manifest, rows)),
        "## Intended use, and what it must not be used for",
        "Research on image translation and teaching. Not for diagnosis, treatment, attenuation correction of patients,",
        "or as training data passed off as real. CT does not know uptake: a PET made from CT cannot show a lesion that",
        "the CT does not, and may show one that is not there.",
        "## Licence", "petct_lib: MIT. The weights and images: as the data's licence allows.", "## Cite",
        "- petct_lib: CITATION.cff", *(f"- {paper}" for paper in PAPERS),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def data_card(manifest: dict, rows: Sequence[Row], index: dict) -> str:
    """Where the images come from, how many, what was left out and why, and how they were split."""
    studies, grid = index["studies"], manifest["grid"]
    vendors = Counter(study.get("vendor") or "unknown" for study in studies)
    omitted = Counter(item["reason"] for item in index["left_out"])
    masks = sorted({(row["region"], row["mask"]) for row in rows})
    lines = [
        "# Data card", f"Source: {_source(manifest)}.", "",
        *_table({
            "patients, studies": f"{sum(manifest['patients'].values())}, {len(studies)}",
            "split": ", ".join(f"{role} {n}" for role, n in manifest["patients"].items()) + " (by patient)",
            "slices": str(sum(study["slices"] for study in studies)),
            "scanners": ", ".join(f"{name} {n}" for name, n in vendors.most_common()),
            "units": f"CT in HU, PET in SUV ({grid['suv_kind']}), float32 throughout",
            "SUV by": "; ".join(manifest["suv_rules"]),
            "fingerprint": manifest["data_fingerprint"],
        }),
        "## Masks, for scoring only", *(f"- {region}: {source}" for region, source in masks),
        "## Left out", *([f"- {n} × {reason}" for reason, n in omitted.most_common()] or ["- nothing"]),
        "## Privacy", "Patients are pseudonyms, hashes with a salt that lies in `prepared/salt.txt`: keep that file",
        "back when you pass the run on. No DICOM header's name, ID or date is in the run.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _methods(rows: Sequence[Row]) -> list[str]:
    """What each scored method is, and the question that it answers."""
    scored = {row["method"] for row in rows}
    lines = [f"| `{name}` | {what} | {question} |" for name, (what, question) in METHODS.items() if name in scored]
    return ["", "| method | what it is | what it is there for |", "|---|---|---|", *lines, ""]


def _list_items(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value if isinstance(value, int) else f'{value:.3g}'}" for name, value in numbers.items())


def _source(manifest: dict) -> str:
    return PHANTOM if manifest["data_key"] is None else OWN_DATA


def _table(cells: dict[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells.items()), ""]


def findings(manifest: dict, rows: Sequence[Row]) -> list[str]:
    """What a reader must know before the means: the comparison with the controls, lesions, bias, and how small n is."""
    method, sentences = _method(rows), []
    for direction, methods in tables.aggregate(rows).items():
        unit = next(row["unit"] for row in rows if (row["direction"], row["metric"]) == (direction, "mae"))
        for other in AGAINST:
            sentences += _against(rows, direction, method, other, unit)
        sentences += _lesion_findings(direction, methods[method])
        sentences += _sample_findings(direction, methods, unit)
    n = manifest["patients"]["test"]
    if n < 6:
        sentences.append(f"With {n} test patients no paired test can reach p = 0.05.")
    return sentences


def _method(rows: Sequence[Row]) -> str:
    """METHOD; of a run that did not score it, the last of METHODS that it has."""
    scored = {row["method"] for row in rows}
    return METHOD if METHOD in scored else [name for name in METHODS if name in scored][-1]


def _against(rows: Sequence[Row], direction: str, method: str, other: str, unit: str) -> list[str]:
    tests = compare.paired_tests(rows, direction, method, methods=[other])
    return [
        f"{direction}: body MAE of `{method}` is {abs(t.difference):.3g} {unit} "
        f"{'below' if t.difference > 0 else 'above'} `{t.method}`'s (" + ("one patient: no interval" if t.n < 2 else
        f"95 % interval of {t.method} − {method}: {t.low:+.3g} to {t.high:+.3g}") + ")."
        for t in tests
    ]  # fmt: skip


def _lesion_findings(direction: str, regions: dict) -> list[str]:
    body, lesion = regions["body"], regions.get("lesion", {})
    sentences = []
    if bias := body.get("mu_bias"):
        sentences.append(
            f"{direction}: attenuation at 511 keV is off by {bias['mean']:+.1f} % in the mean over the body."
        )
    if "missed" in lesion:
        counts = f"{lesion['missed']['mean']:.2g} of {lesion['lesions']['mean']:.2g}"
        sentences.append(f"{direction}: {counts} lesions a patient are missed (below half of their real SUVmax).")
    if "invented" in lesion:
        sentences.append(f"{direction}: {lesion['invented']['mean']:.2g} hot spots a patient are invented.")
    return sentences


def _sample_findings(direction: str, methods: dict, unit: str) -> list[str]:
    """How good the samples are as a distribution, and whether one looks real; nothing of a run without samples."""
    body = {
        method: {metric: cell["mean"] for metric, cell in regions["body"].items()}
        for method, regions in methods.items()
    }
    mean, sample, regression = (body.get(method, {}) for method in ("mean", "sample", "regression"))
    sentences = []
    if "spread_skill" in mean:
        ratio = f"{mean['spread_skill']:.2f} of the error of their mean (1: calibrated)"
        sentences.append(f"{direction}: the spread of the samples is {ratio}.")
    if "coverage_80" in mean:
        sentences.append(f"{direction}: {mean['coverage_80']:.0%} of the voxels lie in the central 80 % interval.")
    if {"crps", "crps_8"} <= set(mean) and regression:
        numbers = ", ".join(f"{mean[name]:.3g}" for name in ("crps", "crps_4", "crps_8"))
        sentences.append(
            f"{direction}: CRPS of the samples is {numbers} {unit} (voxels, means of 4×4 and of 8×8 pixels); the MAE "
            f"of `regression`, which is its CRPS of voxels, is {regression['mae']:.3g} {unit}."
        )
    if "two_sample_accuracy" in sample:
        accuracy = sample["two_sample_accuracy"]
        sentences.append(f"{direction}: two-sample accuracy of `sample` is {accuracy:.2f} (0.5: looks real).")
    return sentences
