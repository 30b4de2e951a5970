"""Configuration: dataclasses are the only truth; argparse, YAML and Hydra are readers of them."""
