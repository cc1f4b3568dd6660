"""MuTrainer in one process: its losses against hand-written ones, its refusals, and what a Trainer must still do."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_muscaling import (
    MuAdamW,
    MuBertConfig,
    MuBertForMaskedLM,
    MuSGD,
    MuT5Config,
    MuT5ForConditionalGeneration,
    MuTrainer,
    MuTrainingArguments,
)
from hf_muscaling.data import MaskedLM, ObjectiveBlocks, PackedBlocks, SpanCorruption, collate_blocks
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.trainer import DIVERGENCE_PATIENCE, _RunGuard, token_mean_loss


def masked_model(name, width=64):
    """Return a small BERT or T5: classes that take `num_items_in_batch` and ignore it."""
    torch.manual_seed(0)
    if name == "bert":
        config = MuBertConfig(
            vocab_size=64, hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64,
            max_position_embeddings=32, initializer_range=0.2,
        )  # fmt: skip
        return MuBertForMaskedLM(config.at_width(width))
    config = MuT5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_heads=2, num_layers=1, initializer_factor=2.0)
    return MuT5ForConditionalGeneration(config.at_width(width))


def stock_of(model):
    """Return transformers' own model of the same shapes."""
    stock = next(c for c in type(model).__mro__ if c.__module__.startswith("transformers.models."))
    return stock(model.config.to_stock_config())


def blocks(count, length=16, seed=0):
    ids = torch.randint(0, 64, (count, length), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row} for row in ids]


def masked_blocks(count, seed=0):
    """Blocks with 1, 2, 3, … targets: the mean of the examples' means is not the mean over targets."""
    examples = blocks(count, seed=seed)
    for number, example in enumerate(examples):
        hidden = torch.arange(16) > number % 15
        example["labels"] = example["input_ids"].masked_fill(hidden, -100)
    return examples


def stack(examples):
    return {k: torch.stack([e[k] for e in examples]) for k in examples[0]}


def next_token_loss(model, examples):
    """Return the mean cross-entropy over predicted tokens, written by hand."""
    ids = stack(examples)["input_ids"]
    logits = model.train()(input_ids=ids).logits[:, :-1].double()
    return -logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()


def masked_loss(model, examples):
    """Return the mean cross-entropy over labels other than -100, written by hand; T5's decoder sees them shifted."""
    batch = stack(examples)
    inputs = {"input_ids": batch["input_ids"]}
    if model.config.is_encoder_decoder:
        shifted = batch["labels"].masked_fill(batch["labels"] == -100, model.config.pad_token_id)
        start = torch.full((len(shifted), 1), model.config.decoder_start_token_id)
        inputs["decoder_input_ids"] = torch.cat([start, shifted[:, :-1]], dim=1)
    logits = model(**inputs).logits.double().log_softmax(-1)
    chosen = batch["labels"] != -100
    return -logits[chosen].gather(-1, batch["labels"][chosen][:, None]).mean()


def gradient_norm(model, loss):
    model.zero_grad()
    loss.backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
    model.zero_grad()
    return norm


def arguments(folder, cls=MuTrainingArguments, **settings):
    defaults = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "use_cpu": True, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    return cls(**(defaults | settings))


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    architecture = request.getfixturevalue(request.param)
    return architecture.model(architecture.base(layers=1, initializer_range=0.2).at_width(64))


@pytest.fixture
def llama_model(llama):
    return llama.model(llama.base(layers=1, initializer_range=0.1).at_width(64))


