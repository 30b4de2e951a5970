"""fairseq-interactive: continue lines of text, or fill their masks, as they come."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

from fairseq_cli import generate
from fairseq_cli.entry import command

USAGE = "fairseq-interactive [DATA] --path CHECKPOINT [options]"
EXAMPLES = """examples:
  echo "Once upon a time" | fairseq-interactive data-bin --path runs/lm/checkpoint_best.pt \\
      --bpe gpt2 --sampling --sampling-topp 0.9 --beam 1
  fairseq-interactive data-bin --path runs/lm/checkpoint_best.pt --bpe gpt2 --input prompts.txt \\
      --buffer-size 64 --max-len-b 100 --json      many prompts at a time

DATA is the folder of the dictionary; the model's own if left out. A causal model continues a line,
a masked one fills its <mask>s. On a terminal the texts alone are printed; programs get lines
(--format fairseq): S source, W seconds, H score and pieces, D score and text, P score of every
token; scores are log-probabilities in bits. Outputs include the prompt, and --max-len-b counts it.
Settings that are not given are the checkpoint's own.
Files of the text encoder are found beside the dictionary or the checkpoint.
"""


def main(cfg: Any) -> Any:
    """Continue lines of text, or fill their masks, and print what comes out.

    Args:
        cfg: see :func:`fairseq.hub.continue_text.stated`.

    Returns:
        how much was generated.
    """
    from fairseq.hub.continue_text import interact, stated

    style = "text" if sys.stdout.isatty() else "fairseq"
    return generate.show(interact, {"format": style, **stated(cfg)}, with_time=True)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and generate."""
    prog = "fairseq-interactive"
    return generate.parse_and_run(argv, main, make_parser, prog, USAGE, EXAMPLES)


make_parser = functools.partial(generate.make_parser, interactive=True)


cli_main = command(run)

if __name__ == "__main__":
    cli_main()
