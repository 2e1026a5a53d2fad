// Curves and heat maps. Every curve shares x, zoom and cursor with all others.
"use strict";

const settings = { x: "step", y: "linear", smoothing: 0.6, ranks: "lowest", zoom: null };
const charts = new Set();

/** The colors of the theme: to ask for one makes the browser look at the style of the whole page. */
const colors = new Map();

function color(name) {
  if (!colors.has(name)) colors.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colors.get(name);
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Show a range of x in all charts, or everything. */
function zoomTo(range) {
  settings.zoom = range;
  document.getElementById("whole").hidden = range === null;
  drawCharts();
}

const FRAME_MS = 8;
const waiting = new Set();

/** Have something drawn when there is time: of what is seen as much in a frame as leaves it smooth. */
function drawSoon(each) {
  if (!waiting.size) requestAnimationFrame(drawWaiting);
  waiting.add(each);
}

function drawWaiting() {
  const began = performance.now();
  for (const each of waiting) {
    waiting.delete(each);
    try { each.draw(); } catch (error) { reportError(error); } // one that fails must not hold up all others
    if (performance.now() - began > FRAME_MS) break;
  }
  if (waiting.size) requestAnimationFrame(drawWaiting);
}

const whenSeen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    entry.target.chart.isSeen = entry.isIntersecting;
    if (entry.isIntersecting) drawSoon(entry.target.chart);
  }
}, { rootMargin: "300px" });

const whenResized = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.chart.resize();
});