class TestLosses:
    """The reported loss is the mean over targets, and so is its gradient."""

    @pytest.mark.parametrize("accumulation", [1, 4])
    def test_next_token_loss_and_gradient(self, model, tmp_path, accumulation):
        data = blocks(8)
        expected = next_token_loss(model, data)
        norm = gradient_norm(model, expected)
        args = arguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        trainer = MuTrainer(model, args, train_dataset=data)
        trainer.train()
        (row,) = trainer.curve
        assert row["loss"] == pytest.approx(expected.item(), rel=1e-6)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)

    def test_stock_gpt2_reports_too_little(self, gpt2, tmp_path):
        """Negative control: transformers divides by T instead of T - 1 targets a block."""
        stock = gpt2.stock(gpt2.base(layers=1))
        expected = next_token_loss(stock, blocks(8)).item()
        args = arguments(tmp_path, TrainingArguments, max_steps=1, per_device_train_batch_size=8)
        trainer = Trainer(stock, args, train_dataset=blocks(8))
        assert trainer.train().training_loss == pytest.approx(expected * 15 / 16, rel=1e-5)

    def test_evaluation_loss(self, model, tmp_path):
        data = blocks(6, seed=3)  # the last batch has two examples, the first four
        trainer = MuTrainer(model, arguments(tmp_path), eval_dataset=data)
        expected = next_token_loss(model, data).item()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
        assert trainer.evaluate(data, metric_key_prefix="held_out")["held_out_loss"] == pytest.approx(
            expected, rel=1e-6
        )
        assert trainer.predict(data).metrics["test_loss"] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("accumulation", [1, 4])
    @pytest.mark.parametrize("name", ["bert", "t5"])
    def test_masked_loss_and_gradient(self, tmp_path, name, accumulation):
        model, data = masked_model(name), masked_blocks(8)
        expected = masked_loss(model, data)
        norm = gradient_norm(model, expected)
        settings = {"max_steps": 1, "gradient_accumulation_steps": accumulation}
        settings["per_device_train_batch_size"] = 8 // accumulation
        stock = stock_of(model)
        trainer = MuTrainer(model, arguments(tmp_path, **settings), train_dataset=data)
        trainer.train()
        assert trainer.curve[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)
        assert trainer.curve[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
        # the control: stock multiplies by the accumulation steps, and weighs micro-batches rather than targets
        right = masked_loss(stock, data).item()
        wrong = Trainer(stock, arguments(tmp_path, TrainingArguments, **settings), train_dataset=data).train()
        ratio = wrong.training_loss / right
        assert ratio == pytest.approx(1) if accumulation == 1 else ratio > 3

    @pytest.mark.parametrize("name", ["bert", "t5"])
    def test_masked_evaluation_loss_weighs_targets(self, tmp_path, name):
        """Ten examples in batches of three: the last batch has one, and each batch another number of targets."""
        model, data = masked_model(name), masked_blocks(10)
        trainer = MuTrainer(model, arguments(tmp_path, per_device_eval_batch_size=3))
        expected = masked_loss(model, data).item()
        assert trainer.evaluate(data)["eval_loss"] == pytest.approx(expected, rel=1e-6)
        stock = Trainer(model, arguments(tmp_path, TrainingArguments, per_device_eval_batch_size=3))
        assert abs(stock.evaluate(data)["eval_loss"] / expected - 1) > 1e-3

    def test_decoder_inputs_of_the_users_own_are_kept(self, tmp_path):
        model, data = masked_model("t5"), masked_blocks(4)
        right = masked_loss(model, data).item()
        other = [{**example, "decoder_input_ids": torch.full((16,), 5)} for example in data]
        trainer = MuTrainer(model, arguments(tmp_path))
        assert trainer.evaluate(data)["eval_loss"] == pytest.approx(right, rel=1e-6)
        assert abs(trainer.evaluate(other)["eval_loss"] - right) > 1e-3

    def test_what_fills_the_last_global_batch_is_no_target(self, tmp_path):
        """Examples that Accelerate repeats to fill the last global batch are no targets, T5's neither."""
        model, data = masked_model("t5"), masked_blocks(6)
        trainer = MuTrainer(model, arguments(tmp_path))
        trainer.accelerator.gradient_state = SimpleNamespace(end_of_dataloader=True, remainder=4)
        with torch.no_grad():
            loss = trainer.prediction_step(model, stack(data), prediction_loss_only=True)[0]
        assert loss.item() == pytest.approx(masked_loss(model, data[:4]).item(), rel=1e-6)

    def test_a_loss_function_of_the_users_own_is_kept(self, llama_model, tmp_path):
        def constant(outputs, labels, num_items_in_batch=None):
            return outputs["logits"].sum() * 0 + 7.0

        trainer = MuTrainer(llama_model, arguments(tmp_path), train_dataset=blocks(8), compute_loss_func=constant)
        trainer.train()
        assert [row["loss"] for row in trainer.curve] == [7.0, 7.0]

    def test_token_mean_loss_without_a_count(self):
        logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, -100, 2], [-100, -100, 4]])
        expected = -logits.log_softmax(-1)[labels != -100].gather(-1, torch.tensor([[1], [2], [4]])).mean()
        torch.testing.assert_close(token_mean_loss({"logits": logits}, labels), expected)
        torch.testing.assert_close(token_mean_loss({"logits": logits}, labels, torch.tensor(6)), expected / 2)


