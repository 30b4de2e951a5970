"""A template for ``--user-dir``: importing this package registers what its files define.

Copy the folder, rename it (the name becomes the name of a Python package) and change the files.
"""

from . import criterion, dataset, head, model, schedule, task  # noqa: F401 - importing registers
