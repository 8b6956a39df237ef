"""What computes a compiled sampler: sessions of ONNX Runtime, CUDA graphs, TensorRT."""
