"""Every command and every snippet of the README is executed, at the size of a test.

Folders stand for those that the README names, and `tests/tiny_run.yaml` for the profile. What cannot run within a test
is named with the reason in `ELSEWHERE`: there `make -n` must print the commands, and `--help` know their options.
"""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, petct

from petct_lib.cli import _parser
from petct_lib.common.files import read_json, write_json
from petct_lib.dicom import studies
from petct_lib.experiments.profiles import load_params
from petct_lib.imaging import volume
from petct_lib.phantom.cohort import write_phantom

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.S | re.M)
ELSEWHERE = {
    "make test": "it is what runs this",
    "make check": "it is what runs this",
    "make test-browser": "CI's last step",
    "make lab": "tests/browser starts JupyterLab",
    "make bench": "an hour",
    "make ablation": "hours; tests/experiments/test_ablation.py at tiny sizes",
    "make figures": "copies of a run's pictures",
    ".venv/bin/python benchmarks/": "minutes to an hour",
    ".venv/bin/python -m petct_lib download path": "needs a network; tests/data/test_download.py against a stand-in",
    ".venv/bin/torchrun": "tests/training/test_train_cyclegan.py, two processes",
    "srun": "tests/training/test_train_cyclegan.py, two processes, no cluster",
    ".venv/bin/tensorboard": "a server; tests/training/test_loggers.py reads what it reads",
    ".venv/bin/python -m petct_lib ingest ../shared": "real patients: tests/experiments/test_pipeline.py",
    "make run DATA=../shared": "real patients, where they are: tests/experiments/test_pipeline.py",
}


def commands():
    """All command lines of code blocks and between back-ticks, without comments, variables of the shell put in."""
    result, variables = [], {}
    for language, block in BLOCKS:
        for line in block.replace("\\\n", " ").splitlines() if not language else ():
            line = line.split(" #")[0].strip()
            if values := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[values[1]] = values[2]
            for name, value in variables.items():
                line = re.sub(rf"\${name}\b", value, line)
            if re.match(r"make |\.venv/bin/|srun ", line):
                result.append(line)
    plain = re.sub(r"^```.*?^```", "", TEXT, flags=re.S | re.M)
    return [*result, *re.findall(r"`((?:make|\.venv/bin)[^`]+)`", plain)]


COMMANDS = sorted(set(commands()))


def where(command):
    return next((reason for start, reason in ELSEWHERE.items() if command.startswith(start)), None)


def test_the_readme_has_commands_and_nothing_is_excused_in_vain():
    assert len(COMMANDS) > 20
    for start in ELSEWHERE:
        assert any(command.startswith(start) for command in COMMANDS), start


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_knows_the_target_and_what_it_would_do(command):
    done = subprocess.run([*shlex.split(command)[:1], "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.fixture(scope="module")
def folders(tiny_run, phantom_dir, tmp_path_factory):
    """What stands for the folders that the README names."""
    there = tmp_path_factory.mktemp("readme")
    patient = there / "patient"
    write_phantom(patient, 1, 7, jobs=1)
    other = there / "other"
    heavy = shutil.ignore_patterns("phantom", "checkpoints", "coarse", "synthetic", "figures", "logs")
    shutil.copytree(tiny_run, other, ignore=heavy)
    manifest = read_json(other / "manifest.json")
    manifest["parameters"]["03_diffusion_refinement"]["seed"] = 1  # as if it were one: the same run twice is refused
    write_json(manifest, other / "manifest.json")
    synthetic = next((tiny_run / "synthetic").glob("*/pet2ct/image"))
    return {
        "runs/quick": tiny_run, "runs/other": other, "path/to/dicom": phantom_dir, "<folder>": phantom_dir,
        "path/to/collection": phantom_dir, "runs/patient": patient, "path/to/synthetic": synthetic,
        "path/to/real": synthetic, "runs/": there, "path/to/phantom": there / "phantom",
    }  # fmt: skip


def put_in(arguments, folders):
    out = []
    for argument in arguments:
        for name, folder in folders.items():
            if argument.startswith(name):
                argument = str(folder) + ("/" if name.endswith("/") else "") + argument.removeprefix(name)
                break
        out.append(argument)
    return out


def of_library(command):
    """The arguments of `python -m petct_lib` that a command comes to; make says its own with -n."""
    if command.startswith("make run"):
        done = subprocess.run(
            ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=True
        )
        [command] = [line for line in done.stdout.splitlines() if "-m petct_lib run" in line]
    return shlex.split(command.split("-m petct_lib ", 1)[1])


PAGE = ".venv/bin/jupyter nbconvert"
LIBRARY = [c for c in COMMANDS if not where(c) and c != "make help" and not c.startswith(PAGE)]


@pytest.mark.parametrize("command", LIBRARY)
def test_commands_of_the_library_run(command, folders, tiny_run):
    arguments = of_library(command)
    request = _parser().parse_args(arguments)  # SystemExit for what it does not know
    if arguments[0] == "run":
        assert load_params(request.profile, request.set)
        arguments = ["run", "--profile", TINY, "--out", str(tiny_run)]  # finished: it is shown again
    if arguments[0] == "phantom":
        arguments = [*arguments[:2], "--patients", "1", *arguments[4:], "--ct-size", "128"]
        arguments[1] += "-new"
    done = petct(*put_in(arguments, folders))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_excused_commands_of_the_library_exist(capsys):
    for command in COMMANDS:
        if where(command) and "-m petct_lib" in command:
            name = command.split("-m petct_lib ", 1)[1].split()[0]
            with pytest.raises(SystemExit, match="0"):
                _parser().parse_args([name, "--help"])
            _parser().parse_args(shlex.split(command.split("-m petct_lib ", 1)[1]))


@pytest.mark.slow
def test_a_notebook_becomes_a_page_with_its_pictures(tmp_path):
    [command] = [c for c in COMMANDS if c.startswith(PAGE)]
    arguments = [*shlex.split(command)[1:-1], str(tmp_path)]
    subprocess.run([sys.executable, "-m", "jupyter", *arguments], cwd=ROOT, check=True)
    text = (tmp_path / "05_explore.html").read_text()
    assert text.count("data:image/png;base64") >= 5
    assert "NOT FOR DIAGNOSIS" in text.upper()


@pytest.mark.slow
def test_snippets_run(phantom_dir, tmp_path):
    snippets = [block for language, block in BLOCKS if language == "python"]
    assert len(snippets) == 2
    study = studies.load_pair(studies.find_pairs(phantom_dir).pairs[0])
    real = study.ct.array[:4]
    values = {"real": real, "synthetic": real + 50, "body": volume.body_mask(study.ct).array[:4] | True}
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as hosts:
        for snippet in snippets:
            for name, value in (
                ("tcp://host:8786", hosts.scheduler_address), ("path/to/collection", phantom_dir),
                ("shared/prepared", tmp_path / "prepared"), ('"folder"', f'"{phantom_dir}"'), ("size=256", "size=32"),
            ):  # fmt: skip
                snippet = snippet.replace(name, str(value))
            exec(snippet, values)
    assert (tmp_path / "prepared" / "index.json").exists()
    assert len(values["pairing"].pairs) >= 4
    assert np.ptp(values["study"].ct.array) > 1000