/** A card with one curve or more; `lines()` gives them anew whenever it is drawn. */
class Chart {
  constructor(title, lines, { unit = "", marks = () => [] } = {}) {
    this.title = title;
    this.lines = lines;
    this.marks = marks;
    this.show = unit === "s" ? shownSeconds : shownNumber;
    this.unit = unit;
    this.isSeen = this.isDirty = false;
    this.value = make("span", { class: "value" });
    this.plot = make("div", { class: "plot", tabindex: 0, role: "group", "aria-roledescription": "chart" });
    this.said = make("p", { class: "said", "aria-live": "polite" });
    this.legend = make("ul", { class: "legend" });
    this.table = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}: table`, hidden: true });
    this.toggle = make("button", { type: "button", "aria-pressed": "false", "aria-label": `Table of ${title}`, onclick: () => this.toggleTable() }, "Table");
    this.card = make("article", { class: "card" }, make("header", {}, make("h3", {}, title), this.value, this.toggle), this.plot, this.table, this.said, this.legend);
    this.plot.chart = this;
    this.plot.addEventListener("keydown", (event) => this.press(event));
    charts.add(this);
    whenSeen.observe(this.plot);
    whenResized.observe(this.plot);
  }

  invalidate() { this.isDirty = true; if (this.isSeen) drawSoon(this); }

  rebuild() { this.destroy(); this.invalidate(); }

  destroy() { if (this.curve) this.curve.destroy(); this.curve = null; }

  toggleTable() {
    const isTable = this.table.hidden;
    this.table.hidden = !isTable;
    this.plot.hidden = isTable;
    this.toggle.setAttribute("aria-pressed", String(isTable));
    this.fillTable();
  }

  resize() {
    if (this.curve && this.plot.clientWidth) this.curve.setSize({ width: this.plot.clientWidth, height: this.plot.clientHeight });
  }

  draw() {
    if (!this.isDirty || !this.isSeen) return;
    this.isDirty = false;
    this.shown = this.lines().filter((line) => line.xs.length);
    const present = this.shown.filter((line) => !line.dash);
    this.value.textContent = present.length === 1 ? this.show(present[0].latest) : "";
    this.plot.setAttribute("aria-label", `${this.title}: ${this.summary()}`);
    const data = uPlot.join(this.shown.map((line) => [line.xs, ...curvesOf(line).map((curve) => positive(curve.values))]).concat(this.shown.length ? [] : [[[]]]));
    const shape = JSON.stringify([settings.x, settings.y, ...this.shown.map((line) => [line.label, line.color, curvesOf(line).length])]);
    if (this.curve && shape === this.shape) this.curve.setData(data);
    else { this.destroy(); this.shape = shape; this.curve = new uPlot(this.options(), data, this.plot); }
    this.drawLegend();
    if (!this.table.hidden) this.fillTable();
  }

  summary() {
    return this.shown.slice(0, 4).map((line) => {
      const values = line.raw.filter((value) => value !== null);
      return values.length ? `${line.label || "values"} from ${this.show(values[0])} to ${this.show(values[values.length - 1])}, lowest ${this.show(Math.min(...line.low.filter((each) => each !== null)))}, highest ${this.show(Math.max(...line.high.filter((each) => each !== null)))}` : "no finite values";
    }).join("; ") || "nothing yet";
  }

  options() {
    const muted = color("muted"), grid = { stroke: color("grid"), width: 1 }, ticks = { ...grid, size: 4 };
    const font = "11px system-ui, sans-serif", show = this.show;
    const series = this.shown.flatMap((line) => curvesOf(line).map((curve) => ({
      label: line.label, stroke: curve.width ? translucent(line.color, curve.alpha) : undefined, width: curve.width, dash: line.dash,
      points: { show: curve.points && line.xs.length < 60, size: 5, fill: line.color, stroke: line.color }, spanGaps: false,
    })));
    let index = 1;
    const bands = [];
    for (const line of this.shown) {
      const curves = curvesOf(line);
      if (curves.some((curve) => curve.isLow)) bands.push({ series: [index + curves.length - 1, index + curves.length - 2], fill: translucent(line.color, 0.14) });
      index += curves.length;
    }
    return {
      width: this.plot.clientWidth || 300, height: this.plot.clientHeight || 200, padding: [8, 18, 0, 0], bands,
      series: [{}, ...series],
      scales: {
        x: { time: false, range: (_, min, max) => settings.zoom || (min === null ? [0, 1] : min === max ? [min - 0.5, max + 0.5] : [min, max]) },
        y: settings.y === "log" ? { distr: 3, range: (_, min, max) => magnitudes(min, max) } : { distr: 1, range: (_, min, max) => padded(min, max) },
      },
      axes: [
        { stroke: muted, font, grid, ticks, size: 30, space: 70, values: (_, splits) => splits.map((x) => (settings.x === "time" ? shownSeconds(x) : shortNumber(x))) },
        { stroke: muted, font, grid, ticks, ...(settings.y === "log" ? { splits: (_, axis, min, max) => powers(min, max), filter: (_, splits) => named(splits) } : {}), size: (_, values) => 16 + 6.4 * Math.max(2, ...(values || []).map((value) => String(value || "").length)), values: (_, splits) => splits.map((y) => (y === null ? "" : show(y))) },
      ],
      legend: { show: false },
      cursor: {
        sync: { key: "charts", scales: ["x", null] }, drag: { x: true, y: false, setScale: false }, points: { size: 7 },
        bind: { dblclick: () => () => { zoomTo(null); } },
      },
      hooks: {
        setSelect: [(curve) => this.select(curve)],
        setCursor: [(curve) => this.say(curve.cursor.idx)],
        draw: [(curve) => drawMarks(curve, this.marks())],
      },
    };
  }

  select(curve) {
    if (curve.select.width < 4) return;
    const from = curve.posToVal(curve.select.left, "x"), to = curve.posToVal(curve.select.left + curve.select.width, "x");
    curve.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    zoomTo([from, to]);
  }

  say(index) {
    if (index === null || index === undefined || !this.curve) { this.said.textContent = ""; return; }
    const x = this.curve.data[0][index];
    const parts = this.shown.map((line) => {
      const row = line.xs.indexOf(x);
      if (row < 0) return null;
      const range = line.low[row] !== line.high[row] ? ` (${this.show(line.low[row])} to ${this.show(line.high[row])})` : "";
      const finite = line.nonfinite[row] ? `, ${line.nonfinite[row]} not finite` : "";
      return `${line.label ? `${line.label}: ` : ""}${this.show(line.raw[row])}${range}${finite}`;
    }).filter(Boolean);
    const where = settings.x === "time" ? shownSeconds(x) : `step ${shownNumber(x)}`;
    this.said.textContent = parts.length ? `${where} · ${parts.join(" · ")}` : "";
  }

  press(event) {
    const curve = this.curve;
    if (!curve || !curve.data[0].length) return;
    const xs = curve.data[0], now = curve.cursor.idx ?? xs.length - 1;
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - 20, PageDown: now + 20, Home: 0, End: xs.length - 1 };
    if (event.key in moves) {
      const index = Math.max(0, Math.min(xs.length - 1, moves[event.key]));
      curve.setCursor({ left: curve.valToPos(xs[index], "x"), top: curve.bbox.height / 2 / devicePixelRatio }, true);
      this.say(index);
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const { min, max } = curve.scales.x, half = ((max - min) / 2) * (event.key === "-" ? 2 : 0.5);
      const middle = Math.max(min, Math.min(max, xs[now] ?? (min + max) / 2));
      zoomTo([middle - half, middle + half]);
    } else if (event.key === "0" || event.key === "Escape") zoomTo(null);
    else return;
    event.preventDefault();
  }

  drawLegend() {
    const entries = new Map(this.shown.filter((line) => line.name).map((line) => [line.name, line.color]));
    const items = [...entries].slice(0, 16).map(([name, shade]) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = shade;
      return make("li", {}, swatch, name);
    });
    if (this.shown.some((line) => line.dash)) items.push(make("li", {}, "dashed: an earlier attempt"));
    this.legend.hidden = !items.length;
    this.legend.replaceChildren(...items);
  }

  fillTable() {
    const rows = this.shown ? this.shown.flatMap((line) => line.xs.map((x, i) => [line.label, line.steps[i], shownSeconds(line.times[i]), this.show(line.raw[i]), this.show(line.low[i]), this.show(line.high[i]), line.nonfinite[i] || ""])) : [];
    this.table.replaceChildren(table(["", "step", "time", "value", "min", "max", "not finite"], rows));
  }
}

/** Return what is drawn of a line: the values as they are, smoothed, and between which they lay. */
function curvesOf(line) {
  const isSmoothed = settings.smoothing > 0 && !line.isExact;
  const curves = [{ values: line.raw, width: isSmoothed ? 1 : 1.6, alpha: isSmoothed ? 0.4 : 1, points: true }];
  if (isSmoothed) curves.push({ values: smoothed(line.raw, settings.smoothing, line.xs), width: 2, alpha: 1 });
  if (line.hasRange) curves.push({ values: line.low, width: 1, alpha: 0.45, isLow: true }, { values: line.high, width: 1, alpha: 0.45 });
  return curves;
}

/** Return values that a logarithmic axis can show: it needs powers of ten below and above them. */
function positive(values) {
  return settings.y === "log" ? values.map((value) => (value > 1e-300 && value < 1e300 ? value : null)) : values;
}

/** Return the ends of a logarithmic axis: a digit times a power of ten each, and never the same. */
function magnitudes(min, max) {
  if (min === null || max === null) return [1, 10];
  const digit = (value, round) => { const power = 10 ** Math.floor(Math.log10(value)); return round(Number((value / power).toPrecision(12))) * power; };
  const low = digit(min, Math.floor), high = digit(max, Math.ceil);
  return high > low ? [low, high] : [low / 2, high * 2];
}

/** Return where a logarithmic axis has lines: at each digit of few powers of ten, of many at some powers alone. */
function powers(min, max) {
  const from = Math.floor(Math.log10(min)), to = Math.ceil(Math.log10(max)), every = Math.ceil((to - from) / 8);
  const found = [];
  for (let power = from; power <= to; power += every) for (const digit of every > 1 ? [1] : [1, 2, 3, 4, 5, 6, 7, 8, 9]) found.push(Number(`${digit}e${power}`));
  return found.filter((value) => value >= min * (1 - 1e-9) && value <= max * (1 + 1e-9));
}

/** Return those lines of a logarithmic axis that have room for their value, and null for the others. */
function named(splits) {
  const digits = splits.map((value) => Number(value.toExponential()[0])), wanted = splits.length < 5 ? [] : splits.length < 12 ? [1, 2, 5] : [1];
  return splits.map((value, i) => (!wanted.length || wanted.includes(digits[i]) ? value : null));
}

function padded(min, max) {
  if (min === null || max === null) return [0, 1];
  const isFlat = max - min <= 1e-9 * Math.abs(max); // what smoothing leaves of a constant
  const pad = isFlat ? Math.abs(max) * 0.06 || 0.5 : (max - min) * 0.06;
  return [min >= 0 && min - pad < 0 ? 0 : min - pad, max + pad];
}

function translucent(hex, alpha) {
  return alpha >= 1 ? hex : hex + Math.round(alpha * 255).toString(16).padStart(2, "0");
}

function drawMarks(curve, marked) {
  const context = curve.ctx, { left, top, width, height } = curve.bbox, scale = devicePixelRatio;
  context.save();
  context.beginPath(); context.rect(left, top, width, height); context.clip();
  for (const mark of marked) {
    const x = Math.round(curve.valToPos(mark.x, "x", true));
    if (x < left || x > left + width) continue;
    context.strokeStyle = context.fillStyle = color(mark.color);
    context.lineWidth = scale;
    context.setLineDash(mark.kind === "checkpoint" ? [2 * scale, 3 * scale] : []);
    if (mark.kind !== "nonfinite") { context.beginPath(); context.moveTo(x, top); context.lineTo(x, top + height); context.stroke(); }
    if (mark.kind === "nonfinite") {
      context.beginPath(); context.moveTo(x, top + height - 9 * scale); context.lineTo(x - 5 * scale, top + height); context.lineTo(x + 5 * scale, top + height); context.fill();
    }
  }
  context.restore();
}

const LEFT = new Set(["what", "", "host", "state", "of", "level", "logger"]);

function table(heads, rows, caption = "", isText = false) {
  return make("table", {}, caption ? make("caption", {}, caption) : null,
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col", class: isText || LEFT.has(head) ? "left" : null }, head)))),
    make("tbody", {}, ...rows.map((row) => (row instanceof Node ? row : tableRow(heads, row)))));
}

/** Return a row whose cells stand as the heads do. */
function tableRow(heads, cells, look = null) {
  return make("tr", { class: look }, ...cells.map((cell, i) => make("td", { class: LEFT.has(heads[i]) ? "left" : null }, cell ?? "–")));
}

/** A heat map: `cell(column, row)` gives a share from 0 to 1, or null. */
function drawHeat(canvas, columns, rows, cell, height, fill) {
  const scale = devicePixelRatio || 1, width = canvas.clientWidth || 600;
  canvas.width = width * scale; canvas.height = height * scale; canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d"), across = canvas.width / columns, down = canvas.height / rows;
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < columns; i += 1) {
    for (let j = 0; j < rows; j += 1) {
      const share = cell(i, j);
      if (share === null) continue;
      context.fillStyle = fill(share);
      const left = Math.floor(i * across), top = Math.floor(j * down); // no gap, and no overlap
      context.fillRect(left, top, Math.floor((i + 1) * across) - left, Math.floor((j + 1) * down) - top - (rows < 40 ? 1 : 0));
    }
  }
}
