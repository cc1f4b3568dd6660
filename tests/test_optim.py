"""μP groups and optimizers, against Table 2 by hand and against the `mup` package where that one is right."""

import copy

import pytest
import torch
from transformers import get_scheduler

from hf_muscaling import MuAdamW, MuSGD, mu_param_groups
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.optim import sgd_lr_scale


def by_name(model, groups):
    """Return each parameter's group by the parameter's name."""
    owner = {id(p): g for g in groups for p in g["params"]}
    return {name: owner[id(p)] for name, p in model.named_parameters()}


def train(model, optimizer, steps=5):
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        batch = torch.randint(0, 64, (4, 16), generator=generator)
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    return model


def largest_difference(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


class TestGroups:
    def test_each_parameter_once_base_rate_first_and_few_groups(self, architecture, tied):
        model = architecture.model(architecture.base(tie_word_embeddings=tied).at_width(128))
        groups = mu_param_groups(model, lr=0.1, weight_decay=0.01)
        listed = [id(p) for g in groups for p in g["params"]]
        assert sorted(listed) == sorted(id(p) for p in model.parameters())
        assert groups[0]["lr"] == 0.1 and len(groups) == 3

    def test_rates_are_table_2(self, architecture):
        model = architecture.model(architecture.base(tie_word_embeddings=False).at_width(128))
        rates = {n: g["lr"] for n, g in by_name(model, mu_param_groups(model, lr=0.1)).items()}
        table = model.mu_table()
        assert rates == {n: 0.1 / 4 if table[n].role == "hidden" else 0.1 for n in rates}
        assert len(set(rates.values())) == 2

    def test_biases_and_norms_do_not_decay_whatever_their_role(self, architecture):
        model = architecture.model(architecture.base(tie_word_embeddings=False).at_width(64))
        groups = by_name(model, mu_param_groups(model, lr=0.1, weight_decay=0.01))
        assert all((groups[n]["weight_decay"] > 0) is (p.dim() > 1) for n, p in model.named_parameters())

    def test_rates_follow_each_parameters_own_fan_in(self, llama):
        model = llama.model(llama.base().at_width(64).replace(intermediate_size=88 * 8))
        rates = {n.split(".")[-2]: g["lr"] for n, g in by_name(model, mu_param_groups(model, lr=1.0)).items()}
        assert rates["down_proj"] == 1 / 8 and rates["up_proj"] == 1 / 2 and rates["embed_tokens"] == 1

    def test_base_rate_is_first_even_when_only_matrices_train(self, llama):
        model = llama.model(llama.base().at_width(64))
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "_proj" in name
        (group,) = mu_param_groups(model, lr=1.0)
        assert group["lr"] == 0.5 and len(group["params"]) == 14

    @pytest.mark.parametrize(
        "policy, hidden, other", [("coupled", 0.4, 0.1), ("none", 0.1, 0.1), ("independent", 0.1 / 0.005, 0.1 / 0.02)]
    )
    def test_weight_decay_policies(self, llama, policy, hidden, other):
        model = llama.model(llama.base().at_width(128))
        groups = by_name(model, mu_param_groups(model, lr=0.02, weight_decay=0.1, policy=policy))
        matrix, embedding = groups["model.layers.0.mlp.up_proj.weight"], groups["model.embed_tokens.weight"]
        assert matrix["weight_decay"] == pytest.approx(hidden) and embedding["weight_decay"] == pytest.approx(other)
        assert groups["model.norm.weight"]["weight_decay"] == 0.0
        shrink = [g["lr"] * g["weight_decay"] for g in (matrix, embedding)]
        expected = {"coupled": [0.002] * 2, "independent": [0.1] * 2, "none": [0.0005, 0.002]}[policy]
        assert shrink == pytest.approx(expected)

    def test_norms_and_biases_decay_on_request(self, gpt2):
        model = gpt2.model(gpt2.base().at_width(64))
        groups = mu_param_groups(model, lr=0.1, weight_decay=0.1, decay_vectors=True)
        assert all(g["weight_decay"] > 0 for g in groups) and len(groups) == 2

    def test_standard_parametrisation_is_flat(self, architecture):
        model = architecture.model(architecture.base(parametrization="sp").at_width(128))
        groups = mu_param_groups(model, lr=0.1, weight_decay=0.1, eps=1e-8)
        assert {g["lr"] for g in groups} == {0.1} and {g["eps"] for g in groups} == {1e-8}
        assert {g["weight_decay"] for g in groups} == {0.1, 0.0}

    def test_epsilon_shrinks_with_the_gradients(self, llama):
        model = llama.model(llama.base().at_width(128))
        assert {g["eps"] for g in MuAdamW(model, eps=1e-6).param_groups} == {1e-6 / 4}
        assert {g["eps"] for g in MuAdamW(model, eps=1e-6, scale_eps=False).param_groups} == {1e-6}

    def test_gradients_do_shrink_as_one_over_width(self, llama):
        """The reason for eps/r: without it the ratio of gradient to eps falls with width."""
        base = llama.base(width=64, heads=4, tie_word_embeddings=False, initializer_range=0.05)
        batch = torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(0))
        sizes = {}
        for width in (64, 512):
            model = llama.model(base.at_width(width))
            model(batch, labels=batch).loss.backward()
            sizes[width] = model.model.layers[0].mlp.up_proj.weight.grad.abs().mean().item()
        assert 4 < sizes[64] / sizes[512] < 32  # 8, up to the draw

    def test_impossible_settings(self, llama):
        model = llama.model(llama.base())
        for settings, message in [
            ({"lr": torch.tensor(0.1)}, "lr must be a number"),
            ({"lr": 0.0}, "lr must be positive"),
            ({"lr": float("nan")}, "lr must be positive"),
            ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay must not be negative"),
            ({"lr": 0.1, "policy": "both"}, "policy='both' is unknown"),
        ]:
            for build in (mu_param_groups, MuAdamW):
                with pytest.raises(ConfigurationError, match=message):
                    build(model, **settings)

    def test_a_stock_model_is_refused_by_name(self, architecture):
        stock = architecture.stock(architecture.base())
        for build in (mu_param_groups, MuAdamW, MuSGD):
            with pytest.raises(ConfigurationError, match=f"Mu{type(stock).__name__}"):
                build(stock, lr=0.1)


