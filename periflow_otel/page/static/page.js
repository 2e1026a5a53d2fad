// The page: what is shown of which run, and the controls. All text comes in as text, never as markup.
"use strict";

const COLORS = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"];
const page = { runs: [], cards: new Map(), isLive: false, showsStacks: false };
window.periflow = { page, charts, settings };

const byId = (id) => document.getElementById(id);
const now = () => Date.now() / 1000;

/** Return what a run is called here: by its name, and by its id too where others have that name. */
function nameOf(run) {
  const { name, id } = run.run, isShared = page.runs.some((other) => other !== run && other.run.name === name);
  return name && isShared ? `${name} (${id})` : name || id;
}

/** Return the lines of a chart over all runs. */
function linesOf(kind, key, { isExact = false } = {}) {
  const several = page.runs.length > 1;
  return page.runs.flatMap((run, number) => {
    const found = shownSeries(run, kind, key, settings.ranks), isSplit = new Set(found.map((each) => each.rank)).size > 1;
    return found.map((each) => {
      const label = [several ? nameOf(run) : "", isSplit ? `rank ${each.rank}` : "", run.attempts.length > 1 && found.length > 1 ? `attempt ${each.attempt}` : ""].filter(Boolean).join(", ");
      const name = [several ? nameOf(run) : "", isSplit ? `rank ${each.rank}` : ""].filter(Boolean).join(", ");
      const earlier = each.attempt < run.run.attempt ? [4, 3] : undefined;
      return lineOf(run, each, { label, name, color: color(COLORS[(several ? number : isSplit ? each.rank : 0) % 8]), dash: earlier, isExact });
    });
  });
}

function lineOf(run, series, look) {
  const start = run.run.started || 0, times = series.time.map((time) => time - start);
  const order = settings.x === "step" ? null : times.map((_, i) => i).sort((a, b) => times[a] - times[b]);
  const column = (values) => (order ? order.map((i) => values[i]) : values);
  const line = { ...look, latest: series.last[series.last.length - 1], steps: column(series.step), times: column(times), raw: column(series.mean), low: column(series.min), high: column(series.max), nonfinite: column(series.nonfinite) };
  line.xs = settings.x === "step" ? line.steps : line.times;
  line.hasRange = series.count.some((count) => count > 1) && settings.ranks !== "all";
  return line;
}

/** Return what happened to a run, for every chart. */
function marksOf(key) {
  return page.runs.flatMap((run) => {
    const start = run.run.started || 0, at = (mark) => (settings.x === "step" ? mark.step : mark.time - start);
    return [
      ...(page.runs.length > 1 ? [] : marks(run, "checkpoints").map((mark) => ({ kind: "checkpoint", x: at(mark), color: "good" }))),
      ...(page.runs.length > 1 ? [] : run.attempts.slice(1).map((each) => ({ kind: "restart", x: settings.x === "step" ? each.initial_step : each.started - start, color: "warn" }))),
      ...marks(run, "nonfinite").filter((mark) => mark.key === key).map((mark) => ({ kind: "nonfinite", x: at(mark), color: "bad" })),
    ];
  });
}

/** Tell whether a run goes on: what is not heard of any more may have ended since. */
function isGoingOn(run) {
  return run.run.state === "running" && !page.lost;
}

function tile(term, value, small = "") {
  return make("div", { class: "tile" }, make("dt", {}, term), make("dd", {}, value, make("small", {}, small)));
}

function drawTop() {
  const one = page.runs.length === 1 ? page.runs[0] : null;
  document.title = one ? `${isGoingOn(one) && one.run.target_step ? `${Math.floor((100 * one.run.step) / one.run.target_step)} % ` : ""}${nameOf(one)}` : `${page.runs.length} runs`;
  const title = make("div", { class: "title" }, make("h1", {}, one ? nameOf(one) : `${page.runs.length} runs`),
    ...(one ? [isGoingOn(one) || one.run.state !== "running" ? make("span", { class: `state ${one.run.state}` }, one.run.state) : make("span", { class: "state unknown" }, "not heard of")] : []),
    page.isLive && one && one.run.name ? make("span", { class: "muted" }, one.run.id) : null,
    make("span", { class: "spring" }), page.isLive ? make("a", { href: "/" }, "all runs") : null,
    page.lost && one.run.state === "running" ? make("span", { class: "muted" }, "the agent has ended; this is what it told last") : null);
  byId("top").replaceChildren(title, ...(one ? [progressOf(one), tilesOf(one), make("div", { class: "alerts" }, ...alertsOf(one))] : [runsTable()]));
}

