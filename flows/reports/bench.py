"""The report of a benchmark: the speed of each stage, end to end, and the recommended settings."""

from typing import Any

from flows.reports.markdown import percent, table

LISTED_SETTINGS = 8


def bench_report(results: dict[str, Any]) -> str:
    """Return the speed of each stage and end to end, and the recommended settings."""
    end_to_end, evidence = results["end_to_end"], results["evidence"]
    variant = end_to_end["precision"]
    driver = f", driver {results['driver']}" if results["driver"] else ""
    rows: list[tuple[object, ...]] = [
        _speed("reading, one thread", results["reading"]),
        _speed("tokenizing, one thread", results["tokenizing"]),
        *(_speed(f"the model alone, {name}", rates) for name, rates in results["variants"].items()),
        _speed(f"end to end, {variant}", end_to_end),
    ]
    cost = "Evidence: this model cannot tell which words carried a label."
    if evidence:
        rows.insert(-1, _speed(f"the model alone, {variant}, with evidence", evidence["model"]))
        rows.append(_speed(f"end to end, {variant}, with evidence", evidence["end_to_end"]))
        cost = (
            f"With evidence it takes {percent(evidence['end_to_end_cost'])} longer end to end, and the model alone "
            f"{percent(evidence['model_cost'])}."
        )
    memory = f"{end_to_end['peak_memory_mb']:,.0f} MB" if end_to_end["peak_memory_mb"] else "unknown"
    fastest = sorted(results["settings_tried"], key=lambda trial: -trial["rows_per_s"])[:LISTED_SETTINGS]
    settings = [
        (trial["precision"], trial["batch_tokens"], trial["threads"], f"{trial['rows_per_s']:,.0f}")
        for trial in fastest
    ]
    return "\n\n".join(
        [
            f"## Speed of {results['model']} on {results['device']}{driver}",
            f"{results['rows']:,} rows of {results['subject']}, medians of {results['rounds']} rounds.",
            table(["", "rows/s", "tokens/s", "MB/s of text"], rows),
            f"**{percent(end_to_end['ceiling_share'])} of the model's own speed is reached end to end**; "
            f"{percent(end_to_end['padding_share'])} of the token slots are padding; peak memory {memory}. "
            f"Tokenizing with all threads: {results['tokenizing']['mb_per_s_all_threads']:,.0f} MB/s. {cost}",
            table(["variant", "minibatch tokens", "threads", "rows/s when tried"], settings),
            f"Recommended here: `{results['recommended']['command']}`",
        ]
    )


def _speed(name: str, rates: dict[str, Any]) -> tuple[object, ...]:
    return (name, f"{rates['rows_per_s']:,.0f}", f"{rates['tokens_per_s']:,.0f}", f"{rates['mb_per_s']:,.1f}")
