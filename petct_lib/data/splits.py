"""Splits by patient."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from petct_lib import InputError
from petct_lib.common.files import read_json
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.prepare import Prepared
from petct_lib.imaging.directions import TARGET

ROLES = ("train_pet", "train_ct", "refine", "test")


def split_patients(patients: list[str], seed: int) -> dict[str, list[str]]:
    """Patients → the four roles, by patient: a quarter to test, an eighth to refine, the rest half PET and half CT.

    Each role gets at least one patient; raises InputError for fewer than 4. The order given and the seed decide alone.

    >>> split = split_patients([f"p-{k}" for k in range(16)], seed=0)
    >>> {role: len(patients) for role, patients in split.items()}
    {'train_pet': 5, 'train_ct': 5, 'refine': 2, 'test': 4}
    """
    n = len(patients)
    if n < len(ROLES):
        raise InputError(f"{n} usable patients: the split into {', '.join(ROLES)} needs at least {len(ROLES)}")
    shuffled = [patients[i] for i in np.random.default_rng(seed).permutation(n)]
    test, refine = max(1, round(n / 4)), max(1, round(n / 8))
    pet = (n - test - refine + 1) // 2
    bounds = np.cumsum([pet, n - test - refine - pet, refine, test])
    parts = np.split(np.array(shuffled, dtype=object), bounds[:-1])
    return {role: part.tolist() for role, part in zip(ROLES, parts, strict=True)}


def read_splits(run_dir: Path) -> dict[str, list[str]]:
    """The patients of a run by role, from its `splits.json`. InputError where it is no split by patient."""
    run = RunFolder(run_dir)
    splits = read_json(run.splits)
    try:
        check_splits(splits, Prepared(run.prepared).patients)
    except InputError as error:
        raise InputError(f"{run.splits}: {error}; run notebook 01 again") from None
    return splits


def check_splits(splits: dict[str, list[str]], patients: Collection[str]) -> None:
    """InputError where roles are missing, or where it is not a split by patient of these patients.

    Slices or studies as members, that is also a follow-up apart from its patient's first scan, are no patients; a
    patient in two roles would be tested with what was learned from him.
    """
    if set(splits) != set(ROLES):
        raise InputError(f"the split has the roles {', '.join(splits)}, not {', '.join(ROLES)}")
    members = [member for role in ROLES for member in splits[role]]
    if strangers := sorted(set(members) - set(patients)):
        raise InputError(
            f"{len(strangers)} members of the split are no patients of the run ({strangers[0]}); a split is by "
            "patient, never by slice or study"
        )
    if doubled := sorted({member for member in members if members.count(member) > 1}):
        roles = [role for role in ROLES if doubled[0] in splits[role]]
        raise InputError(f"{len(doubled)} patients are in the split more than once ({doubled[0]}: {', '.join(roles)})")


def refiner_patients(splits: dict[str, list[str]], direction: str) -> list[str]:
    """Who trains the refiner of a direction: `refine`, and those whose source images the CycleGAN never saw.

    PET→CT: the patients of `train_ct`, whose PET no generator was fitted on, and the other way round. So the coarse
    images that the refiner learns to mend are out-of-fold, as they are for a new patient; the CycleGAN did see the
    targets of these patients, unpaired.
    """
    return splits["refine"] + splits["train_" + TARGET[direction]]