function progressOf(run) {
  const share = run.run.target_step ? Math.min(1, run.run.step / run.run.target_step) : null;
  const bar = make("div", {});
  bar.style.width = `${100 * (share || 0)}%`;
  return make("div", { class: "progress", role: "progressbar", "aria-label": "steps done", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * (share || 0)), hidden: share === null }, bar);
}

function tilesOf(run) {
  const { run: of } = run, isRunning = isGoingOn(run), share = goodput(run);
  const key = metricKeys([run]).find((each) => Object.hasOwn(of.last, each)), checkpoints = marks(run, "checkpoints"), last = checkpoints[checkpoints.length - 1];
  const until = isRunning && page.isLive ? now() : of.seen;
  return make("dl", { class: "tiles" },
    tile("Step", shownNumber(of.step), of.target_step ? `of ${shownNumber(of.target_step)}` : ""),
    tile("Pace", of.pace ? (of.pace >= 1 ? `${shownNumber(of.pace)}` : shownSeconds(1 / of.pace)) : "–", of.pace ? (of.pace >= 1 ? "steps/s" : "a step") : ""),
    ...Object.entries(of.work).filter(([kind]) => kind !== "flops" || of.utilization === null).map(([kind, each]) => tile(`${kind}/s`, shownNumber(each), "on all ranks")),
    ...(of.utilization === null ? [] : [tile("Utilization", `${(100 * of.utilization).toFixed(1)} %`, "of peak FLOP/s")]),
    isRunning ? tile("Time left", shownSeconds(of.seconds_left)) : tile(of.state === "running" ? "Last heard of" : "Ended", clockTime(of.seen), dateOf(of.seen)),
    tile("Duration", shownSeconds(of.started ? until - of.started : null)),
    ...(key ? [tile(key, shownNumber(of.last[key]))] : []),
    tile("In steps", share === null ? "–" : `${(100 * share).toFixed(share > 0.995 ? 1 : 0)} %`, "of the time"),
    tile("Checkpoint", last ? shownNumber(last.step) : "none", last ? (isRunning ? `${shownSeconds(until - last.time)} ago` : last.attempt < of.attempt ? `of attempt ${last.attempt}` : last.step >= of.step ? "of the last step" : `${shownNumber(of.step - last.step)} before the end`) : ""),
    tile("Ranks", shownNumber(lastAttempt(run).length), of.world_size > lastAttempt(run).length ? `of ${of.world_size}` : ""),
    tile("Attempt", shownNumber(of.attempt)));
}

/** Return what stands out of a run, in words. */
function alertsOf(run) {
  const stuck = run.stuck.filter((each) => each.attempt === run.run.attempt && !each.is_over);
  const told = (found) => (found.kind === "stuck" ? stuck : found.kind === "slow_inside" ? run.slow.filter((each) => each.attempt === run.run.attempt && each.last_step === found.step) : []).flatMap((each) => each.stacks);
  const shown = (found) => (found.kind === "failed" || found.kind === "killed" ? stacksOf("Where that was", endsOf(run, found)) : stacksOf("What the ranks are doing", told(found)));
  return run.findings.map((each) => make("div", { class: each.is_fault ? "alert" : "alert note" }, each.text, shown(each)));
}

/** Return the stacks of what ended ranks, as far as they are recorded; once where they are the same. */
function endsOf(run, found) {
  const ranks = lastAttempt(run).filter((rank) => rank.stack && found.ranks.includes(rank.rank));
  return [...new Set(ranks.map((rank) => rank.stack))].map((stacktrace) => ({ stacktrace, summary: `Rank ${ranks.filter((rank) => rank.stack === stacktrace).map((rank) => rank.rank).join(", ")}` }));
}

/** Return stacks, if there are some: a click away, and open as long as the reader wants while the page is drawn anew. */
function stacksOf(title, stacks) {
  if (!stacks.length) return null;
  return make("details", { open: page.showsStacks, ontoggle: (event) => { page.showsStacks = event.target.open; } }, make("summary", {}, title),
    ...stacks.flatMap((each) => [make("p", {}, each.summary), make("pre", { tabindex: 0, "aria-label": `Stack: ${each.summary}` }, each.stacktrace)]));
}

