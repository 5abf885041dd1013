"""Figures of a study: each shows the spread over seeds and names the dimensions that it hides.

Uses Matplotlib's ``Figure`` without pyplot: no global state, safe in servers and Ray workers.
"""

import math
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, NullFormatter

from tenfold.studies.results import PointResult, format_spread
from tenfold.studies.space import Axis, Scalar
from tenfold.studies.study import Figure, Study, format_value, short_name

COLOURS = [colormaps["tab10"](index) for index in (0, 1, 2, 3, 4, 6, 8, 9, 5)]
BASELINE_STYLES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (9, 2)), (0, (1, 4)))
GREY = "0.4"
BARS_BELOW = 0.5
"""Bars start at zero, so they are drawn only if the lowest value is below this share of the highest; closer values are
drawn as points, whose axis need not include zero."""


def draw_figure(figure: Figure, study: Study, points: Sequence[PointResult]) -> Canvas | None:
    """Draw one figure of a study.

    Points that agree in everything shown are reduced to the best one by the study's own metric, also in a figure of
    another metric: selecting by the reported metric would be optimistic.

    Returns:
        The figure; None if no point has a value to show.
    """
    metric = figure.metric or study.metric
    space = [point for point in points if not point.point.baseline and _has_value(point, metric)]
    if not space:
        return None
    baselines = [point for point in points if point.point.baseline and _has_value(point, metric)]
    if figure.baselines is not None:
        baselines = [point for point in baselines if point.point.baseline in figure.baselines]
    canvas = Canvas(figsize=(7.2, 4.6), layout="constrained")
    axes = canvas.add_subplot()
    bars = _draw_bars if figure.x else _draw_ranking
    draw = {"line": _draw_line, "bar": bars, "heatmap": _draw_heatmap, "curves": _draw_curves}[figure.kind]
    draw(axes, figure, study, space, baselines)
    subtitle = f"mean ± standard deviation over {len(study.seeds)} seeds" if len(study.seeds) > 1 else "one seed"
    if hidden := _hidden(figure, study):
        subtitle += f"; best over {', '.join(short_name(key) for key in hidden)}"
    title = figure.title or study.name.replace("_", " ")
    axes.set_title(f"{title}\n", fontsize=11, loc="left", fontweight="bold")
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=8.5, color=GREY)
    return canvas


def _draw_line(
    axes: Axes, figure: Figure, study: Study, points: list[PointResult], baselines: list[PointResult]
) -> None:
    metric, axis = figure.metric or study.metric, study.space[figure.x]
    place = _scale(axes, axis, figure.x)
    for colour, (value, group) in zip(_cycle(), _groups(points, figure.hue).items(), strict=False):
        shown = group
        if axis.is_listed:
            shown = [_best(study, same) for same in _groups(group, figure.x).values()]
        shown = sorted(shown, key=lambda point: place(point.params[figure.x]))
        x = [place(point.params[figure.x]) for point in shown]
        mean, std = _mean_and_std(shown, metric)
        label = _label(figure.hue, value)
        connected = axis.is_listed and axis.is_numeric
        axes.errorbar(
            x,
            mean,
            std,
            fmt="o-" if connected else "o",
            color=colour,
            label=label,
            capsize=3,
            ms=5,
            lw=1.6,
            elinewidth=1,
        )
        if connected:
            axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.12, lw=0)
    _draw_baselines(axes, metric, baselines)
    axes.set_ylabel(metric)
    _finish(axes, legend=bool(figure.hue or baselines))


