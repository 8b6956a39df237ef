"""What may be asked: samples, the Open Inference Protocol, administration, HTTP."""
