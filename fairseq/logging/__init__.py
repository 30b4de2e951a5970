"""Metrics of a run: meters, aggregation, the progress line and the places figures are sent to.

``meters`` (running figures) <- ``metrics`` (named aggregators, ``log_scalar`` and friends);
``sinks`` (JSON lines, TensorBoard, Weights & Biases) <- ``progress_bar`` (console and all sinks).
Nothing is imported here; take the module that is needed.
"""
