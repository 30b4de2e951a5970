"""Imported by a server of forks and by nobody else: it outlives signals, and has one thread.

Schedulers send their signals to every process of a group; the server is still needed then, and ends
by itself with the last process that needs it.
"""

import os
import signal

for _name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, _name), signal.SIG_IGN)
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
