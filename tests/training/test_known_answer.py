"""Twenty Portuguese sentences learnt by heart with both objectives at once, and recited in both modes."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from configuration_flexqwen import FlexQwenConfig
from flexqwen.data.packing import best_fit, encode_documents
from flexqwen.data.texts import read_texts
from flexqwen.training.objectives import ObjectiveArguments, TrainingRows, collate
from flexqwen.training.schedule import Phase
from modeling_flexqwen import FlexQwenForCausalLM

LENGTH, PROMPT = 64, 4  # tokens of a row, and of what generation starts from


class Rows:
    """Packed rows in memory."""

    def __init__(self, documents, tokenizer):
        rows = best_fit([len(document) for document in documents], LENGTH)
        self.input_ids = np.full((len(rows), LENGTH), tokenizer.pad_token_id, dtype=np.uint16)
        for line, row in zip(self.input_ids, rows, strict=True):
            tokens = np.concatenate([documents[piece] for piece in row])
            line[: len(tokens)] = tokens
        self.info = {
            f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")
        }
        self.info["vocab_size"] = len(tokenizer)

    def __len__(self):
        return len(self.input_ids)


@pytest.fixture(scope="module")
def sentences(built, tokenizer):
    """Twenty sentences of 8 to 24 tokens, no two of which begin alike."""
    found = {}
    for _, text in read_texts(built, "gold", "train"):
        for sentence in text.replace("\n", " ").split(". "):
            sentence = sentence.strip(" .") + "."
            (ids,) = encode_documents(tokenizer, [sentence])
            if 8 <= len(ids) <= 24:
                found.setdefault(tuple(ids[:PROMPT]), sentence)
    return list(found.values())[:20]


@pytest.fixture(scope="module", params=["hybrid-shift", "hybrid-inplace"])
def learnt(request, sentences, tokenizer, tmp_path_factory):
    """The folder of a model that has learnt the sentences."""
    torch.manual_seed(0)
    objective = ObjectiveArguments(
        strategy=request.param, causal_fraction=0.25, mask_random=0.0, mask_replace=1.0, mask_span_max=1
    )
    config = FlexQwenConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        tie_word_embeddings=True,
        masked_prediction=objective.masked_prediction,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")},
    )
    model = FlexQwenForCausalLM(config).train()
    rows = Rows(list(encode_documents(tokenizer, sentences)), tokenizer)
    steps, batch_size = 160, 2 * len(rows)
    training = TrainingRows([Phase(rows, range(steps), batch_size)], objective, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model gains nothing from more, and loses much on a busy machine
    for step in range(steps):
        batch = collate([training[item] for item in range(step * batch_size, (step + 1) * batch_size)])
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_fill_mask_ranks_the_right_token_first_everywhere_and_generation_recites(learnt, sentences, tokenizer):
    fill = pipeline("fill-mask", str(learnt), trust_remote_code=True, device="cpu")
    fill.model.eval()
    for sentence in sentences:
        ids = torch.tensor(next(iter(encode_documents(tokenizer, [sentence]))))
        places = torch.arange(1, len(ids) - 1)
        masked = ids.expand(len(places), -1).clone()
        masked[torch.arange(len(places)), places] = tokenizer.mask_token_id
        with torch.no_grad():
            best = fill.model(masked).logits[torch.arange(len(places)), places].argmax(-1)
        assert torch.equal(best, ids[places]), sentence
    model = FlexQwenForCausalLM.from_pretrained(learnt).eval()
    for sentence in sentences:
        ids = torch.tensor(list(encode_documents(tokenizer, [sentence])))
        written = model.generate(ids[:, :PROMPT], max_new_tokens=40, do_sample=False)
        assert written[0].tolist() == ids[0].tolist(), sentence


def test_the_fill_mask_pipeline_needs_no_telling(learnt, sentences, tokenizer):
    fill = pipeline("fill-mask", str(learnt), trust_remote_code=True, device="cpu")
    asked = 0
    for sentence in sentences[:10]:
        words = sentence.rstrip(".").split(" ")
        for place in range(1, len(words)):
            if len(tokenizer(" " + words[place], add_special_tokens=False).input_ids) == 1:
                question = " ".join([*words[:place], tokenizer.mask_token, *words[place + 1 :]]) + "."
                question = question.replace(f" {tokenizer.mask_token}.", f"{tokenizer.mask_token}.")
                assert fill(question)[0]["token_str"].strip() == words[place], question
                asked += 1
    assert asked >= 10
