"""Texts that are written together are those that each would be alone; they join, leave and fail by themselves."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from shoal.core.errors import InputError
from shoal.core.machine import cpp_compiler
from shoal.data.tokenizer import build_char
from shoal.models.decoding import Decoding, decode
from shoal.serve.generation import LanguageModel
from shoal.serve.native_runner import NativeRunner
from shoal.serve.request import Piece, Request
from shoal.serve.runner import Part, TorchRunner, make_runner
from shoal.serve.sampling import Sampling
from shoal.serve.scheduler import Scheduler
from tests.models.shapes import FAMILIES, random_model
from tests.serve.languages import reciting, write_language_model
from tests.serve.written import finish, joined, scheduler_of, write_all

CHAR = build_char("abcdefghijklmnopqrstuvwxyz .,")
GREEDY = Sampling(0)
LANGUAGES = {
    family: LanguageModel(random_model(replace(config, vocabulary=CHAR.vocabulary + 3, context=64, tied=False), 3), CHAR)
    for family, config in FAMILIES.items()
}
GPT = LANGUAGES["gpt2"]
PROMPTS = ["a", "the fish", "it swims in the sea, and more of them", "to be", "the shoal has one mind"]


def ask(prompt: str, tokens: int = 12, sampling: Sampling = GREEDY, **more: Any) -> Request:
    return Request(tuple(CHAR.encode(prompt).tolist()), tokens, sampling, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    config = replace(FAMILIES[family], vocabulary=CHAR.vocabulary, context=64, tied=False)
    model = write_language_model(tmp_path, CHAR, config, seed=3)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    requests = [
        ask(prompt, 10 + number, Sampling(0, repetition_penalty=penalty))
        for number, (prompt, penalty) in enumerate(zip(PROMPTS, [1.0, 1.4, 1.0, 0.8, 1.2], strict=True))
    ]
    found = write_all(scheduler_of(LanguageModel(model, CHAR), chunk=5), requests)
    for request, pieces in zip(requests, found, strict=True):
        prompt = torch.tensor([request.prompt])
        output = theirs.generate(
            prompt, do_sample=False, max_new_tokens=request.tokens, repetition_penalty=request.sampling.repetition_penalty
        )[0, prompt.shape[1] :].tolist()
        expected = output[: output.index(CHAR.end_of_text)] if CHAR.end_of_text in output else output
        assert joined(pieces) == CHAR.decode(expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [2, 3])
def test_a_text_is_the_same_alone_and_in_company(family: str, slots: int) -> None:
    samplings = [
        Sampling(1.0), GREEDY, Sampling(1.3, top_k=6), Sampling(1.0, top_p=0.7),
        Sampling(1.5, min_p=0.1, repetition_penalty=1.3),
    ]  # fmt: skip
    requests = [
        ask(prompt, 9 + 2 * number, sampling, seed=number)
        for number, (prompt, sampling) in enumerate(zip(PROMPTS, samplings, strict=True))
    ]
    language = LANGUAGES[family]
    alone = [joined(write_all(scheduler_of(language, slots=1), [request])[0]) for request in requests]
    together = [joined(pieces) for pieces in write_all(scheduler_of(language, slots, chunk=7), requests)]
    assert together == alone
    assert len({*alone}) == len(alone)


shared = st.sampled_from(["", "the shoal ", "the shoal has one mind", "to"])
some_requests = st.builds(
    ask, st.tuples(shared, st.text("abc e.", min_size=1, max_size=9)).map("".join), st.integers(1, 12),
    st.sampled_from([GREEDY, Sampling(1.0), Sampling(2.0, top_k=9)]), seed=st.integers(0, 9),
    stop=st.sampled_from([(), ("a",), ("th", "e.")]),
)  # fmt: skip
some_requests |= some_requests.map(lambda request: replace(request, beams=2, sampling=GREEDY))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(some_requests, st.integers(0, 12), st.none() | st.integers(0, 6)), min_size=1, max_size=7),
    st.integers(2, 3), st.sampled_from([1, 3, 16]),
)  # fmt: skip
def test_whoever_comes_and_leaves_texts_are_theirs_and_slots_come_back(
    visits: list[tuple[Request, int, int | None]], slots: int, chunk: int
) -> None:
    scheduler = scheduler_of(GPT, slots, chunk=chunk)
    told: list[list[Piece]] = [[] for _ in visits]
    texts = [scheduler.prepare(request, pieces.append) for (request, _, _), pieces in zip(visits, told, strict=True)]
    for time in range(20):
        for text, (_, comes, stays) in zip(texts, visits, strict=True):
            if time == comes:
                scheduler.add(text)
            if stays is not None and time == comes + stays:
                scheduler.cancel(text)
        scheduler.step()
        assert scheduler.running <= slots
    finish(scheduler)
    for (request, _, _), pieces in zip(visits, told, strict=True):
        [alone] = write_all(scheduler_of(GPT, slots=2), [request])
        if pieces[-1].finish == "cancelled":
            assert joined(alone).startswith(joined(pieces))
        else:
            assert joined(pieces) == joined(alone)
    # every slot can be had again
    free = write_all(scheduler, [ask("the fish", 3, beams=slots)] * 2)
    assert [pieces[-1].finish for pieces in free] == ["length", "length"]


def test_the_seed_decides_what_is_drawn() -> None:
    requests = [ask("to be", 20, Sampling(1.0), seed=seed) for seed in (1, 2, 1)]
    first, second, third = (joined(pieces) for pieces in write_all(scheduler_of(GPT), requests))
    assert first == third != second


@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_over_the_native_runner_company_changes_not_a_bit(family: str) -> None:
    heads = FAMILIES[family].kv_heads
    shape = replace(LANGUAGES[family].model.config, dim=32, heads=heads, kv_heads=heads // 2, head_dim=16, hidden=64)
    language = LanguageModel(random_model(shape, 3, 0.1), CHAR)

    def write(requests: Sequence[Request], slots: int, chunk: int = 128) -> list[list[Piece]]:
        runner = make_runner(language.model, slots, 64)
        assert isinstance(runner, NativeRunner)
        return write_all(Scheduler(runner, CHAR, language.ends, chunk), requests)

    samplings = [GREEDY, Sampling(1.0, top_p=0.9)]
    requests = [ask(prompt, 12, sampling, alternatives=2) for prompt in PROMPTS for sampling in samplings]
    alone = [write([request], 1)[0] for request in requests]
    for slots, chunk in ((3, 7), (8, 128)):
        together = write(requests, slots, chunk)
        assert [[piece.told for piece in pieces] for pieces in together] == [
            [piece.told for piece in pieces] for pieces in alone
        ]
    assert [*map(joined, write_all(scheduler_of(language), requests))] == [*map(joined, alone)]
    beams = [ask(prompt, 9, beams=3) for prompt in PROMPTS]
    assert [*map(joined, write(beams, 7))] == [*map(joined, write_all(scheduler_of(language), beams))]


def test_texts_are_written_while_a_long_prompt_is_read() -> None:
    scheduler = scheduler_of(GPT, chunk=4)
    told = list[Piece]()
    scheduler.add(scheduler.prepare(ask("a", 40), told.append))
    scheduler.step()
    scheduler.add(scheduler.prepare(ask("the shoal has one mind, and one aim"), told.append))
    for _ in range(8):
        before = told[-1].tokens
        scheduler.step()
        assert told[-1].tokens == before + 1


def test_who_waits_is_served_in_the_order_of_coming() -> None:
    scheduler, told = scheduler_of(GPT, slots=2), list[int]()

    def note(number: int) -> Callable[[Piece], None]:
        return lambda piece: told.append(number)

    for number, tokens in enumerate([9, 2, 9, 3]):
        scheduler.add(scheduler.prepare(ask("the fish", tokens), note(number)))
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (2, 2)
    finish(scheduler)
    assert [*dict.fromkeys(told)] == [0, 1, 2, 3]


def test_cancelling_frees_the_slot_at_once() -> None:
    scheduler = scheduler_of(GPT, slots=1)
    told = [list[Piece]() for _ in range(3)]
    running, waiting, last = (
        scheduler.prepare(ask(prompt, 50), pieces.append) for prompt, pieces in zip(PROMPTS, told, strict=False)
    )
    for text in (running, waiting, last):
        scheduler.add(text)
    scheduler.step()
    scheduler.cancel(running)
    scheduler.cancel(waiting)
    assert (scheduler.running, scheduler.waiting) == (0, 1)
    assert [told[0][-1].finish, told[1][-1].finish] == ["cancelled", "cancelled"]
    scheduler.cancel(running)  # harmless
    finish(scheduler)
    assert joined(told[2]) == joined(write_all(scheduler_of(GPT), [ask(PROMPTS[2], 50)])[0])
    assert sum(piece.finish is not None for piece in told[0]) == 1


def test_a_prompt_that_begins_as_another_is_read_from_where_they_differ() -> None:
    whole = "the shoal swims in the sea"
    requests = [ask(whole + more, 5) for more in (" of fish", " of weeds", "", " of fish")]
    plain = [joined(write_all(scheduler_of(GPT), [request])[0]) for request in requests]
    # the slot is overtaken, or copied, when it is free or busy; the last token is read again, for what follows it
    for slots, last in ((1, whole), (2, whole + " of "), (4, whole + " of fis")):
        found = write_all(scheduler_of(GPT, slots), requests)
        assert [joined(pieces) for pieces in found] == plain
        assert [pieces[0].reused for pieces in found[:3]] == [0, len(whole + " of "), len(whole) - 1]
        assert found[3][0].reused == len(last)
        assert not any(piece.reused for pieces in found for piece in pieces[1:])


class Counting(TorchRunner):
    """Notes how many parts are read together."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.together = list[int]()

    def read_together(self, parts: Sequence[Part]) -> Tensor:
        self.together.append(len(parts))
        return super().read_together(parts)


