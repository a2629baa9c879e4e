#!/usr/bin/env python3
"""Compares twinlens with open_clip and transformers: pixels, token ids and embeddings.

Makes three randomly initialised models (two of open_clip, one of transformers, none of a usual
shape), odd images (all modes, 1x1 to 5000x3, EXIF orientations, ICC profiles, every format) and
random captions; prepares and embeds them with the other programs and with twinlens; and prints for
each model how many pixels, ids and embeddings differ. Exits with 1 if any do.

    pip install torch torchvision open_clip_torch transformers pillow
    cargo build --release -p twinlens-model --example parity
    benches/parity.py --twinlens target/release/examples/parity [--images 500] [--captions 100000]

`--fixture FILE` writes the small part of it that the tests of twinlens-model read. Nothing is
downloaded.
"""

import argparse
import gzip
import html
import io
import json
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageCms
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

# Largest difference of an embedding of unit length.
TOLERANCE = 1e-5

# Odd shapes: sizes that no published model has, other means and filters.
MODELS = {
    "open_clip_vit": {
        "model_cfg": {
            "embed_dim": 24,
            "quick_gelu": False,
            "vision_cfg": {"image_size": [60, 60], "patch_size": 12, "width": 48, "head_width": 16, "layers": 3,
                           "output_tokens": False},
            "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 40, "heads": 5, "layers": 2,
                         "output_tokens": False, "tokenizer_kwargs": {"clean": "lower"}},
            "init_logit_bias": None,
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic",
                           "resize_mode": "shortest"},
    },
    "open_clip_resnet": {
        "model_cfg": {
            "embed_dim": 32,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 96, "layers": [1, 2, 1, 1], "width": 12, "head_width": 24},
            "text_cfg": {"context_length": 33, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 1},
        },
        "preprocess_cfg": {"interpolation": "bilinear", "resize_mode": "squash"},
    },
    "hugging_face": {
        "projection_dim": 20,
        "text_config": {"hidden_size": 36, "intermediate_size": 144, "num_hidden_layers": 2, "num_attention_heads": 3,
                        "max_position_embeddings": 25, "hidden_act": "gelu", "vocab_size": 49408,
                        "eos_token_id": 49407, "bos_token_id": 49406},
        "vision_config": {"hidden_size": 40, "intermediate_size": 160, "num_hidden_layers": 2,
                          "num_attention_heads": 5, "image_size": 49, "patch_size": 7, "hidden_act": "gelu"},
        "preprocessor": {"size": {"shortest_edge": 58}, "crop_size": {"height": 49, "width": 49},
                         "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]},
    },
}


def stir(model):
    """Random weights everywhere: initial zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.7 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def vocabulary():
    """CLIP's vocabulary and merges as transformers names them."""
    merges = gzip.open(default_bpe()).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    tokens = dict(SimpleTokenizer().encoder)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return {names.get(token, token): number for token, number in tokens.items()}, merges


def hugging_face_tokenizer():
    vocab, merges = vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=[tuple(merge.split()) for merge in merges])


