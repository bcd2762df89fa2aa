"""A synthetic competition in FB3's file formats: essays like a learner's, whose six scores depend on the text.

Each essay has six abilities around a common one. Each ability decides how often one property of the text is right, so
that a reader of the text can estimate it:

    cohesion      connectives between sentences
    syntax        subordinate clauses
    vocabulary    rich words instead of plain ones
    phraseology   right collocations
    grammar       right verb forms
    conventions   capitals, full stops and spelling
"""

import random
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fb3.errors import Fb3Error
from fb3.system.files import write_csv

ID, TEXT = "text_id", "full_text"
TARGETS = ("cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions")

_SUBJECTS = ("my friend", "the teacher", "a student", "my brother", "the principal", "my cousin", "every child")
_VERBS = (("wants", "want"), ("needs", "need"), ("tries", "try"), ("learns", "learn"), ("hopes", "hope"))
_COLLOCATIONS = (
    ("do homework", "make homework"),
    ("make a decision", "do a decision"),
    ("pay attention", "put attention"),
    ("take part in sports", "make part of sports"),
    ("spend time at home", "pass time in home"),
    ("be good at math", "be good in math"),
    ("depend on others", "depend of others"),
    ("listen to music", "listen music"),
    ("give advice", "make advices"),
    ("catch the bus", "grab at the bus"),
)
_ADJECTIVES = (
    ("beneficial", "good"),
    ("detrimental", "bad"),
    ("substantial", "big"),
    ("essential", "important"),
    ("demanding", "hard"),
    ("rewarding", "nice"),
)
_NOUNS = (("opportunity", "thing"), ("approach", "way"), ("perspective", "idea"), ("obstacle", "problem"))
_GROUPS = ("people at school", "people in the city", "our family", "people like me", "the whole class")
_CONNECTIVES = ("However", "For example", "Therefore", "In addition", "As a result", "On the other hand", "Finally")
_CLAUSES = (
    "because the school day is long",
    "although it takes many hours",
    "when the lessons are over",
    "which makes a difference at home",
    "so that life at school becomes easier",
    "if the parents agree with it",
)
_SPELLING = {
    "because": "becuase",
    "school": "scool",
    "people": "peaple",
    "friend": "freind",
    "teacher": "techer",
    "homework": "homwork",
    "although": "althought",
    "family": "famaly",
    "makes": "maks",
    "student": "studant",
}


@dataclass(frozen=True)
class Essay:
    """An essay, its id and its six scores, 1.0-5.0 in steps of 0.5."""

    id: str
    text: str
    scores: dict[str, float]


def make_essays(count: int, seed: int) -> list[Essay]:
    """Essays whose scores depend on the text; the same seed gives the same essays."""
    rng = random.Random(seed)
    essays, ids = [], set()
    while len(essays) < count:
        identifier = f"{rng.getrandbits(48):012X}"
        if identifier in ids:
            continue
        ids.add(identifier)
        common = rng.gauss(0, 1)
        ability = {target: 0.75 * common + 0.66 * rng.gauss(0, 1) for target in TARGETS}
        scores = {t: _grade(3.1 + 0.7 * a + rng.gauss(0, 0.15)) for t, a in ability.items()}
        right = {target: min(0.97, max(0.03, 0.5 + 0.25 * a)) for target, a in ability.items()}
        essays.append(Essay(identifier, _write(rng, right), scores))
    return essays


def _grade(value: float) -> float:
    return min(5.0, max(1.0, round(value * 2) / 2))


def _write(rng: random.Random, right: dict[str, float]) -> str:
    """A text whose properties are right with the probabilities in `right`."""

    def goes_right(target: str) -> bool:
        return rng.random() < right[target]

    sentences = []
    for number in range(rng.randint(9, 15)):
        verb = rng.choice(_VERBS)[0 if goes_right("grammar") else 1]
        phrase = rng.choice(_COLLOCATIONS)[0 if goes_right("phraseology") else 1]
        kind = 0 if goes_right("vocabulary") else 1
        thing = f"{rng.choice(_ADJECTIVES)[kind]} {rng.choice(_NOUNS)[kind]}"
        clause = f" {rng.choice(_CLAUSES)}" if goes_right("syntax") else ""
        if rng.random() < 0.5:
            sentence = f"{rng.choice(_SUBJECTS)} {verb} to {phrase} as a {thing}{clause}"
        else:
            sentence = f"to {phrase} is a {thing}{clause} and {rng.choice(_SUBJECTS)} {verb} it"
        sentence += f" for {rng.choice(_GROUPS)}"
        if number and goes_right("cohesion"):
            sentence = f"{rng.choice(_CONNECTIVES)}, {sentence}"
        sentences.append(_conventions(rng, sentence, right["conventions"]))
    middle = len(sentences) // 2
    return " ".join(sentences[:middle]) + "\n\n" + " ".join(sentences[middle:])


def _conventions(rng: random.Random, sentence: str, right: float) -> str:
    words = [_SPELLING[w] if w in _SPELLING and rng.random() > right else w for w in sentence.split(" ")]
    sentence = " ".join(words)
    sentence = sentence[0].upper() + sentence[1:] if rng.random() < right else sentence[0].lower() + sentence[1:]
    return sentence + ("." if rng.random() < right else "")


def write_competition(out: Path, train: int, test: int, seed: int) -> Path:
    """Writes train.csv, test.csv and sample_submission.csv to `out`, and the test essays' scores beside it.

    Args:
        out: the competition's folder.
        train, test: numbers of essays.
        seed: seed of all draws.

    Returns:
        The path of truth.csv in `out`'s parent folder, because a competitor never sees it.

    Raises:
        Fb3Error: `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise Fb3Error(f"{out}: not empty; choose another place")
    out.mkdir(parents=True, exist_ok=True)
    essays = make_essays(train + test, seed)
    seen, hidden = essays[:train], essays[train:]
    scored = [[e.id, e.text, *e.scores.values()] for e in seen]
    _write_rows(out / "train.csv", [ID, TEXT, *TARGETS], scored)
    _write_rows(out / "test.csv", [ID, TEXT], [[e.id, e.text] for e in hidden])
    _write_rows(out / "sample_submission.csv", [ID, *TARGETS], [[e.id, *[3.0] * len(TARGETS)] for e in hidden])
    truth = out.parent / "truth.csv"
    _write_rows(truth, [ID, *TARGETS], [[e.id, *e.scores.values()] for e in hidden])
    return truth


def _write_rows(path: Path, header: list[str], rows: list[list]) -> None:
    write_csv(pd.DataFrame(rows, columns=header), path)
