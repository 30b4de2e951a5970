"""From a dataset to batches: order, cutting, reading, epochs."""
