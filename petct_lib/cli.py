"""`python -m petct_lib run|train|ingest|translate|compare|…`: exit code 0 when done, 2 for unusable input."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from petct_lib import WARNING, InputError, __version__
from petct_lib.common.progress import progress_bar
from petct_lib.common.run_folder import RunFolder
from petct_lib.dicom.suv import KINDS

EXTRAS = {  # packages that the core goes without, and the extra that has them
    **dict.fromkeys(("accelerate", "IPython", "ipywidgets", "nbconvert", "papermill", "tensorboard"), "notebooks"),
    "highdicom": "dicom-seg", "lpips": "lpips", "torchvision": "lpips",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, runs the command, and returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        return args.command(args)
    except InputError as error:
        print(f"error: {error}" + (f" ({error.where})" if error.where else ""), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        print(f"error: {package} is not installed; pip install 'petct-lib[{EXTRAS[package]}]'", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m petct_lib", description="PET ↔ CT translation of the lung.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True)
    _add_run(commands)
    _add_train(commands)
    _add_ingest(commands)
    _add_phantom(commands)
    _add_translate(commands)
    _add_ablation(commands)
    _add_compare(commands)
    _add_score(commands)
    _add_report(commands)
    _add_slim(commands)
    _add_download(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("run", help="the four notebooks in order, headless")
    p.add_argument(
        "--profile", default="quick", help="smoke, quick, gpu, full, or a .yaml file of parameters (%(default)s)"
    )
    p.add_argument("--data", default="phantom", help="DICOM folder, zip, or folder of zips (default: the phantom)")
    p.add_argument("--out", type=Path, help="run folder (default: runs/<profile>)")
    _add_set(p)
    p.add_argument(
        "--until", metavar="NOTEBOOK", default="04_evaluation", help="the last notebook to run, as 01_data_exploration"
    )
    p.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    p.add_argument("--force", action="store_true", help="throw away what the run folder holds")
    p.set_defaults(command=_run)


def _add_set(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--set", action="append", default=[], metavar="NOTEBOOK.NAME=VALUE",
        help="another value for a parameter of the profile, as 02_cyclegan_training.steps=500; may be repeated",
    )  # fmt: skip


def _add_train(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("train", help="the CycleGAN of a run folder alone; under torchrun, on many GPUs")
    p.add_argument("run", type=Path, help="run folder that notebook 01 has prepared")  # torchrun would take a --run
    p.add_argument("--profile", default="quick", help="whose parameters of 02_cyclegan_training to take (%(default)s)")
    _add_set(p)
    p.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    p.set_defaults(command=_train)


def _add_ingest(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("ingest", help="what is in a folder, a zip or a folder of zips, and what is left out")
    p.add_argument("path", type=Path)
    p.add_argument("--json", action="store_true", help="JSON on standard output, and nothing else there")
    p.add_argument("--suv", choices=list(KINDS), default="bw", help="what SUV is normalised by (%(default)s)")
    p.add_argument("--jobs", type=_positive, help="studies read at a time (default: one a core)")
    p.set_defaults(command=_ingest)


def _add_phantom(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("phantom", help="the thorax phantom as DICOM, with truth.json")
    p.add_argument("folder", type=Path)
    p.add_argument("--patients", type=_positive, default=20, help="how many (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="the same seed gives the same pixels (%(default)s)")
    p.add_argument(
        "--difficulty", choices=("easy", "realistic"), default="realistic",
        help="easy: solid lesions, little noise and breathing (%(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--ct-size", type=_positive, default=512, help="CT pixels along x and y of a 500 mm field (%(default)s)"
    )
    p.set_defaults(command=_phantom)


def _add_ablation(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("ablation", help="several seeds, and every variant and control of stage 2: scores.csv")
    p.add_argument("--profile", default="quick", help="smoke, quick, gpu, full, or a .yaml file (%(default)s)")
    p.add_argument("--data", default="phantom", help="folder or zip of DICOM (%(default)s)")
    p.add_argument("--out", type=Path, default=Path("runs/ablation"), help="what is there goes on (%(default)s)")
    p.add_argument("--seeds", type=_positive, default=3, help="trainings of the main methods (%(default)s)")
    p.add_argument(
        "--only", default="", metavar="PATTERN",
        help="the variants of these names alone, a regular expression as 'steps.*|pairs[0-9]' (default: all)",
    )  # fmt: skip
    p.add_argument("--jobs", type=_positive, default=1, help="runs at a time, which share the cores (%(default)s)")
    _add_set(p)
    p.set_defaults(command=_ablation)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "compare", help="methods, and runs, on the same test patients: means, differences, tests; seeds are averaged"
    )
    p.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, of the same data and split")
    p.add_argument("--metric", default="mae", help="as in scores.csv (%(default)s)")
    p.add_argument("--region", default="body", help="as in scores.csv (%(default)s)")
    p.add_argument("--reference", default="mean", help="the method that all others are tested against (%(default)s)")
    p.set_defaults(command=_compare)


def _add_score(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "score", help="synthetic images of any translator against the real ones: DICOM or NIfTI, one patient or many"
    )
    p.add_argument("pred", type=Path, help="synthetic: a DICOM series, a .nii or .nii.gz, or a folder of patients")
    p.add_argument("ref", type=Path, help="real: the same; patients of two folders are matched by name")
    p.add_argument("--out", type=Path, required=True, help="new or empty folder for scores.csv and metrics.json")
    p.add_argument("--kind", choices=("ct", "pet"), default="ct", help="CT in HU or PET in SUV (%(default)s)")
    p.add_argument("--mask", type=Path, help="body masks, NIfTI (default: found in the real CT)")
    p.add_argument("--ct", type=Path, help="for PET: the patient's CT, for the outline of the body and its regions")
    p.add_argument(
        "--protocol", choices=("petct", "synthrad2025"), default="petct",
        help="all scores of this project, or MAE, PSNR and MS-SSIM as the challenge computes them (%(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--suv", choices=list(KINDS), default="bw", help="what the SUV of DICOM is normalised by (%(default)s)"
    )
    p.set_defaults(command=_score)


def _add_report(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("report", help="a finished run as one HTML page, with its model card and data card")
    p.add_argument("run", type=Path, help="folder of a finished run; the report is written into it")
    p.set_defaults(command=_report)


def _add_slim(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("slim", help="what translation needs of a finished run, to pass on: a few MB")
    p.add_argument("run", type=Path, help="folder of a finished run")
    p.add_argument("--out", type=Path, required=True, help="new folder")
    p.set_defaults(command=_slim)


def _add_translate(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("translate", help="a trained run applied to a DICOM study: derived series and a preview")
    p.add_argument("path", type=Path, help="folder or zip with the study")
    p.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    p.add_argument("--direction", choices=("pet2ct", "ct2pet"), required=True)
    p.add_argument("--out", type=Path, required=True, help="new or empty folder for the results")
    p.add_argument(
        "--mode", choices=("mean", "sample"), default="mean",
        help="mean: of the samples, less error; sample: one of them, which looks real (%(default)s)",
    )  # fmt: skip
    p.add_argument("--samples", type=_positive, help="samples drawn (default: 8 for mean, 1 for sample)")
    p.add_argument("--steps", type=_positive, default=4, help="steps of the midpoint method from noise (%(default)s)")
    p.add_argument("--without-coarse", action="store_true", help="stage 2 does not see the CycleGAN output")
    p.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    p.set_defaults(command=_translate)


def _add_download(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("download", help="Anti-PD-1_Lung from the NCI Imaging Data Commons: its PET/CT pairs")
    p.add_argument("folder", type=Path, nargs="?", help="where to; what is there already is not fetched again")
    p.add_argument("--patients", type=_positive, help="the first N patients only")
    p.add_argument("--seg", action="store_true", help="the AI-made masks of lung, nodules and tumours too")
    p.add_argument("--list", action="store_true", help="what would be fetched: works without a network")
    p.set_defaults(command=_download)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    from petct_lib.experiments.pipeline import run_all

    out = args.out or Path("runs") / Path(args.profile).stem
    run_all(args.profile, args.data, out, overrides=args.set, until=args.until, resume=args.resume, force=args.force)
    return 0


def _train(args: argparse.Namespace) -> int:
    from petct_lib.experiments.pipeline import require_inputs
    from petct_lib.experiments.profiles import notebook_parameters
    from petct_lib.training.train_cyclegan import leave_group, make_plan, train_cyclegan

    notebook = "02_cyclegan_training"
    run = require_inputs(args.run, notebook)
    checkpoint = RunFolder(run).checkpoint("cyclegan")
    if checkpoint.exists() and not args.resume:
        raise InputError(f"{checkpoint}: is there already; pass --resume to go on with it, or remove it")
    parameters = notebook_parameters(notebook, args.profile, args.set)
    parameters.pop("processes")  # the launcher's business here
    train_cyclegan(run, make_plan(run, **parameters), resume=args.resume)
    leave_group()
    print(f"trained: {checkpoint}")
    return 0


def _ingest(args: argparse.Namespace) -> int:
    from petct_lib.dicom.studies import ingest

    report = ingest(
        args.path, partial(progress_bar, desc="reading", file=sys.stderr), suv_kind=args.suv, jobs=args.jobs
    )
    print(json.dumps(report, indent=1) if args.json else _ingest_text(report))
    return 0 if report["studies"] else 2


def _ingest_text(report: dict) -> str:
    lines = [f"{len(report['studies'])} usable studies"]
    for s in report["studies"]:
        lines.append(f"{s['id']}  {s['vendor']}  SUV factor {s['suv_factor']:.6g} ({s['suv_rule']})")
        lines.append(f"    {s['chosen']}; PET and CT share {s['pet_length_in_ct']:.0%} of the PET's length")
        for kind in ("pet", "ct"):
            g = s[kind]
            size, spacing = ("×".join(f"{v:g}" for v in g[key]) for key in ("size", "spacing_mm"))
            lines.append(f"    {kind.upper():<4}{size:<14}{spacing} mm  {g['units']}")
    lines.append(f"{len(report['left_out'])} left out")
    lines.extend(f"    {item['what']}: {item['reason']}" for item in report["left_out"])
    return "\n".join(lines)


def _phantom(args: argparse.Namespace) -> int:
    from petct_lib.phantom.cohort import phantom_settings, write_phantom

    if args.folder.exists() and any(args.folder.iterdir()):
        raise InputError(f"{args.folder}: is not empty; name another folder")
    settings = phantom_settings(args.difficulty, ct_size=args.ct_size, ct_pixel_mm=round(500 / args.ct_size, 4))
    write_phantom(args.folder, args.patients, args.seed, settings, lambda items: progress_bar(items, "phantom"))
    print(f"{args.patients} patients in {args.folder}; truth.json and truth/ say what is where")
    return 0


def _download(args: argparse.Namespace) -> int:
    from petct_lib.data import download

    if args.list:
        print(
            download.format_listing(download.select_pairs(download.read_index(), patients=args.patients, seg=args.seg))
        )
        return 0
    if args.folder is None:
        raise InputError("download needs a folder (or --list)")
    done = download.download(args.folder, patients=args.patients, seg=args.seg)
    print(
        f"{done['fetched']} series fetched ({done['fetched_bytes'] / 1e6:.0f} MB), {done['there']} were there already"
    )
    print(f"next: python -m petct_lib ingest {args.folder}")
    return 0


def _ablation(args: argparse.Namespace) -> int:
    from petct_lib.experiments.ablation import run_ablation

    options = {"seeds": args.seeds, "overrides": args.set, "only": args.only, "jobs": args.jobs}
    print(run_ablation(args.profile, args.data, args.out, **options))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from petct_lib.evaluation.compare import compare_runs

    print(compare_runs(args.runs, reference=args.reference, metric=args.metric, region=args.region))
    return 0


def _score(args: argparse.Namespace) -> int:
    from petct_lib.evaluation import external
    from petct_lib.evaluation.tables import format_regions, format_table
    from petct_lib.metrics import perceptual

    images = external.find_images(args.pred, args.ref, args.mask, args.ct)
    try:
        model = perceptual.lpips_model() if args.protocol == "petct" else None
    except perceptual.LpipsUnavailable as reason:
        model = None
        print(f"LPIPS: n/a ({reason})", file=sys.stderr)
    rows, failed = external.score_all(
        images, args.out, kind=args.kind, protocol=args.protocol, suv_kind=args.suv, lpips_model=model,
        progress=partial(progress_bar, desc="patients", file=sys.stderr),
    )  # fmt: skip
    print(f"{format_table(rows)}\n\n{format_regions(rows)}\n")
    for patient, reason in failed.items():
        print(f"left out: patient {patient}: {external.without_paths(reason)}")
    for row in rows:
        if row["metric"] == "coverage" and row["value"] < external.WHOLE:
            print(f"patient {row['patient']}: scored on the {row['value']:.0f} % of the body that both images hold")
    print(f"{len(images) - len(failed)} of {len(images)} patients, in the order of their names: {args.out}/scores.csv")
    return 0


def _report(args: argparse.Namespace) -> int:
    from petct_lib.experiments.report import write_report

    print(f"{write_report(args.run)}; beside it model_card.md and data_card.md")
    return 0


def _slim(args: argparse.Namespace) -> int:
    from petct_lib.experiments.slim import slim

    print(f"{slim(args.run, args.out) / 1e6:.1f} MB in {args.out}: translate --run {args.out} takes it")
    return 0


def _translate(args: argparse.Namespace) -> int:
    from petct_lib.imaging.directions import SOURCE, TARGET, UNIT
    from petct_lib.inference.translate_study import translate_study
    from petct_lib.viz import panels

    source, result = translate_study(
        args.path, args.run, args.direction, args.out, mode=args.mode, samples=args.samples, steps=args.steps,
        seed=args.seed, without_coarse=args.without_coarse,
        progress=partial(progress_bar, desc="samples", file=sys.stderr),
    )  # fmt: skip
    k = len(source) // 2
    units = UNIT[SOURCE[args.direction]], UNIT[TARGET[args.direction]]
    fig = panels.preview(source[k], result.image[k], result.spread[k], *units)
    panels.write_figure(fig, args.out, "preview", "source, translation and spread of the middle slice")
    print(f"{len(source)} slices in {args.out}: image/, spread/, figures/preview.png. {WARNING}")
    return 0