class Reference:
    """A model in the other program, and its folder."""

    def __init__(self, name, folder):
        self.name, self.folder, spec = name, folder, MODELS[name]
        folder.mkdir(parents=True)
        torch.manual_seed(3)
        hugging_face_tokenizer().save_pretrained(folder)
        if name.startswith("open_clip"):
            (folder / "open_clip_config.json").write_text(json.dumps(spec))
            model = stir(open_clip.model.CLIP(**{key: value for key, value in spec["model_cfg"].items()}))
            from safetensors.torch import save_file as save_torch

            save_torch(model.state_dict(), folder / "open_clip_model.safetensors")
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
            self.model.eval()
            self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        else:
            self.model = stir(CLIPModel(CLIPConfig(**{k: v for k, v in spec.items() if k != "preprocessor"})))
            self.model.save_pretrained(folder)
            self.processor = CLIPImageProcessorPil(**spec["preprocessor"])
            self.processor.save_pretrained(folder)
            self.context = spec["text_config"]["max_position_embeddings"]
            self.tokenizer = hugging_face_tokenizer()

    def pixels(self, data):
        # As the loaders of both programs: converted first, neither turned nor colour-managed.
        image = Image.open(io.BytesIO(data)).convert("RGB")
        # Or transformers' processor takes a colour of the converted image for transparent.
        image.info.pop("transparency", None)
        if self.name.startswith("open_clip"):
            return self.preprocess(image).numpy()
        return np.asarray(self.processor(image, return_tensors="np")["pixel_values"][0], dtype=np.float32)

    def image_embeddings(self, pixels):
        with torch.no_grad():
            batch = torch.from_numpy(np.stack(pixels))
            if self.name.startswith("open_clip"):
                return self.model.encode_image(batch, normalize=True).numpy()
            features = self.model.get_image_features(pixel_values=batch)
            features = getattr(features, "pooler_output", features)
            return torch.nn.functional.normalize(features, dim=-1).numpy()

    def ids(self, captions):
        if self.name.startswith("open_clip"):
            return self.tokenizer(captions).numpy()
        # transformers' tokenizer leaves the cleaning of mojibake and entities to the caller.
        cleaned = [open_clip.tokenizer._clean_lower(caption) for caption in captions]
        encoded = self.tokenizer(cleaned, padding="max_length", truncation=True, max_length=self.context)
        return np.asarray(encoded["input_ids"])

    def text_embeddings(self, ids):
        with torch.no_grad():
            ids = torch.from_numpy(np.asarray(ids)).long()
            if self.name.startswith("open_clip"):
                return self.model.encode_text(ids, normalize=True).numpy()
            features = self.model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
            features = getattr(features, "pooler_output", features)
            return torch.nn.functional.normalize(features, dim=-1).numpy()


SIZES = [(1, 1), (1, 7), (5000, 3), (3, 5000), (2, 2), (59, 60), (60, 61), (61, 60), (97, 96), (400, 301), (301, 399),
         (640, 427), (49, 49), (58, 57), (1000, 20)]


