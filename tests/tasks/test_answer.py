"""Answers: windows, targets, loss and scores of `transformers`' question answering; the best part over all windows."""

from typing import Any, cast

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from shoal.data.examples.answers import read_answers
from shoal.data.examples.example import Example
from shoal.models import hugging_face
from shoal.tasks.answer import Answer, best_spans
from tests.conftest import fixed_text
from tests.models.shapes import fill
from tests.tasks.labelled import batch_of, make_task, wordpiece
from tests.tasks.texts import tokenizer as bpe

CONTEXT = " ".join(fixed_text(8).split())
QUESTION = "Who swims with one mind?"


def asked(text: str | None, context: str = CONTEXT, question: str = QUESTION) -> Example:
    answers = [] if text is None else [{"text": text, "answer_start": context.index(text)}]
    return Example({"context": context, "question": question, "answers": answers}, "f:1")


def span_model() -> tuple[BertForQuestionAnswering, Any]:
    """A random BERT there, and the same here."""
    config = BertConfig(
        vocab_size=110, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64,
    )  # fmt: skip
    theirs = BertForQuestionAnswering(config).eval()
    fill(theirs)
    return theirs, hugging_face.build(
        config.to_dict() | {"architectures": ["BertForQuestionAnswering"]}, theirs.state_dict()
    )


@torch.no_grad()
def test_windows_loss_and_scores_are_those_of_bert_for_question_answering() -> None:
    task: Answer = make_task("answer", wordpiece(), [], length=32, stride=10)
    answer = CONTEXT[70:90].strip()
    (right,) = read_answers(asked(answer))
    windows = [window for (window,) in task.samples(asked(answer))]
    library = PreTrainedTokenizerFast(tokenizer_object=wordpiece().library, unk_token="[UNK]", pad_token="[PAD]")
    read = library(
        QUESTION, CONTEXT, max_length=32, truncation="only_second", stride=10, return_overflowing_tokens=True,
        return_offsets_mapping=True, return_token_type_ids=True,
    )  # fmt: skip
    assert [window.tokens.tolist() for window in windows] == read["input_ids"]
    assert [window.segments.tolist() for window in windows if window.segments is not None] == read["token_type_ids"]
    end, spans, holding = right.start + len(answer), [], []
    for window, offsets in enumerate(read["offset_mapping"]):
        inside = [place for place, kind in enumerate(read.sequence_ids(window)) if kind == 1]
        within = [place for place in inside if offsets[place][1] > right.start and offsets[place][0] < end]
        whole = bool(within) and offsets[inside[0]][0] <= right.start and offsets[inside[-1]][1] >= end
        spans.append((within[0], within[-1]) if whole else (0, 0))
        holding.append(whole)
    assert [window.values["span"] for window in windows] == spans
    assert 0 < sum(holding) < len(windows) > 3

    theirs, ours = span_model()
    loss = torch.zeros(())
    for ids, kinds, span in zip(read["input_ids"], read["token_type_ids"], spans, strict=True):
        found = theirs(
            torch.tensor([ids]), token_type_ids=torch.tensor([kinds]), start_positions=torch.tensor(span[:1]),
            end_positions=torch.tensor(span[1:]),
        )  # fmt: skip
        loss += found.loss
    for layout in ("joined", "padded"):
        loss_sum, count = task.loss(ours.eval(), batch_of(task, [asked(answer)], layout))
        assert count == len(windows)
        torch.testing.assert_close(loss_sum, loss, rtol=1e-5, atol=1e-5)
    none = float(found.start_logits[0, 0] + found.end_logits[0, 0])
    assert task.outputs(ours, batch_of(task, [asked(answer)], "joined"), True)[-1][3] == pytest.approx(none, abs=1e-5)


@pytest.mark.parametrize("longest", [1, 3, 99])
def test_the_best_part_has_the_largest_sum_of_all(longest: int) -> None:
    scores = torch.randn(20, 7, 2, generator=torch.Generator().manual_seed(1))
    best, first, last = best_spans(scores, longest)
    for piece in range(20):
        sums = {
            (start, end): float(scores[piece, start, 0] + scores[piece, end, 1])
            for start in range(7)
            for end in range(start, min(7, start + longest))
        }
        assert (int(first[piece]), int(last[piece])) == max(sums, key=sums.__getitem__)
        assert best[piece] == pytest.approx(max(sums.values()))


class Sure:
    """A model with given scores."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores

    def __call__(self, tokens: Any, **others: Any) -> torch.Tensor:
        return torch.zeros(*tokens.shape, 2)

    def score_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.scores


def predicted(task: Answer, example: Example, none: float) -> dict[str, Any]:
    """What is told by scores that find the answer wherever a window has it."""
    batch = batch_of(task, [example], "padded")
    assert batch.pieces is not None
    scores = torch.zeros(batch.tokens.numel(), 2)
    for start, span in zip(batch.pieces.starts.tolist(), batch.pieces.values["span"].tolist(), strict=True):
        for end in range(2):
            scores[start + span[end], end] += 5.0
        scores[start] += none
    return task.predict([example], [task.outputs(cast(Any, Sure(scores)), batch, True)])[0]


@pytest.mark.parametrize("tokenizer", [wordpiece, bpe], ids=["wordpiece", "byte-level"])
def test_the_answer_is_told_from_whichever_window_has_it(tokenizer: Any) -> None:
    for at in range(0, len(CONTEXT) - 20, 97):
        text = CONTEXT[CONTEXT.index(" ", at) + 1 :].split(".")[0]
        example = asked(text)
        task: Answer = make_task("answer", tokenizer(), [example, asked(None)], stride=30, longest=40)
        assert len(task.samples(example)) > 1
        told = predicted(task, example, -1.0)
        assert (told["text"], told["start"], told["end"]) == (text, CONTEXT.index(text), CONTEXT.index(text) + len(text))
        assert task.measure([example], [told])["exact"] == 1


def test_no_answer_is_told_where_it_scores_more_than_the_threshold_above_the_best() -> None:
    example = asked(None, CONTEXT[:60])
    tasks = [make_task("answer", wordpiece(), [example], threshold=threshold) for threshold in (0.0, 20.0)]
    told, forced = (predicted(task, example, 3.0) for task in tasks)
    assert (told["text"], told["start"]) == ("", None)
    assert forced["text"] and forced["score"] == told["score"] == pytest.approx(-16.0)
    assert tasks[0].measure([example, asked("mind")], [told, told]) == {
        "exact": 0.5,
        "f1": 0.5,
        "answerable": {"exact": 0.0, "f1": 0.0, "questions": 1},
        "unanswerable": {"exact": 1.0, "f1": 1.0, "questions": 1},
    }
    always: Answer = make_task("answer", wordpiece(), [asked("mind")])
    assert not always.settings.unanswerable
    assert predicted(always, example, 3.0)["text"]


def test_a_long_question_leaves_half_of_the_window_to_the_context() -> None:
    task: Answer = make_task("answer", wordpiece(), [], length=32)
    ((piece,), *_) = task.samples(asked("mind", question=CONTEXT))
    assert len(piece.tokens) == 32 and piece.values["offset"] == 16
    assert task.notes()[1] == "1 of 1 questions fill half of a window, and lost their end"
