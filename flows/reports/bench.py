"""The report of a benchmark."""

from typing import Any

from flows.reports.markdown import percent, table

LISTED_SETTINGS = 8


def bench_report(found: dict[str, Any]) -> str:
    """Return what a benchmark found: speeds of each stage beside the whole, and the settings it recommends."""
    whole, best = found["end_to_end"], found["recommended"]
    driver = f", driver {found['driver']}" if found["driver"] else ""
    rows: list[tuple[object, ...]] = [
        _speed("reading, one thread", found["reading"]),
        _speed("tokenizing, one thread", found["tokenizing"]),
        *(_speed(f"the model alone, {name}", rates) for name, rates in found["variants"].items()),
        _speed(f"end to end, {whole['precision']}", whole),
    ]
    told = found["evidence"]
    if told:
        rows.insert(-1, _speed(f"the model alone, {whole['precision']}, with evidence", told["model"]))
        rows.append(_speed(f"end to end, {whole['precision']}, with evidence", told["end_to_end"]))
    memory = f"{whole['peak_memory_mb']:,.0f} MB" if whole["peak_memory_mb"] else "unknown"
    tried = sorted(found["settings_tried"], key=lambda trial: -trial["rows_per_s"])
    settings = [
        (trial["precision"], trial["batch_tokens"], trial["threads"], f"{trial['rows_per_s']:,.0f}") for trial in tried
    ]
    return "\n\n".join(
        [
            f"## Speed of {found['model']} on {found['device']}{driver}",
            f"{found['rows']:,} rows of {found['subject']}, medians of {found['rounds']} rounds.",
            table(["", "rows/s", "tokens/s", "MB/s of text"], rows),
            f"**{percent(whole['ceiling_share'])} of the model's own speed is reached end to end**; "
            f"{percent(whole['padding_share'])} of the token slots are padding; peak memory {memory}. "
            f"Tokenizing with all threads: {found['tokenizing']['mb_per_s_all_threads']:,.0f} MB/s."
            + _evidence_cost(told),
            table(["precision", "batch tokens", "threads", "rows/s when tried"], settings[:LISTED_SETTINGS]),
            f"Recommended here: `{best['command']}`",
        ]
    )


def _evidence_cost(told: dict[str, Any] | None) -> str:
    """Return what it costs to tell the words that carried each label."""
    if not told:
        return " Evidence: this model cannot tell which words carried a label."
    model, whole = (percent(told[kind]) for kind in ("model_cost", "end_to_end_cost"))
    return f" With evidence it takes {whole} longer end to end, and the model alone {model}."


def _speed(name: str, rates: dict[str, Any]) -> tuple[object, ...]:
    return (name, f"{rates['rows_per_s']:,.0f}", f"{rates['tokens_per_s']:,.0f}", f"{rates['mb_per_s']:,.1f}")
