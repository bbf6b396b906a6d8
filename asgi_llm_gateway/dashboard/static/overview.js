// The overview: sums, their course over time, by model and by tenant, and what is left of the budgets.

import { get } from "./api.js";
import { Chart, gridded, meter } from "./charts.js";
import { courses } from "./course.js";
import { button, facts, fill, h, problem, table } from "./dom.js";
import { count, ms, msAxis as axis, share, short, usd } from "./format.js";

const RANGES = [[3600, "Last hour"], [6 * 3600, "Last 6 hours"], [86_400, "Last 24 hours"], [7 * 86_400, "Last 7 days"],
  [30 * 86_400, "Last 30 days"], [90 * 86_400, "Last 90 days"]];
const REFRESH = 15_000;  // milliseconds
const POINTS = 20;  // rows that the tables of models and tenants show before "all"

// What was chosen, for as long as the page is open.
const chosen = { range: 86_400, tenant: "" };

/** The view. */
export async function overview(context) {
  const { session, signal, content, announce, atEnd } = context;
  const charts = drawn();
  atEnd(() => charts.forEach((chart) => chart.end()));
  const split = courses(context);
  const fault = h("div", {});
  const sums = h("div", {});
  const budgets = h("section", { class: "card", "aria-labelledby": "budgets-head" });
  const groups = h("div", { class: "groups" });
  const controls = await chooser(context, () => refresh(true));
  fill(content, controls, fault, sums,
    h("section", { "aria-labelledby": "time-head" }, h("h2", { id: "time-head" }, "Over time"),
      h("div", { class: "charts" }, charts.map((chart) => chart.node))),
    split.node, budgets, groups);

  let asked = 0;
  async function refresh(said) {
    const mine = ++asked;
    const until = Math.ceil(Date.now() / 1000);
    try {
      const query = { since: until - chosen.range, until, tenant: session.role === "admin" ? chosen.tenant : null };
      const [found] = await Promise.all([get("overview", query, signal), split.take(query)]);
      if (mine !== asked) return;  // something else was chosen meanwhile
      fill(fault);
      fill(sums, totals(found.totals));
      charts.forEach((chart) => chart.take(found));
      fill(budgets, h("h2", { id: "budgets-head" }, "Budgets"), budgetTable(found.budgets, session),
        found.budgets_unlisted ? h("p", { class: "hint" }, `And ${count(found.budgets_unlisted)} more, with more left.`) : null);
      fill(groups, grouped("By model", "Model", found.by_model, found.totals),
        session.role === "admin" ? grouped("By tenant", "Tenant", found.by_tenant, found.totals, true) : null);
      if (said) announce(`${count(found.totals.calls)} calls, ${usd(found.totals.cost_usd)} in the time chosen.`);
    } catch (error) {
      if (signal.aborted || mine !== asked) return;
      fill(fault, problem(error, () => refresh(true)));
    }
  }

  await refresh(false);
  const timer = setInterval(() => document.hidden || refresh(false), REFRESH);
  atEnd(() => clearInterval(timer));
}

