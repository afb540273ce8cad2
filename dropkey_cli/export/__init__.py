"""A trained network in forms that run without dropkey: timm's folder, ONNX, torch.export; each checked as it is made."""
