"""Makes kernels.safetensors: what PyTorch computes in float64 where the GPU kernels compute. The test `kernels` holds the
kernels to it, in an emulation.

Run with torch and safetensors installed: `python make_fixtures.py`. Inputs are `noise`, as in the test's `common.rs`, so that
only outputs are stored; those that a kernel may hold as bfloat16 are rounded to it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = {}


def noise(shape, seed, half=True):
    state, values = seed, []
    for _ in range(torch.Size(shape).numel()):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append((state >> 8) / 2**23 - 1)
    values = torch.tensor(values).reshape(shape)
    return (values.bfloat16() if half else values).double().requires_grad_()


def save(name, **tensors):
    OUT.update({f"{name}/{key}": value.detach().float().contiguous() for key, value in tensors.items()})


def norm():
    shape = (37, 100)
    x, delta, gain = noise(shape, 1), noise(shape, 2), noise((100,), 3, False)
    bias, delta_bias = noise((100,), 4, False), noise((100,), 5, False)
    total = x + delta + delta_bias
    # The gradients that reach the result and, another way, the sum.
    y = F.layer_norm(total, (100,), gain, bias)
    (y * noise(shape, 6).detach()).sum().add((total * noise(shape, 7).detach()).sum()).backward()
    save("norm", sum=total, y=y, d=x.grad, d_gain=gain.grad, d_bias=bias.grad, d_delta_bias=delta_bias.grad)
    y = F.layer_norm(x.detach(), (100,), gain, bias)
    save("norm", y_alone=y)


def activation():
    functions = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}
    for name, function in functions.items():
        x, bias = noise((37, 133), 1), noise((133,), 2, False)
        y = function(4 * x + bias)
        (y * noise((37, 133), 3).detach()).sum().backward()
        save(name, y=y, dx=x.grad / 4, d_bias=bias.grad)


def attention(name, batch, length, heads, depth, causal=False, lens=None):
    width = heads * depth
    qkv, bias = noise((batch, length, 3 * width), 1), noise((3 * width,), 2, False)
    q, k, v = (4 * qkv + bias).reshape(batch, length, 3, heads, depth).permute(2, 0, 3, 1, 4)
    hidden = torch.zeros(batch, 1, length, length, dtype=torch.bool)
    if causal:
        hidden |= torch.ones(length, length, dtype=torch.bool).triu(1)
    if lens:
        hidden |= (torch.arange(length) >= torch.tensor(lens)[:, None])[:, None, None, :]
    scores = (q @ k.transpose(-1, -2) / depth**0.5).masked_fill(hidden, -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
    (out * noise(out.shape, 3).detach()).sum().backward()
    save(name, out=out, log_sums=scores.logsumexp(-1), d_qkv=qkv.grad / 4)


def contrastive():
    image, text = (F.normalize(noise((45, 24), seed), dim=-1).detach().requires_grad_() for seed in (1, 2))
    scale = torch.tensor(2.5, dtype=torch.double, requires_grad=True)
    logits = scale.exp() * image @ text.T
    loss = (F.cross_entropy(logits, torch.arange(45)) + F.cross_entropy(logits.T, torch.arange(45))) / 2
    d_logits = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    loss.backward()
    rows, columns = logits.logsumexp(1), logits.logsumexp(0)
    save("contrastive", logits=logits, loss=loss, d_logits=d_logits, d_scale=scale.grad, rows=rows, columns=columns)


def embedding():
    # Id 0 has more rows than a piece, others one or none.
    ids = torch.tensor([[0 if t > 1 else (i * 7 + t * 13) % 50 for t in range(23)] for i in range(9)])
    table, positions = noise((50, 33), 1, False), noise((25, 33), 2, False)
    rows = table[ids] + positions[:23]
    (rows * noise((9, 23, 33), 3).detach()).sum().backward()
    save("embedding", out=rows.reshape(-1, 33), d_table=table.grad, d_positions=positions.grad[:23])


def adamw():
    # Rates and decays differ by variable; the last is a chunk and one number.
    lens, groups = [1, 4096, 133, 4097], [(1e-3, 0.0), (1e-3, 0.2), (5e-4, 0.2), (2e-3, 0.1)]
    variables = [noise((length,), 1 + i, False) for i, length in enumerate(lens)]
    options = [{"params": [v], "lr": r, "weight_decay": d} for v, (r, d) in zip(variables, groups)]
    optimiser = torch.optim.AdamW(options, betas=(0.9, 0.98), eps=1e-6)
    for step in range(3):
        for i, variable in enumerate(variables):
            variable.grad = 0.5 * noise((lens[i],), 10 * step + 100 + i, False).detach()
        optimiser.step()
    save("adamw", **{f"weights{i}": variable for i, variable in enumerate(variables)})
    states = [optimiser.state[variable] for variable in variables]
    save("adamw", m=torch.cat([state["exp_avg"] for state in states]), v=torch.cat([state["exp_avg_sq"] for state in states]))


norm()
activation()
attention("attention50", 1, 50, 2, 32)
attention("attention197", 1, 197, 1, 20)
attention("attention257", 1, 257, 1, 20)
attention("attention77", 1, 77, 1, 64, causal=True)
attention("attention40", 1, 40, 1, 80)
attention("attention_lens", 2, 50, 1, 16, lens=[50, 13])
contrastive()
embedding()
adamw()
save_file(OUT, Path(__file__).with_name("kernels.safetensors"))
