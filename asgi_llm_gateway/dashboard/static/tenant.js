// One tenant: its limits and money, its keys, adjustments and records. A tenant's own key reads; an admin changes.

import { call, get, link } from "./api.js";
import { meter } from "./charts.js";
import { bar, button, facts, fill, h, table } from "./dom.js";
import { confirmDialog, openDialog } from "./dialog.js";
import { form } from "./form.js";
import { count, limit, moment, text, usd, usdExact, usdLimit } from "./format.js";
import { keys } from "./keys.js";
import { TENANT_FIELDS, state } from "./tenants.js";

const ADJUSTMENT = [
  { name: "amount_usd", label: "Amount, US dollars", kind: "signed", required: true, hint: "5 gives 5 dollars more in this period, -5 takes them away.",
    check: (value) => (Number(value) === 0 ? "Not zero." : null) },
  { name: "reason", label: "Reason", required: true, hint: "Kept with the adjustment." },
];

/** The view. */
export async function tenant(context) {
  const { session, signal, content, params, title } = context;
  const [id] = params;
  const path = `tenants/${encodeURIComponent(id)}`;
  const admin = session.role === "admin";
  title(admin ? `Tenant ${id}` : `My tenant: ${id}`);
  const shown = await get(path, {}, signal);
  const about = h("section", { class: "card", "aria-labelledby": "about-head" });
  const adjusted = h("section", { class: "card", "aria-labelledby": "adjustments-head" });
  const keyed = admin ? h("section", { class: "card", "aria-labelledby": "keys-head" }) : null;
  const booked = h("section", { class: "card", "aria-labelledby": "records-head" });
  const page = { ...context, path, id, admin };
  fill(content, about, keyed, adjusted, booked);
  describe(page, about, shown, () => adjustments(page, adjusted, about));
  await Promise.all([admin ? keys(page, keyed) : null, adjustments(page, adjusted, about), records(page, booked)]);
}

// Headings that stay: the focus can come back to them when a table below was drawn anew.
function headed(section, id, words, ...actions) {
  const head = bar(2, words, ...actions);
  head.querySelector("h2").id = id;
  section.prepend(head);
}

function describe(page, section, row, again) {
  const { path, admin, announce, id } = page;
  const redraw = (changed) => describe(page, section, changed, again);

  function edit() {
    openDialog(`Change ${id}`, (close) => form(TENANT_FIELDS, row, "Save", async (values) => {
      const changed = await call("PUT", path, { body: values });
      close();
      redraw(changed);
      announce("Saved.");
    }, { cancel: close, changed: true }), { back: () => section.querySelector("[data-edit]") });
  }

  function toggle() {
    const change = async () => {
      redraw(await call("PUT", path, { body: { enabled: !row.enabled } }));
      announce(row.enabled ? "Disabled." : "Enabled.");
    };
    confirmDialog(row.enabled ? `Disable ${id}?` : `Enable ${id}?`,
      row.enabled ? "All its calls are refused from now on. Its keys and its money stay as they are." : "Its keys work again.",
      row.enabled ? "Disable" : "Enable", change, () => section.querySelector("[data-edit]"));
  }

  function remove() {
    confirmDialog(`Delete ${id}?`, "Its keys end at once. Its records and what it has spent stay.", "Delete", async () => {
      await call("DELETE", path);
      announce(`Tenant ${id} was deleted.`);
      page.go("tenants");
    });
  }

  const money = row.budget_usd === null ? null : row.budget_usd + row.credit_usd;
  fill(section, money === null ? null : meter([[row.spent_usd, "spent"], [row.held_usd, "held"]], money), facts([
    ["State", state(row)],
    ["Name", text(row.name)],
    ["Spent", usd(row.spent_usd)],
    ["Held by running calls", usd(row.held_usd)],
    ["Left", usdLimit(row.remaining_usd)],
    ["Budget", usdLimit(row.budget_usd)],
    ["Period", row.period_end ? `${row.budget_period}, until ${moment(row.period_end)}` : row.budget_period],
    ["Credit in this period", usd(row.credit_usd)],
    ["Soft limit", row.soft_limit_usd === null ? "none" : usd(row.soft_limit_usd)],
    ["Tokens spent", count(row.tokens_spent)],
    ["Token budget", limit(row.budget_tokens)],
    ["Requests in a window", limit(row.rate_requests)],
    ["Tokens in a window", limit(row.rate_tokens)],
    ["Calls at once", limit(row.concurrency)],
    ["Output tokens of a call", limit(row.max_output_tokens)],
    ["Models", row.allowed_models === null ? "all" : row.allowed_models.join(", ") || "none"],
    ["Made", moment(row.created)],
  ]));
  headed(section, "about-head", "Limits and money", ...(admin ? [
    button("Edit", edit, { "data-edit": "" }), button(row.enabled ? "Disable" : "Enable", toggle), button("Delete", remove, { kind: "danger" })] : []));
}

async function adjustments(page, section, about) {
  const { path, admin, signal, announce } = page;
  const { data } = await get(`${path}/adjustments`, { limit: 50 }, signal);

  function add() {
    openDialog("New adjustment", (close) => {
      const once = crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("");
      return form(ADJUSTMENT, {}, "Book", async (values) => {
        // The same id with each try: a click too many, or an answer that got lost, books nothing twice.
        const done = await call("POST", `${path}/adjustments`, { body: { ...values, id: once } });
        close();
        announce("Booked.");
        describe(page, about, done.balance, () => adjustments(page, section, about));
        await adjustments(page, section, about);
      }, { cancel: close });
    }, { back: () => section.querySelector("button") });
  }

  fill(section, table("Adjustments", [
    { head: "When", cell: (row) => moment(row.created) },
    { head: "Amount", number: true, cell: (row) => usd(row.amount_usd) },
    { head: "Kind", cell: (row) => row.kind },
    { head: "Reason", cell: (row) => row.reason },
    { head: "By", cell: (row) => text(row.by) },
  ], data, { none: "None." }));
  headed(section, "adjustments-head", "Adjustments", ...(admin ? [button("New adjustment", add)] : []));
}

async function records({ path, signal, id }, section) {
  const rows = [];
  const list = h("div", {});
  let cursor = null;
  const more = button("Older", () => load());
  async function load() {
    const page = await get(`${path}/records`, { limit: 25, cursor }, signal);
    rows.push(...page.records);
    cursor = page.next;
    more.hidden = cursor === null;
    fill(list, table("Records", [
      { head: "When", cell: (row) => moment(row.started) },
      { head: "Model", cell: (row) => text(row.model) },
      { head: "Status", number: true, cell: (row) => text(row.status) },
      { head: "Tokens in", number: true, cell: (row) => count(row.prompt_tokens) },
      { head: "Tokens out", number: true, cell: (row) => count(row.completion_tokens) },
      { head: "Cost", number: true, cell: (row) => usdExact(row.cost_usd) },
      { head: "Flags", cell: (row) => row.flags.join(", ") },
      { head: "Request", cell: (row) => h("a", { href: `#/calls/${encodeURIComponent(row.trace_id)}` }, row.request_id) },
    ], rows, { none: "No calls yet." }));
  }
  await load();
  fill(section, list, more);
  headed(section, "records-head", "Calls as booked",
    h("a", { class: "button", href: link(`${path}/records`, { format: "csv" }).href, download: `${id}-records.csv` }, "All as CSV"));
}
