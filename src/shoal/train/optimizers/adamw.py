"""AdamW (Loshchilov and Hutter 2019) through torch's fused kernel, on CPU as on GPU."""

from collections.abc import Mapping

from torch import Tensor, nn, optim

from shoal.core import recipe

ALIKE: Mapping[str, float] = {}
"""All parameters learn at the settings' rates."""


class AdamW:
    """Decays `matrices` only; embeddings and the output projection may have a learning rate of their own.

    `multiples`: of it, by parameter.
    """

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        settings: recipe.Optimizer,
        matrices: set[str],
        multiples: Mapping[str, float] = ALIKE,
    ) -> None:
        self.named = named
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            rate = peak_rate(name, settings) * multiples.get(name, 1.0)
            decay = settings.weight_decay if name in matrices else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        self.peaks = [rate for rate, _ in groups]
        self.inner = optim.AdamW(
            [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )

    def step(self, share: float) -> None:
        """One step at `share` of the peak learning rates."""
        for group, peak in zip(self.inner.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.inner.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Both moments and the step count of every parameter."""
        return {
            f"{name}/{kind}": value
            for name, parameter in self.named.items()
            for kind, value in self.inner.state[parameter].items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave; `KeyError` when it is another optimizer's."""
        for name, parameter in self.named.items():
            for kind in ("step", "exp_avg", "exp_avg_sq"):
                self.inner.state[parameter][kind] = state[f"{name}/{kind}"].to(parameter.device)


def peak_rate(name: str, settings: recipe.Optimizer) -> float:
    """AdamW's peak learning rate of a parameter."""
    vocabulary = name in ("embedding.weight", "position.weight", "head.weight")
    return settings.learning_rate * (settings.embedding_rate if vocabulary else 1.0)
