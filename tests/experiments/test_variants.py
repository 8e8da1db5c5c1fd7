"""The variants of the ablation by name."""

import pytest

from petct_lib import InputError
from petct_lib.experiments.profiles import load_params
from petct_lib.experiments.variants import OURS, SCORING, TRAINING, all_variants, choose_variants


def test_names_are_unique_and_every_override_names_a_parameter_that_its_notebook_has():
    output = all_variants(longer_steps=7)
    assert len({v.name for v in output}) == len(output)
    for variant in output:
        assert load_params("smoke", variant.overrides)  # InputError for a parameter that there is not


def test_variants_change_what_their_names_say():
    output = {v.name: v for v in all_variants(longer_steps=7)}
    assert f"{SCORING}.steps=8" in output["steps8"].overrides
    assert not output["steps8"].trained
    assert f"{TRAINING}.regression_steps=7" in output["longer"].overrides
    assert output["longer"].methods == ("regression",)
    assert f"{TRAINING}.pairs=cycle" in output["cycle"].overrides
    assert set(OURS) <= set(output["cycle"].methods)
    assert f"{TRAINING}.paired_patients=2" in output["pairs2"].overrides
    assert all(v.trained == any(o.startswith(TRAINING) for o in v.overrides) for v in output.values())


def test_only_chooses_by_the_whole_name():
    output = all_variants(longer_steps=7)
    assert choose_variants(output, "") == output
    assert [v.name for v in choose_variants(output, "steps[12]|cycle")] == ["steps1", "steps2", "cycle"]


@pytest.mark.parametrize(
    ("only", "message"), [("(", "regular expression"), ("nothing", "no variant has such a name; ")]
)
def test_a_wrong_name_is_refused(only, message):
    with pytest.raises(InputError, match=message):
        choose_variants(all_variants(longer_steps=7), only)
