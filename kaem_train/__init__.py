"""Training: data sets, the Kolmogorov-Arnold Energy Model, its posterior samplers, the trainer and its checkpoints."""

import os

# Before torch loads its OpenMP runtime: threads that wait in a barrier must sleep, not spin. With spinning, one
# other busy process on the same cores slowed training of small models 50-fold; asleep, it costs its fair share.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
