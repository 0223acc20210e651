"""What ``models.intake.onnx_qdq`` is made of: the file (proto), the translator, and its operators by kind."""
