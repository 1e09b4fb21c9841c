"""`pawstay test crash-points`: goes through all points and says what was seen."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from tests.faults.crash.harness import Result, run_points
from tests.faults.crash.points import all_pairs, second_points, single_points
from tests.faults.crash.vocabulary import Point
from tests.support.servers import postgres_server, valkey_server


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """`{"points", "recovered", "violations", "steps"}`; a pair whose second step did not come is no point."""
    counted = [result for result in results if result.met[:1] != [True] or all(result.met) or result.point.then is None]
    return {
        "points": len(counted),
        "recovered": sum(result.recovered for result in counted),
        "violations": sum(len(result.broken) for result in results),
        "steps": [result.as_json() for result in results],
    }


def chosen(arguments: argparse.Namespace) -> list[Point]:
    """The points that were asked for."""
    points = list(all_pairs()) if arguments.pairs else [*single_points(), *second_points()]
    return [point for point in points if arguments.only in point.name]


def main() -> int:
    """0 when everything recovered, 1 when not, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="pawstay test crash-points", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default="", metavar="TEXT", help="only points whose name has this text")
    parser.add_argument(
        "--pairs", action="store_true", help="every point with every second fault in its recovery (hours)"
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the processes' logs in this new folder")
    arguments = parser.parse_args()
    points = chosen(arguments)
    if arguments.logs is not None and arguments.logs.exists():
        parser.error(f"{arguments.logs} is there already: name a new folder")
    if not points:
        parser.error(f"no point has {arguments.only!r} in its name")
    results: list[Result] = []
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),  # standard output is for the result
    )

    began = time.monotonic()

    def heard(result: Result) -> None:
        results.append(result)
        verdict = "ok" if result.recovered else "; ".join(result.broken) or "did not happen"
        place = f"{time.monotonic() - began:.0f} s, {len(results)} of {len(points)}"
        print(f"{place}: {result.point.name}: {verdict} ({result.took_s:.1f} s)", file=sys.stderr)

    with (
        tempfile.TemporaryDirectory(prefix="pawstay-crash-") as folder,
        postgres_server(max_connections="800") as postgres,
        valkey_server() as valkey,
    ):
        try:
            asyncio.run(run_points(points, postgres, valkey.url(), Path(folder), heard))
        finally:
            if arguments.logs is not None:
                shutil.copytree(folder, arguments.logs)
    said = summary(results)
    if arguments.json:
        print(json.dumps(said, ensure_ascii=False))
    else:
        print(f"{said['points']} points, {said['recovered']} recovered, {said['violations']} violations")
    good = said["recovered"] == said["points"] and not said["violations"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
