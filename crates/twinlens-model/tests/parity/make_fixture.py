"""Makes clip.safetensors: a tiny CLIP in PyTorch, its features, its loss and the gradient of every parameter.

Run with torch, numpy and safetensors installed: `python make_fixture.py`. The test `parity.rs` holds the Rust model to it.
Built from torch's own modules (MultiheadAttention, LayerNorm, Conv2d), in float64, and stored as float32.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

EMBED, IMAGE, PATCH, WIDTH, LAYERS, HEADS, CONTEXT, VOCAB, BATCH = 8, 8, 4, 16, 2, 2, 6, 20, 5


class Block(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})
        self.mask = mask

    def forward(self, x):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=self.mask)[0]
        h = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))


class Transformer(nn.Module):
    def __init__(self, mask=None):
        super().__init__()
        self.resblocks = nn.Sequential(*[Block(mask) for _ in range(LAYERS)])

    def forward(self, x):
        return self.resblocks(x)


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((IMAGE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer()
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBED))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = Vision()
        mask = torch.full((CONTEXT, CONTEXT), float("-inf"), dtype=torch.float64).triu(1)
        self.transformer = Transformer(mask)
        self.token_embedding = nn.Embedding(VOCAB, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, WIDTH))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBED))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_text(self, ids):
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding))
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


torch.manual_seed(5)
model = Clip().double()
for parameter in model.parameters():  # Biases and gains that differ from 0 and 1, and values that float32 holds exactly.
    parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).float().double()
pixels = torch.randn(BATCH, 3, IMAGE, IMAGE).double()
pixels = pixels.float().double()
ids = torch.tensor([[18, 3, 19, 0, 0, 0], [18, 19, 0, 0, 0, 0], [18, 5, 7, 3, 2, 19], [18, 0, 0, 19, 0, 0], [18, 9, 3, 1, 19, 0]])
image, text = F.normalize(model.visual(pixels), dim=-1), F.normalize(model.encode_text(ids), dim=-1)
logits = model.logit_scale.exp() * image @ text.T
target = torch.arange(BATCH)
loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
loss.backward()

fixture = {"in/pixels": pixels, "in/ids": ids.to(torch.int64), "out/image": image, "out/text": text, "out/loss": loss}
fixture |= {f"weights/{name}": p for name, p in model.named_parameters()}
fixture |= {f"gradients/{name}": p.grad for name, p in model.named_parameters()}
fixture = {n: (t.detach().float() if t.is_floating_point() else t).contiguous() for n, t in fixture.items()}
save_file(fixture, Path(__file__).with_name("clip.safetensors"))
