"""Makes vit.safetensors, resnet.safetensors and objectives.safetensors: small models of open_clip with random weights,
their features, logits, losses and the gradient of every parameter. The test `parity.rs` holds the Rust model to them.

Run with open_clip_torch and safetensors installed: `python make_fixtures.py`. Computed in float64 from weights that
float32 holds exactly (pixels: float16), stored as such. open_clip has neither bag of words nor captions without cross-attention: those
two are written here in torch.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP
from safetensors.torch import save_file

HERE = Path(__file__).parent
IDS = [[18, 3, 19, 0, 0, 0], [18, 19, 0, 0, 0, 0], [18, 5, 7, 3, 2, 19], [18, 0, 0, 19, 0, 0], [18, 9, 3, 1, 19, 0]]


def build(vision, layers, quick_gelu, **more):
    text = dict(context_length=6, vocab_size=20, width=16, heads=2, layers=layers)
    model = CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu, **more).double()
    for parameter in model.parameters():  # Biases and gains that differ from 0 and 1; no rounding on the way to float32.
        parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).float().double()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_((0.2 * torch.randn_like(buffer)).float())
        elif name.endswith("running_var"):
            buffer.copy_((0.5 + torch.rand_like(buffer)).float())
    return model


def inputs(size):
    return torch.randn(len(IDS), 3, size, size).half().double(), torch.tensor(IDS)


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def save(name, tensors):
    as_stored = lambda t: t.float() if t.is_floating_point() else t.to(torch.int64)
    tensors = {n: as_stored(t.detach()).contiguous().clone() for n, t in tensors.items()}
    tensors["in/pixels"] = tensors["in/pixels"].half()
    save_file(tensors, HERE / f"{name}.safetensors")


def state(model):
    kept = {n: t.clone() for n, t in model.state_dict().items() if not n.endswith(("attn_mask", "num_batches_tracked"))}
    return {f"weights/{n}": t for n, t in kept.items()}


def contrastive(name, model, size):
    pixels, ids = inputs(size)
    fixture = {"in/pixels": pixels, "in/ids": ids} | state(model)
    model.eval()
    fixture |= {"eval/image": model.encode_image(pixels, normalize=True)}
    model.train()  # Batch norm by the batch, and its running statistics move.
    image, text, scale = model(pixels, ids)
    loss = ClipLoss()(image, text, scale)
    fixture |= {"out/image": image, "out/text": text, "out/logits": scale * image @ text.T, "out/loss": loss}
    fixture |= {f"gradients/{n}": g for n, g in gradients(model, loss).items()}
    fixture |= {f"moved/{n}": b for n, b in model.named_buffers() if "running" in n}
    save(name, fixture)


def objectives():
    vision = dict(image_size=8, patch_size=4, width=16, layers=1, head_width=8)
    model = build(vision, 1, False, init_logit_scale=2.0, init_logit_bias=-3.0)
    model.words, model.caption = torch.nn.Linear(8, 20).double(), torch.nn.Module()
    model.caption.image_projection = torch.nn.Parameter(torch.randn(8, 16).double())
    for p in [*model.words.parameters(), *model.caption.parameters()]:
        p.data = p.data.float().double()
    pixels, ids = inputs(8)
    fixture = {"in/pixels": pixels, "in/ids": ids} | state(model)

    image, text, scale, bias = model(pixels, ids)
    sigmoid = SigLipLoss()(image, text, scale, bias)

    image = model.encode_image(pixels)
    log_p = F.log_softmax(model.words(image), -1)
    bags = [sorted(set(row[1 : row.index(19)])) for row in IDS]  # Between start (18) and end (19).
    bag_of_words = torch.stack([-log_p[i, bag].mean() for i, bag in enumerate(bags) if bag]).mean()

    # The image's features, projected, are added to the start token; every position predicts the
    # next token.
    x = model.token_embedding(ids)
    x = torch.cat([x[:, :1] + (image @ model.caption.image_projection)[:, None], x[:, 1:]], 1) + model.positional_embedding
    logits = model.ln_final(model.transformer(x, attn_mask=model.attn_mask)) @ model.token_embedding.weight.T
    targets = torch.tensor([[t if i <= row.index(19) else -100 for i, t in enumerate(row)][1:] for row in IDS])
    caption = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())

    losses = {"sigmoid": sigmoid, "bag_of_words": bag_of_words, "caption": caption}
    for name, loss in losses.items():
        fixture[f"{name}/loss"] = loss
        fixture |= {f"{name}/gradients/{n}": g for n, g in gradients(model, loss).items()}
    save("objectives", fixture)


torch.manual_seed(5)
contrastive("vit", build(dict(image_size=8, patch_size=4, width=16, layers=2, head_width=8), 2, True), 8)
contrastive("resnet", build(dict(image_size=64, layers=[1, 2, 1, 1], width=2, head_width=32), 1, True), 64)
objectives()