@pytest.mark.parametrize(
    ("prompts", "chunk", "expected"),
    [
        (["a", "to be", "the fish"], 128, [3]),
        (["the shoal swims in the sea", "to be", "the shoal swims in the", "a"], 128, [2, 2]),
        (["a", "the shoal has one mind", "of fish"], 24, [3, 1]),
    ],
)
def test_prompts_are_read_together_but_those_that_begin_alike_after_each_other(
    prompts: list[str], chunk: int, expected: list[int]
) -> None:
    runner, requests = Counting(GPT.model, 4, 64), [ask(prompt, 3) for prompt in prompts]
    found = write_all(Scheduler(runner, CHAR, GPT.ends, chunk), requests)
    assert runner.together == expected
    assert [*map(joined, found)] == [joined(write_all(scheduler_of(GPT), [request])[0]) for request in requests]


def test_what_a_slot_holds_is_not_lost_to_a_prompt_that_shares_little_of_it() -> None:
    scheduler = scheduler_of(GPT, slots=3)
    long, other = "the shoal has one mind, and one aim", "the sea"
    write_all(scheduler, [ask(long, 3)])
    assert write_all(scheduler, [ask(other, 3)])[0][0].reused == len("the s")
    assert write_all(scheduler, [ask(long, 3)])[0][0].reused == len(long) - 1


