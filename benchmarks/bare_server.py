"""What people write first: FastAPI and ONNX Runtime, one image a request, nothing batched or bounded.

python benchmarks/bare_server.py EXPORT PORT
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image

folder = Path(sys.argv[1])
facts = json.loads((folder / "export.json").read_text("utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
app = FastAPI()


@app.post("/predict")
def predict(content: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, Any]:
    size = facts["image_size"]
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    (probabilities,) = session.run(["probabilities"], {"image": np.asarray(image)[None]})
    best = np.argsort(-probabilities[0])[:5]
    return {"classes": [{"class": facts["class_names"][k], "probability": float(probabilities[0][k])} for k in best]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
