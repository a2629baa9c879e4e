"""Compares the tokenizer with open_clip's, ids exact, on 20,000 captions or as many as are asked for.

    cargo build -p twinlens-model --example tokenize
    python check_tokenizer.py PATH/TO/tokenize [NUMBER]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from captions import captions
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from tokenizers import Tokenizer

program, number = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
texts = captions(number)
theirs = SimpleTokenizer()(texts).tolist()
with tempfile.TemporaryDirectory() as folder:
    given, copy = Path(folder) / "captions", Path(folder) / "tokenizer.json"
    given.write_text("".join(json.dumps(text) + "\n" for text in texts))
    for vocabulary, more in ((default_bpe(), [copy]), (copy, [])):
        ids = Path(folder) / "ids"
        subprocess.run([program, vocabulary, given, ids, *more], check=True)
        ours = [json.loads(line) for line in ids.read_text().splitlines()]
        wrong = [i for i in range(number) if ours[i] != theirs[i]]
        for i in wrong[:10]:
            print(f"{texts[i]!r}\n  ours   {ours[i]}\n  theirs {theirs[i]}")
        print(f"{Path(vocabulary).name}: {number - len(wrong)} of {number} captions have open_clip's ids")
        assert not wrong
    # What is saved serves Hugging Face's library too, on text that needs no cleaning.
    hugging_face = Tokenizer.from_file(str(copy))
    plain = [text for text in texts if text.isascii() and text.isprintable() and not set(text) & set("&<")]
    for text, ids in zip(plain, SimpleTokenizer()(plain).tolist()):
        assert hugging_face.encode(text, add_special_tokens=False).ids[:75] == ids[1 : ids.index(49407)], text
    print(f"tokenizers: {len(plain)} of {len(plain)} plain captions have open_clip's ids")
