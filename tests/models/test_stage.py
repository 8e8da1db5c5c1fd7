"""What training asks of a model, each of ours has."""

import pytest
from tiny import KINDS, stage_of

from petct_lib.models.stage import Stage


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_a_stage(kind):
    stage, _ = stage_of(kind)
    assert isinstance(stage, Stage)
    assert stage.settings.lr > 0
    assert set(stage.ema) <= set(stage.nets)
    assert "settings" in stage.extra_state()


def test_a_model_without_averages_is_none():
    stage, _ = stage_of("regression")
    del stage.ema
    assert not isinstance(stage, Stage)
