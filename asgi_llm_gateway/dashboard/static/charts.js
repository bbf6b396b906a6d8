// Charts by uPlot: drawn for the eye, with the same numbers as a table for all others. Colours are the style sheet's.

import { fill, h, table } from "./dom.js";
import { moment } from "./format.js";

const HEIGHT = 200;
const dark = matchMedia("(prefers-color-scheme: dark)");

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * A chart of series over time.
 * @param {string} title
 * @param {Array<{label: string, colour: string, show: function(number): string, axis?: function(number): string}>} lines
 *   `colour` names a property of the style sheet; the first line's `axis` writes at the axis, where `show` is too long.
 * @param {{steps?: boolean|"lines", note?: string}} [options] `steps`: counts of a span of time, drawn as areas or as lines with
 *   steps; else points of a line.
 */
export class Chart {
  constructor(title, lines, { steps = false, note = "" } = {}) {
    Object.assign(this, { title, lines, steps, data: null, plot: null });
    this.values = lines.map(() => h("span", { class: "value" }));
    this.when = h("span", { class: "value" });
    this.box = h("div", { class: "plot", role: "img" });
    this.rows = h("div", {});
    this.details = h("details", { ontoggle: () => this.tabulate() }, h("summary", {}, "Numbers", h("span", { class: "unseen" }, ` of ${title}`)), this.rows);
    const legend = h("p", { class: "legend", "aria-hidden": "true" }, lines.map((line, at) => h("span", {},
      h("span", { class: `swatch ${line.colour}` }), `${line.label} `, this.values[at])), this.when);
    this.node = h("figure", { class: "card chart" }, h("figcaption", {}, h("h3", {}, title), note && h("p", { class: "hint" }, note)),
      legend, this.box, this.details);
    this.size = new ResizeObserver(() => this.fit());
    this.size.observe(this.box);
    this.redraw = () => this.draw();
    dark.addEventListener("change", this.redraw);
  }

  /** Show other numbers: `[times, ...one array a line]`, Unix seconds and numbers or null. */
  show(data, said) {
    this.data = data;
    this.box.setAttribute("aria-label", `${this.title}. ${said} The numbers are in the table below.`);
    this.draw();
    this.tabulate();
  }

  /** Let go of all that listens. */
  end() {
    this.size.disconnect();
    dark.removeEventListener("change", this.redraw);
    this.plot?.destroy();
    this.plot = null;
  }

  tabulate() {
    if (!this.details.open || !this.data) return;
    const [times, ...columns] = this.data;
    const rows = times.map((t, at) => ({ t, values: columns.map((column) => column[at]) }))
      .filter((row) => row.values.some((value) => value !== null && value !== 0)).reverse();
    fill(this.rows, table(this.title, [
      { head: "From", cell: (row) => moment(row.t) },
      ...this.lines.map((line, at) => ({ head: line.label, number: true, cell: (row) => line.show(row.values[at]) })),
    ], rows, { none: "No calls in this time." }));
  }

  fit() {
    const width = this.box.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
    else if (!this.plot) this.draw();
  }

  draw() {
    const width = this.box.clientWidth;
    this.plot?.destroy();
    this.plot = null;
    if (!this.data || !width) return;
    const { uPlot } = globalThis;
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    const { axis: show = this.lines[0].show } = this.lines[0];
    this.plot = new uPlot({
      width, height: HEIGHT, legend: { show: false }, cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
      scales: { y: { range: (u, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [{ ...axis, size: 46 }, { ...axis, size: 60, values: (u, splits) => splits.map((value) => show(value)) }],
      series: [{}, ...this.lines.map((line) => ({
        label: line.label, stroke: colour(`--${line.colour}`), width: 2, spanGaps: false,
        fill: this.steps === true ? `${colour(`--${line.colour}`)}2e` : undefined,
        paths: this.steps ? uPlot.paths.stepped({ align: 1 }) : undefined, points: { show: this.steps ? false : undefined, size: 5 },
      }))],
      hooks: { setCursor: [(u) => this.read(u.cursor.idx)] },
    }, this.data, this.box);
  }

  read(at) {
    const there = at !== null && at !== undefined && this.data[0][at] !== undefined;
    this.when.textContent = there ? moment(this.data[0][at]) : "";
    this.values.forEach((value, line) => {
      value.textContent = there ? this.lines[line].show(this.data[line + 1][at]) : "";
    });
  }
}

/**
 * Series over an even grid of time: where nothing was called counts are 0, and times that were not measured are null.
 * @param {{since: number, until: number, step: number, series: Array<Object>}} overview
 * @param {Array<{name: string, of: function(Object): (number|null), none: (number|null)}>} wanted
 */
export function gridded({ since, until, step, series }, wanted) {
  const rows = new Map(series.map((row) => [row.t, row]));
  if (step > 0) {
    const first = series.length ? series[0].t - Math.ceil((series[0].t - since) / step) * step : Math.floor(since / step) * step;
    for (let t = first; t < until && rows.size < 5000; t += step) if (!rows.has(t)) rows.set(t, null);
  }
  const times = [...rows.keys()].sort((a, b) => a - b);
  return [times, ...wanted.map(({ of, none }) => times.map((t) => (rows.get(t) ? (of(rows.get(t)) ?? none) : none)))];
}

/** A bar of parts of a whole, for the eye; the numbers stand beside it as text. */
export function meter(parts, whole) {
  const bars = parts.map(([value, kind]) => {
    const bar = h("span", { class: kind });
    bar.style.width = `${whole > 0 ? Math.min(100, Math.max(0, (value / whole) * 100)) : 0}%`;
    return bar;
  });
  return h("span", { class: "meter", "aria-hidden": "true" }, bars);
}
