// The tenants, and making one. What a tenant is made of is said here once, for making and for changing it.

import { call, get } from "./api.js";
import { meter } from "./charts.js";
import { bar, button, fill, h, table } from "./dom.js";
import { openDialog } from "./dialog.js";
import { form } from "./form.js";
import { usd, usdLimit } from "./format.js";

const PAGE = 100;

/** The fields of a tenant that can be set, as the API names them. */
export const TENANT_FIELDS = [
  { name: "name", label: "Name", hint: "For people; empty is fine." },
  { name: "budget_usd", label: "Budget, US dollars", kind: "usd", hint: "What it may spend in a period. Empty: no limit." },
  { name: "budget_period", label: "Budget period", required: true, hint: "none, daily, weekly, monthly (UTC), or a time such as 12h or 7d." },
  { name: "soft_limit_usd", label: "Soft limit, US dollars", kind: "usd", hint: "Warn from here on. Empty: none." },
  { name: "budget_tokens", label: "Budget, tokens", kind: "count", hint: "Empty: no limit." },
  { name: "rate_requests", label: "Requests in a window", kind: "count", hint: "Empty: the gateway's own limit." },
  { name: "rate_tokens", label: "Tokens in a window", kind: "count", hint: "Empty: the gateway's own limit." },
  { name: "concurrency", label: "Calls at once", kind: "count", hint: "Empty: the gateway's own limit." },
  { name: "max_output_tokens", label: "Output tokens of a call", kind: "count", hint: "Where the caller names no limit. Empty: the gateway's own." },
  { name: "allowed_models", label: "Models allowed", kind: "lines", hint: "One a line. Empty: all." },
  { name: "enabled", label: "Enabled", kind: "check", hint: "A disabled tenant's calls are refused." },
];

const ID = { name: "id", label: "Id", required: true, hint: "Letters, digits, dots, dashes and underscores; can't be changed later." };

/** Whether it is enabled, in words and not by colour alone. */
export const state = (row) => h("span", { class: row.enabled ? "tag good" : "tag bad" }, row.enabled ? "enabled" : "disabled");

/** The view. */
export async function tenants(context) {
  const { signal, content, announce, go } = context;
  const list = h("div", {});

  function add() {
    openDialog("New tenant", (close) => form([ID, ...TENANT_FIELDS], { budget_period: "none", enabled: true }, "Create", async (values) => {
      const made = await call("POST", "tenants", { body: values });
      close();
      announce(`Tenant ${made.id} was made.`);
      go(`tenants/${encodeURIComponent(made.id)}`);
    }, { cancel: close }));
  }

  const rows = [];
  const more = button("More", () => load(rows.at(-1)?.id));
  async function load(after) {
    const page = await get("tenants", { limit: PAGE, after }, signal);
    rows.push(...page.data);
    fill(list, listed(rows));
    more.hidden = page.next === null;
  }

  fill(content, bar(2, "All tenants", button("New tenant", add, { kind: "primary" })), list, more);
  await load();
}

function listed(rows) {
  return table("Tenants", [
    { head: "Id", cell: (row) => h("a", { href: `#/tenants/${encodeURIComponent(row.id)}` }, row.id) },
    { head: "Name", cell: (row) => row.name },
    { head: "State", cell: state },
    { head: "Spent", number: true, cell: (row) => usd(row.spent_usd) },
    { head: "Used", cell: (row) => (row.budget_usd === null ? null
      : meter([[row.spent_usd, "spent"], [row.held_usd, "held"]], row.budget_usd + row.credit_usd)) },
    { head: "Left", number: true, cell: (row) => usdLimit(row.remaining_usd) },
    { head: "Budget", number: true, cell: (row) => usdLimit(row.budget_usd) },
    { head: "Period", cell: (row) => row.budget_period },
  ], rows, { none: "No tenants yet: make one." });
}
