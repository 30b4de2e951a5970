"""The one place that knows the version; read by packaging and written into checkpoints."""

__version__ = "1.0.0a1"
