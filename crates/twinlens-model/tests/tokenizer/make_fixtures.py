"""Makes merges.txt.gz, the first 3,000 merges of CLIP's vocabulary, and hard_cases.jsonl: captions with the ids that
open_clip's tokenizer gives them by that file.

Run with open_clip_torch installed: `python make_fixtures.py`.
"""

import gzip
import json
from pathlib import Path

from captions import ALPHABETS, captions
from open_clip.tokenizer import SimpleTokenizer, default_bpe

HERE = Path(__file__).parent
merges = gzip.open(default_bpe()).read().decode().split("\n")[:3001]
(HERE / "merges.txt.gz").write_bytes(gzip.compress("\n".join(merges).encode(), mtime=0))
tokenizer = SimpleTokenizer(str(HERE / "merges.txt.gz"))
texts = ALPHABETS + captions(400, seed=3)[len(ALPHABETS) :]
lines = [json.dumps([text, [i for i in ids.tolist() if i]], ensure_ascii=True) for text, ids in zip(texts, tokenizer(texts))]
(HERE / "hard_cases.jsonl").write_text("\n".join(lines) + "\n")
