"""Presets are the shapes that their papers give, and changes to them fit together or are refused."""

from typing import Any

import pytest

from shoal.models.presets import PRESETS, make_config
from shoal.models.transformer import Transformer


def parameters(preset: str, **changes: Any) -> int:
    return sum(parameter.numel() for parameter in Transformer(make_config(preset, **changes)).parameters())


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # as `transformers` counts openai-community/gpt2, -medium, -large, -xl and Qwen/Qwen3-0.6B
        ("gpt2-small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("qwen3-0.6b", 596_049_920),
        # as it counts BertForMaskedLM with the shapes of google-bert/bert-base-uncased and -large-uncased and of the small
        # ones of google/bert_uncased_L-4_H-256 and -512, and ModernBertForMaskedLM of answerdotai/ModernBERT-base
        ("bert-base", 109_514_298),
        ("bert-large", 335_174_458),
        ("bert-mini", 11_201_594),
        ("bert-small", 28_795_194),
        ("modernbert-base", 149_655_232),
    ],
)
def test_a_preset_has_as_many_parameters_as_its_model(preset: str, expected: int) -> None:
    assert parameters(preset) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_no_change_is_the_preset_itself(preset: str) -> None:
    assert make_config(preset) == PRESETS[preset]
    assert make_config(preset, dim=None, heads=None) == PRESETS[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_widths_that_follow_from_others_follow_the_changes(preset: str) -> None:
    config = make_config(preset, dim=128, heads=4, layers=1, vocabulary=10, context=8)
    assert (config.dim, config.heads, config.head_dim, config.layers, config.vocabulary) == (128, 4, 32, 1, 10)
    assert config.heads % config.kv_heads == 0
    assert config.hidden % 64 == 0
    assert 0.9 < config.hidden / 128 / (PRESETS[preset].hidden / PRESETS[preset].dim) < 1.3


def test_what_is_given_is_kept() -> None:
    config = make_config("llama-small", dim=100, heads=10, kv_heads=5, head_dim=4, hidden=33, rope_theta=5.0, tied=True)
    assert (config.dim, config.heads, config.kv_heads, config.head_dim, config.hidden) == (100, 10, 5, 4, 33)
    assert (config.rope_theta, config.tied) == (5.0, True)


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("gpt5", {}, "there is no preset 'gpt5'; there are: gpt2-small, gpt2-medium"),
        ("gpt2-small", {"dim": 100}, r"dim \(100\) must be a multiple of heads \(12\), or set head_dim"),
        ("gpt2-small", {"heads": 7}, r"dim \(768\) must be a multiple of heads \(7\)"),
        ("llama-small", {"kv_heads": 5}, r"heads \(12\) must be a multiple of kv_heads \(5\)"),
        ("llama-tiny", {"head_dim": 5}, r"head_dim \(5\) must be even for rotary positions"),
        ("gpt2-small", {"experts": 8, "colour": 1}, "a Transformer has no colour, experts"),
    ],
)
def test_what_does_not_fit_together_is_refused(preset: str, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make_config(preset, **changes)
