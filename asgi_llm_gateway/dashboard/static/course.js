// Spend and tokens over time, told apart by model or by tenant: the dearest one by one, the others together.

import { get } from "./api.js";
import { Chart } from "./charts.js";
import { fill, h } from "./dom.js";
import { short, usd } from "./format.js";

const COLOURS = ["one", "two", "three", "four", "five", "rest"];

// What was chosen, for as long as the page is open.
const chosen = { by: "model" };

/** The section, and how it takes another time or tenant: `take(query)`. */
export function courses({ session, signal, atEnd }) {
  const select = h("select", { id: "split", onchange: () => { chosen.by = select.value; take(last); } },
    [["model", "Model"], ["tenant", "Tenant"]].map(([is, says]) => h("option", { value: is, selected: is === chosen.by }, says)));
  const box = h("div", { class: "charts" });
  const node = h("section", { "aria-labelledby": "courses-head" }, h("h2", { id: "courses-head" }, "Who spends it"),
    session.role === "admin" ? h("div", { class: "filters" }, h("div", { class: "field" }, h("label", { htmlFor: "split" }, "Told apart by"), select)) : null,
    box);
  let last = {};
  let shown = null;
  let charts = [];
  const end = () => charts.forEach((chart) => chart.end());
  atEnd(end);

  async function take(query) {
    last = query;
    const by = session.role === "admin" ? chosen.by : "model";
    const found = await get("course", { ...query, by }, signal);
    if (last !== query) return;
    const names = [...found.names.map((name) => name ?? "(none)"), ...(found.others ? ["all others"] : [])];
    const drawn = JSON.stringify([by, names]);
    if (drawn !== shown) {  // other lines: other charts
      end();
      charts = [new Chart(`Spend by ${by}`, lines(names, usd), { steps: "lines", note: "US dollars, as booked" }),
        new Chart(`Tokens by ${by}`, lines(names, short), { steps: "lines", note: "In and out" })];
      fill(box, charts.map((chart) => chart.node));
      shown = drawn;
    }
    const said = names.length ? `By ${by}: ${names.join(", ")}.` : "No calls in this time.";
    const times = found.series.map((point) => point.t);
    const columns = names.length ? names.map((_, at) => at) : [0];  // without calls: one line of nothing
    charts.forEach((chart, at) => chart.show([times, ...columns.map((column) => found.series.map((point) =>
      (at ? point.tokens : point.cost_usd)[column] ?? 0))], said));
  }

  return { node, take };
}

const lines = (names, show) => (names.length ? names : ["nothing"]).map((label, at) => ({ label, colour: COLOURS[at], show }));
