"""Training: data sets, the Kolmogorov-Arnold Energy Model, its posterior samplers, the trainer and its checkpoints."""

import os

from kaem.engines.processors import count_processors

# Before torch loads its OpenMP runtime: threads that wait in a barrier must sleep, not spin. With spinning, one
# other busy process on the same cores slowed training of small models 50-fold; asleep, it costs its fair share.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# OpenMP counts the processors that it may run on, and not the share of their time that a container has.
if count_processors() < len(os.sched_getaffinity(0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(count_processors()))
