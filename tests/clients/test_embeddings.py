"""sentence-transformers: a checkpoint and its bidirectional twin load in one line, as what they are."""

import numpy as np
import pytest
import torch

from flexqwen.evaluation.tasks import assin2
from modeling_flexqwen import FlexQwenForSequenceClassification, FlexQwenModel

st = pytest.importorskip("sentence_transformers")
CLIENTS = ("sentence-transformers",)


@pytest.mark.parametrize("kind", ["checkpoint", "bidirectional twin"])
def test_sentences_are_embedded_bidirectionally_by_the_mean(checkpoint, twins, tokenizer, sentences, kind):
    where = checkpoint if kind == "checkpoint" else twins["bidirectional"]
    embedder = st.SentenceTransformer(str(where), trust_remote_code=kind == "checkpoint", device="cpu")
    model = FlexQwenModel.from_pretrained(checkpoint, is_causal=False).eval()
    found = embedder.encode(sentences)
    for sentence, vector in zip(sentences, found, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(sentence, return_tensors="pt"))[0][0].mean(0)
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(vector, embedder.encode(sentence), rtol=1e-4, atol=1e-5)


def test_the_mode_can_be_told(checkpoint, sentences):
    options = {"trust_remote_code": True, "device": "cpu"}
    causal = st.SentenceTransformer(str(checkpoint), config_kwargs={"is_causal": True}, **options)
    assert not np.allclose(
        causal.encode(sentences), st.SentenceTransformer(str(checkpoint), **options).encode(sentences)
    )


@pytest.mark.parametrize("kind", ["checkpoint", "bidirectional twin"])
def test_fine_tuned_and_saved_it_loads_again(checkpoint, twins, sentences, tmp_path, kind):
    from datasets import Dataset
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    where = checkpoint if kind == "checkpoint" else twins["bidirectional"]
    options = {"trust_remote_code": True, "device": "cpu"}
    embedder = st.SentenceTransformer(str(where), **options)
    before = embedder.encode(sentences)
    pairs = Dataset.from_dict({"anchor": sentences, "positive": sentences[::-1]})
    arguments = st.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=2, report_to="none", use_cpu=True, save_strategy="no", learning_rate=0.01
    )
    loss = MultipleNegativesRankingLoss(embedder)
    st.SentenceTransformerTrainer(embedder, arguments, train_dataset=pairs, loss=loss).train()
    embedder.save(str(tmp_path / "tuned"))
    after = embedder.encode(sentences)
    assert not np.allclose(before, after)
    again = st.SentenceTransformer(str(tmp_path / "tuned"), **options)
    np.testing.assert_allclose(again.encode(sentences), after, rtol=1e-4, atol=1e-5)


@pytest.mark.real_data
def test_similar_pairs_teach_similarity(checkpoint, eval_data, tmp_path):
    from datasets import Dataset
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    pairs = assin2.read()["sts"]

    def correlation(embedder):
        one, other = (embedder.encode([pair.texts[place] for pair in pairs["test"][:600]]) for place in (0, 1))
        cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        return assin2.compute_pearson([pair.label for pair in pairs["test"][:600]], cosines)

    options = {"trust_remote_code": True, "device": "cpu"}
    embedder = st.SentenceTransformer(str(checkpoint), **options)
    before = correlation(embedder)
    anchors, positives = zip(*(pair.texts for pair in pairs["train"] if pair.label >= 4), strict=True)
    arguments = st.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=150, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=32, learning_rate=0.003,
    )  # fmt: skip
    rows = Dataset.from_dict({"anchor": anchors, "positive": positives})
    loss = MultipleNegativesRankingLoss(embedder)
    st.SentenceTransformerTrainer(embedder, arguments, train_dataset=rows, loss=loss).train()
    after = correlation(embedder)
    assert after > before + 0.03
    embedder.save(str(tmp_path / "tuned"))
    again = st.SentenceTransformer(str(tmp_path / "tuned"), **options)
    assert correlation(again) == pytest.approx(after, abs=1e-3)


@pytest.mark.parametrize("kind", ["bidirectional twin", "classifier"])
def test_a_cross_encoder_is_bidirectional_and_blind_to_padding(checkpoint, twins, tokenizer, tmp_path, kind):
    where = twins["bidirectional"]
    if kind == "classifier":
        where = tmp_path / "classifier"
        FlexQwenForSequenceClassification.from_pretrained(checkpoint, num_labels=1).save_pretrained(where)
        tokenizer.save_pretrained(where)
    encoder = st.CrossEncoder(str(where), trust_remote_code=kind == "classifier", device="cpu")
    names = {"bidirectional twin": "Qwen3ForSequenceClassification", "classifier": "FlexQwenForSequenceClassification"}
    assert type(encoder.model).__name__ == names[kind]
    pairs = [("O Brasil é grande.", "É um país grande."), ("Choveu.", "Fez sol ontem, e não choveu nada na cidade.")]
    together = encoder.predict(pairs)
    for pair, score in zip(pairs, together, strict=True):
        np.testing.assert_allclose(encoder.predict([pair])[0], score, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            logits = encoder.model(**tokenizer(*pair, return_tensors="pt")).logits
        np.testing.assert_allclose(torch.sigmoid(logits)[0, 0], score, rtol=1e-4, atol=1e-5)
