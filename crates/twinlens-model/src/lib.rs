//! CLIP towers, objectives, tokenizer, weights in and out, fused operations with backward.
