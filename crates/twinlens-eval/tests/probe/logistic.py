#!/usr/bin/env python3
"""Writes logistic.json: what scikit-learn's logistic regression makes of a few vectors. Needs numpy and scikit-learn."""

import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

rng = np.random.default_rng(17)
width, classes, rows = 6, 4, 60
labels = np.arange(rows) % classes
centres = rng.normal(size=(classes, width))
values = centres[labels] + 1.2 * rng.normal(size=(rows, width))
values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

fits = []
for l2 in [1e-3, 0.1, 1.0, 31.6]:
    model = LogisticRegression(C=1 / l2, tol=1e-11, max_iter=100_000).fit(values.astype(np.float64), labels)
    fits.append({
        "l2": l2,
        "weights": model.coef_.ravel().tolist(),
        "probabilities": model.predict_proba(values.astype(np.float64)).ravel().tolist(),
        "accuracy": model.score(values.astype(np.float64), labels),
    })
out = {"width": width, "values": values.astype(np.float64).ravel().tolist(), "labels": labels.tolist(), "fits": fits}
Path(__file__).with_name("logistic.json").write_text(json.dumps(out) + "\n")