class TestResume:
    def test_resumed_run_is_bit_identical_and_reports_its_whole_mean(self, architecture, tmp_path):
        def trainer(folder, seed=0):
            model = architecture.model(architecture.base(layers=1).at_width(64), seed)
            settings = {"max_steps": 7, "logging_steps": 3, "save_steps": 4, "lr_scheduler_type": "cosine"}
            return MuTrainer(model, arguments(folder, save_strategy="steps", **settings), train_dataset=blocks(64))

        whole = trainer(tmp_path / "whole")
        result = whole.train()
        resumed = trainer(tmp_path / "resumed", seed=9)
        again = resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
        assert resumed.curve == whole.curve and [r["step"] for r in whole.curve] == [1, 3, 4, 6, 7]
        for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(a, b)
        steps = [1, 2, 1, 2, 1]
        mean = sum(n * row["loss"] for n, row in zip(steps, whole.curve, strict=True)) / 7
        assert result.training_loss == again.training_loss == pytest.approx(mean, rel=1e-6)
        logged = resumed.state.log_history[-1]["train_loss"]
        assert logged == again.training_loss

    def test_stock_trainer_averages_the_resumed_steps_only(self, llama, tmp_path):
        def trainer():
            model = llama.model(llama.base(layers=1).at_width(64))
            args = arguments(tmp_path, TrainingArguments, max_steps=6, save_strategy="steps", save_steps=4)
            return Trainer(model, args, train_dataset=blocks(64), optimizers=(MuAdamW(model, lr=0.05), None))

        whole = trainer().train().training_loss
        resumed = trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-4")).training_loss
        assert abs(resumed - whole) > 0.01


class TestDivergence:
    @pytest.fixture
    def sabotage(self):
        class Sabotage(TrainerCallback):
            """Spoil the weights after step 3."""

            def __init__(self, factor):
                self.factor = factor

            def on_step_end(self, args, state, control, model=None, **kwargs):
                if state.global_step == 3:
                    with torch.no_grad():
                        model.lm_head.weight.mul_(self.factor)

        return Sabotage

    def test_nan_ends_the_run_with_its_curve(self, llama_model, tmp_path, sabotage):
        args = arguments(tmp_path, max_steps=20, save_strategy="steps", save_steps=2)
        trainer = MuTrainer(llama_model, args, train_dataset=blocks(64), callbacks=[sabotage(math.nan)])
        trainer.train()
        assert trainer.diverged == "the loss is nan at step 4"
        assert [row["step"] for row in trainer.curve] == [1, 2, 3, 4]
        assert math.isnan(trainer.curve[-1]["loss"]) and math.isfinite(trainer.curve[2]["loss"])
        assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]  # none of the broken weights

    def test_a_loss_that_stays_above_its_start_ends_the_run(self, llama_model, tmp_path, sabotage):
        trainer = MuTrainer(
            llama_model, arguments(tmp_path, max_steps=20), train_dataset=blocks(64), callbacks=[sabotage(50.0)]
        )
        trainer.train()
        assert "is above its start" in trainer.diverged
        assert trainer.curve[-1]["step"] == 3 + DIVERGENCE_PATIENCE

    def test_a_healthy_run_does_not_diverge(self, llama_model, tmp_path):
        trainer = MuTrainer(llama_model, arguments(tmp_path, max_steps=6), train_dataset=blocks(64))
        trainer.train()
        assert trainer.diverged is None and trainer.curve[-1]["step"] == 6

    @pytest.mark.parametrize(
        "losses, stops",
        [
            ([4.0, 4.05, 4.05, 4.05, 3.9], False),  # noise
            ([4.0, 5.0, 5.0, 3.0, 5.0, 2.0], False),  # a warm-up that passes above its start
            ([4.0, 5.0, 5.0, 5.0], True),
            ([4.0, 3.0, 5.0], True),  # the last of ten steps
            ([4.0, math.inf], True),
            ([math.nan], True),
        ],
    )
    def test_the_rule(self, losses, stops):
        trainer = SimpleNamespace(diverged=None, curve=[])
        guard, control = _RunGuard(trainer), SimpleNamespace(should_training_stop=False, should_save=True)
        guard.on_train_begin(None, None, control)
        for number, loss in enumerate(losses):
            last = number == len(losses) - 1
            state = SimpleNamespace(global_step=10 if last else number + 1, max_steps=10)
            guard.on_log(None, state, control, {"loss": loss, "tokens": 1})
        assert control.should_training_stop is stops and (trainer.diverged is not None) is stops
        assert control.should_save is not stops

    def test_the_start_is_remembered_over_a_resume(self):
        trainer = SimpleNamespace(diverged=None, curve=[{"loss": x} for x in (4.0, 5.0, 5.0)])
        guard, control = _RunGuard(trainer), SimpleNamespace(should_training_stop=False, should_save=True)
        guard.on_train_begin(None, None, control)
        guard.on_log(None, SimpleNamespace(global_step=4, max_steps=9), control, {"loss": 4.5, "tokens": 1})
        assert trainer.diverged == "the loss 4.5000 at step 4 is above its start 4.0000"


