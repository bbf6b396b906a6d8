// A tenant's keys: made, rotated and ended. A secret is shown once, in a dialog, and is nowhere in the page afterwards.

import { call, get } from "./api.js";
import { bar, button, fill, h, table } from "./dom.js";
import { confirmDialog, openDialog, showSecret } from "./dialog.js";
import { form } from "./form.js";
import { moment, text, usd } from "./format.js";

const DAY = 86_400;
const KEY_FIELDS = [
  { name: "name", label: "Name", hint: "What it is for." },
  { name: "days", param: "expires_in_seconds", label: "Days until it expires", kind: "number", hint: "Empty: never.",
    check: (value) => (value === 0 ? "More than 0, or empty." : null) },
  { name: "budget_usd", label: "Budget, US dollars", kind: "usd", hint: "Its own part of the tenant's budget, in the tenant's period. Empty: none." },
  { name: "rate_requests", label: "Requests in a window", kind: "count" },
  { name: "rate_tokens", label: "Tokens in a window", kind: "count" },
  { name: "concurrency", label: "Calls at once", kind: "count" },
  { name: "allowed_models", label: "Models allowed", kind: "lines", hint: "One a line. Empty: those of the tenant." },
  { name: "also_tenants", label: "Other tenants it may act for", kind: "list", hint: "One id a line." },
];
const ROTATION = [
  { name: "hours", param: "overlap_seconds", label: "Hours that the old key goes on working", kind: "number", required: true },
];

/** The section of a tenant's page. */
export async function keys({ path, id, signal, announce }, section) {
  const list = h("div", {});
  const rows = [];
  const more = button("More", () => load(rows.at(-1)?.id));
  const head = bar(2, "Keys", button("New key", add));
  const heading = head.querySelector("h2");
  Object.assign(heading, { id: "keys-head", tabIndex: -1 });
  fill(section, head, list, more);

  async function load(after) {
    const page = await get(`${path}/keys`, { limit: 100, after }, signal);
    if (after === undefined) rows.length = 0;
    rows.push(...page.data);
    more.hidden = page.next === null;
    fill(list, listed(rows, { rotate, revoke }));
  }

  async function shown(made) {
    // The secret first: if the list can't be read anew, the key is not lost with it.
    showSecret(made, () => heading);
    await load();
  }

  function add() {
    openDialog(`New key for ${id}`, (close) => form(KEY_FIELDS, {}, "Create", async ({ days, ...values }) => {
      const body = { ...values, ...(days === null ? {} : { expires_in_seconds: days * DAY }) };
      const made = await call("POST", `${path}/keys`, { body });
      close();
      await shown(made);
    }, { cancel: close }));
  }

  function rotate(key) {
    openDialog(`Rotate ${said(key)}`, (close) => form(ROTATION, { hours: "24" }, "Rotate", async ({ hours }) => {
      const made = await call("POST", `${path}/keys/${encodeURIComponent(key.id)}/rotate`, { body: { overlap_seconds: hours * 3600 } });
      close();
      await shown(made);
    }, { cancel: close }));
  }

  function revoke(key) {
    confirmDialog(`Revoke ${said(key)}?`, "Calls with it are refused from now on. It can't be made valid again.", "Revoke", async () => {
      await call("DELETE", `${path}/keys/${encodeURIComponent(key.id)}`);
      announce(`${said(key)} is revoked.`);
      await load();
    }, () => heading);
  }

  await load();
}

const said = (key) => (key.name ? `${key.name} (${key.id})` : key.id);

function standing(key) {
  const now = Date.now() / 1000;
  if (key.revoked !== null && key.revoked <= now) return ["bad", `revoked ${moment(key.revoked)}`];
  if (key.expires !== null && key.expires <= now) return ["bad", `expired ${moment(key.expires)}`];
  if (key.revoked !== null) return ["warn", `ends ${moment(key.revoked)}`];
  return ["good", key.expires === null ? "valid" : `valid until ${moment(key.expires)}`];
}

function listed(rows, { rotate, revoke }) {
  const actions = (key) => {
    const [kind] = standing(key);
    const about = said(key);
    return h("span", { class: "actions" },
      kind === "good" && button("Rotate", () => rotate(key), { about }),
      kind !== "bad" && button("Revoke", () => revoke(key), { about, kind: "danger" }));
  };
  return table("Keys", [
    { head: "Id", cell: (key) => key.id },
    { head: "Name", cell: (key) => key.name },
    { head: "State", cell: (key) => h("span", { class: `tag ${standing(key)[0]}` }, standing(key)[1]) },
    { head: "Made", cell: (key) => moment(key.created) },
    { head: "Budget", number: true, cell: (key) => (key.budget_usd === null ? "of the tenant" : `${usd(key.spent_usd)} of ${usd(key.budget_usd)}`) },
    { head: "Models", cell: (key) => (key.allowed_models === null ? "of the tenant" : text(key.allowed_models.join(", "))) },
    { head: "What to do", cell: actions },
  ], rows, { none: "No keys yet: make one." });
}
