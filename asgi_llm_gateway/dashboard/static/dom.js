// Elements from data. Text goes in as text nodes only: names, models and errors come from strangers, and stay words.

const PROPERTIES = new Set(["value", "checked", "disabled", "selected", "hidden", "open", "readOnly", "required", "htmlFor"]);

/**
 * An element.
 * @param {string} tag
 * @param {Object} [props] `on...` functions listen, a few are set as properties, all others as attributes; null is left out.
 * @param {...(Node|string|number|null|Array)} children Strings become text.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...parts(children));
  return element;
}

function parts(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/** Put children in the place of what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...parts(children));
  return element;
}

/** A button that says what it does; `about` adds words for those who don't see the row that it stands in. */
export function button(text, onclick, { kind = "", about = null, ...more } = {}) {
  return h("button", { type: "button", class: kind, onclick, ...more }, text, about && h("span", { class: "unseen" }, ` ${about}`));
}

/**
 * A table with a caption, in a box that scrolls sideways by itself.
 * @param {string} caption
 * @param {Array<{head: string, cell: function(Object): *, number?: boolean}>} columns The first names the row.
 * @param {Array<Object>} rows
 * @param {string} [none] What is said where there are no rows.
 */
export function table(caption, columns, rows, { none = "Nothing here yet.", seen = false } = {}) {
  const head = h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.number ? "number" : null }, column.head)));
  const body = rows.map((row) => tableRow(columns, row));
  const empty = rows.length ? null : h("tr", { class: "none" }, h("td", { colspan: columns.length }, none));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}, table` },
    h("table", {}, h("caption", { class: seen ? null : "unseen" }, caption), h("thead", {}, head), h("tbody", {}, body, empty)));
}

/** One row of a table; the first cell is its header. */
export function tableRow(columns, row) {
  return h("tr", {}, columns.map((column, at) => h(at ? "td" : "th",
    { scope: at ? null : "row", class: column.number ? "number" : null }, column.cell(row))));
}

/** What went wrong, in words, where it happened. `again` is offered as a button. */
export function problem(error, again = null) {
  return h("div", { class: "problem", role: "alert" }, h("p", {}, error.message), again && button("Try again", again));
}

/** A heading with things to do beside it. */
export function bar(level, text, ...actions) {
  return h("div", { class: "bar" }, h(`h${level}`, {}, text), h("div", { class: "actions" }, actions));
}

/** Terms and what they are, as a list of definitions. */
export function facts(pairs, kind = "facts") {
  return h("dl", { class: kind }, pairs.map(([term, ...what]) => h("div", {}, h("dt", {}, term), what.map((one) => h("dd", {}, one)))));
}
