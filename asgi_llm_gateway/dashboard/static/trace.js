// One trace: its calls, and the steps of each as a waterfall. The table is the chart: the bars only repeat its numbers.

import { get } from "./api.js";
import { outcome } from "./calls.js";
import { facts, fill, h, table } from "./dom.js";
import { count, moment, ms, text, usdExact } from "./format.js";

/** What the steps are called for people; others are shown by their own names. */
const NAMES = {
  auth: "Key and tenant", limit: "Rate limit", policy: "Policy", cache: "Cache", hold: "Budget hold", attempt: "Upstream call",
  first_token: "First token", first_byte: "First byte", last_byte: "Last byte", settle: "Settle",
};

/** The view. */
export async function trace({ signal, content, params, title, session }) {
  const found = await get(`traces/${encodeURIComponent(params[0])}`, {}, signal);
  title("Call");
  fill(content, h("p", {}, h("a", { href: "#/calls" }, "All calls")),
    found.data.map((call, at) => shown(call, found.data.length > 1 ? `Call ${at + 1} of ${found.data.length}` : "What it was", at, session)));
}

function shown(call, heading, at, session) {
  const id = `call-${at}`;
  const tenant = session.role === "admin" && call.tenant ? h("a", { href: `#/tenants/${encodeURIComponent(call.tenant)}` }, call.tenant) : text(call.tenant);
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, heading), facts([
    ["Outcome", outcome(call)],
    ["Tenant", tenant],
    ["Key", text(call.key_id)],
    ["Model", text(call.model)],
    ["Provider", text(call.provider)],
    ["Asked", `${call.method} ${call.path}${call.stream ? ", as a stream" : ""}`],
    ["Begun", moment(call.started)],
    ["Took", ms(call.duration_ms)],
    ["First byte after", ms(call.first_byte_ms)],
    ["Tokens in", count(call.tokens_in)],
    ["Tokens out", count(call.tokens_out)],
    ["Tokens cached by the provider", count(call.tokens_cached)],
    ["Upstream calls", count(call.attempts)],
    ["Cost", usdExact(call.cost_usd)],
    ["Cache", call.saved_usd ? `${text(call.cache)}, saved ${usdExact(call.saved_usd)}` : text(call.cache)],
    ["Request id", h("code", {}, call.request_id)],
    ["Trace id", h("code", {}, call.trace_id)],
  ]), h("h3", {}, "Steps"), waterfall(call));
}

function waterfall(call) {
  const steps = call.steps ?? [];
  const whole = Math.max(call.duration_ms ?? 0, ...steps.map(endOf), 0.001);
  return table(`Steps of ${call.request_id}`, [
    { head: "Step", cell: (step) => NAMES[step.name] ?? step.name },
    { head: "Begin", number: true, cell: (step) => ms(step.start_ms) },
    { head: "Took", number: true, cell: (step) => (step.ms > 0 ? ms(step.ms) : "at once") },
    { head: "Course", cell: (step) => strip(step, whole) },
    { head: "More", cell: (step) => detail(step.detail) },
  ], steps, { none: "No steps were recorded: the call ended before the first." });
}

const endOf = (step) => step.start_ms + step.ms;

// Set from script, as the policy of the page has it: there is no style in the markup.
function strip(step, whole) {
  const bar = h("span", { class: `strip-bar ${step.ms > 0 ? "" : "point"}`, "data-step": step.name });
  bar.style.left = `${Math.min(99.5, (step.start_ms / whole) * 100)}%`;
  bar.style.width = step.ms > 0 ? `${Math.max(0.5, (step.ms / whole) * 100)}%` : "";
  return h("span", { class: "strip", "aria-hidden": "true" }, bar);
}

function detail(said) {
  if (said === null || said === undefined) return "";
  if (typeof said !== "object") return String(said);
  return Object.entries(said).filter(([, value]) => value !== null && value !== "").map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`).join(", ");
}
