"""RoBERTa and DistilBERT: read as a BERT that gives the same logits as theirs in `transformers`, written as that BERT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from shoal.core.model_directory import read_model_directory, write_model_directory
from shoal.models import hugging_face
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from tests.models.shapes import fill

PADDING = 1
MASK = torch.arange(24) < torch.tensor([24, 17, 3])[:, None]
TOKENS = torch.where(MASK, torch.randint(5, 90, (3, 24), generator=torch.Generator().manual_seed(1)), PADDING)
SHAPE: dict[str, Any] = {"vocab_size": 90, "num_labels": 2, "pad_token_id": PADDING}
ROBERTA: dict[str, Any] = SHAPE | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 26, "type_vocab_size": 1,
}  # fmt: skip
DISTILBERT: dict[str, Any] = SHAPE | {
    "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 24,
}  # fmt: skip


def roberta(kind: type[PreTrainedModel] = RobertaForMaskedLM) -> PreTrainedModel:
    return kind(RobertaConfig(**ROBERTA))


def distilbert(kind: type[PreTrainedModel] = DistilBertForMaskedLM) -> PreTrainedModel:
    return kind(DistilBertConfig(**DISTILBERT))


def named(model: PreTrainedModel) -> str:
    return type(model).__name__


def read(model: PreTrainedModel, folder: Path) -> tuple[PreTrainedModel, Transformer]:
    fill(model)
    model.eval().save_pretrained(folder)
    return model, hugging_face.build(*read_model_directory(folder)).eval()


def hidden_states(ours: Transformer) -> Tensor:
    # as a pair of texts: models of one kind of text read both as that
    return ours(TOKENS, reach=Reach.of_mask(MASK), segments_BT=(torch.arange(24) > 9).long().expand(3, 24))


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    [roberta(), XLMRobertaForMaskedLM(XLMRobertaConfig(**ROBERTA)), distilbert()],
    ids=named,
)
def test_masked_words_have_their_logits(model: PreTrainedModel, tmp_path: Path) -> None:
    theirs, ours = read(model, tmp_path / "theirs")
    theirs.double(), ours.double()  # in fp32 their rounding differs by more than that on some processors
    expected = theirs(TOKENS, attention_mask=MASK.long()).logits
    torch.testing.assert_close(ours.project(hidden_states(ours))[MASK], expected[MASK], rtol=1e-5, atol=1e-5)
    ours.float()
    config = hugging_face.config_to_hugging_face(ours.config)
    weights = hugging_face.weights_to_hugging_face(ours)
    write_model_directory(tmp_path / "ours", config, weights, lambda folder: None, "# A\n")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval().double()
    logits = again(TOKENS, attention_mask=MASK.long()).logits
    torch.testing.assert_close(logits[MASK], expected[MASK], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("model", [roberta(RobertaModel), distilbert(DistilBertModel)], ids=named)
def test_bodies_have_their_hidden_states(model: PreTrainedModel, tmp_path: Path) -> None:
    theirs, ours = read(model, tmp_path)
    expected = theirs(TOKENS, attention_mask=MASK.long()).last_hidden_state
    torch.testing.assert_close(hidden_states(ours)[MASK], expected[MASK], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    [
        roberta(RobertaForTokenClassification),
        roberta(RobertaForQuestionAnswering),
        distilbert(DistilBertForTokenClassification),
        distilbert(DistilBertForQuestionAnswering),
    ],
    ids=named,
)
def test_heads_over_tokens_have_their_scores(model: PreTrainedModel, tmp_path: Path) -> None:
    theirs, ours = read(model, tmp_path)
    found = theirs(TOKENS, attention_mask=MASK.long())
    expected = found.logits if "logits" in found else torch.stack((found.start_logits, found.end_logits), -1)
    torch.testing.assert_close(ours.score_tokens(hidden_states(ours))[MASK], expected[MASK], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_robertas_classifier_is_berts_pooler_and_classifier(tmp_path: Path) -> None:
    theirs, ours = read(roberta(RobertaForSequenceClassification), tmp_path / "theirs")
    expected = theirs(TOKENS, attention_mask=MASK.long()).logits
    scores = ours.score_texts(hidden_states(ours), torch.arange(3) * 24, MASK.sum(1))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    config, weights = hugging_face.config_to_hugging_face(ours.config), hugging_face.weights_to_hugging_face(ours)
    write_model_directory(tmp_path / "ours", config, weights, lambda folder: None, "# A\n")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(TOKENS, attention_mask=MASK.long()).logits, expected, rtol=1e-5, atol=1e-5)


def test_distilberts_classifier_is_left_out(tmp_path: Path) -> None:
    _, ours = read(distilbert(DistilBertForSequenceClassification), tmp_path)
    assert ours.task_head is None


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="has no 'n_layers'"):
        hugging_face.build({"model_type": "distilbert", "dim": 32}, {})
