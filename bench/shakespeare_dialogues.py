"""Dialogues, and pairs of answers, out of plays: the examples of recipes/shakespeare-chat and shakespeare-prefer.

    python bench/shakespeare_dialogues.py tinyshakespeare.txt data/shakespeare-dialogues

The text is a list of speeches, `SPEAKER:` and lines. A scene ends where the next speeches have none of the last speakers
(the file has no other mark of it), and is cut into dialogues of six speeches at most, in which user and assistant take
turns. Training has each scene twice, with and without its first speech, so that every speech is once the assistant's.

A pair has a dialogue up to one of the assistant's turns for its prompt, and what is said there is chosen. Rejected are words
of another scene, about as many, in the mouth of the same speaker: neither a name nor a length gives anything away.

The first nine tenths of the text are for training and the last for validation, as the model's own pre-training divides
it: scenes there are new to both.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

SPEECHES = 6
NEAR = 20
"""Speeches of about one length among which the rejected one is drawn."""

Speech = tuple[str, str]
"""Who says what."""


def read_speeches(text: str) -> list[Speech]:
    """All of them, in their order."""
    parts = (part.partition(":\n") for part in text.split("\n\n"))
    return [(name.strip(), words.strip()) for name, _, words in parts if words.strip() and "\n" not in name.strip()]


def scenes(speeches: list[Speech]) -> Iterator[list[Speech]]:
    """Stretches of speeches whose speakers are there together."""
    scene: list[Speech] = []
    for number, speech in enumerate(speeches):
        coming = {name for name, _ in speeches[number : number + 3]}
        if scene and coming.isdisjoint(name for name, _ in scene[-8:]):
            yield scene
            scene = []
        scene.append(speech)
    yield scene


def dialogues(scene: list[Speech]) -> Iterator[list[dict[str, str]]]:
    """The scene in even numbers of turns."""
    for start in range(0, len(scene) - 1, SPEECHES):
        part = scene[start : start + SPEECHES]
        yield [
            {"role": ("user", "assistant")[number % 2], "content": f"{name}:\n{words}"}
            for number, (name, words) in enumerate(part[: len(part) // 2 * 2])
        ]


def pairs(of_scenes: list[list[Speech]], choose: random.Random) -> Iterator[dict[str, object]]:
    """Every turn of the assistant's, what is before it, and another scene's words in its place."""
    by_length = sorted((len(words), number, words) for number, scene in enumerate(of_scenes) for _, words in scene)
    places = {entry: place for place, entry in enumerate(by_length)}
    for number, scene in enumerate(of_scenes):
        for turns in dialogues(scene):
            for answer in range(1, len(turns), 2):
                name, _, words = turns[answer]["content"].partition(":\n")
                place = places[len(words), number, words]
                near = by_length[max(0, place - NEAR) : place + NEAR]
                other = choose.choice([other for _, place_of, other in near if place_of != number and other != words])
                yield {"prompt": turns[:answer], "chosen": turns[answer]["content"], "rejected": f"{name}:\n{other}"}


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} examples")


def main(source: Path, folder: Path) -> None:
    """Write four files of examples."""
    text = source.read_text(encoding="utf-8")
    edge = len(text) * 9 // 10
    folder.mkdir(parents=True, exist_ok=True)
    choose = random.Random(1)
    for name, part in (("train", text[:edge]), ("validation", text[edge:])):
        # an edge may cut a speech in two: neither half is used
        of_scenes = list(scenes(read_speeches(part)[1:-1]))
        shifted = [scene[1:] for scene in of_scenes] if name == "train" else []
        both = [*of_scenes, *shifted]
        write_rows(folder / f"chat-{name}.jsonl", [{"messages": turns} for scene in both for turns in dialogues(scene)])
        answers = list(pairs(of_scenes, choose)) + (list(pairs(shifted, choose)) if shifted else [])
        write_rows(folder / f"prefer-{name}.jsonl", answers)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
