"""Settings of the competition's files, texts, tokens and folds."""

from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fb3.recipe.augmentation import AugmentSettings
from fb3.recipe.frames import FRAMES_COLUMN, FramesSettings
from fb3.recipe.settings import Count, FileName, Listed, Rate, Seed, Settings

Split = Literal["train", "test"]
Truncation = Literal["head", "tail", "head_tail", "paragraphs"]
_LONGEST_TEMPLATE = 2000  # characters: a column may be named in it any number of times


class JoinSettings(Settings):
    """Columns that stand in a further table, or texts in a folder, put beside each essay by a key.

    A join is made only where one of its columns is used, so that a table of groups may be there for training alone.
    """

    file: FileName | None = None
    """A table with one row a key. {split} in its name stands for train or test: "prompts_{split}.csv", in quotes."""
    folder: FileName | None = None
    """A folder of texts instead, one file KEY.txt for each key; it may have {split} in it too."""
    on: str
    """The column that holds the key, in the essays and in the further table."""
    columns: Annotated[tuple[str, ...], Field(min_length=1), Listed] | None = None
    """The columns of the further table that are taken; none: all."""
    into: str | None = None
    """The column that gets the folder's texts."""

    @model_validator(mode="before")
    @classmethod
    def _yaml_key(cls, settings: Any) -> Any:
        """YAML 1.1 reads the key `on` as true."""
        return (
            {"on" if key is True else key: v for key, v in settings.items()} if isinstance(settings, dict) else settings
        )

    @model_validator(mode="after")
    def _one_source(self) -> "JoinSettings":
        if (self.file is None) == (self.folder is None):
            raise ValueError("joins: give either file, a table, or folder, a folder of texts")
        if (self.folder is None) != (self.into is None):
            raise ValueError("joins: into names the column of a folder's texts; it goes with folder, and only with it")
        if self.folder and self.columns:
            raise ValueError("joins: a folder has no columns; leave columns out")
        if self.on in (self.columns or ()) or self.on == self.into:
            raise ValueError(f"joins: {self.on!r} is the key, which the essays have; name other columns")
        if [name for _, name, _, _ in Formatter().parse(self.file or self.folder) if name not in (None, "split")]:
            raise ValueError("joins: only {split} may stand in braces in a file's or a folder's name")
        return self

    def name(self, split: Split) -> str:
        """The name of the file or the folder for a split."""
        return (self.file or self.folder).replace("{split}", split)


class FilesSettings(Settings):
    """The names of the competition's files, which fb3 looks for in the folder of --data.

    Where a file is absent and its compressed form is there, such as train.csv.zip, that one is read. The suffix names
    the form: .csv, .tsv, .txt with tabs, .parquet, .json (a list of records), .jsonl (a record a line).
    """

    train: FileName = "train.csv"
    """The essays with their scores."""
    test: FileName = "test.csv"
    """The essays to predict."""
    sample: FileName | None = "sample_submission.csv"
    """The sample submission; none: the competition has none, and test gives rows and columns."""
    header: bool = True
    """Whether the submission begins with a line of its columns' names; a sample submission shows it by its own."""
    joins: tuple[JoinSettings, ...] = ()
    """Further tables, or folders of texts, whose columns are joined to the essays, in this order."""

    @model_validator(mode="after")
    def _sample_has_header(self) -> "FilesSettings":
        if self.sample and not self.header:
            raise ValueError(
                "header=false: the sample's columns are read from its header; set sample=null, or leave it"
            )
        return self

    def markers(self) -> tuple[str, ...]:
        """The names by which the competition's folder is found, the surest first."""
        return (*([self.sample] if self.sample else []), self.test)


class TextPartSettings(Settings):
    """One of several texts that the encoder reads side by side."""

    column: str
    """The column of the text."""
    share: Rate = 1.0
    """The text's share of max_length beside the other texts' shares: where they do not fit together, it keeps this
    share at least, and more where others need less."""
    truncation: Truncation | None = None
    """Its tokens that stay where it is too long, such as the tail of a picture's text; none: data.truncation's."""


