"""Report of a study: mean and spread over seeds of each point, as tables and Markdown."""

import dataclasses
import io
import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas

from tenfold.files import write_atomically
from tenfold.studies.figures import draw_figure
from tenfold.studies.results import PointResult, StudyResult, format_spread
from tenfold.studies.study import Point, Study, format_value, short_name


def summary_table(result: StudyResult) -> pd.DataFrame:
    """Build a table with one row per point: parameters, status, and mean, std, min, max and n of every metric."""
    rows = []
    for point in result.points:
        row: dict[str, object] = {"point": point.point.id, "baseline": point.point.baseline, "status": point.status}
        row.update({key: point.params.get(key) for key in _keys(result)})
        for metric in result.study.metrics:
            spread = point.spread(metric)
            row.update({f"{metric} {name}": getattr(spread, name) for name in ("mean", "std", "min", "max")})
            row[f"{metric} n"] = spread.num_seeds
        rows.append(row)
    return pd.DataFrame(rows)


def trials_table(result: StudyResult) -> pd.DataFrame:
    """Build a table with one row per trial: parameters, seed, status, last epoch, final metrics, run, error."""
    rows = []
    metrics = sorted({name for record in result.records for name in record.metrics})
    for record in result.records:
        row: dict[str, object] = {"trial": record.id, "status": record.status, "seed": record.seed}
        row.update({key: record.params.get(key) for key in _keys(result)})
        row["epoch"] = record.history[-1]["epoch"] if record.history else None
        row.update({name: record.metrics.get(name) for name in metrics})
        row.update({"seconds": round(record.seconds, 2), "run_id": record.run_id, "error": record.error})
        rows.append(row)
    return pd.DataFrame(rows)


def write_report(result: StudyResult, command: str = "") -> StudyResult:
    """Write ``summary.csv``, ``trials.csv``, ``figures/*.png`` and ``report.md`` into the study's folder.

    Args:
        result: Result, also of an interrupted study.
        command: Command that runs or resumes the study.

    Returns:
        The result with the paths of its figures; a figure without any finished point is left out.
    """
    folder = result.folder
    write_atomically(folder / "summary.csv", summary_table(result).to_csv(index=False).encode())
    write_atomically(folder / "trials.csv", trials_table(result).to_csv(index=False).encode())
    figures = {}
    for name, canvas in draw_figures(result).items():
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=130)
        figures[name] = folder / "figures" / f"{name}.png"
        write_atomically(figures[name], buffer.getvalue())
    written = dataclasses.replace(result, figures=figures)
    write_atomically(folder / "report.md", render_report(written, command).encode())
    return written


def draw_figures(result: StudyResult) -> dict[str, Canvas]:
    """Draw the figures by name, leaving out those without values."""
    canvases = {figure.file_name: draw_figure(figure, result.study, result.points) for figure in result.study.figures}
    return {name: canvas for name, canvas in canvases.items() if canvas is not None}


def render_report(result: StudyResult, command: str = "") -> str:
    """Render the report as Markdown; figures are linked relative to the study's folder."""
    study, best = result.study, result.best
    counts = {
        status: sum(record.status == status for record in result.records) for status in ("done", "stopped", "failed")
    }
    missing = sum(point.status == "missing" for point in result.points)
    lines = [f"# {study.name}" + (f" ({study.budget})" if study.budget else ""), ""]
    if study.description:
        lines += [study.description.strip(), ""]
    direction = "higher" if study.mode == "max" else "lower"
    lines += [
        f"- Search: {_describe_search(study)}; {len(result.points)} points x {len(study.seeds)} seeds "
        f"{study.seeds}, judged by the mean of `{study.metric}` over the seeds ({direction} is better).",
        "- Swept: " + "; ".join(f"`{key}` {_describe_axis(study, key)}" for key in study.space) + ".",
        f"- Trials: {counts['done']} done, {counts['stopped']} stopped early, {counts['failed']} failed"
        + (f"; {missing} points still lack a trial" if missing else "")
        + f"; {_duration(sum(record.seconds for record in result.records))} of computing, "
        f"{_duration(result.seconds)} of wall time in this start.",
    ]
    if study.base:
        lines.append(f"- Shared by all: `{' '.join(study.base)}`.")
    if command:
        lines.append(f"- Command (also resumes an interrupted study): `{command}`")
    if result.interrupted:
        lines.append("- **Interrupted**: this report shows the results so far.")
    lines += ["", "## Result", ""]
    if best is None:
        lines += ["No point has finished with every seed yet.", ""]
    else:
        metrics = "; ".join(f"{metric} {format_spread(best.spread(metric))}" for metric in study.metrics)
        lines += [f"Best point: **{best.point.label}**: {metrics}.", ""]
    lines += _markdown_table(result)
    lines += ["", "Mean ± standard deviation over seeds; n seeds where not all of them count.", ""]
    if result.figures:
        lines += ["## Figures", ""]
        for name, path in result.figures.items():
            lines += [f"![{name}]({path.relative_to(result.folder).as_posix()})", ""]
    errors = [record for record in result.records if record.status == "failed"]
    if errors:
        lines += ["## Failed trials", "", "The same command runs them again.", ""]
        lines += [f"- {Point(record.params).label}, seed {record.seed}: `{record.error}`" for record in errors]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(result: StudyResult) -> list[str]:
    study = result.study
    keys = _keys(result)
    names = {key: short_name(key) if sum(short_name(k) == short_name(key) for k in keys) == 1 else key for key in keys}
    header = ["", *names.values(), *study.metrics, "state"]
    best = result.best

    def row(point: PointResult) -> list[str]:
        name = point.point.baseline or ("**best**" if best is not None and point is best else "")
        values = [_cell(point.params, key) for key in keys]
        spreads = [format_spread(point.spread(metric), len(study.seeds)) for metric in study.metrics]
        return [name, *values, *spreads, point.status]

    order = sorted(
        (point for point in result.points if not point.point.baseline), key=lambda point: _rank(point, study)
    )
    rows = [row(point) for point in [*(p for p in result.points if p.point.baseline), *order]]
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _rank(point: PointResult, study: Study) -> tuple[int, bool, float]:
    mean = point.spread(study.metric).mean
    state = ("done", "stopped", "missing", "failed").index(point.status)
    return state, math.isnan(mean), -mean if study.mode == "max" else mean


def _cell(params: Mapping[str, object], key: str) -> str:
    value = params.get(key, "")
    return format_value(value) if isinstance(value, bool | int | float | str) or value is None else str(value)


def _keys(result: StudyResult) -> list[str]:
    extra = (key for values in result.study.baselines.values() for key in values)
    return list(dict.fromkeys([*result.study.space, *extra]))


def _describe_search(study: Study) -> str:
    text = study.search if study.search == "grid" else f"{study.search}, {study.num_samples} samples"
    return f"{text}, ASHA up to {study.scheduler.max_epochs} epochs" if study.scheduler else text


def _describe_axis(study: Study, key: str) -> str:
    axis = study.space[key]
    values = ", ".join(format_value(value) for value in axis.values)
    return f"{{{values}}}" if axis.is_listed else f"{axis.kind} [{values}]"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
