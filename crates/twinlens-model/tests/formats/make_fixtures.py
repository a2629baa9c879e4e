"""Makes the folders and files of this directory: small random models as transformers, open_clip and PyTorch write them,
with their features. The test `formats.rs` reads them.

Run with open_clip_torch, transformers and safetensors installed: `python make_fixtures.py`.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

HERE = Path(__file__).parent
IDS = torch.tensor([[18, 3, 19, 0, 0, 0], [18, 19, 0, 0, 0, 0], [18, 5, 7, 3, 2, 19]])
torch.manual_seed(3)
PIXELS = {8: torch.randn(3, 3, 8, 8), 32: torch.randn(3, 3, 32, 32)}
out = {"ids": IDS} | {f"pixels/{size}": pixels for size, pixels in PIXELS.items()}


def stir(model):
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand_like(buffer))
    return model.eval()


tower = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, hidden_act="gelu")
text = tower | dict(vocab_size=20, max_position_embeddings=6, bos_token_id=18, eos_token_id=19, pad_token_id=0)
config = CLIPConfig(projection_dim=8, text_config=text | dict(projection_dim=8),
                    vision_config=tower | dict(image_size=8, patch_size=4, projection_dim=8))
model = stir(CLIPModel(config))
model.save_pretrained(HERE / "hugging_face")
(HERE / "hugging_face" / "generation_config.json").unlink(missing_ok=True)
with torch.no_grad():
    output = model(input_ids=IDS, pixel_values=PIXELS[8], attention_mask=torch.ones_like(IDS))
out |= {"hugging_face/image": output.image_embeds, "hugging_face/text": output.text_embeds}

text = dict(context_length=6, vocab_size=20, width=16, heads=2, layers=1)
shapes = {
    "open_clip": dict(embed_dim=8, quick_gelu=True, text_cfg=text,
                      vision_cfg=dict(image_size=32, layers=[1, 1, 1, 1], width=2, head_width=32)),
    "checkpoint": dict(embed_dim=8, text_cfg=text,
                       vision_cfg=dict(image_size=8, patch_size=4, width=16, layers=1, head_width=8)),
}
for name, shape in shapes.items():
    model = stir(CLIP(**shape))
    size = shape["vision_cfg"]["image_size"]
    with torch.no_grad():
        out[f"{name}/image"] = model.encode_image(PIXELS[size], normalize=True)
        out[f"{name}/text"] = model.encode_text(IDS, normalize=True)
    if name == "open_clip":
        (HERE / name).mkdir(exist_ok=True)
        (HERE / name / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape}, indent=1) + "\n")
        save_file(model.state_dict(), HERE / name / "open_clip_model.safetensors")
    else:  # As a distributed training of open_clip leaves it, and as a bare state dict.
        state = {f"module.{n}": t for n, t in model.state_dict().items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}},
                   HERE / "checkpoint.pt")
        torch.save(model.state_dict(), HERE / "state_dict.pt")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), HERE / "torchscript.pt")
save_file(out, HERE / "features.safetensors")