class TestCurve:
    def test_rows(self, model, tmp_path):
        args = arguments(
            tmp_path, max_steps=5, logging_steps=2, warmup_steps=4, lr_scheduler_type="constant_with_warmup",
            gradient_accumulation_steps=2, learning_rate=0.004,
        )  # fmt: skip
        trainer = MuTrainer(model, args, train_dataset=blocks(64))
        trainer.train()
        assert [row["step"] for row in trainer.curve] == [1, 2, 4, 5]
        assert [row["tokens"] for row in trainer.curve] == [4 * 2 * 16 * step for step in (1, 2, 4, 5)]
        assert [row["lr"] for row in trainer.curve] == pytest.approx([0, 0.001, 0.003, 0.004])  # the base rate
        assert all(set(row) == {"step", "tokens", "loss", "lr", "grad_norm"} for row in trainer.curve)
        assert all(row["grad_norm"] > 0 for row in trainer.curve)

    @pytest.mark.parametrize("name", ["bert", "t5"])
    def test_tokens_are_those_of_the_text_whatever_the_objective_makes_of_them(self, tmp_path, name):
        raw = PackedBlocks(np.random.default_rng(0).integers(3, 64, (16, 20)).astype(np.uint16))
        objective = MaskedLM(2, (0, 1, 2), 64) if name == "bert" else SpanCorruption((2,), 0)
        data = ObjectiveBlocks(raw, objective)
        trainer = MuTrainer(masked_model(name), arguments(tmp_path), train_dataset=data, data_collator=collate_blocks)
        trainer.train()
        assert len(data[0]["input_ids"]) == (20 if name == "bert" else 19)
        assert [row["tokens"] for row in trainer.curve] == [80, 160]

    def test_tokens_are_counted_once_when_trainer_counts_too(self, llama_model, tmp_path):
        trainer = MuTrainer(
            llama_model, arguments(tmp_path, include_num_input_tokens_seen="all"), train_dataset=blocks(8)
        )
        trainer.train()
        assert [row["tokens"] for row in trainer.curve] == [64, 128]

    def test_what_a_callback_logs_does_not_disturb_it(self, llama_model, tmp_path):
        class Talkative(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                trainer.log({"loss": 99.0})

        trainer = MuTrainer(llama_model, arguments(tmp_path), train_dataset=blocks(8), callbacks=[Talkative()])
        trainer.train()
        assert len(trainer.curve) == 2 and trainer.diverged is None

    def test_flops_equal_trainers_own(self, llama_model, tmp_path):
        trainer = MuTrainer(llama_model, arguments(tmp_path), train_dataset=blocks(8))
        batch = {"input_ids": torch.zeros(3, 7, dtype=torch.long)}
        assert trainer.floating_point_ops(batch) == Trainer.floating_point_ops(trainer, batch) > 0


class TestOptimizer:
    def test_default_is_mu_adamw_from_the_arguments(self, llama_model, tmp_path):
        args = arguments(
            tmp_path, learning_rate=0.02, weight_decay=0.1, adam_beta2=0.95, adam_epsilon=1e-6,
            weight_decay_policy="independent", decay_vectors=True,
        )  # fmt: skip
        optimizer = MuTrainer(llama_model, args).create_optimizer()
        assert type(optimizer) is MuAdamW
        assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.01]
        assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx([5.0, 10.0])
        assert {g["betas"] for g in optimizer.param_groups} == {(0.9, 0.95)}
        assert {g["eps"] for g in optimizer.param_groups} == {5e-7}

    def test_plain_training_arguments_work(self, llama_model, tmp_path):
        trainer = MuTrainer(llama_model, arguments(tmp_path, TrainingArguments), train_dataset=blocks(8))
        trainer.train()
        assert len(trainer.curve) == 2 and type(trainer.optimizer.optimizer) is MuAdamW

    def test_sgd_by_name(self, llama_model, tmp_path):
        assert type(MuTrainer(llama_model, arguments(tmp_path, optim="sgd")).create_optimizer()) is MuSGD

    @pytest.mark.parametrize(
        "chosen, rates",
        [(torch.optim.NAdam, [0.01, 0.005]), (torch.optim.AdamW, [0.01, 0.005]), (torch.optim.SGD, None)],
    )
    def test_a_torch_class_gets_mup_groups(self, llama_model, tmp_path, chosen, rates):
        trainer = MuTrainer(
            llama_model, arguments(tmp_path), optimizer_cls_and_kwargs=(chosen, {"lr": 0.01, "weight_decay": 0.1})
        )
        optimizer = trainer.create_optimizer()
        assert type(optimizer) is chosen
        if rates is None:  # SGD's own table: embeddings and norms r, hidden fan_out/fan_in = 1
            rates = [g["lr"] for g in MuSGD(llama_model, lr=0.01).param_groups]
            assert sorted(set(rates)) == [0.01, 0.02]
        assert sorted({g["lr"] for g in optimizer.param_groups}) == sorted(set(rates))
        assert {g["weight_decay"] for g in optimizer.param_groups} > {0.0}

    def test_our_own_classes_as_class_and_as_object(self, llama_model, tmp_path):
        trainer = MuTrainer(llama_model, arguments(tmp_path), optimizer_cls_and_kwargs=(MuAdamW, {"lr": 0.3}))
        assert trainer.create_optimizer().param_groups[0]["lr"] == 0.3
        own = MuAdamW(llama_model, lr=0.4)
        assert MuTrainer(llama_model, arguments(tmp_path), optimizers=(own, None)).create_optimizer() is own

    def test_optimizers_without_mup_groups_are_refused(self, llama_model, tmp_path):
        flat = torch.optim.AdamW(llama_model.parameters(), lr=0.1)
        with pytest.raises(ConfigurationError, match=r"optimizers=\(AdamW, …\).*MuAdamW\(model"):
            MuTrainer(llama_model, arguments(tmp_path), optimizers=(flat, None))
        with pytest.raises(ConfigurationError, match="optim=.*adafactor.* has no μP rule"):
            MuTrainer(llama_model, arguments(tmp_path, optim="adafactor")).create_optimizer()

    def test_mups_function_is_refused(self, llama_model, tmp_path):
        mup = pytest.importorskip("mup")
        trainer = MuTrainer(llama_model, arguments(tmp_path), optimizer_cls_and_kwargs=(mup.MuAdamW, {"lr": 0.1}))
        with pytest.raises(ConfigurationError, match="needs an optimizer class.*use hf_muscaling.MuAdamW"):
            trainer.create_optimizer()

    @pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert"], indirect=True)
    def test_clipping_is_active(self, architecture, tmp_path):
        model = architecture.model(architecture.base(layers=1, initializer_range=0.2))
        before = [p.detach().clone() for p in model.parameters()]
        args = arguments(tmp_path, max_steps=1, optim="sgd", learning_rate=0.5, max_grad_norm=0.1)
        trainer = MuTrainer(model, args, train_dataset=blocks(4))
        trainer.train()
        moved = math.sqrt(sum((p - q).square().sum().item() for p, q in zip(model.parameters(), before, strict=True)))
        assert trainer.curve[0]["grad_norm"] > 0.2  # the norm before clipping
        assert moved == pytest.approx(0.5 * 0.1, rel=1e-3)