def _draw_bars(
    axes: Axes, figure: Figure, study: Study, points: list[PointResult], baselines: list[PointResult]
) -> None:
    metric = figure.metric or study.metric
    values = [value for value in study.space[figure.x].values if value in _groups(points, figure.x)]
    hues = _groups(points, figure.hue)
    width = 0.8 / len(hues)
    every = [value for point in (*points, *baselines) for value in point.spread(metric).values]
    bars = min(every) < 0 or min(every) < BARS_BELOW * max(every)
    for index, (colour, (hue, group)) in enumerate(zip(_cycle(), hues.items(), strict=False)):
        shown = {value: _best(study, same) for value, same in _groups(group, figure.x).items()}
        x = np.array([values.index(value) for value in shown]) + (index - (len(hues) - 1) / 2) * width
        mean, std = _mean_and_std(list(shown.values()), metric)
        if bars:
            axes.bar(x, mean, 0.9 * width, color=colour, alpha=0.75, label=_label(figure.hue, hue))
            axes.errorbar(x, mean, std, fmt="none", ecolor="0.2", capsize=3, elinewidth=1)
        else:
            axes.errorbar(x, mean, std, fmt="s", ms=6, color=colour, capsize=4, label=_label(figure.hue, hue))
        for position, point, height, spread in zip(x, shown.values(), mean, std, strict=True):
            seeds = point.spread(metric).values
            axes.plot([position + 0.2 * width] * len(seeds), seeds, ".", color="0.25", ms=4, zorder=3)
            axes.annotate(
                format_spread(point.spread(metric)).split(" ")[0],
                (position, max(height + spread, *seeds)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axes.set_xticks(range(len(values)), [format_value(value) for value in values])
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_xlabel(figure.x)
    axes.set_ylabel(metric)
    axes.margins(y=0.12)
    _draw_baselines(axes, metric, baselines)
    _finish(axes, legend=bool(figure.hue or baselines))


def _draw_ranking(
    axes: Axes, figure: Figure, study: Study, points: list[PointResult], baselines: list[PointResult]
) -> None:
    metric = figure.metric or study.metric
    best = _best(study, points)
    shown = sorted([best, *baselines], key=lambda point: point.spread(metric).mean)
    for position, point in enumerate(shown):
        spread = point.spread(metric)
        colour = COLOURS[0] if point is best else GREY
        axes.errorbar(spread.mean, position, xerr=np.nan_to_num(spread.std), fmt="s", ms=6, color=colour, capsize=4)
        axes.plot(spread.values, [position] * len(spread.values), ".", color="0.25", ms=4, zorder=3)
        axes.annotate(
            format_spread(spread), (1.0, position), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    names = [textwrap.fill(point.point.label, 34) for point in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel(metric)
    _finish(axes, legend=False)


def _draw_heatmap(
    axes: Axes, figure: Figure, study: Study, points: list[PointResult], baselines: list[PointResult]
) -> None:
    metric = figure.metric or study.metric
    columns, rows = study.space[figure.x].values, study.space[figure.y].values
    grid = np.full((len(rows), len(columns)), np.nan)
    cells: dict[tuple[int, int], PointResult] = {}
    for x, group in _groups(points, figure.x).items():
        for y, same in _groups(group, figure.y).items():
            if x in columns and y in rows:
                cell = (rows.index(y), columns.index(x))
                cells[cell] = _best(study, same)
                grid[cell] = cells[cell].spread(metric).mean
    axes.set_facecolor("0.9")  # marks cells without a result
    image = axes.imshow(grid, cmap="viridis" if study.mode == "max" else "viridis_r", aspect="auto", origin="lower")
    for (row, column), point in cells.items():
        red, green, blue, _ = image.cmap(image.norm(grid[row, column]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = format_spread(point.spread(metric)).replace(" ±", "\n±")
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [format_value(value) for value in columns])
    axes.set_yticks(range(len(rows)), [format_value(value) for value in rows])
    notes = [f"{point.point.baseline}: {format_spread(point.spread(metric))}" for point in baselines]
    axes.set_xlabel("\n".join([figure.x, *([f"beside it: {'; '.join(notes)}"] if notes else [])]))
    axes.set_ylabel(figure.y)
    if axes.figure is not None:
        axes.figure.colorbar(image, ax=axes, label=metric)


def _draw_curves(
    axes: Axes, figure: Figure, study: Study, points: list[PointResult], baselines: list[PointResult]
) -> None:
    metric = figure.metric or study.metric
    if figure.hue:
        chosen = [
            (_label(figure.hue, value), _best(study, group)) for value, group in _groups(points, figure.hue).items()
        ]
    else:
        best = _best(study, points)
        chosen = [(best.point.label, best)]
    highlighted = {id(point) for _, point in chosen}
    for point in points:
        if id(point) not in highlighted:
            epochs, mean, _ = _curve(point, metric)
            axes.plot(epochs, mean, color="0.8", lw=0.8, zorder=1)
    for colour, (label, point) in zip(_cycle(), chosen, strict=False):
        epochs, mean, std = _curve(point, metric)
        axes.plot(epochs, mean, "o-", color=colour, ms=3.5, lw=1.6, label=label)
        axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.18, lw=0)
    for index, point in enumerate(baselines):
        epochs, mean, std = _curve(point, metric)
        style = BASELINE_STYLES[index % len(BASELINE_STYLES)]
        axes.plot(epochs, mean, linestyle=style, color=GREY, lw=1.4, label=point.point.baseline)
        axes.fill_between(epochs, mean - std, mean + std, color=GREY, alpha=0.12, lw=0)
    axes.set_xlabel("epoch" + (" (thin: every other point)" if len(points) > len(chosen) else ""))
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, legend=True)


def _curve(point: PointResult, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs ``(E,)`` that every seed reached, with mean and standard deviation ``(E,)`` of a metric over seeds.

    Seeds that ended early would change the set averaged over, and bend the curve.
    """
    by_epoch: dict[float, list[float]] = {}
    for record in point.records:
        for row in record.history:
            if metric in row and math.isfinite(row[metric]):
                by_epoch.setdefault(row["epoch"], []).append(row[metric])
    num_seeds = max(map(len, by_epoch.values()), default=0)
    epochs = sorted(epoch for epoch, values in by_epoch.items() if len(values) == num_seeds)
    means = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
    stds = [float(np.std(by_epoch[epoch], ddof=1)) if len(by_epoch[epoch]) > 1 else 0.0 for epoch in epochs]
    return np.array(epochs), np.array(means), np.array(stds)


def _draw_baselines(axes: Axes, metric: str, baselines: list[PointResult]) -> None:
    for index, point in enumerate(baselines):
        spread = point.spread(metric)
        style = BASELINE_STYLES[index % len(BASELINE_STYLES)]
        axes.axhline(spread.mean, linestyle=style, color=GREY, lw=1.4, label=point.point.baseline, zorder=1)
        if not math.isnan(spread.std):
            axes.axhspan(spread.mean - spread.std, spread.mean + spread.std, color=GREY, alpha=0.12, lw=0)


def _scale(axes: Axes, axis: Axis, key: str) -> Callable[[Scalar], float]:
    """Set up the x axis; return the function from value to position."""
    axes.set_xlabel(key)
    if not axis.is_numeric:
        positions = {value: float(index) for index, value in enumerate(axis.values)}
        axes.set_xticks(list(positions.values()), [format_value(value) for value in positions])
        axes.set_xlim(-0.5, len(positions) - 0.5)
        return lambda value: positions[value]
    spans_decades = axis.is_listed and min(axis.values) > 0 and max(axis.values) >= 50 * min(axis.values)
    if axis.is_log or spans_decades:
        axes.set_xscale("log")
    if axis.is_listed and len(axis.values) <= 12:
        axes.set_xticks(axis.values, [format_value(value) for value in axis.values])
        axes.xaxis.set_minor_formatter(NullFormatter())
    return lambda value: float(value)  # type: ignore[arg-type]  # numeric axes hold numbers alone


def _finish(axes: Axes, *, legend: bool) -> None:
    axes.grid(alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _groups(points: Sequence[PointResult], key: str) -> dict[Scalar, list[PointResult]]:
    """Group points by the value of a key, numbers sorted, others in order of appearance; one group without a key."""
    if not key:
        return {None: list(points)}
    groups: dict[Scalar, list[PointResult]] = {}
    for point in points:
        groups.setdefault(point.params[key], []).append(point)
    if all(isinstance(value, int | float) for value in groups):
        return dict(sorted(groups.items()))
    return groups


def _best(study: Study, points: Sequence[PointResult]) -> PointResult:
    best = points[0]
    for point in points[1:]:
        done = (point.status == "done", best.status == "done")
        better = study.better(point.spread(study.metric).mean, best.spread(study.metric).mean)
        if done == (True, False) or (done[0] == done[1] and better):
            best = point
    return best


def _mean_and_std(points: Sequence[PointResult], metric: str) -> tuple[np.ndarray, np.ndarray]:
    mean = np.array([point.spread(metric).mean for point in points])
    std = np.array([point.spread(metric).std for point in points])
    return mean, np.nan_to_num(std)  # one seed has no spread to draw


def _has_value(point: PointResult, metric: str) -> bool:
    return math.isfinite(point.spread(metric).mean)


def _hidden(figure: Figure, study: Study) -> list[str]:
    if figure.kind == "bar" and not figure.x:
        return []  # labelled with all parameters
    if figure.kind == "line" and not study.space[figure.x].is_listed:
        return []  # every point is drawn
    return [key for key in study.space if key not in (figure.x, figure.y, figure.hue)]


def _label(key: str, value: Scalar) -> str | None:
    return f"{short_name(key)} {format_value(value)}" if key else None


def _cycle() -> list[tuple[float, float, float, float]]:
    return [COLOURS[index % len(COLOURS)] for index in range(1000)]
