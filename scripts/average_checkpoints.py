"""The original's path to ``fairseq-average`` and to the function behind it.

Usage: python scripts/average_checkpoints.py --inputs RUN --num-epoch-checkpoints 5 --output FILE
"""

from fairseq.checkpoint.average import average_checkpoints as average_checkpoints
from fairseq_cli.average import cli_main

if __name__ == "__main__":
    cli_main()