async function chooser({ session, signal }, changed) {
  const select = (id, label, options, value, on) => h("div", { class: "field" }, h("label", { htmlFor: id }, label),
    h("select", { id, onchange: (event) => { on(event.target.value); changed(); } },
      options.map(([is, says]) => h("option", { value: is, selected: String(is) === String(value) }, says))));
  const parts = [select("range", "Time", RANGES, chosen.range, (value) => { chosen.range = Number(value); })];
  if (session.role === "admin") {
    const { data } = await get("tenants", { limit: 1000 }, signal);
    const known = data.map(({ id, name }) => [id, name ? `${id} (${name})` : id]);
    if (!data.some(({ id }) => id === chosen.tenant)) chosen.tenant = "";
    parts.push(select("tenant", "Tenant", [["", "All tenants"], ...known], chosen.tenant, (value) => { chosen.tenant = value; }));
  }
  return h("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, parts, button("Refresh", changed));
}

function totals(sums) {
  const failed = sums.calls ? ` (${share(sums.errors, sums.calls)})` : "";
  return facts([
    ["Spend", usd(sums.cost_usd)],
    ["Calls", count(sums.calls)],
    ["Errors", `${count(sums.errors)}${failed}`],
    ["Refused", count(sums.refused)],
    ["Aborted", count(sums.aborted)],
    ["Tokens in", count(sums.tokens_in)],
    ["Tokens out", count(sums.tokens_out)],
    ["Saved by the cache", usd(sums.saved_usd)],
    ["Latency, median", ms(sums.p50_ms)],
    ["Latency, 95%", ms(sums.p95_ms)],
    ["Latency, 99%", ms(sums.p99_ms)],
    ["First token, median", ms(sums.ttft_p50_ms)],
    ["First token, 95%", ms(sums.ttft_p95_ms)],
  ], "tiles");
}

// A chart of fields of the series, which knows how to take them from the answer.
class Course extends Chart {
  constructor(title, fields, options = {}) {
    super(title, fields, options);
    this.fields = fields;
  }

  take(found) {
    const wanted = this.fields.map(({ of, none = null }) => ({ of: (row) => of(row, found.step), none }));
    const data = gridded(found, wanted);
    const peaks = this.fields.map(({ label, show }, at) => {
      const there = data[at + 1].filter((value) => value !== null);
      return there.length ? `${label}: at most ${show(Math.max(...there))}` : `${label}: nothing`;
    });
    this.show(data, `${peaks.join("; ")}.`);
  }
}

function drawn() {
  const perMinute = (value) => `${short(Number(value?.toFixed(2)))}`;
  return [
    new Course("Spend", [
      { label: "Spend", colour: "one", show: usd, of: (row) => row.cost_usd, none: 0 },
    ], { steps: true, note: "US dollars, as booked" }),
    new Course("Tokens", [
      { label: "In", colour: "one", show: short, of: (row) => row.tokens_in, none: 0 },
      { label: "Out", colour: "two", show: short, of: (row) => row.tokens_out, none: 0 },
    ], { steps: true, note: "Counted by the provider, or estimated" }),
    new Course("Requests", [
      { label: "Calls", colour: "one", show: perMinute, of: (row, step) => (row.calls * 60) / step, none: 0 },
      { label: "Errors", colour: "bad", show: perMinute, of: (row, step) => (row.errors * 60) / step, none: 0 },
    ], { steps: true, note: "A minute" }),
    new Course("Latency", [
      { label: "Median", colour: "one", show: ms, axis, of: (row) => row.p50_ms },
      { label: "95%", colour: "two", show: ms, of: (row) => row.p95_ms },
    ], { note: "From the request's begin to the last byte" }),
    new Course("Time to first token", [
      { label: "Median", colour: "one", show: ms, axis, of: (row) => row.ttft_p50_ms },
      { label: "95%", colour: "two", show: ms, of: (row) => row.ttft_p95_ms },
    ], { note: "Where the first piece of an answer was seen" }),
    new Course("Saved by the cache", [
      { label: "Saved", colour: "two", show: usd, of: (row) => row.saved_usd, none: 0 },
    ], { steps: true, note: "US dollars that answers from the cache had cost" }),
  ];
}

function budgetTable(budgets, session) {
  const name = (row) => (session.role === "admin" ? h("a", { href: `#/tenants/${encodeURIComponent(row.tenant)}` }, row.tenant) : row.tenant);
  return table("Budgets", [
    { head: "Tenant", cell: (row) => [name(row), row.name && row.name !== row.tenant ? h("span", { class: "hint" }, ` ${row.name}`) : null] },
    { head: "Used", cell: (row) => (row.budget_usd === null ? "no limit" : [
      meter([[row.spent_usd, low(row) ? "spent low" : "spent"], [row.held_usd, "held"]], row.spent_usd + row.held_usd + Math.max(0, row.left_usd)),
      h("span", { class: "hint" }, share(row.spent_usd + row.held_usd, row.spent_usd + row.held_usd + Math.max(0, row.left_usd)))]) },
    { head: "Spent", number: true, cell: (row) => usd(row.spent_usd) },
    { head: "Held", number: true, cell: (row) => usd(row.held_usd) },
    { head: "Left", number: true, cell: (row) => (row.budget_usd === null ? "no limit" : usd(row.left_usd)) },
    { head: "Budget", number: true, cell: (row) => (row.budget_usd === null ? "no limit" : usd(row.budget_usd)) },
    { head: "Period", cell: (row) => row.period },
  ], budgets, { none: "No tenant has a budget." });
}

const low = (row) => row.left_usd <= row.budget_usd / 10;

function grouped(title, what, rows, all, linked = false) {
  const id = `by-${what.toLowerCase()}`;
  const columns = [
    { head: what, cell: (row) => (linked && row.name !== null ? h("a", { href: `#/tenants/${encodeURIComponent(row.name)}` }, row.name) : row.name) ?? "(none)" },
    { head: "Spend", number: true, cell: (row) => [usd(row.cost_usd), meter([[row.cost_usd, "spent"]], all.cost_usd)] },
    { head: "Calls", number: true, cell: (row) => count(row.calls) },
    { head: "Errors", number: true, cell: (row) => count(row.errors) },
    { head: "Tokens in", number: true, cell: (row) => count(row.tokens_in) },
    { head: "Tokens out", number: true, cell: (row) => count(row.tokens_out) },
    { head: "Latency, 95%", number: true, cell: (row) => ms(row.p95_ms) },
  ];
  const sorted = [...rows].sort((a, b) => b.cost_usd - a.cost_usd || b.calls - a.calls);
  const box = h("div", {}, table(title, columns, sorted.slice(0, POINTS), { none: "No calls in this time." }));
  const more = sorted.length > POINTS ? button(`Show all ${count(sorted.length)}`, () => {
    fill(box, table(title, columns, sorted));
    more.remove();
  }) : null;
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), box, more);
}
