"""The compiler: checkpoint -> one density per latent coordinate -> quantile tables -> ONNX graph -> certificate."""