function runsTable() {
  const keys = metricKeys(page.runs).slice(0, 4);
  const rows = page.runs.map((run, number) => {
    const swatch = make("span", { class: `swatch fill${number % 8}` });
    return make("tr", {}, make("td", { class: "left" }, swatch, nameOf(run)), ...[run.run.state, shownNumber(run.run.step), run.run.pace ? `${shownNumber(run.run.pace)} steps/s` : "–", shownSeconds(run.run.seen - run.run.started), shownNumber(run.run.attempt), ...keys.map((key) => shownNumber(Object.hasOwn(run.run.last, key) ? run.run.last[key] : null))].map((cell) => make("td", {}, cell)));
  });
  return make("div", { class: "card scroll", tabindex: 0, role: "region", "aria-label": "Runs" }, table(["run", "state", "step", "pace", "duration", "attempt", ...keys], rows));
}

/** Return the card of a name, which is made once and drawn anew with each part. */
function card(name, makeIt) {
  if (!page.cards.has(name)) page.cards.set(name, makeIt());
  return page.cards.get(name);
}

/** Return a section; the one that is there is kept, and of its cards those that are the same: a chart is not moved. */
function section(id, title, cards, look = "grid") {
  const shown = cards.filter(Boolean), old = byId(id);
  if (!shown.length) return null;
  if (old && old.lastChild.children.length === shown.length) {
    shown.forEach((each, i) => { if (old.lastChild.children[i] !== each) replaceCard(old.lastChild.children[i], each); });
    return old;
  }
  return make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), make("div", { class: look }, ...shown));
}

function replaceCard(old, card) {
  const { scrollTop, scrollLeft } = old, hadFocus = document.activeElement === old;
  old.replaceWith(card);
  card.scrollTo(scrollLeft, scrollTop);
  if (hadFocus) card.focus({ preventScroll: true });
}

function metricCard(key, kind = "metric") {
  return card(`${kind} ${key}`, () => new Chart(key, () => linesOf(kind, key, { isExact: kind === "machine" }), { marks: () => marksOf(key) })).card;
}

function metricSections() {
  const wanted = byId("filter").value.toLowerCase(), keys = metricKeys(page.runs).filter((key) => key.toLowerCase().includes(wanted));
  const groups = new Map();
  for (const key of keys) {
    const group = key.includes("/") ? key.slice(0, key.indexOf("/")) : "";
    groups.set(group, [...(groups.get(group) || []), key]);
  }
  const title = (group) => (group ? `Metrics: ${group}` : "Metrics");
  return [...groups].map(([group, members], number) => section(`metrics-${number}`, title(group), members.map((key) => metricCard(key)), "grid few"));
}

function stepTimeLines() {
  return page.runs.flatMap((run, number) => run.step_time.flatMap((heat) => {
    const several = page.runs.length > 1, start = run.run.started || 0;
    const clock = [...run.series.values()].find((each) => each.kind === "step" && each.attempt === heat.attempt);
    return (several ? ["p50"] : ["p50", "p95", "max"]).map((name, i) => {
      const steps = heat.step.map((step) => step + (heat.width > 1 ? heat.width / 2 : 0)), times = steps.map((step) => timeAt(clock, step) - start);
      return { label: [several ? nameOf(run) : "", name, run.attempts.length > 1 ? `attempt ${heat.attempt}` : ""].filter(Boolean).join(", "), name: several ? nameOf(run) : name, color: color(COLORS[several ? number % 8 : [2, 0, 1][i]]), dash: heat.attempt < run.run.attempt ? [4, 3] : undefined, isExact: true, steps, times, xs: settings.x === "step" ? steps : times, raw: heat[name], low: heat[name], high: heat[name], nonfinite: steps.map(() => 0) };
    });
  }));
}

function timeAt(series, step) {
  if (!series) return 0;
  const i = series.step.findIndex((each) => each >= step);
  return series.time[i < 0 ? series.time.length - 1 : i] || 0;
}

