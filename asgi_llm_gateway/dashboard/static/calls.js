// The calls as they come in: newest on top, filtered where asked, each with a way to its waterfall.

import { get } from "./api.js";
import { button, fill, h, problem, table, tableRow } from "./dom.js";
import { count, ms, point, text, timeOfDay, usdExact } from "./format.js";

const PAGE = 50;
const LIVE = 200;  // new calls of one look, at most
const KEPT = 500;  // rows in the page; older ones fall out below while new ones come in above
const POLL = 2000;  // milliseconds
const SAY = 10_000;  // milliseconds between two words on new calls to those who listen

const STATUSES = [["", "Any"], ["2xx", "2xx, answered"], ["4xx", "4xx, refused"], ["402", "402, over budget"], ["429", "429, over a limit"],
  ["5xx", "5xx, failed"]];

// What was chosen, for as long as the page is open.
const chosen = { tenant: "", model: "", status: "", min_ms: "" };

/** The view. */
export async function calls(context) {
  const { session, signal, content, announce, atEnd } = context;
  const columns = columnsFor(session);
  const list = h("div", {});
  const fault = h("div", {});
  const older = button("Older", () => more());
  const pause = button("Pause", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    announce(paused ? "Paused." : "Live again.");
  });
  let paused = false;
  let seen = new Set();
  let cursor = null;  // of the older ones, by when they began
  let after = null;  // of the newer ones, by when they were recorded
  let body = null;
  let asked = 0;

  async function fresh() {
    const mine = ++asked;
    try {
      // The place in the order of arrival first: what comes in from here on is not missed, and `seen` knows what comes twice.
      const { cursor: place } = await get("live", { limit: 1 }, signal);
      const page = await get("traces", { limit: PAGE, ...wanted(session) }, signal);
      if (mine !== asked) return;
      fill(fault);
      after = place;
      seen = new Set(page.data.map(idOf));
      fill(list, table("Calls, newest first", columns, page.data, { none: "No such calls yet." }));
      body = list.querySelector("tbody");
      turn(page);
    } catch (error) {
      if (!signal.aborted && mine === asked) fill(fault, problem(error, fresh));
    }
  }

  function turn(page) {
    cursor = page.next;
    older.hidden = cursor === null;
  }

  async function more() {
    const mine = asked;
    older.disabled = true;
    try {
      const page = await get("traces", { limit: PAGE, cursor, ...wanted(session) }, signal);
      if (mine !== asked) return;
      const rows = page.data.filter((row) => !seen.has(idOf(row)));
      rows.forEach((row) => seen.add(idOf(row)));
      body.append(...rows.map((row) => tableRow(columns, row)));
      turn(page);
      announce(`${rows.length} older calls.`);
    } catch (error) {
      if (!signal.aborted) fill(fault, problem(error));
    } finally {
      older.disabled = false;
    }
  }

  let unsaid = 0;
  let saidAt = Date.now();
  async function poll() {
    if (paused || document.hidden || body === null) return;
    const mine = asked;
    const page = await get("live", { after, limit: LIVE }, signal);
    if (mine !== asked || paused) return;
    fill(fault);
    after = page.cursor;
    const rows = page.calls.filter((row) => !seen.has(idOf(row)) && fits(row));
    if (!rows.length) return;
    rows.forEach((row) => seen.add(idOf(row)));
    body.querySelector(".none")?.remove();
    // Put on top, the others untouched: whoever reads or has the focus in the table stays where they are.
    body.prepend(...rows.map((row) => tableRow(columns, row)));
    trim();
    unsaid += rows.length;
    if (Date.now() - saidAt > SAY) {
      announce(`${unsaid} new ${unsaid === 1 ? "call" : "calls"}.`);
      [unsaid, saidAt] = [0, Date.now()];
    }
  }

  function trim() {
    while (body.rows.length > KEPT && !body.lastElementChild.contains(document.activeElement)) {
      body.lastElementChild.remove();
      older.hidden = true;  // its cursor is behind what fell out
    }
  }

  fill(content, filters(context, fresh, pause), fault, list, older);
  await fresh();
  let timer = 0;
  const next = () => {
    timer = setTimeout(async () => {
      try {
        await poll();
      } catch (error) {
        if (!signal.aborted && !fault.childElementCount) fill(fault, problem(error));  // said once, tried again all the same
      }
      if (!signal.aborted) next();
    }, POLL);
  };
  next();
  atEnd(() => clearTimeout(timer));
}

