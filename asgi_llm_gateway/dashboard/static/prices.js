// The price list in force.

import { get } from "./api.js";
import { fill, h, table } from "./dom.js";
import { count, text, usd } from "./format.js";

const WORDS = {
  usd_per_million_in: "In", usd_per_million_out: "Out", usd_per_million_cached: "Cached", usd_per_million_cache_write: "Cache write",
  usd_per_million_media_in: "Media in", usd_per_million_media_out: "Media out", usd_per_image: "An image", usd_per_minute: "A minute",
  usd_per_million_characters: "A million characters", usd_per_request: "A call",
};
const ALWAYS = ["usd_per_million_in", "usd_per_million_out"];

/** The view. */
export async function prices({ signal, content }) {
  const { data } = await get("prices", {}, signal);
  // Only the columns that some model has a price in.
  const there = Object.keys(WORDS).filter((name) => ALWAYS.includes(name) || data.some((row) => row[name] !== null));
  fill(content, h("p", { class: "hint" }, "US dollars a million tokens, where nothing else is said. A dash: nothing more, or as other tokens of its kind."),
    table("Prices", [
      { head: "Model", cell: (row) => row.model },
      { head: "Provider", cell: (row) => text(row.provider) },
      { head: "Its name there", cell: (row) => row.upstream_model },
      { head: "Price", cell: known },
      ...there.map((name) => ({ head: WORDS[name], number: true, cell: (row) => [usd(row[name]), row.tiers.map((tier) => above(tier, name))] })),
      { head: "Context, tokens", number: true, cell: (row) => count(row.context) },
    ], data, { none: "No model is set up or was used yet." }));
}

function known(row) {
  if (!row.known) return h("span", { class: "tag warn" }, "unknown");
  return row.local ? "your own server" : "known";
}

function above(tier, name) {
  const price = tier[name];
  return price === undefined || price === null ? null : h("div", { class: "hint" }, `${usd(price)} above ${count(tier.above_tokens)}`);
}
