"""Small files in the form in which competitions hand theirs out: names, headers, quotes, line ends; invented rows."""

import csv
import json
import random
import zipfile
from pathlib import Path

import numpy as np

from fb3.demo.synthetic import make_essays

ROWS, HIDDEN = 48, 8
Rows = list[list]


def write(path: Path, header: list[str], rows: Rows, end: str = "\n") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerows([header, *rows])


def zipped(path: Path) -> None:
    """The file as Kaggle packs large ones: NAME.csv.zip, the plain one gone."""
    with zipfile.ZipFile(f"{path}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, path.name)
    path.unlink()


class Draws:
    """Invented cells; the same seed draws the same."""

    def __init__(self, seed: int) -> None:
        self.rng, self.essays = random.Random(seed), iter(make_essays(4 * (ROWS + HIDDEN), seed))

    def ids(self, count: int, digits: int) -> list[str]:
        return [f"{self.rng.getrandbits(4 * digits):0{digits}x}" for _ in range(count)]

    def texts(self, count: int) -> list[str]:
        """Texts with line breaks, and first of all with odd cells."""
        odd = ['He said "no", and left, 5" tall.\n\nThe end', "NA", "café — naïve …"]
        return [*odd, *(next(self.essays).text for _ in range(count - len(odd)))]


def feedback_ell(folder: Path, draws: Draws) -> None:
    names = ["cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions"]
    essays = make_essays(ROWS + HIDDEN, 3)
    rows = [[e.id, e.text, *(e.scores[name] for name in names)] for e in essays]
    split(folder, ["text_id", "full_text"], names, rows, dict.fromkeys(names, 3.0), end="\r\n")


def commonlit_readability(folder: Path, draws: Draws) -> None:
    rows = []
    for identifier, text in zip(draws.ids(ROWS + HIDDEN, 9), draws.texts(ROWS + HIDDEN), strict=True):
        licensed = draws.rng.random() < 0.3
        origin = ["https://en.wikipedia.org/wiki/A_B", "CC BY-SA 3.0 and GFDL"] if licensed else ["", ""]
        rows.append([identifier, *origin, text, draws.rng.gauss(-0.96, 1.03), draws.rng.uniform(0.43, 0.65)])
    rows[5][4:] = [0.0, 0.0]  # the passage that the others were compared with
    split(folder, ["id", "url_legal", "license", "excerpt"], ["target", "standard_error"], rows, {"target": 0.0})


def commonlit_summaries(folder: Path, draws: Draws) -> None:
    prompts = ["39c16e", "3b9047", "814d6b", "ebad26", "abc123", "def789"]
    texts = draws.texts(ROWS + HIDDEN)
    rows = [
        [
            identifier,
            prompts[number % 4 if number < ROWS else 4 + number % 2],
            text,
            draws.rng.gauss(0, 1),
            draws.rng.gauss(0, 1),
        ]
        for number, (identifier, text) in enumerate(zip(draws.ids(ROWS + HIDDEN, 12), texts, strict=True))
    ]
    scores = ["content", "wording"]
    split(
        folder, ["student_id", "prompt_id", "text"], scores, rows, dict.fromkeys(scores, 0.0), files="summaries_{}.csv"
    )
    header = ["prompt_id", "prompt_question", "prompt_title", "prompt_text"]
    for name, part in (("train", prompts[:4]), ("test", prompts[4:])):
        given = [[key, f"Summarise {key}?", f"On {key}", "Chapter 13 \r\nAs a whole, it is.\r\n"] for key in part]
        write(folder / f"prompts_{name}.csv", header, given)


def aes2(folder: Path, draws: Draws) -> None:
    rows = [[i, t, draws.rng.choice([1, 2, 2, 3, 3, 3, 4, 4, 5, 6])] for i, t in named(draws, 7)]
    split(folder, ["essay_id", "full_text"], ["score"], rows, {"score": 3})


def feedback_effectiveness(folder: Path, draws: Draws) -> None:
    essays, kinds = (
        draws.ids((ROWS + HIDDEN) // 4, 12),
        ["Lead", "Position", "Claim", "Evidence", "Concluding Statement"],
    )
    classes = ["Ineffective", "Adequate", "Effective"]
    rows = [
        [i, essays[number // 4], text, draws.rng.choice(kinds), draws.rng.choice(classes)]
        for number, (i, text) in enumerate(named(draws, 12))
    ]
    header = ["discourse_id", "essay_id", "discourse_text", "discourse_type"]
    split(folder, header, ["discourse_effectiveness"], rows, dict.fromkeys(classes, 0.33))
    for part, names in (("train", essays[: ROWS // 4]), ("test", essays[ROWS // 4 :])):
        (folder / part).mkdir()
        for name in names:
            (folder / part / f"{name}.txt").write_text("The whole essay.\n\nIts parts stand in the table. ")


def us_patent(folder: Path, draws: Draws) -> None:
    words = [
        "abatement",
        "abating",
        "process",
        "forest",
        "wood",
        "article",
        "optical",
        "fibre",
        "gas",
        "act",
        "cell",
        "ring",
    ]
    rows = [
        [
            i,
            words[number // 6 % 12],
            " ".join(draws.rng.sample(words, 2)),
            draws.rng.choice(["A47", "G02", "H01"]),
            s / 4,
        ]
        for number, i in enumerate(draws.ids(ROWS + HIDDEN, 16))
        for s in [draws.rng.randrange(5)]
    ]
    split(folder, ["id", "anchor", "target", "context"], ["score"], rows, {"score": 0})


def detect_ai_text(folder: Path, draws: Draws) -> None:
    rows = [[i, n % 2 if n < ROWS else 2 + n % 2, t, int(n % 5 == 0)] for n, (i, t) in enumerate(named(draws, 8))]
    split(folder, ["id", "prompt_id", "text"], ["generated"], rows, {"generated": 0.1}, files="{}_essays.csv")
    header = ["prompt_id", "prompt_name", "instructions", "source_text"]
    write(
        folder / "train_prompts.csv", header, [[n, f"Prompt {n}", "Write.", f"# Title\n\n0 Text {n}."] for n in (0, 1)]
    )


def jigsaw_toxicity(folder: Path, draws: Draws) -> None:
    labels = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    rows = [[i, t, *(int(draws.rng.random() < 0.3) for _ in labels)] for i, t in named(draws, 16)]
    split(folder, ["id", "comment_text"], labels, rows, dict.fromkeys(labels, 0.5))
    write(folder / "test_labels.csv", ["id", *labels], [[row[0], *[-1] * 6] for row in rows[ROWS:]])
    for file in list(folder.glob("*.csv")):
        zipped(file)


def text_classification(folder: Path, draws: Draws) -> None:
    rows = [[n, t, draws.rng.choice(["spam", "ham", "ham", "NA"])] for n, (_, t) in enumerate(named(draws, 8))]
    split(folder, ["id", "text"], ["label"], rows, {"label": "ham"})


def emoji(folder: Path, draws: Draws) -> None:
    """Noisy texts, of which some are empty, variants of one drawing, and an npz of all items' frames."""
    words = ["笑", "cat", "flag", "heart", "手", "sun"]
    kinds = ["animal-cat", "country-flag", "face-smiling"]
    rows = []
    for number, identifier in enumerate(draws.rng.sample(range(10**7, 10**8), ROWS + HIDDEN)):
        cells = [" ".join(draws.rng.sample(words, draws.rng.choice([0, 1, 2]))) for _ in range(3)]
        rows.append([str(identifier), *cells, kinds[number % 3], f"g{number // 6:03}"])
    header = ["id", "title", "asr", "ocr"]
    write(folder / "labeled.csv", [*header, "category"], [row[:5] for row in rows[:ROWS]])
    write(folder / "labeled_groups.csv", ["id", "group"], [[row[0], row[5]] for row in rows[:ROWS]])
    write(folder / "unlabeled.csv", header, [[f"{row[0]}u", *row[1:4]] for row in rows[:9]])
    write(folder / "test.csv", header, [row[:4] for row in rows[ROWS:]])
    write(folder.parent / "truth.csv", ["id", "category"], [[row[0], row[4]] for row in rows[ROWS:]])
    counts = [draws.rng.choice([1, 2, 3, 4]) for _ in rows]
    frames = np.random.default_rng(0).normal(size=(sum(counts), 10)).astype(np.float16)
    offsets = np.cumsum([0, *counts]).astype(np.int32)
    ids = np.array([row[0] for row in rows])
    np.savez_compressed(folder / "features_efficientnet_lite0.npz", ids=ids, offsets=offsets, features=frames)


def wechat_2022(folder: Path, draws: Draws) -> None:
    """JSON records with texts found in the picture, and a zip of arrays for each split."""
    records, rng = [], np.random.default_rng(0)
    for number, title in enumerate(draws.texts(ROWS + HIDDEN)):
        found = [{"time": second, "text": f"字幕 {second}"} for second in range(draws.rng.choice([0, 1, 3]))]
        record = {
            "id": f"{draws.rng.randrange(10**19, 10**20)}",
            "title": title,
            "asr": "说" * (number % 5),
            "ocr": found,
        }
        records.append(record | {"category_id": ["0101", "0102", "0203", "1700"][number % 4]})
    truth = [[record["id"], record.pop("category_id")] for record in records[ROWS:]]
    write(folder.parent / "truth.csv", ["id", "category_id"], truth)
    (folder / "annotations").mkdir()
    (folder / "zip_feats").mkdir()
    for split_name, part in (("labeled", records[:ROWS]), ("test_a", records[ROWS:])):
        text = json.dumps(part, ensure_ascii=False)
        (folder / "annotations" / f"{split_name}.json").write_text(text, encoding="utf-8")
        with zipfile.ZipFile(folder / "zip_feats" / f"{split_name}.zip", "w") as archive:
            for record in part:
                with archive.open(f"{record['id']}.npy", "w") as stream:
                    np.lib.format.write_array(stream, rng.normal(size=(rng.integers(1, 40), 16)).astype(np.float16))


FORMS = {
    "aes2": aes2,
    "commonlit-readability": commonlit_readability,
    "commonlit-summaries": commonlit_summaries,
    "detect-ai-text": detect_ai_text,
    "emoji": emoji,
    "feedback-effectiveness": feedback_effectiveness,
    "feedback-ell": feedback_ell,
    "jigsaw-toxicity": jigsaw_toxicity,
    "text-classification": text_classification,
    "us-patent": us_patent,
    "wechat-2022": wechat_2022,
}


def write_form(name: str, folder: Path) -> Path:
    """Writes a competition's files, and beside their folder truth.csv, which no competitor sees."""
    folder.mkdir(parents=True)
    FORMS[name](folder, Draws(7))
    return folder


def named(draws: Draws, digits: int) -> list[tuple[str, str]]:
    return list(zip(draws.ids(ROWS + HIDDEN, digits), draws.texts(ROWS + HIDDEN), strict=True))


def split(
    folder: Path, given: list[str], targets: list[str], rows: Rows, sample: dict, files: str = "{}.csv", end: str = "\n"
) -> None:
    """Writes the first rows as train, the others without targets as test, and the sample's constant cells for these."""
    seen, hidden = rows[:ROWS], rows[ROWS:]
    write(folder / files.format("train"), [*given, *targets], seen, end)
    write(folder / files.format("test"), given, [row[: len(given)] for row in hidden], end)
    write(folder / "sample_submission.csv", [given[0], *sample], [[row[0], *sample.values()] for row in hidden], end)
    truth = [[row[0], *row[len(given) :]] for row in hidden]
    write(folder.parent / "truth.csv", [given[0], *targets], truth)
