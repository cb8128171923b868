"""`vlmopt eval` as a script, for launchers: `accelerate launch apps/evaluate.py --model ... --data ... --out ...`."""

from __future__ import annotations

import sys

from vlmopt.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