const idOf = (row) => `${row.trace_id} ${row.request_id} ${row.started}`;

// The filters of the gateway once more, for what comes in by itself.
function fits(row) {
  const { tenant, model, status, min_ms: least } = chosen;
  return (tenant === "" || row.tenant === tenant) && (model === "" || row.model === model)
    && (status === "" || (status.endsWith("xx") ? Math.floor(row.status / 100) === Number(status[0]) : row.status === Number(status)))
    && (least === "" || row.duration_ms >= Number(least));
}

function wanted({ role }) {
  return { ...chosen, tenant: role === "admin" ? chosen.tenant : null };
}

function filters({ session }, changed, pause) {
  const own = (name) => ({ id: `filter-${name}`, name, value: chosen[name], autocomplete: "off", spellcheck: "false" });
  const field = (name, label, control) => h("div", { class: "field" }, h("label", { htmlFor: `filter-${name}` }, label), control);
  const onsubmit = (event) => {
    event.preventDefault();
    for (const [name, value] of new FormData(event.target)) chosen[name] = value.trim();
    changed();
  };
  return h("form", { class: "filters", onsubmit, onchange: (event) => event.currentTarget.requestSubmit() },
    session.role === "admin" && field("tenant", "Tenant", h("input", { type: "text", ...own("tenant") })),
    field("model", "Model", h("input", { type: "text", ...own("model") })),
    field("status", "Status", h("select", { id: "filter-status", name: "status" },
      STATUSES.map(([is, says]) => h("option", { value: is, selected: is === chosen.status }, says)))),
    field("min_ms", "Slower than, ms", h("input", { type: "text", inputmode: "numeric", ...own("min_ms") })),
    h("button", { type: "submit" }, "Filter"), pause);
}

/** What a call came to, in words and not by colour alone. */
export function outcome(row) {
  const refused = row.status >= 400 && row.status < 500;
  const kind = refused || row.aborted ? "warn" : row.status >= 500 || row.error ? "bad" : "good";
  const words = [row.status ?? "no answer", row.aborted ? "aborted" : null, row.error].filter((word) => word !== null && word !== undefined);
  return h("span", { class: `tag ${kind}` }, words.join(" · "));
}

function columnsFor({ role }) {
  const today = new Date().toDateString();
  const when = (row) => (new Date(row.started * 1000).toDateString() === today ? timeOfDay(row.started) : point(row.started));
  return [
    { head: "When", cell: (row) => h("a", { href: `#/calls/${encodeURIComponent(row.trace_id)}` }, when(row),
      h("span", { class: "unseen" }, ` steps of ${row.request_id}`)) },
    ...(role === "admin" ? [{ head: "Tenant", cell: (row) => text(row.tenant) }] : []),
    { head: "Model", cell: (row) => text(row.model) },
    { head: "Provider", cell: (row) => text(row.provider) },
    { head: "Outcome", cell: outcome },
    { head: "Took", number: true, cell: (row) => ms(row.duration_ms) },
    { head: "First byte", number: true, cell: (row) => ms(row.first_byte_ms) },
    { head: "Tokens in", number: true, cell: (row) => count(row.tokens_in) },
    { head: "Tokens out", number: true, cell: (row) => count(row.tokens_out) },
    { head: "Cost", number: true, cell: (row) => usdExact(row.cost_usd) },
    { head: "Cache", cell: (row) => text(row.cache) },
  ];
}
