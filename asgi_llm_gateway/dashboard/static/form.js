// Forms: fields from a list, checked before they are sent, and keeping what was typed whatever comes back.

import { button, h } from "./dom.js";
import { plain } from "./format.js";

// How a field's text becomes the value that is sent (null: none), and what to say where it can't.
const KINDS = {
  text: { read: (typed) => typed },
  // As text, not as a number: the server reads the decimals that were typed, exactly.
  usd: { read: (typed) => decimal(typed, /^\d{1,10}(\.\d{1,9})?$/), say: "An amount in US dollars such as 25 or 0.50, at most 9 decimals.",
    mode: "decimal", show: plain },
  signed: { read: (typed) => decimal(typed, /^-?\d{1,10}(\.\d{1,9})?$/),
    say: "An amount such as 5, or -5 to take away; at most 9 decimals.", mode: "text" },
  count: { read: (typed) => (typed === "" ? null : /^\d{1,15}$/.test(typed) ? Number(typed) : undefined),
    say: "A whole number.", mode: "numeric" },
  number: { read: (typed) => (typed === "" ? null : /^\d{1,9}(\.\d{1,6})?$/.test(typed) ? Number(typed) : undefined),
    say: "A number such as 24 or 0.5.", mode: "decimal" },
  lines: { read: (typed) => named(typed), show: (value) => (value ?? []).join("\n") },
  list: { read: (typed) => named(typed) ?? [], show: (value) => (value ?? []).join("\n") },
};

function decimal(typed, shape) {
  if (typed === "") return null;
  return shape.test(typed) ? typed : undefined;
}

function named(typed) {
  const names = typed.split(/[\n,]/).map((name) => name.trim()).filter(Boolean);
  return names.length ? names : null;
}

let serial = 0;

class Field {
  constructor(spec, value) {
    this.spec = spec;
    const id = `field-${++serial}`;
    const kind = KINDS[spec.kind ?? "text"];
    this.fault = h("p", { id: `${id}-fault`, class: "fault", hidden: true });
    const hint = spec.hint && h("p", { id: `${id}-hint`, class: "hint" }, spec.hint);
    const common = { id, name: spec.name, "aria-describedby": [hint && `${id}-hint`, `${id}-fault`].filter(Boolean).join(" ") };
    const shown = kind?.show ? kind.show(value) : (value ?? "");
    if (spec.kind === "check") this.input = h("input", { ...common, type: "checkbox", checked: Boolean(value) });
    else if (["lines", "list"].includes(spec.kind)) this.input = h("textarea", { ...common, rows: 3, spellcheck: "false", value: shown });
    else if (spec.options) {
      this.input = h("select", common, spec.options.map(([is, says]) => h("option", { value: is, selected: is === shown }, says)));
    } else {
      this.input = h("input", { ...common, type: "text", inputmode: kind.mode, value: String(shown), spellcheck: "false",
        autocomplete: "off", "aria-required": spec.required ? "true" : null });
    }
    this.before = this.typed;
    const label = h("label", { htmlFor: id }, spec.label, spec.required && h("span", { class: "hint" }, " (needed)"));
    this.node = h("div", { class: spec.kind === "check" ? "field check" : "field" }, label, this.input, hint, this.fault);
  }

  get typed() {
    return this.spec.kind === "check" ? this.input.checked : this.input.value.trim();
  }

  get changed() {
    return this.typed !== this.before;
  }

  // The value, or undefined after having said what is wrong.
  read() {
    if (this.spec.kind === "check") return this.typed;
    const kind = KINDS[this.spec.kind ?? "text"];
    if (this.spec.required && this.typed === "") return this.refuse(`${this.spec.label} is needed.`);
    const value = kind.read(this.typed);
    if (value === undefined) return this.refuse(kind.say);
    const said = value === null ? null : this.spec.check?.(value);
    return said ? this.refuse(said) : value;
  }

  refuse(words) {
    this.fault.textContent = words;
    this.fault.hidden = false;
    this.input.setAttribute("aria-invalid", "true");
    return undefined;
  }

  clear() {
    this.fault.textContent = "";
    this.fault.hidden = true;
    this.input.removeAttribute("aria-invalid");
  }
}

/**
 * A form.
 * @param {Array<Object>} specs `{name, label, kind, hint, required, options, check}`; `check` says what is wrong with a value, if anything.
 * @param {Object} values What the fields hold at first, by name.
 * @param {string} label What its button says.
 * @param {function(Object): Promise} send Gets the values by name.
 * @param {Object} [options]
 * @param {function(): void} [options.cancel] What "Cancel" does.
 * @param {boolean} [options.changed] Send the fields only that were changed.
 */
export function form(specs, values, label, send, { cancel = null, changed = false } = {}) {
  const fields = specs.map((spec) => new Field(spec, values[spec.name]));
  const said = h("p", { class: "problem", role: "alert", hidden: true });
  const submit = h("button", { type: "submit", class: "primary" }, label);

  function say(words) {
    said.textContent = words;
    said.hidden = words === "";
  }

  async function onsubmit(event) {
    event.preventDefault();
    say("");
    fields.forEach((field) => field.clear());
    const wanted = changed ? fields.filter((field) => field.changed) : fields;
    const read = wanted.map((field) => [field, field.read()]);
    const wrong = read.find(([, value]) => value === undefined);
    if (wrong) {
      say("Not sent: see the fields marked below.");
      wrong[0].input.focus();
      return;
    }
    submit.disabled = true;
    try {
      await send(Object.fromEntries(read.map(([field, value]) => [field.spec.name, value])));
    } catch (error) {
      if (error.name === "AbortError") return;
      const field = fields.find((one) => (one.spec.param ?? one.spec.name) === error.param);
      field?.refuse(error.message);
      say(error.message);
      (field?.input ?? submit).focus();
    } finally {
      submit.disabled = false;
    }
  }

  return h("form", { onsubmit, novalidate: true }, said, fields.map((field) => field.node),
    h("div", { class: "actions end" }, cancel && button("Cancel", cancel), submit));
}
