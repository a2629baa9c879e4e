"""A score column: how sharp each image is (the variance of its Laplacian); blurred ones are rejected."""

import cv2
import numpy as np
import pyarrow as pa
from twinlens_command import serve

LEAST = 5.0


def score(batch):
    scores, codes = [], []
    for image in batch["image"].field("bytes"):
        data = np.frombuffer(image.as_py() or b"\0", np.uint8)
        grey = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
        sharpness = None if grey is None else cv2.Laplacian(grey, cv2.CV_64F).var()
        scores.append(sharpness)
        codes.append("undecodable" if grey is None else "blurred" if sharpness < LEAST else None)
    return {"sharpness": pa.array(scores, pa.float32()), "reject_code": codes}


serve(score)