def noise(rng, size, channels):
    """Waves and noise: edges and gradients, which tell filters apart."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for _ in range(channels):
        a, b, c = rng.uniform(0.01, 0.4), rng.uniform(0.01, 0.4), rng.uniform(0, 6)
        wave = 127 + 110 * np.sin(a * x + b * y + c)
        planes.append(wave + rng.uniform(0, 40) * rng.standard_normal((height, width)))
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def in_mode(rng, size):
    """An image of a random mode."""
    mode = rng.choice(["1", "L", "LA", "P", "P+transparency", "RGB", "RGB+transparency", "RGBA", "I;16", "CMYK"])
    if mode == "1":
        return mode, Image.fromarray(noise(rng, size, 1)[..., 0]).convert("1")
    if mode == "I;16":
        return mode, Image.fromarray(noise(rng, size, 1)[..., 0].astype(np.uint16) * int(rng.choice([1, 3, 257])))
    if mode.startswith("P"):
        image = Image.fromarray(noise(rng, size, 3)).quantize(int(rng.choice([2, 16, 255])))
        if "+" in mode:
            image.info["transparency"] = 0
        return mode, image
    if mode == "RGB+transparency":
        image = Image.fromarray(noise(rng, size, 3))
        image.info["transparency"] = image.getpixel((0, 0))
        return mode, image
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = noise(rng, size, channels)
    return mode, Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode=mode)


FORMATS = {
    "PNG": ("1", "L", "LA", "P", "P+transparency", "RGB", "RGB+transparency", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "P+transparency"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "RGB", "RGBA", "I;16"),
    "PPM": ("1", "L", "RGB"),
    "JPEG": ("L", "RGB", "CMYK"),
}


def odd_images(count, seed, formats, sizes=SIZES):
    """Name and bytes of each image."""
    rng = np.random.default_rng(seed)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    images = []
    while len(images) < count:
        form = str(rng.choice(list(formats)))
        size = tuple(int(n) for n in sizes[int(rng.integers(len(sizes)))])
        mode, image = in_mode(rng, size)
        if mode not in FORMATS[form]:
            continue
        options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
        name = f"{len(images):03}-{form.lower()}-{mode}-{size[0]}x{size[1]}"
        if form in ("PNG", "JPEG", "WEBP") and rng.random() < 0.4:
            exif = Image.Exif()
            exif[0x0112] = orientation = int(rng.integers(1, 9))
            options["exif"] = exif.tobytes()
            name += f"-exif{orientation}"
        if form in ("PNG", "JPEG", "WEBP") and mode in ("RGB", "RGBA") and rng.random() < 0.3:
            options["icc_profile"] = profile
            name += "-icc"
        if form == "WEBP":
            options |= {"lossless": True, "exact": True}
        if form == "JPEG":
            options |= {"quality": int(rng.integers(60, 100)), "subsampling": int(rng.integers(0, 3)),
                        "progressive": bool(rng.random() < 0.3)}
        if form == "PNG" and rng.random() < 0.3 and size[0] < 1000:
            options["optimize"] = True
        file = io.BytesIO()
        try:
            image.save(file, form, **options)
        except (OSError, ValueError, KeyError) as error:
            print(f"{name} cannot be made: {error}", file=sys.stderr)
            continue
        images.append((name, file.getvalue()))
    return images


WORDS = "a photo of the red fox blue whale in Paris, France at night; café naïve Zürich 北京 東京 привет мир 🦊 👩‍👩‍👧 " \
    "it's don't they'll I'd we've 2024 3.14 #tag @user http://a.b/c?d=e&f=g <b>bold</b> &amp; &amp;amp; &lt;3 &#233; " \
    "Ã©tÃ© â€œquotedâ€\x9d ﬁne ½ ① ａｂｃ İstanbul ß Σς \u200b \u00ad \u0301e ... --- ((( ))) 'quoted' \"double\"".split(" ")


def random_captions(count, seed):
    rng = random.Random(seed)
    captions = []
    for _ in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.choice([0, 1, 2, 3, 5, 8, 13, 40]))]
        if rng.random() < 0.3:
            letters = [chr(rng.choice([
                rng.randint(32, 126), rng.randint(0xA0, 0x24F), rng.randint(0x370, 0x5FF), rng.randint(0x3040, 0x30FF),
                rng.randint(0x4E00, 0x9FFF), rng.randint(0x1F300, 0x1F6FF)])) for _ in range(rng.randint(1, 12))]
            # Ignoring case, Python's `regex` takes some code points that are not assigned
            # for letters.
            letters = [letter for letter in letters if unicodedata.category(letter) != "Cn"]
            words.insert(rng.randint(0, len(words)), "".join(letters))
        caption = rng.choice([" ", "  ", "\n", "\t", ""]).join(words)
        if rng.random() < 0.05:
            caption = html.escape(caption)
        if rng.random() < 0.05:
            caption = caption.encode().decode("latin-1")
        # A caption that spells out a special token ends there in open_clip, and is text here.
        captions.append(caption.replace("<start_of_text>", "").replace("<end_of_text>", ""))
    return captions


def compare(reference, images, captions, program, folder):
    """The counts of differences, printed."""
    inputs = folder / f"{reference.name}-input.jsonl"
    with inputs.open("w") as lines:
        for name, data in images:
            path = folder / "images" / name.replace(";", "")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            lines.write(json.dumps({"image": str(path)}) + "\n")
        for caption in captions:
            lines.write(json.dumps({"caption": caption}) + "\n")
    output = folder / f"{reference.name}.safetensors"
    subprocess.run([program, reference.folder, inputs, output], check=True)
    ours = load_file(output)
    bad = 0
    rejected, unequal, far, by_format = 0, [], [], {}
    for number, (name, data) in enumerate(images):
        pixels = ours.get(f"pixels/{number}")
        form = name.split("-")[1]
        counts = by_format.setdefault(form, [0, 0, 0])
        counts[0] += 1
        if pixels is None:
            rejected += 1
            counts[1] += 1
            continue
        want = reference.pixels(data)
        # Half of one of 256 levels, in normalised units, is more than rounding ever makes.
        level = np.abs(pixels - want).max()
        if level > 1e-4:
            unequal.append((name, float(level)))
            counts[2] += 1
            continue
        distance = np.abs(ours[f"image/{number}"] - reference.image_embeddings([want])[0]).max()
        if distance > TOLERANCE:
            far.append((name, float(distance)))
    print(f"{reference.name}: {len(images)} images, {rejected} rejected, {len(unequal)} with other pixels, "
          f"{len(far)} embeddings apart")
    for form, (total, lost, other) in sorted(by_format.items()):
        print(f"    {form:5} {total:4} images, {lost} rejected, {other} with other pixels")
    for name, difference in (unequal + far)[:8]:
        print(f"    {name}: {difference:.2g}")
    want = reference.ids(captions)
    ids = ours["ids"]
    context = want.shape[1]
    different = []
    for number, caption in enumerate(captions):
        # After the end token, padding differs, and the model does not look.
        ours_ids = ids[number][: np.argmax(ids[number]) + 1]
        their_ids = want[number][: np.argmax(want[number]) + 1]
        if not np.array_equal(ours_ids, their_ids):
            different.append(caption)
    some = range(0, len(captions), max(1, len(captions) // 2000))
    theirs = reference.text_embeddings([want[number] for number in some])
    apart = max((float(np.abs(ours["text"][number] - theirs[place]).max()) for place, number in enumerate(some)
                 if captions[number] not in set(different)), default=0.0)
    print(f"    {len(captions)} captions of {context} tokens, {len(different)} with other ids; "
          f"embeddings of {len(some)} within {apart:.1e}")
    for caption in different[:5]:
        print(f"    {caption!r}")
    bad += len(unequal) + len(far) + len(different) + (apart > TOLERANCE)
    return bad


def fixture(path):
    """Small images, and what each of the three programs makes of them."""
    sizes = [(1, 1), (1, 7), (9, 5), (17, 16), (16, 17), (24, 13), (15, 31)]
    images = odd_images(40, 11, {form: FORMATS[form] for form in FORMATS if form != "JPEG"}, sizes)
    tensors = {}
    configs = {
        "open_clip/shortest": image_transform_v2(PreprocessCfg(size=12), is_train=False),
        "open_clip/squash": image_transform_v2(
            PreprocessCfg(size=12, resize_mode="squash", interpolation="bilinear", mean=(0.5,) * 3), is_train=False),
        "hugging_face/crop": CLIPImageProcessorPil(size={"shortest_edge": 15}, crop_size={"height": 12, "width": 12}),
    }
    for name, data in images:
        tensors[f"bytes/{name}"] = np.frombuffer(data, dtype=np.uint8)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image.info.pop("transparency", None)
        for config, preprocess in configs.items():
            if config.startswith("open_clip"):
                pixels = preprocess(image).numpy()
                mean, std = preprocess.transforms[-1].mean, preprocess.transforms[-1].std
            else:
                pixels = np.asarray(preprocess(image, return_tensors="np")["pixel_values"][0])
                mean, std = preprocess.image_mean, preprocess.image_std
            mean, std = (np.asarray(values).reshape(3, 1, 1) for values in (mean, std))
            tensors[f"{config}/{name}"] = np.rint((pixels * std + mean) * 255).astype(np.uint8)
    save_file(tensors, path)
    print(f"{path}: {len(images)} images, {Path(path).stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twinlens", help="the example `parity`, built")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--fixture", help="write the tests' fixture instead")
    args = parser.parse_args()
    if args.fixture:
        return fixture(args.fixture)
    images = odd_images(args.images, args.seed, args.formats)
    captions = random_captions(args.captions, args.seed)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            reference = Reference(name, Path(folder) / name)
            bad += compare(reference, images, captions, args.twinlens, Path(folder))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