class HeatCard {
  constructor(title, drawIt) {
    this.canvas = make("canvas", { class: "heat", role: "img", "aria-label": title });
    this.note = make("p", { class: "said" });
    this.extra = make("span", { class: "value" });
    this.card = make("article", { class: "card" }, make("header", {}, make("h3", {}, title), this.extra), this.canvas, this.note);
    this.drawIt = drawIt;
    this.isSeen = this.isDirty = false;
    this.canvas.chart = this;
    whenSeen.observe(this.canvas);
    whenResized.observe(this.canvas);
  }

  invalidate() { this.isDirty = true; if (this.isSeen) drawSoon(this); }

  resize() { this.invalidate(); }

  draw() {
    if (!this.isDirty || !this.isSeen) return;
    this.isDirty = false;
    this.drawIt(this);
  }
}

function drawStepHeat(heatCard) {
  const heat = latestHeat(page.runs[0]), used = heat.bins.flatMap((row) => row.map(([bin]) => bin));
  const low = Math.min(...used), rows = Math.max(...used) - low + 1;
  const shares = heat.bins.map((row) => { const total = row.reduce((sum, [, count]) => sum + count, 0); return new Map(row.map(([bin, count]) => [bin, Math.sqrt(count / total)])); });
  const [r, g, b] = rgb(color("accent")), seconds = (bin) => shownSeconds(2 ** (bin / heat.bins_per_octave));
  drawHeat(heatCard.canvas, shares.length, rows, (i, j) => shares[i].get(low + rows - 1 - j) ?? null, 200, (share) => `rgba(${r},${g},${b},${0.12 + 0.88 * share})`);
  const { initial_step, ended_step } = page.runs[0].attempts.find((each) => each.attempt === heat.attempt);
  heatCard.note.textContent = `From step ${shownNumber(Math.max(heat.step[0], initial_step + 1))} on the left to ${shownNumber(ended_step)}; from ${seconds(low)} at the bottom to ${seconds(low + rows)}. Darker: more steps.`;
}

/** Return how long the steps of the last attempt took that has any. */
function latestHeat(run) {
  return run.step_time.filter((heat) => heat.step.length).pop();
}

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function drawRankHeat(heatCard) {
  const run = page.runs[0], grid = page.rankGrid === "late" ? latenessGrid(run) : rankGrid(run, "step");
  if (!grid) return; // of a new attempt there are no steps yet, and the old picture is gone with the next part
  const values = grid.cells.flat().filter(Boolean).map((cell) => cell.value).sort((a, b) => a - b);
  const low = values[Math.floor(values.length * 0.05)], high = Math.max(values[Math.floor(values.length * 0.98)], low * 1.2 + 1e-6);
  const height = Math.max(60, Math.min(420, grid.ranks.length * 22)), cold = rgb(color("accent")), hot = rgb(color("c1"));
  drawHeat(heatCard.canvas, grid.cells[0].length, grid.ranks.length, (i, j) => (grid.cells[j][i] ? Math.max(0, Math.min(1, (grid.cells[j][i].value - low) / (high - low))) : null), height,
    (share) => { const mixed = cold.map((each, k) => Math.round(each + (hot[k] - each) * share)); return `rgba(${mixed.join(",")},${0.25 + 0.75 * share})`; });
  heatCard.note.textContent = `Ranks ${grid.ranks[0]} at the top to ${grid.ranks[grid.ranks.length - 1]}; steps ${shownNumber(grid.first)} to ${shownNumber(grid.last)}. Blue: ${shownSeconds(low)}, orange: ${shownSeconds(high)}.`;
}

function rankHeatCard() {
  const made = new HeatCard("Ranks by steps", drawRankHeat);
  made.card.classList.add("wide");
  made.extra.append(choice([["time", "step time"], ["late", "late by"]], () => page.rankGrid || "time", (value) => { page.rankGrid = value; made.invalidate(); }));
  return made;
}

function choice(options, current, pick) {
  const buttons = options.map(([value, label]) => make("button", { type: "button", "data-value": value, "aria-pressed": String(current() === value), onclick: () => { pick(value); for (const each of buttons) each.setAttribute("aria-pressed", String(current() === each.dataset.value)); } }, label));
  return make("span", { class: "choice" }, ...buttons);
}