class TextSettings(Settings):
    """Changes of a text before the tokenizer, in training and at inference alike."""

    template: str | None = None
    """Several columns joined, each named in braces: "{title}\\n{full_text}"; none: text_column alone."""
    parts: Annotated[tuple[TextPartSettings, ...], Field(min_length=2)] | None = None
    """Several texts, with the encoder's own separator between them, each truncated by itself: a prompt and an essay.
    The encoder gets no token types, which few encoders know; its separators tell the texts apart. none: one text."""
    repair: bool = False
    """Undo UTF-8 that was read as Windows-1252, and drop control characters."""
    newlines: bool = False
    """A token [BR] for each line break: most tokenizers skip line breaks, and paragraphs are lost."""
    capitals: bool = False
    """[CAP] before a capitalised word, [UP] before one all in capitals (inline casing, Etchegoyhen & Gete 2020, LREC):
    for tokenizers that make everything lower case."""
    new_tokens: Count | None = None
    """A token of its own for each character that the tokenizer does not know and that so many training texts hold, of
    validation too; none: off. For texts partly in another script, such as Chinese keywords before an English encoder.
    The tokens start at the mean embedding, and want some epochs and an optimizer.embeddings_rate of their own."""
    statistics: bool = False
    """Lengths, richness of words, punctuation and capitals, counted in the original text, beside the encoder's vector
    (Uto et al. 2020, COLING 2020): tokens may lose capitals, whole words, and all text beyond max_length."""
    prompt: Literal["none", "names", "tokens"] = "none"
    """A prompt before the text, and before each window: the targets' names as words, or a new token for each target,
    which model.pooling.kind=target_tokens reads."""

    @model_validator(mode="after")
    def _plain_names(self) -> "TextSettings":
        if self.template is None:
            return self
        if len(self.template) > _LONGEST_TEMPLATE:
            raise ValueError(f"template: {len(self.template)} characters, at most {_LONGEST_TEMPLATE}")
        parts = list(Formatter().parse(self.template))
        names = [name for _, name, _, _ in parts if name is not None]
        if not names or not all(name.isidentifier() for name in names) or any(s or c for _, _, s, c in parts):
            raise ValueError(
                f"template: name columns in braces, such as {{title}} {{full_text}}; got {self.template!r}"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_join(self) -> "TextSettings":
        if self.parts and self.template:
            raise ValueError("template and parts both join columns; give one of them")
        names = [part.column for part in self.parts or ()]
        if len(set(names)) < len(names):
            raise ValueError(f"parts: each column once, got {names}")
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns that template or parts name, each once."""
        if self.parts:
            return tuple(part.column for part in self.parts)
        return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.template or "") if name))


class WindowsSettings(Settings):
    """A long essay as several inputs, encoded together, pooled into one vector (Dai et al. 2022, arXiv:2204.06683)."""

    length: Annotated[int, Field(ge=8)] = 512
    """Longest input of the encoder in tokens, special tokens included."""
    stride: Count | None = None
    """Tokens from one window's start to the next one's; the last window moves back to end with the essay. none: the
    fewest windows of equal length, without overlap."""
    pool: Literal["mean", "max", "attention"] = "mean"
    """How the windows' vectors become the essay's vector."""


class DataSettings(Settings):
    """The competition's files and how a text becomes tokens."""

    files: FilesSettings = FilesSettings()
    """The files' names, and what is joined from further ones."""
    prepare: Annotated[str, Field(pattern=r".\.py$")] | None = None
    """A Python file whose function prepare(table, split) changes the tables of train and test after the joins, before
    anything else reads them. The path begins at the recipe's own YAML file, or at the working directory. The run folder
    and the bundle hold a copy, which is run as code wherever essays are read, at inference too. none: no such steps."""
    id_column: str = "text_id"
    """Column of the essay's id."""
    text_column: str = "full_text"
    """Column of the essay's text."""
    target_columns: Annotated[tuple[str, ...], Field(min_length=1), Listed] = (
        "cohesion",
        "syntax",
        "vocabulary",
        "phraseology",
        "grammar",
        "conventions",
    )
    """Columns of the scores, in the order of the submission."""
    weight_column: str | None = None
    """A column of train.csv by which each essay's training loss is weighed, at a mean of 1 over a fold's training
    essays; the validation loss and the metric are not. An essay that data.augment.mix goes on with another keeps its
    own weight. none: all alike."""
    weight_form: Literal["weight", "standard_error"] = "weight"
    """The numbers of weight_column: weight: from 0 up; standard_error: of the score, whose weight is 1 / its square, an
    error below half the median counting as that half, so that an error of 0 has a weight too."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Most tokens of an essay, special tokens included; longer ones are truncated. Without windows, the encoder's
    longest input."""
    truncation: Truncation = "head"
    """Tokens of a long essay that stay: the first, the last, or half of each (Sun et al. 2019, arXiv:1905.05583).
    paragraphs: the last paragraph, and as much from the beginning as fits; blank lines, else line breaks, separate
    them."""
    windows: WindowsSettings | None = None
    """Sliding windows over essays of up to max_length tokens; none: off."""
    text: TextSettings = TextSettings()
    """Changes of a text before the tokenizer."""
    augment: AugmentSettings | None = None
    """Changes of the training essays' tokens; none: off."""
    frames: FramesSettings | None = None
    """Frames beside the texts, which model.frames reads; none: texts alone."""
    sample: Count | None = None
    """Use only so many essays, drawn with folds.seed; none: all."""

    @model_validator(mode="after")
    def _distinct_columns(self) -> "DataSettings":
        names = [self.id_column, self.text_column, *self.target_columns]
        if len(set(names)) < len(names):
            raise ValueError(f"id_column, text_column and target_columns must differ, got {names}")
        if reserved := [n for n in names if n == "fold" or n.startswith("true_")]:
            raise ValueError(f"{reserved}: these names belong to oof.csv; rename the columns")
        if self.weight_column in names:
            raise ValueError(f"weight_column {self.weight_column!r} is a column of ids, texts or targets; name another")
        if self.weight_form != "weight" and not self.weight_column:
            raise ValueError("weight_form does nothing without weight_column; leave it out")
        way = "text.parts" if self.text.parts else "text.template"
        if self.text.columns() and self.text_column not in self.text.columns():
            raise ValueError(f"{way} leaves text_column {self.text_column!r} out; name it there")
        if self.text.template == f"{{{self.text_column}}}":
            raise ValueError("text.template of text_column alone does nothing; leave it out")
        if self.id_column in self.text.columns():
            raise ValueError(f"{way} names the id column; an id says nothing about an essay")
        return self

    @model_validator(mode="after")
    def _texts_stay_apart(self) -> "DataSettings":
        if self.text.parts and self.windows:
            raise ValueError("windows cut one text; leave them or text.parts out, or join the columns by text.template")
        if self.text.parts and self.augment:
            raise ValueError(
                "augment changes one text; leave it or text.parts out, or join the columns by text.template"
            )
        return self

    @model_validator(mode="after")
    def _frames_beside_one_input(self) -> "DataSettings":
        if self.frames and self.windows:
            raise ValueError("frames stand beside one text; leave them or windows out")
        return self

    @model_validator(mode="after")
    def _windows_slide(self) -> "DataSettings":
        if self.windows and self.max_length <= self.windows.length:
            raise ValueError(
                f"windows of {self.windows.length} tokens do nothing with max_length={self.max_length}; "
                "raise max_length"
            )
        if self.windows and (self.windows.stride or 0) >= self.windows.length:
            raise ValueError(f"windows.stride={self.windows.stride} passes over text; keep it below windows.length")
        return self

    def encoder_length(self) -> int:
        """The encoder's longest input in tokens."""
        return self.windows.length if self.windows else self.max_length

    @property
    def image_encoder(self) -> str | None:
        """The image encoder whose vectors of pictures stand beside the texts; none: none does, or files hold them."""
        return self.frames.encoder if self.frames else None

    def text_columns(self) -> tuple[str, ...]:
        """The columns of an essay's texts, text_column first."""
        return tuple(dict.fromkeys([self.text_column, *self.text.columns()]))

    def input_columns(self) -> tuple[str, ...]:
        """The columns that an example is made of: its texts, and the reference to its frames where there are any."""
        return (*self.text_columns(), *([FRAMES_COLUMN] if self.frames else []))


class FoldsSettings(Settings):
    """The split into folds. A `fold` column in train.csv is honoured instead."""

    count: Annotated[int, Field(ge=2)] = 4
    """Number of folds."""
    seed: Seed = 42
    """Seed of the split; with groups it decides only between groups of one size."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the essays held out in one single split, instead of folds."""
    group_column: str | None = None
    """Column of train.csv whose equal cells stay together, such as a prompt or an author: no group is in two folds, so
    the score is that of new groups (Roberts et al. 2017, Ecography 40). none: no groups."""
    stratify: Literal["labels", "label_sets", "none"] = "labels"
    """The labels of which each fold gets its share: every label of every column (iterative stratification, Sechidis et
    al. 2011, ECML PKDD); also every frequent combination of labels; or nothing but essays. More than 20 distinct
    numbers in a column are put into quantile bins. Groups are balanced in the same labels, the largest first."""
    stratify_columns: Annotated[tuple[str, ...], Field(min_length=1), Listed] | None = None
    """Columns of train.csv that are balanced; none: the target columns."""

    @model_validator(mode="after")
    def _something_to_balance(self) -> "FoldsSettings":
        columns = self.stratify_columns or ()
        if columns and self.stratify == "none":
            raise ValueError("stratify_columns does nothing with stratify=none; drop one of the two")
        if len(set(columns)) < len(columns):
            raise ValueError(f"stratify_columns must differ, got {list(columns)}")
        if self.group_column in columns:
            raise ValueError(f"a group is in one fold only, so {self.group_column!r} cannot be balanced; leave it out")
        if "fold" in self.columns():
            raise ValueError("the column 'fold' holds a split of its own; name another one")
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns of train.csv that the split reads beside the targets, each once."""
        return (*([self.group_column] if self.group_column else []), *(self.stratify_columns or ()))
