"""Linear probes: what a linear map can read from a frozen encoder."""
