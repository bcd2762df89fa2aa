"""Comments and docstrings are read once, from the top: none begins with a word whose noun stands elsewhere."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import fb3

PACKAGE = Path(fb3.__file__).parent
SOURCES = sorted([*PACKAGE.rglob("*.py"), PACKAGE.parent / "build_dataset.py"])
EXEMPT = (
    "fb3/models/kernels/",
    *(f"fb3/models/{name}.py" for name in ("attached_backbone", "backbone", "backbone_files", "backbone_tokenizer")),
    *(f"fb3/models/{name}.py" for name in ("dry_run", "flops", "from_scratch", "layer_stack", "scorer", "towers")),
    "fb3/prediction/",
)
FRAGMENT = re.compile(r"(of|those|these|what|as|that|such|which)\b", re.IGNORECASE)
ENTRY = re.compile(r"\s*[\w, *]+: (?P<text>.*)")  # a line of an Args or Raises section
SECTION = re.compile(r"\s*(Args|Raises):$")


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Comments behind code, and the first line of each block of comments."""
    last = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                line, alone = token.start[0], token.line.lstrip().startswith("#")
                if not (alone and last == line - 1):
                    yield line, token.string.lstrip("#! ")
                last = line if alone else 0


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The first line of each docstring, fields' docstrings among them, and the entries of Args and Raises sections."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            section = False
            for line, text in enumerate(node.value.value.splitlines(), node.lineno):
                entry = ENTRY.match(text) if section else None
                if line == node.lineno or entry:
                    yield line, entry["text"] if entry else text
                section = bool(text.strip()) and (section or bool(SECTION.match(text)))


def fragments(path: Path) -> list[str]:
    found = sorted([*comments(path), *docstrings(path)])
    return [f"{path}:{line}: {text}" for line, text in found if FRAGMENT.match(text)]


def test_comments_and_docstrings_begin_with_their_noun_or_verb():
    checked = [path for path in SOURCES if not path.relative_to(PACKAGE.parent).as_posix().startswith(EXEMPT)]
    assert not (found := [line for path in checked for line in fragments(path)]), "\n".join(found)


def test_a_fragment_is_found_wherever_it_stands(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""What is here."""\n'
        "# Those of the block,\n# of which only the first line counts.\n"
        "number = 1  # of nothing\n"
        "def f(a, b):\n"
        '    """A function of what it reads.\n\n    Args:\n        a: of b\n        b: such an a: as it is.\n\n'
        '    Raises:\n        ValueError: as `g` does.\n    """\n'
        "    # A sentence that is whole.\n"
    )
    lines = [int(line.removeprefix(f"{path}:").partition(":")[0]) for line in fragments(path)]
    assert lines == [1, 2, 4, 9, 10, 13]
