"""Kernels in Triton; importing one of these modules needs the package ``triton``."""