class TestAgainstMup:
    """`mup` sets base shapes on the parameters of an untied Llama; there its rules are right."""

    @pytest.fixture
    def pair(self, llama):
        """Our model, and an equal copy of it with `mup`'s base shapes."""
        mup = pytest.importorskip("mup")
        base = llama.base(width=64, heads=4, tie_word_embeddings=False, initializer_range=0.1)
        ours = llama.model(base.at_width(256))
        theirs = copy.deepcopy(ours)
        mup.set_base_shapes(
            theirs, llama.model(base), delta=llama.model(base.at_width(128)), rescale_params=False, do_assert=False
        )
        return ours, theirs

    @pytest.mark.parametrize("weight_decay", [0.0, 0.3])
    def test_same_steps_as_mup_adamw(self, pair, weight_decay):
        import mup

        ours, theirs = pair
        start = copy.deepcopy(ours)
        train(ours, MuAdamW(ours, lr=0.01, weight_decay=weight_decay, scale_eps=False, decay_vectors=True, fused=False))
        train(theirs, mup.MuAdamW(theirs.parameters(), lr=0.01, weight_decay=weight_decay))
        assert largest_difference(ours, theirs) < 1e-6
        flat = train(start, torch.optim.AdamW(start.parameters(), lr=0.01, weight_decay=weight_decay))
        assert largest_difference(flat, theirs) > 1e-3

    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_same_steps_as_mup_sgd(self, pair, weight_decay):
        import mup

        ours, theirs = pair
        start = copy.deepcopy(ours)
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay}
        train(ours, MuSGD(ours, decay_vectors=True, **settings))
        train(theirs, mup.MuSGD(theirs.parameters(), **settings))
        assert largest_difference(ours, theirs) < 2e-6
        flat = train(start, torch.optim.SGD(start.parameters(), **settings))
        assert largest_difference(flat, theirs) > 1e-3


