// The sign-in: a key goes to the gateway once, and a cookie that scripts can't read comes back.

import { signIn } from "./api.js";
import { h } from "./dom.js";

/** The form; `enter` gets the session. `words` say why it is shown. */
export function signInView(enter, words) {
  const said = h("p", { id: "said", class: "problem", role: "alert", hidden: true });
  // A password field: browsers don't keep it in the page's history, and don't show it to who stands behind.
  const field = h("input", { id: "key", type: "password", required: true, autocomplete: "off", spellcheck: "false",
    "aria-describedby": "key-hint said" });
  const submit = h("button", { type: "submit", class: "primary" }, "Sign in");

  function refuse(message) {
    said.textContent = message;
    said.hidden = false;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }

  async function onsubmit(event) {
    event.preventDefault();
    said.hidden = true;
    field.removeAttribute("aria-invalid");
    const key = field.value.trim();
    if (key === "") {
      refuse("Enter a key.");
      return;
    }
    submit.disabled = true;
    try {
      const session = await signIn(key);
      field.value = "";
      enter(session);
    } catch (error) {
      refuse(error.message);
    } finally {
      submit.disabled = false;
    }
  }

  return h("div", { class: "sign-in card" }, h("h1", { tabindex: "-1" }, "Sign in"),
    words ? h("p", { role: "status" }, words) : null,
    h("form", { onsubmit, novalidate: true, method: "post" }, said,
      h("div", { class: "field" }, h("label", { htmlFor: "key" }, "Key"), field,
        h("p", { id: "key-hint", class: "hint" },
          "The admin key (GATEWAY_ADMIN_KEY) shows everything; a tenant's key shows what is its own.")),
      h("div", { class: "actions" }, submit)));
}
