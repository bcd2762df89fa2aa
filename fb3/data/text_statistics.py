"""Statistics of a text that an encoder of 512 lower-case tokens cannot see, such as its length and its capitals.

They are the handcrafted features of automated essay scoring, which stand beside the encoder's vector (Uto et al. 2020,
"Neural Automated Essay Scoring Incorporating Handcrafted Features", COLING 2020). All are plain counts in the raw text:
they need no dictionary and no training, and an essay's do not depend on other essays.

Scripts without spaces between words, such as Chinese, Japanese and Thai, have no words that a pattern could find: each
letter of theirs counts as a word, and beside such letters full-width marks count as the Latin marks of their meaning.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Thai, Lao, Myanmar, Khmer; kana and bopomofo; Han and its extensions.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
_IS_SPACELESS = re.compile(rf"[{_SPACELESS}]")
_SPACED_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_LETTER = rf"[^\W\d_{_SPACELESS}]"
_ANY_WORD = re.compile(rf"[{_SPACELESS}](?<=[^\W\d_])|{_LETTER}+(?:['’]{_LETTER}+)*")
_MARKS = str.maketrans("。｡．！？，、；「」『』", '...!?,,;""""')
_SENTENCE_END = re.compile(r"[.!?]+")
_LONG = 8  # letters of a long word


@dataclass(frozen=True)
class _Essay:
    """A text, and counts in it that several statistics share.

    text: its marks in their Latin form. plain: the text as it is. spaced: whether spaces alone separate its words.
    """

    text: str
    plain: str
    spaced: bool

    @cached_property
    def words(self) -> list[str]:
        return (_SPACED_WORD if self.spaced else _ANY_WORD).findall(self.text)

    @cached_property
    def letters(self) -> np.ndarray:
        """Letters of each word; a text without words counts as one word of 0 letters."""
        return np.array([len(word) for word in self.words] or [0])

    @cached_property
    def vocabulary(self) -> int:
        return len({word.lower() for word in self.words})

    @cached_property
    def sentences(self) -> list[str]:
        return [part for part in map(str.strip, _SENTENCE_END.split(self.text)) if part] or [""]

    @cached_property
    def sentence_words(self) -> np.ndarray:
        words = str.split if self.spaced else _ANY_WORD.findall
        return np.array([len(words(sentence)) for sentence in self.sentences])

    def per_word(self, count: int) -> float:
        return count / max(1, len(self.words))

    def per_sentence(self, count: int) -> float:
        return count / len(self.sentences)

    def found(self, pattern: str) -> float:
        """Matches of a pattern in the text, per word of the essay."""
        return self.per_word(len(re.findall(pattern, self.text)))

    def spacing(self, pattern: str) -> float:
        """The same in the text with its own marks: full-width ones need no space."""
        return self.per_word(len(re.findall(pattern, self.plain)))


_STATISTICS: dict[str, Callable[[_Essay], float]] = {
    # length
    "words": lambda e: len(e.words),
    "log_words": lambda e: np.log1p(len(e.words)),
    "sentences": lambda e: len(e.sentences),
    "paragraphs": lambda e: len(re.findall(r"\n\s*\n", e.text)) + 1,
    "line_breaks": lambda e: e.found("\n"),
    # vocabulary
    "vocabulary": lambda e: e.vocabulary,
    "type_token_ratio": lambda e: e.per_word(e.vocabulary),
    "guiraud": lambda e: e.vocabulary / max(1, len(e.words)) ** 0.5,
    "word_letters": lambda e: e.letters.mean(),
    "word_letters_std": lambda e: e.letters.std(),
    "long_words": lambda e: e.per_word(int((e.letters >= _LONG).sum())),
    # sentences
    "sentence_words": lambda e: e.sentence_words.mean(),
    "sentence_words_std": lambda e: e.sentence_words.std(),
    # punctuation
    "commas": lambda e: e.found(","),
    "full_stops": lambda e: e.found(r"\."),
    "apostrophes": lambda e: e.found("['’]"),
    "quotation_marks": lambda e: e.found('["“”]'),
    "semicolons": lambda e: e.found(";"),
    "exclamation_marks": lambda e: e.found("!"),
    "question_marks": lambda e: e.found(r"\?"),
    "digits": lambda e: e.found(r"\d"),
    # spacing
    "space_before_mark": lambda e: e.spacing(r" [,.!?]"),
    "no_space_after_mark": lambda e: e.spacing(rf"[,.!?]{_LETTER}"),
    "wide_spaces": lambda e: e.found(r"  +"),
    # capitals
    "capitals": lambda e: e.per_word(sum(map(str.isupper, e.text))),
    "capitalised_words": lambda e: e.per_word(sum(word[0].isupper() for word in e.words)),
    "lower_case_i": lambda e: e.per_word(e.words.count("i")),
    "lower_case_starts": lambda e: e.per_sentence(sum(sentence[:1].islower() for sentence in e.sentences)),
}
NAMES = tuple(_STATISTICS)


def text_statistics(texts: Sequence[str]) -> np.ndarray:
    """The statistics of N texts, not standardised.

    Returns:
        (N, S) float32, in the order of `NAMES`; finite for every text, an empty one too.
    """
    table = np.empty((len(texts), len(NAMES)), np.float32)
    for row, text in enumerate(texts):
        spaced = text.isascii() or not _IS_SPACELESS.search(text)
        essay = _Essay(text if spaced else text.translate(_MARKS), text, spaced)
        table[row] = [measure(essay) for measure in _STATISTICS.values()]
    return table