class TestRefusals:
    def test_a_model_without_parametrisation(self, architecture, tmp_path):
        stock = architecture.stock(architecture.base(layers=1))
        with pytest.raises(ConfigurationError, match=f"MuTrainer needs a μP model.*Mu{type(stock).__name__}"):
            MuTrainer(stock, arguments(tmp_path))
        with pytest.raises(ConfigurationError, match="MuTrainer needs a μP model"):
            MuTrainer(None, arguments(tmp_path), model_init=lambda: stock)

    @pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
    def test_a_floor_for_all_groups(self, llama_model, tmp_path, name):
        settings = {"lr_scheduler_type": name, "eval_strategy": "steps", "eval_steps": 1}
        with pytest.raises(ConfigurationError, match=f"'{name}' with min_lr sets one floor"):
            args = arguments(tmp_path, lr_scheduler_kwargs={"min_lr": 1e-4}, **settings)
            MuTrainer(llama_model, args, eval_dataset=blocks(4))
        MuTrainer(
            llama_model, arguments(tmp_path, lr_scheduler_kwargs={"min_lr": 0.0}, **settings), eval_dataset=blocks(4)
        )

    def test_label_smoothing(self, llama_model, tmp_path):
        with pytest.raises(ConfigurationError, match=r"label_smoothing_factor=0\.1 would report another loss"):
            MuTrainer(llama_model, arguments(tmp_path, label_smoothing_factor=0.1))

    def test_fewer_examples_than_a_batch(self, llama_model, tmp_path):
        args = arguments(tmp_path, dataloader_drop_last=True)
        with pytest.raises(ConfigurationError, match="has 3 examples, fewer than one batch of 4 over 1 processes"):
            MuTrainer(llama_model, args, train_dataset=blocks(3)).train()


