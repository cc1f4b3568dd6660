"""The tables: nanoLM's Table 2, number by number."""

import pytest

from hf_muscaling.parametrization import MUP, PARAMETRIZATIONS, ROLES, SP, ParameterScale, Rule


@pytest.mark.parametrize(
    "role, init_std, lr, multiplier",
    [
        ("input", 1, 1, 1),
        ("hidden", 0.25, 1 / 16, 1),  # σ/√r, l/r
        ("readout", 1, 1, 1 / 16),  # τ/r
        ("vector", 1, 1, 1),
        ("finite", 1, 1, 1),
    ],
)
def test_mup_is_table_2_at_sixteen_times_the_width(role, init_std, lr, multiplier):
    rule = MUP[role]
    assert [rule.scale(q, 16) for q in ("init", "lr", "multiplier")] == [init_std, lr, multiplier]


def test_sp_changes_nothing_with_width():
    assert {SP[role].scale(q, 7.3) for role in ROLES for q in ("init", "lr", "multiplier")} == {1.0}


def test_every_table_covers_every_role():
    assert all(set(table) == set(ROLES) for table in PARAMETRIZATIONS.values())


def test_base_width_is_neutral():
    assert {MUP[role].scale(q, 1) for role in ROLES for q in ("init", "lr", "multiplier")} == {1.0}


def test_records_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        MUP["hidden"].lr = 0.0
    with pytest.raises(AttributeError):
        ParameterScale("hidden").fan_in = 2.0
    with pytest.raises(AttributeError):
        Rule(lr=1).scale("momentum", 2)
