"""What must hold for any decoder, whatever its weights."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from shoal.core.seeds import generator
from shoal.models.config import TransformerConfig
from shoal.models.layers import activate
from shoal.models.rotary import rotary_table, rotate
from shoal.models.transformer import Transformer
from tests.models.shapes import BERT, FAMILIES, GPT2, LLAMA, MODERNBERT, QWEN3, random_model, random_tokens

each_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


@each_family
def test_a_token_changes_no_hidden_state_before_it(config: TransformerConfig) -> None:
    model = random_model(config)
    tokens = random_tokens(config)
    with torch.no_grad():
        before = model(tokens)
        for place in range(config.context):
            changed = tokens.clone()
            changed[:, place] = (changed[:, place] + 1) % config.vocabulary
            after = model(changed)
            torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-6, atol=1e-6)
            assert not torch.allclose(after[:, place], before[:, place], atol=1e-3)


@each_family
def test_sequences_of_a_batch_do_not_see_each_other(config: TransformerConfig) -> None:
    model, tokens = random_model(config), random_tokens(config, batch=3)
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in tokens])
        torch.testing.assert_close(model(tokens), alone, rtol=1e-5, atol=1e-5)


@each_family
def test_the_same_seed_initialises_the_same_weights_whatever_the_global_generator_did(config: TransformerConfig) -> None:
    def weights(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        torch.rand(noise)
        state = torch.get_rng_state()
        model = Transformer(config).materialise().initialise(generator(seed, "weights"))
        assert torch.equal(torch.get_rng_state(), state)
        return model.state_dict()

    first, again, other = weights(1, 3), weights(1, 5), weights(2, 3)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_initial_weights_have_the_asked_for_spread() -> None:
    config = replace(GPT2, dim=64, heads=4, head_dim=16, hidden=256, layers=8, vocabulary=500)
    model = Transformer(config).materialise().initialise(generator(1, "weights"), std=0.1, embedding_std=0.5)
    spread = {name: value.std().item() for name, value in model.named_parameters() if value.dim() == 2}
    assert spread.pop("embedding.weight") == pytest.approx(0.5, rel=0.05)
    for name, found in spread.items():
        expected = 0.1 / 16**0.5 if name.endswith(("out.weight", "down.weight")) else 0.1
        assert found == pytest.approx(expected, rel=0.06), name
    for name, value in model.named_parameters():
        if value.dim() == 1:
            assert (value == (0.0 if name.endswith("bias") else 1.0)).all(), name


@each_family
def test_blocks_that_start_at_zero_are_the_identity(config: TransformerConfig) -> None:
    model = Transformer(config).materialise().initialise(generator(1, "weights"), zero=True).eval()
    tokens = random_tokens(config)
    with torch.no_grad():
        x = model.embedding(tokens)
        if model.position is not None:
            x = x + model.position.weight
        assert torch.equal(model(tokens), model.norm(x))


def test_dropout_is_only_in_training() -> None:
    model = random_model(replace(GPT2, dropout=0.5))
    tokens = random_tokens(GPT2)
    assert torch.equal(model(tokens), random_model(GPT2)(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@each_family
def test_logits_are_projected_by_the_embedding_where_it_is_tied(config: TransformerConfig) -> None:
    model = random_model(config)
    assert (model.head_weight is model.embedding.weight) == config.tied
    hidden = model(random_tokens(config))
    torch.testing.assert_close(model.project(hidden), hidden @ model.head_weight.T)


@settings(deadline=None, max_examples=40)
@given(
    head_dim=st.integers(1, 8).map(lambda half: 2 * half), first=st.integers(0, 40), second=st.integers(0, 40),
    shift=st.integers(0, 60), theta=st.sampled_from([10.0, 10_000.0, 1e6]),
)  # fmt: skip
def test_rotary_products_depend_on_the_distance_alone(
    head_dim: int, first: int, second: int, shift: int, theta: float
) -> None:
    cosine, sine = rotary_table(101, head_dim, theta)
    random = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 1, 1, 1, head_dim, generator=random)

    def product(query_at: int, key_at: int) -> torch.Tensor:
        turned = rotate(query, cosine[[query_at]], sine[[query_at]])
        return (turned * rotate(key, cosine[[key_at]], sine[[key_at]])).sum()

    torch.testing.assert_close(product(first, second), product(first + shift, second + shift), rtol=1e-4, atol=1e-4)


def test_rotation_keeps_length_and_type_and_leaves_the_first_position_as_it_is() -> None:
    cosine, sine = rotary_table(16, 8, 10_000.0)
    x = torch.randn(2, 16, 3, 8, generator=torch.Generator().manual_seed(1))
    turned = rotate(x, cosine, sine)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.allclose(turned[:, 1:], x[:, 1:], atol=1e-3)
    assert rotate(x.bfloat16(), cosine, sine).dtype == torch.bfloat16


def test_activations_are_their_formulas() -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    tanh = torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    torch.testing.assert_close(activate(x, "gelu"), 0.5 * x * (1 + tanh))
    torch.testing.assert_close(activate(x, "gelu_erf"), x * torch.erfc(-x / 2**0.5) / 2)
    torch.testing.assert_close(activate(x, "silu"), x / (1 + torch.exp(-x)))
    torch.testing.assert_close(activate(x, "relu2"), x.clamp(min=0) ** 2)


@pytest.mark.parametrize(
    "config",
    [GPT2, LLAMA, QWEN3, replace(GPT2, tied=False), replace(LLAMA, tied=True, layers=3), replace(QWEN3, kv_heads=1)],
)
def test_the_formula_for_flops_counts_every_matrix_product(config: TransformerConfig) -> None:
    model = random_model(config)
    B, T = 2, 16
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.project(model(random_tokens(config, B, T))).sum().backward()
    counted = counter.get_total_flops()
    # what the counter sees of attention is the whole square, of which causal attention needs half
    shape = (B, config.heads, T, config.head_dim)
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()
    attention = config.layers * counter.get_total_flops()
    assert attention == 12 * config.layers * B * T * T * config.heads * config.head_dim
    assert model.flops_per_token(T) * B * T == counted - attention / 2


@pytest.mark.parametrize(
    "config", [BERT, MODERNBERT, replace(MODERNBERT, window=0)], ids=["bert", "modernbert", "no window"]
)
def test_an_encoder_s_flops_are_those_of_what_its_layers_see(config: TransformerConfig) -> None:
    model = random_model(config)
    B, T = 2, 16
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.project(model(random_tokens(config, B, T))).sum().backward()
    # the counter sees whole squares, also where a layer sees 2 tokens on either side
    local = sum(block.local for block in model.blocks)
    unseen = 12 * local * (T - 2 * config.window - 1) * config.dim if config.window else 0
    assert model.flops_per_token(T) * B * T == counter.get_total_flops() - unseen * B * T


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"positions": "rotary", "head_dim": 5}, "must be even"),
        ({"window": 2}, "see both ways"),
        ({"relation": True}, "what the pooler sums up"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        replace(GPT2, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [*FAMILIES.values(), BERT, MODERNBERT], ids=[*FAMILIES, "bert", "modernbert"])
def test_only_untouched_queries_and_keys_go_packed(config: TransformerConfig) -> None:
    model, tokens = random_model(config), random_tokens(config)
    wanted, seen = model(tokens), []
    for block in model.blocks:
        block.attention.packed_kernel = lambda qkv, low, high: seen.append(qkv.shape[-2])
    assert torch.equal(model(tokens), wanted)
    bare = config.positions == "learned" and config.kv_heads == config.heads and not config.qk_norm
    assert seen == [3] * config.layers * bare
