"""The Open Inference Protocol v2 with Triton's extensions, over the same models, scheduler and options as kaem.v1."""