@pytest.mark.parametrize("ending", [".", ","])
def test_a_text_may_have_several_ends(ending: str) -> None:
    language = replace(reciting(f"abc{ending}def", CHAR), stops=frozenset(CHAR.encode(".,").tolist()))
    [pieces] = write_all(scheduler_of(language), [Request((CHAR.end_of_text,), 50, GREEDY)])
    assert (joined(pieces), pieces[-1].finish, pieces[-1].tokens) == ("abc", "stop", 3)


def test_why_a_text_ends_is_told() -> None:
    begin = (CHAR.end_of_text,)
    for request, text, why in [
        (Request(begin, 50, GREEDY), "abcdef", "stop"),
        (Request(begin, 50, GREEDY, stop=("de",)), "abc", "stop"),
        (Request(begin, 4, GREEDY, stop=("de",)), "abcd", "length"),
        (Request(begin, 6, GREEDY), "abcdef", "length"),
    ]:
        [pieces] = write_all(scheduler_of(reciting("abcdef", CHAR)), [request])
        assert (joined(pieces), pieces[-1].finish) == (text, why)
    [pieces] = write_all(scheduler_of(GPT, capacity=10), [ask("the fish", 50)])
    assert (len(joined(pieces)), pieces[-1].finish) == (3, "length")  # the last one is written, and not read