function speedSection() {
  const hasSteps = page.runs.some((run) => run.step_time.some((heat) => heat.step.length));
  if (!hasSteps) return null;
  const cards = [card("step time", () => new Chart("Step time", stepTimeLines, { unit: "s", marks: () => marksOf() })).card];
  if (page.runs.some((run) => run.named.has(nameOfSeries("gap", "")))) {
    cards.push(card("gap", () => new Chart("Between steps: data wait, evaluation, saving", () => linesOf("gap", ""), { unit: "s", marks: () => marksOf() })).card);
  }
  if (page.runs.some((run) => run.ranks.some((rank) => Object.keys(rank.pauses).length))) {
    cards.push(card("pause", () => new Chart("Garbage collections in steps", () => linesOf("pause", ""), { unit: "s", marks: () => marksOf() })).card);
  }
  if (page.runs.length === 1) {
    const heat = card("step heat", () => new HeatCard("How long steps take", drawStepHeat));
    cards.push(heat.card);
    heat.invalidate();
  }
  return section("speed", "Speed", cards);
}

function timeSection() {
  const cards = page.runs.map((run) => {
    const kinds = timeByKind(run), total = kinds.reduce((sum, [, s]) => sum + s, 0);
    if (!total) return null;
    const stack = make("div", { class: "stack", role: "img", "aria-label": kinds.map(([kind, s]) => `${kind} ${((100 * s) / total).toFixed(1)} %`).join(", ") });
    kinds.forEach(([kind, s], i) => { const part = make("div", { class: `fill${i % 8}`, title: kind }); part.style.width = `${(100 * s) / total}%`; stack.append(part); });
    const rows = kinds.map(([kind, s], i) => make("tr", {}, make("td", { class: "left" }, make("span", { class: `swatch fill${i % 8}` }), kind), make("td", {}, shownSeconds(s)), make("td", {}, `${((100 * s) / total).toFixed(1)} %`)));
    return make("article", { class: "card" }, make("header", {}, make("h3", {}, page.runs.length > 1 ? nameOf(run) : "All ranks together"), make("span", { class: "value" }, `in steps: ${goodput(run) === null ? "–" : `${(100 * goodput(run)).toFixed(1)} %`}`)), stack, table(["kind", "time", "share"], rows));
  });
  return section("time", "Where the time went", cards);
}

function ranksSection() {
  const run = page.runs[0];
  if (page.runs.length > 1 || run.run.world_size < 2 || lastAttempt(run).length < 2) return null;
  const accused = new Set(run.findings.filter((each) => each.ranks.length < run.run.world_size).flatMap((each) => each.ranks)), cards = [];
  if (rankGrid(run, "step")) {
    const heat = card("rank heat", rankHeatCard);
    cards.push(heat.card);
    heat.invalidate();
  }
  const phases = phaseMeans(run).slice(0, 4);
  const heads = ["rank", "host", "state", "step", "step p50", "p95", "max", ...phases.map(([name]) => `in "${name}"`), "was last", "by, on average", "not finite"];
  const rows = lastAttempt(run).map((rank) => tableRow(heads, [rank.rank, rank.host || rank.node_rank, rank.outcome || "running", shownNumber(rank.ended_step), shownSeconds(rank.duration.p50), shownSeconds(rank.duration.p95), shownSeconds(rank.duration.max),
    ...phases.map(([, means]) => shownSeconds(means.find((each) => each.rank === rank.rank)?.mean)), shownNumber(rank.late.count || 0), rank.late.count ? shownSeconds(rank.late.sum / rank.late.count) : "–", shownNumber(rank.nonfinite.count)], accused.has(rank.rank) ? "worst" : null));
  cards.push(make("div", { class: "card wide scroll", tabindex: 0, role: "region", "aria-label": "Ranks" }, table(heads, rows)));
  return section("ranks-section", "Ranks", cards);
}

