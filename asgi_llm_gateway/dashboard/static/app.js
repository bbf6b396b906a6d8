// The page: who is signed in, which view is shown, and where the focus goes when that changes.

import { ApiError, onEnd, resume, signOut } from "./api.js";
import { button, fill, h, problem } from "./dom.js";
import { signInView } from "./signin.js";
import { overview } from "./overview.js";
import { calls } from "./calls.js";
import { trace } from "./trace.js";
import { tenants } from "./tenants.js";
import { tenant } from "./tenant.js";
import { prices } from "./prices.js";

const main = document.getElementById("main");
const top = document.getElementById("top");
const views = document.getElementById("views");
const status = document.getElementById("status");

// Address, title, view; and whether a tenant's own key has it. An address names a view and an id, never a key.
const ROUTES = [
  { at: /^overview$/, title: "Overview", view: overview, own: true },
  { at: /^calls$/, title: "Calls", view: calls, own: true },
  { at: /^calls\/(.+)$/, title: "Call", view: trace, own: true },
  { at: /^tenants$/, title: "Tenants", view: tenants },
  { at: /^tenants\/(.+)$/, title: "Tenant", view: tenant, own: true },
  { at: /^prices$/, title: "Prices", view: prices, own: true },
];

let session = null;
let leave = () => {};
let fading = 0;

/** Tell those who listen instead of looking. */
function announce(words) {
  status.textContent = words;
  clearTimeout(fading);
  fading = setTimeout(() => { status.textContent = ""; }, 6000);
}

function links() {
  const own = `tenants/${encodeURIComponent(session.tenant ?? "")}`;
  const all = [["overview", "Overview"], ["calls", "Calls"], session.role === "admin" ? ["tenants", "Tenants"] : [own, "My tenant"],
    ["prices", "Prices"]];
  const here = location.hash.slice(2) || "overview";
  fill(views, all.map(([to, says]) => h("li", {}, h("a", {
    href: `#/${to}`, "aria-current": here === to ? "page" : here.startsWith(`${to}/`) ? "true" : null }, says))));
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function show({ focus = true } = {}) {
  leave();
  if (session === null) return;
  const here = location.hash.replace(/^#\/?/, "") || "overview";
  const route = ROUTES.find((one) => one.at.test(here) && (one.own || session.role === "admin"));
  const left = new AbortController();
  const ends = [];
  leave = () => {
    left.abort();
    ends.splice(0).forEach((end) => end());
  };
  links();
  const content = h("div", { class: "view" });
  const heading = h("h1", { tabindex: "-1" }, route?.title ?? "There is no such view");
  fill(main, heading, content);
  document.title = `${heading.textContent} | LLM gateway`;
  if (focus) heading.focus();
  if (!route) {
    fill(content, h("p", {}, "Choose one above."));
    return;
  }
  const context = {
    session, announce, signal: left.signal, content,
    params: here.match(route.at).slice(1).map(decoded),
    atEnd: (end) => (left.signal.aborted ? end() : ends.push(end)),
    title: (words) => {
      heading.textContent = words;
      document.title = `${words} | LLM gateway`;
    },
    go: (to) => {
      location.hash = `#/${to}`;
    },
    again: () => show(),
  };
  try {
    await route.view(context);
  } catch (error) {
    if (left.signal.aborted) return;
    fill(content, problem(error, error instanceof ApiError ? () => show() : null));
    if (!(error instanceof ApiError)) console.error(error);
  }
}

function enter(found) {
  session = found;
  top.hidden = false;
  document.getElementById("who").textContent = found.role === "admin" ? "Admin" : `Tenant ${found.tenant}`;
  announce("Signed in.");
  show();
}

function out(words) {
  if (session === null && main.querySelector("form")) return;
  leave();
  session = null;
  top.hidden = true;
  document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
  document.title = "Sign in | LLM gateway";
  fill(main, signInView(enter, words));
  main.querySelector("input")?.focus();
}

async function start() {
  try {
    const found = await resume();
    if (found === null) out("");
    else enter(found);
  } catch (error) {
    fill(main, h("h1", {}, "LLM gateway"), problem(error), button("Try again", start));
  }
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();  // the address after # is the view's
  main.focus();
});
document.getElementById("sign-out").addEventListener("click", async () => {
  try {
    await signOut();
    out("You are signed out.");
  } catch (error) {
    out(error.status === 401 ? "You are signed out." : `Signed out here, but the gateway did not confirm it: ${error.message}`);
  }
});
addEventListener("hashchange", () => show());
onEnd(() => out("Your session has ended. Sign in again."));
start();
