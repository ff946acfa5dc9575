"""A plain PyTorch loop: a small GPT-2 and nothing between it and the optimizer, the way nanoGPT trains.

This is the ceiling for a trainer that adds nothing: eager, or with the whole model compiled (`--compile`). The model
and its optimizer serve the DeepSpeed and nanoGPT peers too.
Shape letters: B batch, T time, D model width, H heads, K width of a head, V vocabulary.
"""

import torch
from harness import BETAS, GRADIENT_CLIP, WEIGHT_DECAY, Clock, Settings, batches, print_result
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        parts = self.query_key_value(x_BTD).chunk(3, dim=-1)
        q_BHTK, k_BHTK, v_BHTK = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, bias=bias)
        self.attention = Attention(dim, heads, bias)
        self.feed_forward_norm = nn.LayerNorm(dim, bias=bias)
        self.expand = nn.Linear(dim, 4 * dim, bias=bias)
        self.output = nn.Linear(4 * dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        hidden = functional.gelu(self.expand(self.feed_forward_norm(x_BTD)), approximate="tanh")
        return x_BTD + self.output(hidden)


class GPT(nn.Module):
    """GPT-2: learned positions, pre-norm blocks, tied embeddings, no dropout. Gives the mean loss over its targets."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.position_embedding = nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, bias) for _ in range(layers))
        self.final_norm = nn.LayerNorm(dim, bias=bias)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                # Every block adds to the residual stream twice: its variance must not grow with depth.
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if "output" in name else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.token_embedding(tokens_BT) + self.position_embedding(positions_T)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = functional.linear(self.final_norm(x_BTD), self.token_embedding.weight)
        return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def build_model(settings: Settings) -> GPT:
    return GPT(settings.vocabulary, settings.context, settings.layers, settings.heads, settings.dim)


def build_optimizer(model: nn.Module, learning_rate: float, betas: tuple[float, float] = BETAS) -> torch.optim.AdamW:
    """AdamW that decays matrices only; fused, which is the fastest of PyTorch's three on a CPU too."""
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    settings = Settings.from_command_line(__doc__, ("cpu", "cuda"))
    torch.set_float32_matmul_precision("high")  # as nanoGPT does; it means nothing to a CPU
    model = build_model(settings).to(settings.device)
    optimizer = build_optimizer(model, settings.learning_rate)
    compute_loss = torch.compile(model) if settings.compile else model
    losses = []
    clock = Clock()
    for tokens, targets in batches(settings):
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = compute_loss(tokens.to(settings.device), targets.to(settings.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        clock.tick()
    print_result("plain compiled" if settings.compile else "plain", settings, clock, losses, count_parameters(model))


if __name__ == "__main__":
    main()