function eventsSection() {
  const rows = page.runs.flatMap((run) => [
    ...run.attempts.slice(1).map((each) => [each.started, "restart", each.initial_step, `attempt ${each.attempt} after ${shownSeconds(each.restart_gap)}; ${each.redone_steps} steps done again`]),
    ...marks(run, "checkpoints").map((mark) => [mark.time, "checkpoint", mark.step, mark.save_type === "NORMAL" ? "" : mark.save_type.toLowerCase()]),
    ...marks(run, "nonfinite").map((mark) => [mark.time, "not finite", mark.step, `${mark.key} = ${mark.value}${run.ranks.length > 1 ? `, rank ${mark.ranks.join(", ")}` : ""}`]),
    ...marks(run, "errors").map((mark) => [mark.time, "error", mark.step, `${mark.error}${run.ranks.length > 1 ? `, rank ${mark.ranks.join(", ")}` : ""}`]),
  ].map((row) => [page.runs.length > 1 ? nameOf(run) : "", ...row]));
  if (!rows.length) return null;
  const several = page.runs.length > 1;
  const shown = rows.sort((a, b) => b[1] - a[1]).slice(0, 300).map(([run, time, kind, step, what]) => make("tr", {}, ...(several ? [make("td", {}, run)] : []), make("td", {}, shownTime(time)), make("td", { class: "left" }, kind), make("td", {}, shownNumber(step)), make("td", { class: "text" }, what)));
  return section("events", "Checkpoints, restarts, trouble", [make("div", { class: "card wide scroll", tabindex: 0, role: "region", "aria-label": "Checkpoints, restarts, trouble" }, table([...(several ? ["run"] : []), "time", "what", "step", ""], shown))]);
}

/** Return what ranks have logged that somebody should read: of the steps that the charts show. */
function logsSection() {
  const kept = page.runs.flatMap((run) => run.logs.kept.map((said) => ({ said, run })));
  if (!kept.length) return null;
  const [errors, warnings] = ["errors", "warnings"].map((name) => shownNumber(page.runs.reduce((sum, run) => sum + run.logs[name], 0)));
  const hasRuns = page.runs.length > 1, hasRanks = page.runs.some((run) => run.run.world_size > 1);
  const heads = [...(hasRuns ? ["run"] : []), "time", "level", ...(hasRanks ? ["rank"] : []), "step", "logger", ""];
  const rows = kept.filter(({ said, run }) => isShown(said, run)).sort((a, b) => b.said.time - a.said.time).map(({ said, run }) => tableRow(heads,
    [...(hasRuns ? [nameOf(run)] : []), shownTime(said.time), said.level, ...(hasRanks ? [said.rank] : []), shownNumber(said.step), said.logger, make("span", { class: "logged" }, said.message)], said.severity >= 17 ? "error" : null));
  const note = `Errors: ${errors}, warnings: ${warnings}. The newest first; select steps in a chart to see what was said in them.`;
  return section("logs", "Logged", [make("div", { class: "card wide scroll", tabindex: 0, role: "region", "aria-label": "Logged" }, make("p", { class: "said" }, note), table(heads, rows))]);
}

/** Tell whether something was said in the part of the run that the charts show. */
function isShown(said, run) {
  const x = settings.x === "step" ? said.step : said.time - (run.run.started || 0);
  return !settings.zoom || (x !== null && settings.zoom[0] <= x && x <= settings.zoom[1]);
}

function configSection() {
  const texts = page.runs.map((run) => new Map([...textsOf(run), ...flat(run.run.config)]));
  const keys = [...new Set(texts.flatMap((each) => [...each.keys()]))].sort();
  if (!keys.length) return null;
  const rows = keys.map((key) => {
    const values = texts.map((each) => each.get(key)), differs = new Set(values.map(String)).size > 1;
    return make("tr", {}, make("td", { class: "key" }, key), ...values.map((value) => make("td", { class: differs ? "text differs" : "text" }, value === undefined ? "–" : String(value))));
  });
  return section("config", "Configuration", [make("div", { class: "card wide scroll", tabindex: 0, role: "region", "aria-label": "Configuration" }, table(["", ...page.runs.map((run) => (page.runs.length > 1 ? nameOf(run) : "value"))], rows, "", true))]);
}

/** Return text values by key; the last of a key is that of the lowest rank of the last attempt. */
function textsOf(run) {
  return [...run.ranks].sort((a, b) => a.attempt - b.attempt || b.rank - a.rank).flatMap((rank) => Object.entries(rank.text));
}

/** Return the scalars in a mapping as pairs, those of inner mappings by keys with dots between. */
function flat(value, key = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[key, Array.isArray(value) ? JSON.stringify(value) : value]];
  return Object.entries(value).flatMap(([inner, each]) => flat(each, key ? `${key}.${inner}` : inner));
}