class TestStillATrainer:
    def test_callbacks_metrics_and_evaluation_while_training(self, model, tmp_path):
        class Counter(TrainerCallback):
            steps = 0

            def on_step_end(self, args, state, control, **kwargs):
                self.steps += 1

        def accuracy(prediction):
            return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

        counter = Counter()
        trainer = MuTrainer(
            model, arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2), train_dataset=blocks(32),
            eval_dataset=blocks(6, seed=1), compute_metrics=accuracy, callbacks=[counter],
        )  # fmt: skip
        trainer.train()
        metrics = [row for row in trainer.state.log_history if "eval_loss" in row]
        assert counter.steps == 4 and [row["step"] for row in metrics] == [2, 4]
        assert 0 <= metrics[-1]["eval_accuracy"] <= 1
        assert metrics[-1]["eval_loss"] == pytest.approx(next_token_loss(model, blocks(6, seed=1)).item(), rel=1e-6)

    def test_model_init(self, llama, tmp_path):
        built = []

        def model_init():
            built.append(llama.model(llama.base(layers=1).at_width(64)))
            return built[-1]

        trainer = MuTrainer(None, arguments(tmp_path), train_dataset=blocks(8), model_init=model_init)
        trainer.train()
        assert trainer.model is built[-1] and len(trainer.curve) == 2

    def test_it_learns(self, model, tmp_path):
        trainer = MuTrainer(model, arguments(tmp_path, max_steps=30, learning_rate=0.01), train_dataset=blocks(4))
        result = trainer.train()
        assert trainer.curve[-1]["loss"] < trainer.curve[0]["loss"] - 1
        assert result.metrics["train_loss"] == pytest.approx(result.training_loss)

    def test_saved_model_is_the_trained_one(self, model, tmp_path):
        trainer = MuTrainer(model, arguments(tmp_path), train_dataset=blocks(8))
        trainer.train()
        trainer.save_model(str(tmp_path / "final"))
        again = type(model).from_pretrained(tmp_path / "final")
        ids = stack(blocks(2))["input_ids"]
        with torch.no_grad():
            assert torch.equal(again(ids).logits, model.eval()(ids).logits)
        assert isinstance(again.lm_head, nn.Linear) and again.lm_head.multiplier == model.lm_head.multiplier
