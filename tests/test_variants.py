"""The variants by name: what each differs in, what it goes on from, and how they are chosen."""

from dataclasses import replace

import pytest

from petct_lib import InputError
from petct_lib.prior import PriorSettings
from petct_lib.refiner import RefinerSettings
from petct_lib.variants import MEANS, Variant, check_names, chosen, variants

LOSSES = {"lambda_adversarial": 0.0, "lambda_spectrum": 0.0, "error_width": 0, "sigma": 0.0, "steps": 1}


def test_variants_differ_from_the_refiner_in_what_they_are_named_for():
    base = RefinerSettings(width=8, lambda_spectrum=0.05)
    by_name = {v.name: v for v in variants(base, 9, 5)}
    assert len(by_name) == len(variants(base, 9, 5))
    of_run = {"unet_l1", "pix2pix", "refiner_l1", "refiner"}
    assert not set(by_name) & {*of_run, "prior"}, "the run has checkpoints of these names"
    assert {v.start for v in by_name.values()} <= {None, *of_run, *by_name}
    for v in by_name.values():
        assert v.start or not getattr(v.settings, "lambda_adversarial", 0), "whoever is judged begins as a regression"
        start = by_name.get(v.start)
        assert not start or (start.start, start.patients, start.in_fold) == (None, v.patients, v.in_fold)
        assert not start or start.seed == v.seed
        assert not start or replace(start.settings, **LOSSES) == replace(v.settings, **LOSSES), "the same network"
    assert by_name["pix2pix_other"].settings == replace(base, sees_coarse=False, sigma=0.0)
    assert by_name["pix2pix_other"].seed != by_name["pix2pix_k1"].seed == 0
    assert all({a, b} <= {*by_name, "pix2pix", "refiner_gan"} for a, b in MEANS.values())
    assert by_name["unet_l1_k2"].settings == base.direct().regression()
    assert by_name["unet_l1_longer"].settings == replace(base.direct().regression(), error_width=0)
    assert by_name["refiner_l1_longer"].settings == base.regression()
    assert by_name["refined_no_source"].settings == replace(base, sees_source=False)
    assert by_name["refined_steps4"].settings == replace(base, steps=4)
    assert isinstance(by_name["unpaired"].settings, PriorSettings)
    assert by_name["refined_k2"] == Variant("refined_k2", base, 2, start="refiner_l1_k2")
    assert {v.patients for v in variants(base, 4, 5)} == {None, 1, 2}
    assert by_name["refined_in_fold_k4"] == Variant(
        "refined_in_fold_k4", base, 4, in_fold=True, start="refiner_l1_in_fold_k4"
    )
    few_in_fold = [v.name for v in variants(base, 9, 1) if v.in_fold]
    assert few_in_fold == ["refiner_l1_in_fold_k1", "refined_in_fold_k1"], "there is one only to compare with"
    without_noise = {v.name: v for v in variants(replace(base, sigma=0.0), 9, 5)}
    assert "refined_steps4_anchored" in by_name.keys() - without_noise.keys(), "the same as renoised there"
    assert without_noise["refined_sigma0.1"].settings.sigma == 0.1
    assert all(samples == 1 for v in without_noise.values() for _, samples, _ in v.uses), "all samples are the same one"
    for v in by_name.values():
        steps = v.settings.steps
        assert all(samples * steps <= 8 for _, samples, _ in v.uses), "at most 9 evaluations, the generator's included"


def test_a_run_without_the_coarse_image_has_no_variant_that_sees_nothing():
    names = [v.name for v in variants(RefinerSettings(sees_coarse=False), 9, 5)]
    assert "refined_no_spectrum" in names
    assert not [name for name in names if "no_source" in name]


def test_only_the_variants_asked_for_are_chosen():
    of = variants(RefinerSettings(), 9, 5)
    assert [v.name for v in chosen(of, "refined_steps2|unet_l1_k[12]")] == [
        "refined_steps2",
        "unet_l1_k1",
        "unet_l1_k2",
    ]
    assert [v.name for v in chosen(of, "pix2pix_k1")] == ["unet_l1_k1", "pix2pix_k1"], "and what it goes on from"
    assert chosen(of, "") == of
    assert chosen(of, "none") == []
    with pytest.raises(InputError, match="regular expression"):
        chosen(of, "(")


@pytest.mark.parametrize("only", ["", "refined_sigma0", "refined_sigma0.1", "refined_in_fold_k4", ".*_anchored"])
def test_a_name_that_some_run_has_is_right(only):
    check_names(only)


def test_a_name_that_no_run_has_is_told_with_all_that_there_are():
    with pytest.raises(InputError, match=r"--only refined_nosource: no variant .* refined_no_source, .*unpaired"):
        check_names("refined_nosource")
