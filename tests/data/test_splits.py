"""Splits by patient."""

import pytest

from petct_lib import InputError
from petct_lib.data.splits import ROLES, refiner_patients, split_patients


@pytest.mark.parametrize(("n", "sizes"), [(4, [1, 1, 1, 1]), (5, [2, 1, 1, 1]), (12, [4, 3, 2, 3]), (20, [7, 6, 2, 5])])
def test_split_sizes(n, sizes):
    splits = split_patients([f"p{i}" for i in range(n)], 0)
    assert [len(splits[role]) for role in ROLES] == sizes


def test_every_patient_has_exactly_one_role_and_the_seed_decides():
    patients = [f"p{i}" for i in range(17)]
    splits = split_patients(patients, 1)
    assert sorted(p for members in splits.values() for p in members) == sorted(patients)
    assert splits == split_patients(patients, 1)
    assert splits != split_patients(patients, 2)


def test_too_few_patients():
    with pytest.raises(InputError, match="3 usable patients"):
        split_patients(["a", "b", "c"], 0)


def test_refiner_never_learns_from_test_or_from_sources_the_cyclegan_saw():
    splits = split_patients([f"p{i}" for i in range(12)], 0)
    for direction, seen in (("pet2ct", "train_pet"), ("ct2pet", "train_ct")):
        members = set(refiner_patients(splits, direction))
        assert set(splits["refine"]) <= members
        assert not members & set(splits["test"])
        assert not members & set(splits[seen])
