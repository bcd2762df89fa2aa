import subprocess
import sys

from fb3.models.from_scratch import train_tokenizer

PROGRAM = """
import sys
from pathlib import Path
from fb3.system.files import sha256
from fb3.models.from_scratch import build_backbone
from fb3.recipe.model import ScratchSettings
from fb3.demo.synthetic import make_essays
out = Path(sys.argv[1])
build_backbone(ScratchSettings(), [e.text for e in make_essays(60, seed=1)], out, seed=3)
print(sha256(out / "tokenizer.json"), sha256(out / "model.safetensors"))
"""


def test_the_same_texts_and_seed_give_the_same_files_in_every_process(tmp_path):
    said = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / n)], capture_output=True, text=True, check=True
        ).stdout
        for n in "ab"
    ]
    assert said[0] == said[1]
    assert len(said[0].split()) == 2


def test_any_text_of_known_characters_has_no_unknown_token(texts):
    tokenizer = train_tokenizer(texts, 400)
    assert tokenizer.get_vocab_size() <= 400
    assert "[UNK]" not in tokenizer.encode(texts[0] + " heehrf oiert").tokens
    assert tokenizer.encode("however ☃").tokens.count("[UNK]") == 1
