"""The split of texts into words, so that they are the words of a table of vectors."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

PAD, UNKNOWN = "[PAD]", "[UNK]"
# By preference. treebank: do n't, Ann 's (GloVe); apostrophes: don't, Ann's (word2vec, fastText); marks: don ' t.
_WORD, _MARK = r"[^\W_]+", r"[^\w\s]|_"
SPLITS = {
    "treebank": rf"{_WORD}(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|{_WORD}|{_MARK}",
    "apostrophes": rf"{_WORD}(?:'{_WORD})*|{_MARK}",
    "marks": rf"{_WORD}|{_MARK}",
}
_LEAST_GAIN = 0.001  # share of the texts' letters that a split must know more than one that is preferred
_CASED = 0.001  # share of words with capitals that makes a vocabulary cased: lower-cased ones hold a few by mistake


class WordSplitter:
    """Splits a text into words and marks.

    split: a name of `SPLITS`. lower: whether letters become small.
    """

    def __init__(self, split: str, lower: bool) -> None:
        self.split, self.lower = split, lower
        curly = [normalizers.Replace(Regex("[‘’]"), "'"), normalizers.Replace(Regex("[“”]"), '"')]
        self.normalizer = normalizers.Sequence([normalizers.NFC(), *curly, *[normalizers.Lowercase()] * lower])
        self.words = pre_tokenizers.Split(Regex(SPLITS[split]), "removed", invert=True)

    def __call__(self, text: str) -> list[str]:
        """The words of a text, in order."""
        return [word for word, _ in self.words.pre_tokenize_str(self.normalizer.normalize_str(text))]

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """How often each word stands in the texts."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(self(text))
        return counts

    def tokenizer(self, words: Sequence[str]) -> Tokenizer:
        """The tokenizer whose ids are the places of `words`, which hold `PAD` and `UNKNOWN`."""
        vocabulary = {word: place for place, word in enumerate(words)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        tokenizer.normalizer, tokenizer.pre_tokenizer = self.normalizer, self.words
        return tokenizer


def is_cased(words: Collection[str]) -> bool:
    """Whether a vocabulary tells capitals from small letters."""
    return sum(word != word.lower() for word in words) > _CASED * len(words)


def best_split(words: Collection[str], texts: Sequence[str]) -> tuple[WordSplitter, Counter[str]]:
    """The split whose words know most of the texts' letters, and the words that it finds there."""
    lower = not is_cased(words)
    found = [(splitter := WordSplitter(split, lower), splitter.count(texts)) for split in SPLITS]
    known = [_known_letters(counts, words) for _, counts in found]
    best = next(place for place, share in enumerate(known) if share >= max(known) - _LEAST_GAIN)
    return found[best]


def _known_letters(counts: Mapping[str, int], words: Collection[str]) -> float:
    """The share of the texts' letters that stand in known words."""
    known = sum(n * len(word) for word, n in counts.items() if word in words or word.lower() in words)
    return known / max(1, sum(n * len(word) for word, n in counts.items()))


def kept_words(
    lines: Mapping[str, int], splitter: WordSplitter, counts: Mapping[str, int], most: int
) -> dict[str, int]:
    """The words to keep, each with the line of its vector.

    The first `most` words of the file that a text can hold (a phrase with underscores or a space never is one), and all
    words of the texts at hand. Where the vocabulary is cased, a text's word that it lacks takes the vector of the same
    word in other letters; so do its forms in small letters, with a capital and in capitals: other texts may hold them.

    Args:
        lines: the file's words, most frequent first, and their lines.
        splitter: splits texts.
        counts: the texts' words.
        most: words of the file.
    """
    kept: dict[str, int] = {}
    for word, line in lines.items():
        if len(kept) == most:
            break
        if splitter(word) == [word]:
            kept[word] = line
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        small = word.lower()
        forms = (word,) if splitter.lower else (small, word, small.capitalize(), small.upper())
        if known := [lines[form] for form in forms if form in lines]:
            for form in forms:
                kept.setdefault(form, lines.get(form, known[0]))
    return kept
