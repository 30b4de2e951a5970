"""fairseq-interactive: continue lines of text as they come."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairseq_cli import generate
from fairseq_cli.entry import run_command

if TYPE_CHECKING:
    pass


USAGE = "fairseq-interactive DATA --path CHECKPOINT [options]"
EXAMPLES = """examples:
  echo "Once upon a time" | fairseq-interactive data-bin --path runs/lm/checkpoint_best.pt \\
      --bpe gpt2 --sampling --sampling-topp 0.9 --beam 1
  fairseq-interactive data-bin --path runs/lm/checkpoint_best.pt --bpe gpt2 --input prompts.txt \\
      --buffer-size 64 --max-len-b 100 --json      many prompts at a time

DATA is the folder of the dictionary. Lines: S source, W seconds, H score and pieces, D score and
text, P score of every token; scores are log-probabilities in bits. Outputs include the prompt, and
--max-len-b counts it. Settings that are not given are the checkpoint's own.
Files of the text encoder are found beside the dictionary or the checkpoint.
"""


def main(cfg: object) -> Any:
    """Continue lines of text, and print what comes out.

    Args:
        cfg: see :func:`fairseq.hub.continue_text.stated`.

    Returns:
        how much was generated.
    """
    from fairseq.hub.continue_text import interact, stated

    return generate.show(interact, stated(cfg), with_time=True)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and generate."""
    prog = "fairseq-interactive"
    return generate.parse_and_run(argv, main, make_parser, prog, USAGE, EXAMPLES)


make_parser = functools.partial(generate.make_parser, interactive=True)


def cli_main() -> None:
    """Run the command."""
    run_command(run)


if __name__ == "__main__":
    cli_main()
