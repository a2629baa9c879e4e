"""A caption rewriter: cuts off what pages append to titles (" - My Shop", " | Photo blog")."""

import re

import pyarrow as pa
from twinlens_command import serve

APPENDED = re.compile(r"\s+[-|–—]\s+[^-|–—]{1,40}$")


def rewrite(batch):
    captions = [None if caption is None else APPENDED.sub("", caption) for caption in batch["caption"].to_pylist()]
    return {"caption": pa.array(captions, pa.string())}


serve(rewrite)
