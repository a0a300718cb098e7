"""What Prefect adds to scoring: the flow `score` on a running server, beside the same work without it.

Start a server, let nothing else run, and give a workspace that has the batch and a trained model. Labels are
written into a temporary workspace, so WORKSPACE stays as it is:

    uv run prefect server start
    PREFECT_API_URL=http://127.0.0.1:4200/api uv run python tests/benchmarks/flow_overhead.py WORKSPACE --batch ID
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from flows.score import score
from pipeline.config import ScoringConfig
from pipeline.models.registry import Registry
from pipeline.nights.finish import score_batch
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--batch", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    if not os.environ.get("PREFECT_API_URL"):
        print("set PREFECT_API_URL to a running server: a temporary one would be measured too", file=sys.stderr)
        sys.exit(2)
    config = ScoringConfig.model_validate({"device": "cpu", "precision": options.precision})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("documents", "models"):
            (place / name).symlink_to((options.workspace / name).resolve())
        seconds: dict[str, list[float]] = {"without Prefect": [], "as a flow": []}
        for number in range(options.rounds):
            for name, run in (("without Prefect", _directly), ("as a flow", _as_flow)):
                shutil.rmtree(place / "labels", ignore_errors=True)
                started = time.perf_counter()
                run(place, options.batch, config)
                seconds[name].append(time.perf_counter() - started)
                print(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s", flush=True)
    direct, flow = (statistics.median(values) for values in seconds.values())
    rows = Workspace(options.workspace).batch(options.batch).rows
    print(f"\n| {rows:,} rows | median s of {options.rounds} | spread |\n| --- | ---: | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f}-{max(values):.2f} |")
    print(f"\nThe flow's own overhead: {flow - direct:.2f} s, {1 - direct / flow:.1%} of its wall time")


def _directly(place: Path, batch: str, config: ScoringConfig) -> None:
    workspace = Workspace(place)
    with Scorer(Registry(workspace).find(), config) as scorer:
        score_batch(workspace, workspace.batch(batch), scorer)


def _as_flow(place: Path, batch: str, config: ScoringConfig) -> None:
    score([batch], config=config, workspace=str(place))


if __name__ == "__main__":
    main()
