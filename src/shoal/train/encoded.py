"""A split's examples as the samples that a model reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.core.errors import InputError
from shoal.data.examples.augment import Augmentation
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows, Layout, Sample, Vary
from shoal.data.readers import Faults
from shoal.models.transformer import Transformer
from shoal.parallel.wire import Wire
from shoal.tasks import LabelledTask


@dataclass(frozen=True)
class Encoded:
    """A split's examples, and their samples; `owners`: of which example each sample is."""

    examples: list[Example]
    samples: list[Sample]
    owners: list[int]

    @classmethod
    def of(cls, task: LabelledTask, examples: Sequence[Example], faults: Faults) -> "Encoded":
        """Every example's samples; `InputError` names the example that can't be used, unless that is left out."""
        encoded = cls([], [], [])
        for example in examples:
            try:
                its = task.samples(example)
            except InputError as error:
                faults.meet(error)
                continue
            encoded.owners.extend([len(encoded.examples)] * len(its))
            encoded.examples.append(example)
            encoded.samples.extend(its)
        return encoded

    def completed(self, task: LabelledTask, wire: Wire) -> "Encoded":
        """The same, with what a model tells of the samples once and for all."""
        return replace(self, samples=task.completed(self.samples, wire))

    def by_length(self) -> "Encoded":
        """The samples numbered from the shortest to the longest, as rows that are padded are grouped."""
        lengths = [max(len(piece.tokens) for piece in sample) for sample in self.samples]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        return replace(
            self, samples=[self.samples[number] for number in order], owners=[self.owners[number] for number in order]
        )

    def rows(self, model: Transformer, layout: Layout = "padded", vary: Vary | None = None) -> LabelledRows:
        """The samples as the model reads them."""
        return LabelledRows(self.samples, model.config.causal, layout, vary)

    def varied_by(self, augmentation: Augmentation, task: LabelledTask) -> Vary:
        """A sample's number and a random key to the sample of the example as it is read this time."""

        def vary(number: int, key: int) -> Sample:
            example = self.examples[self.owners[number]]
            varied = augmentation.vary(example, task.varied, key)
            return self.samples[number] if varied is example else task.samples(varied)[0]

        return vary
