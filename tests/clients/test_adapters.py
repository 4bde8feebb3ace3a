"""PEFT and TRL: adapters are part of the loss, saved and merged; SFT packs rows, documents apart; DPO learns."""

import pytest
import torch

from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM
from tests.helpers.tiny import make_ids, make_model

peft = pytest.importorskip("peft")
CLIENTS = ("peft", "trl")


@pytest.mark.parametrize("cls", [FlexQwenForCausalLM, FlexQwenForMaskedLM])
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], "all-linear"], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_that_of_the_adapted_logits(cls, targets, training):
    lora = peft.LoraConfig(target_modules=targets, init_lora_weights=False, lora_alpha=32)
    model, ids = peft.get_peft_model(make_model(cls, tie_word_embeddings=False), lora).eval(), make_ids()
    with torch.no_grad():
        logits = model(ids).logits
    shift = cls is FlexQwenForCausalLM
    labels = ids.clone()
    labels[:, 0] = -100
    expected = torch.nn.functional.cross_entropy(
        logits[:, : -1 if shift else None].flatten(0, 1), labels[:, 1 if shift else 0 :].flatten()
    )
    output = model.train(training)(ids, labels=labels)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    adapted = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert adapted and all(parameter.grad is not None and parameter.grad.any() for parameter in adapted)


def test_an_adapter_is_saved_loaded_and_merged(tmp_path):
    base, ids = make_model(), make_ids()
    base.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    expected = adapted(ids).logits
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(FlexQwenForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(again.eval()(ids).logits, expected)
    torch.testing.assert_close(again.merge_and_unload()(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def sft_trainer(checkpoint, sentences, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    arguments = trl.SFTConfig(
        str(tmp_path), packing=True, max_length=64, max_steps=40, learning_rate=0.01, per_device_train_batch_size=4,
        report_to="none", use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False,
    )  # fmt: skip
    model, rows = FlexQwenForCausalLM.from_pretrained(checkpoint), Dataset.from_dict({"text": sentences * 20})
    return trl.SFTTrainer(model, arguments, train_dataset=rows)


def test_trl_trains_on_packed_rows(sft_trainer):
    sft_trainer.train()
    losses = [entry["loss"] for entry in sft_trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 1.5


def test_trl_keeps_packed_documents_apart(sft_trainer, tokenizer, sentences):
    batch, model = next(iter(sft_trainer.get_train_dataloader())), sft_trainer.model
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0]
    documents = batch["input_ids"][0].tensor_split(starts[1:])
    written = {tokenizer.decode(ids, skip_special_tokens=True) for ids in documents}
    assert len(documents) > 4 and written <= {*sentences}
    with torch.no_grad():
        together = model.train()(**batch, use_cache=False).loss
        packed = model.eval()(**batch, use_cache=False)
        alone = [model(ids[None], labels=ids[None]) for ids in documents]
    torch.testing.assert_close(packed.logits[0], torch.cat([output.logits[0] for output in alone]))
    counts = torch.tensor([len(ids) - 1.0 for ids in documents])
    expected = (torch.stack([output.loss for output in alone]) * counts).sum() / counts.sum()
    torch.testing.assert_close(packed.loss, expected)
    torch.testing.assert_close(together, expected)


def test_trl_prefers_with_a_model_for_reference(checkpoint, tokenizer, sentences, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    arguments = trl.DPOConfig(
        str(tmp_path), max_steps=10, learning_rate=0.003, per_device_train_batch_size=3, report_to="none", use_cpu=True,
        save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False, max_length=64,
    )  # fmt: skip
    rows = {"prompt": ["O Brasil"] * 3, "chosen": [" é grande."] * 3, "rejected": sentences}
    model, reference = (FlexQwenForCausalLM.from_pretrained(checkpoint) for _ in range(2))
    rows = Dataset.from_dict(rows)
    trainer = trl.DPOTrainer(model, reference, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
