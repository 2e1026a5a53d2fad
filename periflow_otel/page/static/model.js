// A run as data: parts of it put together, and what is computed from them. docs/view.md describes what comes in.
"use strict";

const COLUMNS = ["step", "time", "last", "min", "max", "mean", "count", "nonfinite"];

/** Put a part into what is known of a run, and return that. */
function withPart(known, part) {
  const whole = known && part.since ? known : { series: new Map(), named: new Map() };
  Object.assign(whole, { ...part, series: whole.series });
  for (const each of part.series) {
    const name = nameOfSeries(each.kind, each.key), id = [name, each.attempt, each.rank].join("\u0000");
    const isNew = !whole.series.has(id);
    const series = whole.series.get(id) || { ...each, ...Object.fromEntries(COLUMNS.map((name) => [name, []])) };
    const rows = allColumns(each);
    series.width = each.width;
    for (const name of COLUMNS) series[name].splice(each.from, Infinity, ...rows[name]);
    whole.series.set(id, series);
    if (isNew) whole.named.set(name, [...(whole.named.get(name) || []), series]);
  }
  return whole;
}

function nameOfSeries(kind, key) {
  return `${kind}\u0000${key}`;
}

/** Return the columns of a series with those that were left out because they say nothing new. */
function allColumns(part) {
  const last = part.last, count = part.count || last.map(() => 1);
  return {
    step: part.step, time: part.time, last, count, min: part.min || last, max: part.max || last,
    mean: part.mean || last, nonfinite: part.nonfinite || last.map(() => 0),
  };
}

const ROWS = 512;

/**
 * Return an average that forgets with the distance along x, as a share of the whole: few values far apart are hardly
 * smoothed. It has no pull to zero at the start, and gaps where there are gaps.
 */
function smoothed(values, weight, xs) {
  const range = xs[xs.length - 1] - xs[0] || 1;
  let sum = 0, norm = 0, before = xs[0];
  return values.map((value, i) => {
    if (value === null || weight === 0) return value;
    const kept = weight ** Math.max(1e-9, ((xs[i] - before) / range) * ROWS);
    before = xs[i];
    sum = sum * kept + value * (1 - weight);
    norm = norm * kept + (1 - weight);
    return sum / norm;
  });
}

/** Return the keys of the metrics of runs: loss first, then as they came. */
function metricKeys(runs, kind = "metric") {
  const keys = new Set();
  for (const run of runs) for (const [first] of run.named.values()) if (first.kind === kind) keys.add(first.key);
  const rank = (key) => (/^(train[/_.])?loss$/i.test(key) ? 0 : /loss/i.test(key) ? 1 : /acc|score|f1/i.test(key) ? 2
    : /lr|learning_rate|grad/i.test(key) ? 3 : 4);
  return [...keys].sort((a, b) => rank(a) - rank(b));
}

/** Return the series of a run that a chart shows; of a metric that of the lowest rank which has it, unless asked. */
function shownSeries(run, kind, key, ranks) {
  const all = run.named.get(nameOfSeries(kind, key)) || [];
  if (ranks === "all") return all;
  if (ranks !== "lowest") return all.filter((each) => each.rank === Number(ranks));
  // of each attempt: a resumed run may have other ranks here
  return all.filter((each) => all.every((other) => other.attempt !== each.attempt || other.rank >= each.rank));
}

/** Return how the seconds of a run were spent, by kind, over all ranks and attempts; the most first. */
function timeByKind(run) {
  const kinds = new Map(); // a phase may be called constructor
  for (const rank of run.ranks) for (const [kind, s] of Object.entries(rank.time)) kinds.set(kind, (kinds.get(kind) || 0) + s);
  return [...kinds].filter(([, s]) => s > 0).sort((a, b) => b[1] - a[1]);
}

/** Return the share of time in steps that were not done again later; null where nothing is known. */
function goodput(run) {
  const kinds = timeByKind(run), total = kinds.reduce((sum, [, s]) => sum + s, 0);
  const steps = run.ranks.reduce((sum, rank) => sum + rank.steps, 0);
  const redone = run.attempts.reduce((sum, each) => sum + each.redone_steps * each.ranks, 0);
  const inSteps = [...run.series.values()].filter((each) => each.kind === "step").reduce((sum, each) => sum + secondsOf(each), 0);
  return total && steps ? (inSteps * Math.max(0, steps - redone)) / steps / total : null;
}

/** Return the seconds of all steps of a series, phases in them and all. */
function secondsOf(series) {
  return series.mean.reduce((sum, mean, i) => sum + (mean || 0) * series.count[i], 0);
}

function lastAttempt(run) {
  return run.ranks.filter((rank) => rank.attempt === run.run.attempt);
}