class TestOptimizers:
    def test_fused_equals_foreach_and_is_the_default(self, architecture):
        model = architecture.model(architecture.base(initializer_range=0.1).at_width(64))
        other = copy.deepcopy(model)
        # The key biases of GPT-2 have no gradient but rounding noise, which a small eps would blow up to full steps.
        settings = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-4}
        optimizer = MuAdamW(model, **settings)
        assert optimizer.defaults["fused"] is True
        train(model, optimizer)
        slow = MuAdamW(other, foreach=True, **settings)
        assert not slow.defaults["fused"]
        train(other, slow)
        assert largest_difference(model, other) < 1e-5

    def test_state_dict_round_trip(self, architecture):
        model = architecture.model(architecture.base(initializer_range=0.1).at_width(64))
        optimizer = MuAdamW(model, lr=0.01, weight_decay=0.1)
        train(model, optimizer, steps=2)
        other = copy.deepcopy(model)
        again = MuAdamW(other, lr=0.5, weight_decay=0.2)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, optimizer, steps=2)
        train(other, again, steps=2)
        assert largest_difference(model, other) == 0.0

    def test_at_base_width_equals_torch(self, architecture):
        model = architecture.model(architecture.base(initializer_range=0.1))
        other = copy.deepcopy(model)
        train(model, MuAdamW(model, lr=0.01, weight_decay=0.1, decay_vectors=True))
        train(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1, fused=True))
        assert largest_difference(model, other) == 0.0

    @pytest.mark.parametrize(
        "name, kwargs",
        [
            ("cosine", {}),
            ("linear", {}),
            ("polynomial", {"lr_end": 1e-3}),
            ("cosine_with_min_lr", {"min_lr": 1e-3}),
            ("warmup_stable_decay", {"num_decay_steps": 3}),
        ],
    )
    def test_schedulers_keep_the_ratios(self, llama, name, kwargs):
        optimizer = MuAdamW(llama.model(llama.base().at_width(128)), lr=0.1, weight_decay=0.1)
        schedule = get_scheduler(name, optimizer, 2, 10, scheduler_specific_kwargs=kwargs)
        start = [g["lr"] / optimizer.defaults["lr"] for g in optimizer.param_groups]
        assert schedule.get_last_lr()[0] == 0.0
        seen = set()
        for _ in range(9):
            optimizer.step()
            schedule.step()
            rates = schedule.get_last_lr()
            seen.add(rates[0])
            assert [r / rates[0] for r in rates] == pytest.approx([1.0, 1.0, 0.25])
        assert len(seen) > 3 and start == [0.0] * 3

    def test_a_scheduler_with_one_floor_for_all_groups_breaks_them(self, llama):
        """Why MuTrainer refuses reduce_lr_on_plateau with min_lr."""
        optimizer = MuAdamW(llama.model(llama.base().at_width(128)), lr=0.1)
        schedule = get_scheduler(
            "reduce_lr_on_plateau", optimizer, scheduler_specific_kwargs={"min_lr": 0.05, "patience": 0}
        )
        for _ in range(8):
            schedule.step(1.0)
        assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.025]

    def test_sgd_with_a_tied_head(self, gpt2):
        model = gpt2.model(gpt2.base(tie_word_embeddings=True).at_width(64))
        rates = {n: g["lr"] for n, g in by_name(model, mu_param_groups(model, 1.0, lr_scale=sgd_lr_scale)).items()}
        assert rates["transformer.wte.weight"] == 2.0 and rates["transformer.h.0.attn.c_attn.weight"] == 1.0
        assert rates["transformer.h.0.attn.c_attn.bias"] == 2.0
