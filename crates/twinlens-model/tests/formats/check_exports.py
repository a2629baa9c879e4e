"""Loads what this program exports in open_clip and transformers, and compares the features within 1e-5.

    cargo run -p twinlens-model --example exports -- FOLDER [PRESET]...
    python check_exports.py FOLDER
"""

import sys
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel

worst, checked = 0.0, 0
for folder in sorted(Path(sys.argv[1]).iterdir()):
    given = load_file(folder / "features.safetensors")
    models = {}
    for program in ("open_clip", "hugging_face"):
        path = folder / program
        if not path.exists():
            continue
        with torch.no_grad():
            if program == "open_clip":
                model = open_clip.create_model(f"local-dir:{path}").eval()
                image = model.encode_image(given["pixels"], normalize=True)
                text = model.encode_text(given["ids"], normalize=True)
            else:
                model, report = CLIPModel.from_pretrained(path, output_loading_info=True)
                assert not report["missing_keys"] and not report["unexpected_keys"], report
                processor = CLIPImageProcessor.from_pretrained(path)
                assert processor.crop_size["height"] == given["pixels"].shape[-1]
                output = model.eval()(input_ids=given["ids"], pixel_values=given["pixels"],
                                      attention_mask=torch.ones_like(given["ids"]))
                image, text = output.image_embeds, output.text_embeds
        for name, got in (("image", image), ("text", text)):
            difference = (got - given[name]).abs().max().item()
            print(f"{folder.name} in {program}: {name} features within {difference:.1e}")
            worst, checked = max(worst, difference), checked + 1
assert checked > 0, "nothing to compare"
assert worst < 1e-5, worst
print(f"{checked} comparisons, all within {worst:.1e}")
