//! Evaluation sets, prompts, zero-shot, metrics with intervals.
