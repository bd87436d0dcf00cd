"""Trained weights for other programs: timm, transformers, ONNX, torch.export."""
