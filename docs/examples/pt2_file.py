"""Use an exported pt2 file with torch alone, without sseg-nase.

    python pt2_file.py network.pt2

Here images of noise are embedded; a photo is cut square and resized as in onnx_file.py.
"""

import json
import sys

import torch

extra = {"sseg_nase": ""}
network = torch.export.load(sys.argv[1], extra_files=extra).module()
about = json.loads(extra["sseg_nase"])
size, channels = about["image_size"], about["channels"]
generator = torch.Generator().manual_seed(0)
images = torch.randint(256, (5, size, size, channels), dtype=torch.uint8, generator=generator)
if about["input"] == "float":
    images = (images.float() * 2 / 255 - 1).permute(0, 3, 1, 2).contiguous()
with torch.no_grad():
    features = network(images)
assert features.shape == (5, about["features"])
print(f"{about['features']} features of 5 images, the largest {features.abs().max():.4f}")