class Faulty(TorchRunner):
    """Fails to read what has an `x` in it, and to go on with it; computes no numbers after a `y`."""

    def read(self, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        if CHAR.encode("x")[0] in tokens:
            raise RuntimeError("out of memory")
        return (
            super().read(slot, tokens, start).log()
            if CHAR.encode("y")[0] == tokens[-1]
            else super().read(slot, tokens, start)
        )


def test_a_text_that_fails_fails_alone() -> None:
    scheduler = Scheduler(Faulty(GPT.model, 3, 64), CHAR, GPT.ends)
    found = write_all(scheduler, [ask(prompt) for prompt in ("to be", "x", "y", "the fish")])
    assert [pieces[-1].finish == "failed" for pieces in found] == [False, True, True, False]
    assert found[1][-1].text == "out of memory"
    assert "no number" in found[2][-1].text
    assert [joined(found[number]) for number in (0, 3)] == [
        joined(write_all(scheduler_of(GPT), [ask(prompt)])[0]) for prompt in ("to be", "the fish")
    ]


def test_who_does_not_listen_any_more_is_let_go() -> None:
    scheduler, told = scheduler_of(GPT, slots=2), list[Piece]()

    def gone(piece: Piece) -> None:
        raise ConnectionError

    scheduler.add(scheduler.prepare(ask("to be", 50), gone))
    scheduler.add(scheduler.prepare(ask("the fish", 10), told.append))
    scheduler.step()
    assert scheduler.running == 1
    finish(scheduler)
    assert joined(told)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_find_what_they_find_alone_and_as_decoding_has_it(family: str) -> None:
    language = LANGUAGES[family]
    requests = [
        ask(prompt, 9, beams=beams, length_penalty=0.5) for prompt, beams in zip(PROMPTS, [3, 1, 4, 2, 4], strict=True)
    ]
    found = write_all(scheduler_of(language, slots=6, chunk=6), requests)
    for request, pieces in zip(requests, found, strict=True):
        how = Decoding(CHAR.end_of_text, 9, request.beams, 0.5, offset=0, vocabulary=CHAR.vocabulary)
        [expected] = decode(language.model, [request.prompt], how)
        assert joined(pieces) == CHAR.decode(expected)


def test_logarithmic_probabilities_are_the_models_own() -> None:
    sampling = Sampling(0.5, top_k=3, repetition_penalty=1.5)
    request = ask("the fish", 10, sampling, alternatives=3, stop=("zz",))
    [pieces] = write_all(scheduler_of(GPT), [request])
    told = [token for piece in pieces for token in piece.told]
    assert "".join(token.text for token in told) == joined(pieces)
    sequence = [*request.prompt, *(token.token for token in told)]
    with torch.no_grad():
        hidden = GPT.model(torch.tensor([sequence[:-1]]))
        expected_TV = GPT.model.project(hidden)[0, len(request.prompt) - 1 :, : CHAR.vocabulary].log_softmax(-1)
    for token, expected_V in zip(told, expected_TV, strict=True):
        assert token.log_probability == pytest.approx(float(expected_V[token.token]), abs=1e-5)
        values, best = expected_V.topk(3)
        assert [number for number, _, _ in token.likeliest] == best.tolist()
        assert [text for _, text, _ in token.likeliest] == [CHAR.decode([number]) for number in best.tolist()]
        assert [value for _, _, value in token.likeliest] == pytest.approx(values.tolist(), abs=1e-5)


def test_tokens_are_told_with_their_text_and_none_of_a_stop_string() -> None:
    request = Request((CHAR.end_of_text,), 50, GREEDY, stop=("cde",), alternatives=0)
    [pieces] = write_all(scheduler_of(reciting("abcdxcdef", CHAR)), [request])
    assert joined(pieces) == "abcdx"
    assert [[token.text for token in piece.told] for piece in pieces] == [["a"], ["b"], ["c", "d", "x"], []]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (Request((), 5), "the prompt has no tokens"),
        (Request((1, 99), 5), "the prompt has the token 99; the vocabulary is from 0 to 29"),
        (Request((1,) * 65, 5), "the prompt has 65 tokens, 64 at most can be read"),
        (ask("a", 0), "0 tokens are asked for; accepted: 1 or more"),
        (ask("a", stop=("b", "")), "a stop string of 0 characters; accepted: from 1 to 1000"),
        (ask("a", alternatives=-1), "-1 alternatives are asked for; accepted: from 0 to 20"),
        (ask("a", beams=0), "0 beams are asked for; accepted: from 1 to 3"),
        (ask("a", beams=4), "4 beams are asked for; accepted: from 1 to 3"),
        (ask("a", length_penalty=float("nan")), "the length penalty is nan"),
        (ask("a", beams=2, alternatives=1), "ask for one beam"),
        (ask("a", sampling=Sampling(1.3), beams=2), "draws nothing: ask for one beam, or leave temperature"),
        (ask("a", sampling=Sampling(0, repetition_penalty=1.2), beams=2), "draws nothing: ask for one beam"),
    ],
)
def test_what_can_not_be_served_is_refused(wrong: Request, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        scheduler_of(GPT).prepare(wrong, print)


def test_tokens_are_drawn_by_one_thread_and_the_others_are_there_again_for_the_model() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scheduler, seen = scheduler_of(GPT), list[int]()
        scheduler.add(scheduler.prepare(ask("the fish", 3, Sampling()), lambda piece: seen.append(torch.get_num_threads())))
        while scheduler.busy:
            scheduler.step()
            assert torch.get_num_threads() == 2
        assert seen == [1] * len(seen) != []
    finally:
        torch.set_num_threads(threads)
