"use strict";
/* The curves of a report: drawn as SVG from the JSON in the page, without a library or a request.

   Numbers in, numbers or text out: the first half, which runs anywhere (node tests it).
   The second half draws. Names of runs and figures come from files: they are only ever set as text.
   What a reader chose stands behind the # of the address, so that a reload keeps it. */

// -- numbers ------------------------------------------------------------------------------------

/** Return round numbers (1, 2 or 5 times a power of ten) between two bounds, about `count`. */
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) {
    found.push(Number((n * step).toPrecision(12)));
  }
  return found;
}

/** Return such numbers between two positive bounds of a logarithmic axis. */
function logTicks(low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  if (high / low < 4) return ticks(low, high, 4);
  const every = Math.ceil((last - first) / 8);
  const factors = last - first > 4 ? [1] : [1, 2, 5];
  const found = [];
  for (let power = first; power <= last; power += every) {
    for (const factor of factors) found.push(Number(`${factor}e${power}`));
  }
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

/** Return a short label: 1500 -> 1.5k, 0.0005 -> 5e-4. */
function short(value, digits = 3) {
  const size = Math.abs(value);
  const units = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const unit = units.find(([least]) => size >= least && size < least * 1e3);
  const number = (x) => String(Number(x.toPrecision(digits)));
  if (unit) return number(value / unit[0]) + unit[1];
  if (size >= 1e21 || (size > 0 && size < 0.01)) {
    return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  return number(value);
}

/** Return the exponential mean of values, each weight corrected for the short past of the start. */
function smooth(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

/** Return the function that maps [low, high] to [from, to], linearly or by logarithms. */
function scale(low, high, from, to, log) {
  const f = log ? Math.log : (x) => x;
  const width = f(high) - f(low) || 1;
  return (x) => from + ((f(x) - f(low)) / width) * (to - from);
}

/** Return the index of the value nearest to x among ascending ones. */
function nearest(values, x) {
  let left = 0, right = values.length - 1;
  while (right - left > 1) {
    const middle = (left + right) >> 1;
    if (values[middle] < x) left = middle; else right = middle;
  }
  return Math.abs(values[left] - x) <= Math.abs(values[right] - x) ? left : right;
}

/** Return the path through points, interrupted where one of them cannot be drawn. */
function pathOf(xs, ys, sx, sy) {
  let path = "", pen = false;
  for (let i = 0; i < xs.length; i++) {
    const [x, y] = [sx(xs[i]), sy(ys[i])];
    if (Number.isFinite(x) && Number.isFinite(y)) {
      path += `${pen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = true;
    } else pen = false;
  }
  return path;
}

/** Return the least and the greatest of the finite values, positive ones only if `log`. */
function extent(lists, log) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) {
    for (const value of list) {
      if (!Number.isFinite(value) || (log && value <= 0)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return low <= high ? [low, high] : null;
}

/** Return the unit in which hours up to `most` are written: its name, and how many an hour has. */
function timeUnit(most) {
  if (most < 0.05) return ["seconds", 3600];
  if (most < 3) return ["minutes", 60];
  return most < 72 ? ["hours", 1] : ["days", 1 / 24];
}

// -- the page -----------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const AXES = { updates: "updates", tokens: "tokens", time: "time", flops: "FLOPs" };
const EDGE = { left: 52, right: 12, top: 10, bottom: 34 };

/** Return a new element with attributes (listeners if functions), holding texts and elements. */
function make(name, attributes, ...content) {
  const inSvg = ["svg", "path", "line", "circle", "text", "g", "rect"].includes(name);
  const element = inSvg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...content);
  return element;
}

class Report {
  constructor(data, root) {
    this.data = data;
    this.chosen = new URLSearchParams(location.hash.slice(1));
    this.hidden = new Set((this.chosen.get("hide") || "").split(",").filter(Boolean).map(Number));
    this.charts = data.panels.map((panel, index) => new Chart(this, panel, index === 0));
    if (data.more.length) this.charts.push(new Chart(this, { key: null, name: "more" }, false));
    this.legend = make("div", { class: "legend" });
    root.append(this.tools(), this.legend, ...this.charts.map((chart) => chart.card));
    this.redraw();
    new ResizeObserver(() => this.redraw()).observe(root);
  }

  get axis() {
    const axis = this.chosen.get("x");
    return axis in AXES ? axis : this.data.axis;
  }

  /** Remember a choice (null: the default) and draw everything anew. */
  choose(key, value) {
    if (value === null || value === "") this.chosen.delete(key); else this.chosen.set(key, value);
    try { history.replaceState(null, "", "#" + this.chosen); } catch { /* a viewer without history */ }
    this.redraw();
  }

  redraw() {
    this.drawLegend();
    for (const chart of this.charts) chart.draw();
  }

  tools() {
    const has = (axis) => this.data.runs.some((run) => run.grids.some((grid) => grid[axis]));
    const axis = make("select", { change: (event) => {
      this.chosen.delete("zoom");
      this.choose("x", event.target.value);
    } });
    for (const [key, label] of Object.entries(AXES)) {
      axis.append(make("option", { value: key, disabled: has(key) ? null : "" }, label));
    }
    axis.value = this.axis;
    const logx = make("input", { type: "checkbox",
      change: (event) => this.choose("logx", event.target.checked ? "1" : null) });
    logx.checked = this.chosen.has("logx");
    const weight = make("input", { type: "range", min: 0, max: 0.99, step: 0.01,
      input: (event) => this.choose("smooth", Number(event.target.value) || null) });
    weight.value = this.chosen.get("smooth") || 0;
    const theme = () => {
      const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
        || (!this.chosen.has("theme") && matchMedia("(prefers-color-scheme: dark)").matches);
      this.choose("theme", dark ? "light" : "dark");
      setTheme(this.chosen);
    };
    return make("div", { class: "tools" },
      make("label", {}, "against ", axis), make("label", {}, logx, " log x"),
      make("label", {}, "smoothing ", weight),
      make("button", { type: "button", click: () => this.choose("zoom", null) }, "whole run"),
      make("button", { type: "button", click: theme }, "light / dark"),
      make("span", { class: "muted" }, "Drag across a chart to zoom; double click for the whole."));
  }

  drawLegend() {
    const { runs } = this.data;
    if (runs.length < 2) return;
    const buttons = runs.map((run, index) => make("button", {
      type: "button", "aria-pressed": String(!this.hidden.has(index)),
      class: run.grids.some((grid) => grid[this.axis]) ? "" : "absent",
      title: "click: show or hide; double click: this one alone",
      click: (event) => this.toggle(index, event.detail > 1),
    }, key(run), run.name));
    this.legend.replaceChildren(...buttons);
  }

  toggle(index, alone) {
    const others = this.data.runs.map((_, i) => i).filter((i) => i !== index);
    if (alone) this.hidden = new Set(others);
    else if (!this.hidden.delete(index)) this.hidden.add(index);
    if (this.hidden.size === this.data.runs.length) this.hidden.clear();
    this.choose("hide", [...this.hidden].join(","));
  }
}

/** Return a short stroke in the look of a run. */
function key(run) {
  const line = make("line", { x1: 1, x2: 21, y1: 5, y2: 5, stroke: run.colour, "stroke-width": 3,
    "stroke-dasharray": run.dash });
  return make("svg", { width: 22, height: 10, "aria-hidden": "true" }, line);
}

class Chart {
  constructor(report, panel, wide) {
    this.report = report;
    this.panel = panel;
    this.svg = make("svg", { class: "plot", role: "img", pointermove: (e) => this.hover(e),
      pointerleave: () => this.leave(), pointerdown: (e) => this.press(e),
      pointerup: (e) => this.release(e), dblclick: () => report.choose("zoom", null) });
    this.tip = make("div", { class: "tip", hidden: "" });
    const log = make("input", { type: "checkbox",
      change: (event) => report.choose(`log-${panel.name}`, event.target.checked ? "1" : "0") });
    log.checked = this.log;
    const title = panel.key === null ? this.picker() : make("h3", {}, panel.title);
    this.card = make("figure", { class: wide ? "card wide" : "card" },
      make("div", { class: "head" }, title, make("label", {}, log, " log")), this.svg, this.tip);
  }

  get log() {
    const chosen = this.report.chosen.get(`log-${this.panel.name}`);
    return chosen === null ? Boolean(this.panel.log) : chosen === "1";
  }

  get figure() {
    const { more } = this.report.data;
    const chosen = this.report.chosen.get("figure");
    return this.panel.key || (more.includes(chosen) ? chosen : more[0]);
  }

  picker() {
    const select = make("select", { "aria-label": "figure",
      change: (event) => this.report.choose("figure", event.target.value) });
    select.append(...this.report.data.more.map((name) => make("option", { value: name }, name)));
    select.value = this.figure;
    return select;
  }

  /** Return what is to be drawn: of every visible run its curves, with x, y and smoothed y. */
  curves(factor) {
    const { data, hidden, axis, chosen } = this.report;
    const weight = Math.min(0.999, Math.max(0, Number(chosen.get("smooth")) || 0));
    const found = [];
    data.runs.forEach((run, index) => {
      if (hidden.has(index)) return;
      const own = run.curves.filter((c) => c.key === this.figure && run.grids[c.grid][axis]);
      const validated = own.some((curve) => curve.valid);
      for (const curve of own) {
        const x = run.grids[curve.grid][axis].map((value) => value * factor);
        const exact = curve.valid || this.panel.exact || !weight;
        const shown = exact ? curve.y : smooth(curve.y, weight);
        found.push({ ...curve, run, x, shown, faint: validated && !curve.valid });
      }
    });
    return found;
  }

  unit() {
    if (this.report.axis !== "time") return [AXES[this.report.axis], 1];
    const grids = this.report.data.runs.flatMap((run) => run.grids.map((grid) => grid.time || []));
    return timeUnit((extent(grids) || [0, 0])[1]);
  }

  draw() {
    const [width, height] = [this.svg.clientWidth || 500, this.svg.clientHeight || 260];
    const [label, factor] = this.unit();
    const logx = this.report.chosen.has("logx");
    const zoom = (this.report.chosen.get("zoom") || "").split("~").map((end) => Number(end) * factor);
    this.list = this.curves(factor);
    this.leave();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("aria-label", `${this.figure} against ${label}`);
    let [left, right] = extent(this.list.map((curve) => curve.x), logx) || [0, 1];
    if (!logx) left = Math.min(left, 0);
    if (zoom.length === 2 && zoom[1] > zoom[0] && zoom[0] < right && zoom[1] > left) {
      [left, right] = zoom;
      if (logx && left <= 0) left = right / 1e3;
    }
    if (left === right) right = left + 1;
    const within = this.list.map((c) => c.shown.filter((_, i) => c.x[i] >= left && c.x[i] <= right));
    let [low, high] = extent(within, this.log) || [this.log ? 1 : 0, this.log ? 10 : 1];
    if (this.panel.zero && !this.log) low = Math.min(0, low);
    const room = this.log ? 1.05 : (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    if (this.log) [low, high] = [low / room, high * room];
    else [low, high] = [this.panel.zero && low === 0 ? 0 : low - room, high + room];
    this.sx = scale(left, right, EDGE.left, width - EDGE.right, logx);
    this.sy = scale(low, high, height - EDGE.bottom, EDGE.top, this.log);
    this.factor = factor;
    this.back = (px) => { // the x of a pixel
      const share = (px - EDGE.left) / (width - EDGE.right - EDGE.left);
      return logx ? left * (right / left) ** share : left + share * (right - left);
    };
    const grid = make("g", {});
    for (const y of this.log ? logTicks(low, high) : ticks(low, high, 5)) {
      const at = this.sy(y).toFixed(1);
      grid.append(make("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }),
        make("text", { x: EDGE.left - 8, y: at, dy: 4, "text-anchor": "end" }, short(y)));
    }
    const steps = logx ? logTicks(left, right) : ticks(left, right, Math.max(2, width / 90));
    for (const x of steps) {
      grid.append(make("text", { x: this.sx(x), y: height - 18, "text-anchor": "middle" }, short(x)));
    }
    grid.append(make("text", { x: width - EDGE.right, y: height - 3, "text-anchor": "end" }, label));
    this.marks = make("g", {});
    this.svg.replaceChildren(grid, this.lines(width, height), this.marks);
  }

  lines(width, height) {
    const group = make("svg", { x: EDGE.left, y: 0, width: width - EDGE.left - EDGE.right + 6,
      height: height - EDGE.bottom + 4, viewBox: `${EDGE.left} 0 ${width - EDGE.left - EDGE.right + 6} `
        + (height - EDGE.bottom + 4) });
    const stroke = (curve, y, opacity, thick) => make("path", { d: pathOf(curve.x, y, this.sx, this.sy),
      stroke: curve.run.colour, "stroke-dasharray": curve.run.dash, "stroke-width": thick, opacity,
      fill: "none", "stroke-linejoin": "round" });
    for (const curve of [...this.list].sort((a, b) => a.valid - b.valid)) {
      if (curve.shown !== curve.y) group.append(stroke(curve, curve.y, 0.28, 1));
      group.append(stroke(curve, curve.shown, curve.faint ? 0.65 : 1, curve.valid ? 2.2 : 1.4));
      if (!(curve.valid || curve.x.length === 1) || curve.x.length > 40) continue;
      curve.x.forEach((x, i) => {
        const [cx, cy] = [this.sx(x), this.sy(curve.y[i])];
        if (Number.isFinite(cx + cy)) group.append(make("circle", { cx, cy, r: 2.6, fill: curve.run.colour }));
      });
    }
    return group;
  }

  hover(event) {
    const box = this.svg.getBoundingClientRect();
    const x = this.back(event.clientX - box.left);
    const marks = [], values = new Map();
    const label = (curve) => curve.tag + (curve.shown === curve.y ? "" : ", smoothed");
    const tags = [...new Set(this.list.map(label))];
    let at = null;
    for (const curve of this.list) {
      const i = nearest(curve.x, x);
      const [cx, cy] = [this.sx(curve.x[i]), this.sy(curve.shown[i])];
      const ended = x < curve.x[0] || x > curve.x.at(-1); // then only what is near tells of this x
      if (!Number.isFinite(cx + cy) || cx < EDGE.left - 1 || cx > box.width - EDGE.right + 1) continue;
      if (ended && Math.abs(cx - (event.clientX - box.left)) > 20) continue;
      if (at === null || Math.abs(curve.x[i] - x) < Math.abs(at - x)) at = curve.x[i];
      marks.push(make("circle", { cx, cy, r: 4, fill: curve.run.colour }));
      if (!values.has(curve.run)) values.set(curve.run, {});
      values.get(curve.run)[label(curve)] = short(curve.shown[i], 5);
    }
    if (at === null) return this.leave();
    const line = this.sx(at).toFixed(1);
    if (this.pressed !== undefined) {
      const from = Math.min(this.pressed, event.clientX - box.left);
      marks.push(make("rect", { class: "zoom", x: from, y: EDGE.top, height: box.height - EDGE.bottom - EDGE.top,
        width: Math.abs(event.clientX - box.left - this.pressed) }));
    }
    this.marks.replaceChildren(make("line", { class: "cross", x1: line, x2: line, y1: EDGE.top,
      y2: box.height - EDGE.bottom }), ...marks);
    const head = make("tr", {}, make("th", {}, `${short(at, 5)} ${this.unit()[0]}`),
      ...tags.map((tag) => make("th", {}, tag)));
    const rows = [...values].map(([run, found]) => make("tr", {}, make("td", {}, key(run), run.name),
      ...tags.map((tag) => make("td", {}, found[tag] || ""))));
    this.tip.replaceChildren(make("table", {}, head, ...rows));
    this.tip.hidden = false;
    const over = event.clientX - box.left > box.width / 2;
    this.tip.style.left = over ? "" : `${event.clientX - box.left + 36}px`;
    this.tip.style.right = over ? `${box.right - event.clientX + 36}px` : "";
  }

  leave() {
    this.tip.hidden = true;
    if (this.marks) this.marks.replaceChildren();
    this.pressed = undefined;
  }

  press(event) {
    this.pressed = event.clientX - this.svg.getBoundingClientRect().left;
  }

  release(event) {
    const to = event.clientX - this.svg.getBoundingClientRect().left;
    const from = this.pressed;
    this.pressed = undefined;
    if (from === undefined || Math.abs(to - from) < 6) return;
    const ends = [this.back(Math.min(from, to)), this.back(Math.max(from, to))];
    this.report.choose("zoom", ends.map((end) => (end / this.factor).toPrecision(6)).join("~"));
  }
}

function setTheme(chosen) {
  const theme = chosen.get("theme");
  if (theme === "light" || theme === "dark") document.documentElement.style.colorScheme = theme;
}

/** Reload while the run is alive; not a copy that nobody rewrites, such as one that was mailed. */
function keepFresh(data) {
  if (!data.refresh) return;
  const note = document.getElementById("fresh");
  const age = Date.now() / 1000 - data.written;
  if (age > 20 * data.refresh + 60) note.textContent = "written while a run was alive";
  else setTimeout(() => location.reload(), data.refresh * 1000);
}

if (typeof document !== "undefined") {
  const data = JSON.parse(document.getElementById("data").textContent);
  setTheme(new URLSearchParams(location.hash.slice(1)));
  new Report(data, document.getElementById("curves"));
  keepFresh(data);
} else {
  module.exports = { ticks, logTicks, short, smooth, scale, nearest, pathOf, extent, timeUnit };
}
