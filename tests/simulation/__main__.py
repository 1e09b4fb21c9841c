"""The long form: `python -m tests.simulation --seeds 2000`, or one seed with its last events: `--seed 17`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.run import run_seed


def main() -> int:
    """0 when every seed kept every promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and print its last events and its digest")
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    asked = parser.parse_args()
    if asked.seed is not None:
        result = run_seed(asked.seed)
        print("\n".join(result.events))
        print(f"seed {result.seed}: digest {result.digest}, {result.steps} steps, {result.virtual_s:.1f} s")
        print(result.ended)
        print("\n".join(result.violations))
        return 1 if result.violations else 0
    started_s, broken, ended = time.monotonic(), 0, Counter[str]()
    for seed in range(asked.first, asked.first + asked.seeds):
        result = run_seed(seed)
        ended.update(result.ended)
        if result.violations:
            broken += 1
            print(f"seed {seed}: {result.violations[0]}", flush=True)
    print(f"{asked.seeds} seeds in {time.monotonic() - started_s:.1f} s, {broken} broken, {dict(ended)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