function telemetrySection() {
  const rows = page.runs.flatMap((run) => run.telemetry.filter((each) => each.value).map((each) => [each.name.replace("periflow.telemetry.", ""), Object.entries(each.attributes).map(([key, value]) => `${key.split(".").pop()} ${value}`).join(", "), shownNumber(each.value)]));
  const left = page.runs.flatMap((run) => run.ranks.filter((rank) => rank.left_out).map((rank) => [`rank ${rank.rank}`, "values of further keys, not shown", shownNumber(rank.left_out)]));
  if (!rows.length && !left.length) return null;
  return section("telemetry", "Telemetry itself", [make("div", { class: "card wide scroll", tabindex: 0, role: "region", "aria-label": "Telemetry itself" }, table(["what", "of", "now"], [...left, ...rows]))]);
}

/** Of a machine there are many charts, which few look at: they are shown when somebody asks. */
function machineSection() {
  const keys = metricKeys(page.runs, "machine"), made = section("machine", "Machine", keys.map((key) => metricCard(key, "machine")));
  if (!made || made.querySelector(".fold")) return made;
  const grid = made.lastChild, button = make("button", { type: "button", class: "fold", onclick: () => { page.showsMachine = !page.showsMachine; fold(); } });
  const fold = () => {
    grid.hidden = !page.showsMachine;
    button.textContent = page.showsMachine ? "Hide" : `Show ${keys.length} ${keys.length === 1 ? "chart" : "charts"}`;
    button.setAttribute("aria-expanded", String(!grid.hidden));
  };
  made.firstChild.after(button);
  fold();
  return made;
}

function drawCharts() {
  const sections = [...metricSections(), speedSection(), timeSection(), ranksSection(), eventsSection(), logsSection(), configSection(), machineSection(), telemetrySection()].filter(Boolean);
  const old = byId("charts");
  if (!sections.length) sections.push(make("p", { class: "muted" }, "Nothing has been recorded yet. Curves appear with the first pf.metric call."));
  if (sections.length !== old.children.length || sections.some((each, i) => each !== old.children[i])) old.replaceChildren(...sections);
  for (const chart of charts) chart.invalidate();
}

function fillRanks() {
  const ranks = [...new Set(page.runs.flatMap((run) => run.ranks.map((rank) => rank.rank)))].sort((a, b) => a - b);
  byId("ranks-label").hidden = ranks.length < 2;
  const wanted = ["lowest", "all", ...ranks.map(String)];
  if (byId("ranks").options.length !== wanted.length) {
    byId("ranks").replaceChildren(...wanted.map((each) => make("option", { value: each, selected: each === settings.ranks }, { lowest: "lowest", all: "all" }[each] || `rank ${each}`)));
  }
}

function drawPage() {
  byId("static").hidden = true;
  byId("bar").hidden = false;
  fillRanks();
  drawTop();
  drawCharts();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  colors.clear();
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  try { localStorage.setItem("periflow-theme", theme); } catch { /* not allowed here */ }
  for (const chart of charts) chart.rebuild();
  for (const each of page.cards.values()) if (each instanceof HeatCard && document.contains(each.card)) each.invalidate();
}

function setUp() {
  let theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  try { theme = localStorage.getItem("periflow-theme") || theme; } catch { /* not allowed here */ }
  setTheme(theme);
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  byId("smoothing").addEventListener("input", (event) => { settings.smoothing = Number(event.target.value); byId("smoothed").textContent = settings.smoothing.toFixed(2); for (const chart of charts) chart.invalidate(); });
  for (const [id, name] of [["xs", "x"], ["ys", "y"]]) {
    const buttons = [...byId(id).querySelectorAll("button")];
    const mark = () => { for (const each of buttons) each.setAttribute("aria-pressed", String(settings[name] === each.dataset.value)); };
    for (const each of buttons) each.addEventListener("click", () => { settings[name] = each.dataset.value; mark(); zoomTo(name === "x" ? null : settings.zoom); });
    mark();
  }
  byId("ranks").addEventListener("change", (event) => { settings.ranks = event.target.value; for (const chart of charts) chart.invalidate(); });
  byId("filter").addEventListener("input", drawCharts);
  byId("whole").addEventListener("click", () => zoomTo(null));
}
