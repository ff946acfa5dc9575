"""A model as a function of tensors alone, which torch.export can follow for any batch and any length.

Inputs have the names and shapes that `transformers` gives them: `input_ids`, and for all but decoders that go on with a text
`attention_mask` (1 on text, 0 on padding; the text of a row is one piece) and, where texts are of several kinds,
`token_type_ids`; each int64 [batch, length]. Outputs:

    decoder                logits [batch, length, vocabulary]: what follows each token
    encoder                logits [batch, length, vocabulary]: what is behind each token, if it is masked
    encoder without head   last_hidden_state [batch, length, dim]
    texts are scored       logits [batch, labels]
    tokens are scored      logits [batch, length, labels]
    answers are found      start_logits, end_logits [batch, length]
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from shoal.models.reach import Reach
from shoal.models.transformer import Transformer


class Program(nn.Module):
    """`inputs`, `outputs`: what they are called, in the order in which `forward` has them."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model.eval()
        config = model.config
        self.inputs = ["input_ids"]
        if config.head or not config.causal:
            self.inputs.append("attention_mask")
        if config.segments > 1:
            self.inputs.append("token_type_ids")
        self.outputs = ["logits"]
        if config.head == "span":
            self.outputs = ["start_logits", "end_logits"]
        elif not (config.head or config.causal or config.transform):
            self.outputs = ["last_hidden_state"]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The outputs, in fp32."""
        model, config = self.model, self.model.config
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden_BTD = model(input_ids, reach=_reach(mask, config.causal), segments_BT=token_type_ids)
        if config.head == "sequence":
            return (model.score_pooled(_pooled(model, hidden_BTD, mask)),)
        if config.head == "token":
            return (model.score_tokens(hidden_BTD),)
        if config.head == "span":
            start, end = model.score_tokens(hidden_BTD).unbind(-1)
            return start, end
        return (model.project(hidden_BTD) if config.causal or config.transform else hidden_BTD,)


def _reach(mask: Tensor, causal: bool) -> Reach:
    """As `Reach.of_mask`, but without looking at values: text sees the text of its row, padding itself."""
    position = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device).expand(mask.shape)
    begin = mask.argmax(1, keepdim=True).int()
    text = mask.bool()
    low = torch.where(text, begin, position)
    return Reach(low, None if causal else torch.where(text, begin + mask.sum(1, keepdim=True).int(), position + 1))


def _pooled(model: Transformer, hidden_BTD: Tensor, mask: Tensor) -> Tensor:
    """One vector a row [batch, dim], as `TaskHead.pool` has it of pieces."""
    assert model.task_head is not None
    begin, length = mask.argmax(1), mask.sum(1)
    row = torch.arange(mask.shape[0], device=mask.device)
    if model.task_head.pooling == "first":
        return hidden_BTD[row, begin]
    if model.task_head.pooling == "last":
        return hidden_BTD[row, begin + length - 1]
    weight_BT = mask / length[:, None]
    if model.task_head.attention is not None:
        score_BT: Tensor = model.task_head.attention(hidden_BTD).squeeze(-1)
        weight_BT = score_BT.masked_fill(~mask.bool(), -torch.inf).softmax(-1)
    return (weight_BT[..., None].to(hidden_BTD) * hidden_BTD).sum(1)


def exported(program: Program) -> ExportedProgram:
    """What `torch.export` makes of it, for any batch, and any length up to the model's context."""
    context = program.model.config.context
    rows, length = min(3, context), min(5, context)
    example = tuple(torch.ones(rows, length, dtype=torch.int64) for _ in program.inputs)
    free = {0: Dim("batch", min=1), 1: Dim("length", min=1, max=context)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(program, example, dynamic_shapes=dict.fromkeys(program.inputs, free))


def write_program(path: Path, program: Program) -> None:
    """Write a `.pt2`, which `torch.export.load` reads; `.module()` of it takes the inputs, and gives the outputs."""
    with path.open("wb") as file:  # of a name without `.pt2` torch complains
        torch.export.save(exported(program), file)
