"""The head of a model whose trunk is frozen: what the trunk gives was computed before, and is looked up.

To tasks it is a Transformer like any other. Its tokens are places in a table of hidden states [places, dim]: one for each
token of the texts, or, where pooling needs no learning, one for each text, of which a piece is then one token long. So
nothing that reads pieces, or scores them, need know of it.
"""

from dataclasses import replace

from torch import Tensor, nn

from shoal.models.cache import Cache
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer


class HeadOnly(Transformer):
    """Shares the head of `whole`, under the same names; `table` stays where it is, on disk maybe, and is no parameter."""

    def __init__(self, whole: Transformer, table: Tensor) -> None:
        nn.Module.__init__(self)
        self.config = replace(whole.config, vocabulary=len(table), layers=0)
        self.table = table
        self.blocks = nn.ModuleList()
        self.pooler, self.transform, self.task_head = whole.pooler, whole.transform, whole.task_head

    def forward(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        reach: Reach | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [batch, tokens, dim] at these places of the table; what else is given was for the trunk."""
        return self.table[tokens_BT.to(self.table.device)].to(tokens_BT.device)

    @property
    def tied_table(self) -> None:
        """There is no vocabulary."""
        return None

    @property
    def head_weight(self) -> Tensor:
        """The scores' weight [outputs, dim]."""
        assert self.task_head is not None
        return self.task_head.score.weight

    def flops_per_token(self, tokens: int, projected: float = 1.0) -> float:
        """Floating-point operations of forward and backward at a place, if each is scored."""
        return 6.0 * sum(parameter.numel() for parameter in self.parameters() if parameter.dim() == 2)
