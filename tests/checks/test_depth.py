"""The depth check: passes under CompleteP, fails without it, and refuses what it cannot judge."""

import json

import numpy as np
import pytest

from hf_muscaling import depth_check
from hf_muscaling.errors import ConfigurationError

DEPTHS = [2, 4, 8, 16]


def design(architecture, **settings):
    """Return a base whose embedding outweighs the first branches, so that the stream starts Θ(1) in depth."""
    spread = 0.2 if architecture.name == "t5" else 0.02
    settings = {"depth_parametrization": "completep", "initializer_range": spread, **settings}
    return architecture.base(width=32, heads=2, **settings)


class TestDepth:
    def test_changes_keep_their_size_and_the_control_grows(self, architecture):
        check = depth_check(design(architecture), DEPTHS, seeds=1)
        assert check.passed, str(check)
        assert "PASSED" in str(check)
        floor = {"gpt2": 0.7, "llama": 0.7, "t5": 0.25, "bert": 0.0}[architecture.name]  # BERT renormalises its stream
        assert check.control_slope > floor, str(check)

    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_a_multiplier_that_is_left_out_fails(self, request, name, monkeypatch):
        from hf_muscaling.models.base import MuModelMixin

        monkeypatch.setattr(MuModelMixin, "_install_branches", lambda self: None)
        check = depth_check(design(request.getfixturevalue(name)), DEPTHS, seeds=1, control=False)
        assert not check.passed and check.worst.slope > 0.7 and "FAILED" in str(check)
        assert check.control_slope is None

    def test_json_and_plot(self, llama, tmp_path):
        check = depth_check(design(llama), [2, 4, 8], seeds=2, steps=2)
        check.to_json(tmp_path / "depth.json")
        read = json.loads((tmp_path / "depth.json").read_text())
        assert read["passed"] is check.passed and np.shape(read["changes"]["logits"]) == (3, 2)
        check.plot(tmp_path / "depth.png")
        assert (tmp_path / "depth.png").stat().st_size > 10_000

    def test_refusals(self, llama):
        with pytest.raises(ConfigurationError, match="depth_parametrization='none'.* set it to 'completep'"):
            depth_check(llama.base(), DEPTHS)
        for bad in ([2, 4], [2, 4, 5], [2, 2, 4], [0, 2, 4]):
            with pytest.raises(ConfigurationError, match="three different even numbers"):
                depth_check(design(llama), bad)
        with pytest.raises(ConfigurationError, match="needs a μP config, got LlamaConfig"):
            depth_check(llama.base().to_stock_config(), DEPTHS)
