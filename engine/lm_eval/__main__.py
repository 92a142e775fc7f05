import sys

from evalengine.cli import main

raise SystemExit(main(["lm-eval", *sys.argv[1:]]))
