"""The Open Inference Protocol v2 with Triton's extensions, over the same models, scheduler and manners as kaem.v1."""