/** Return the mean seconds that each rank of the last attempt spends in a phase of a step; phases by time, the longest first. */
function phaseMeans(run) {
  const ranks = lastAttempt(run).filter((rank) => rank.steps);
  const means = (name) => ranks.map((rank) => ({ rank: rank.rank, mean: Object.hasOwn(rank.phases, name) ? rank.phases[name].seconds / rank.steps : 0 }));
  const names = [...new Set(ranks.flatMap((rank) => Object.keys(rank.phases)))];
  return names.map((name) => [name, means(name)]).sort(([, a], [, b]) => longest(b).mean - longest(a).mean);
}

function longest(means) {
  return means.reduce((a, b) => (b.mean > a.mean ? b : a));
}

/** Return the marks of a kind over all ranks, one for each attempt and step, in order. */
function marks(run, kind) {
  const found = new Map();
  for (const rank of run.ranks) {
    for (const each of rank[kind].kept) {
      const id = `${rank.attempt} ${each.step} ${each.key || ""}`;
      const mark = found.get(id) || { ...each, attempt: rank.attempt, ranks: [] };
      mark.ranks.push(rank.rank);
      found.set(id, mark);
    }
  }
  return [...found.values()].sort((a, b) => a.time - b.time);
}

/** Return the values of a series of ranks as a grid: for each rank a row, for each stretch of steps a cell. */
function rankGrid(run, kind) {
  const all = [...run.series.values()].filter((each) => each.kind === kind && each.attempt === run.run.attempt);
  if (all.length < 2) return null;
  let width = Math.max(...all.map((each) => each.width));
  const last = Math.max(...all.map((each) => each.step[each.step.length - 1] || 0));
  while (last / width > 160) width *= 2;
  const first = Math.floor(Math.min(...all.map((each) => each.step[0] || 0)) / width);
  const cells = all.sort((a, b) => a.rank - b.rank).map((each) => {
    const row = new Map();
    each.step.forEach((step, i) => {
      const cell = row.get(Math.floor(step / width)) || [0, 0];
      if (each.mean[i] !== null) row.set(Math.floor(step / width), [cell[0] + each.mean[i] * each.count[i], cell[1] + each.count[i]]);
    });
    return Array.from({ length: Math.floor(last / width) - first + 1 }, (_, i) => {
      const cell = row.get(first + i);
      return cell ? { value: cell[0] / cell[1], count: cell[1] } : null;
    });
  });
  const began = run.attempts.find((each) => each.attempt === run.run.attempt).initial_step + 1;
  return { width, first: Math.max(first * width, began), last, ranks: all.map((each) => each.rank), cells };
}

/** Return a grid of how much later than the first each rank began its steps, on the average of a stretch. */
function latenessGrid(run) {
  const grid = rankGrid(run, "start");
  if (!grid) return null;
  grid.cells[0].forEach((_, i) => {
    const column = grid.cells.map((row) => row[i]), most = Math.max(...column.map((cell) => (cell ? cell.count : 0)));
    const whole = column.filter((cell) => cell && cell.count === most).map((cell) => cell.value);
    grid.cells.forEach((row) => { row[i] = row[i] && row[i].count === most ? { ...row[i], value: row[i].value - Math.min(...whole) } : null; });
  });
  return grid;
}

const WHOLE = new Intl.NumberFormat("en");

function shownNumber(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size >= 1e7 || size < 1e-4)) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  if (Number.isInteger(value)) return WHOLE.format(value);
  return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
}

/** Return a number of steps as an axis has room for. */
function shortNumber(value) {
  const [unit, size] = [["G", 1e9], ["M", 1e6], ["k", 1e3]].find(([, each]) => value >= 10 * each || (each > 1e3 && value >= each)) || ["", 1];
  return unit ? `${Number((value / size).toPrecision(5))}${unit}` : shownNumber(value);
}

function shownSeconds(s) {
  if (s === null || s === undefined || Number.isNaN(s)) return "–";
  if (s < 0) return `−${shownSeconds(-s)}`;
  if (s === 0) return "0 s";
  if (s < 1e-3) return `${Number((s * 1e6).toPrecision(3))} µs`;
  if (s < 1) return `${Number((s * 1e3).toPrecision(3))} ms`;
  if (s < 60) return `${Number(s.toPrecision(3))} s`;
  const m = Math.round(s / 60), h = Math.floor(s / 3600), d = Math.floor(h / 24);
  if (s < 3600) return `${Math.floor(s / 60)} m ${Math.floor(s % 60)} s`;
  return d ? `${d} d ${h % 24} h` : `${h} h ${m % 60} m`;
}

function shownTime(unixS) {
  return unixS ? new Date(unixS * 1000).toLocaleString() : "–";
}

function clockTime(unixS) {
  return unixS ? new Date(unixS * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : "–";
}

function dateOf(unixS) {
  return unixS ? new Date(unixS * 1000).toLocaleDateString() : "";
}
