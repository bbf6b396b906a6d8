// Dialogs: the browser's own, which keep the focus inside and close on Escape. The focus goes back to where it was.

import { button, h } from "./dom.js";

let serial = 0;

/**
 * Open a dialog.
 * @param {string} title
 * @param {function(function(): void): Node} content Makes what stands in it; is given how to close it.
 * @param {Object} [options]
 * @param {function(): Element} [options.back] Where the focus goes if what had it is gone by then; the view's heading.
 * @param {boolean} [options.stays] Escape does not close it: what it shows can't be seen again.
 */
export function openDialog(title, content, { back = () => null, stays = false } = {}) {
  const id = `dialog-${++serial}`;
  const before = document.activeElement;
  const dialog = h("dialog", { "aria-labelledby": id, closedby: stays ? "none" : "closerequest" });
  const close = () => dialog.close();
  dialog.append(h("h2", { id }, title), content(close));
  // For browsers that don't know `closedby`; a second Escape goes through what `cancel` has refused.
  dialog.addEventListener("cancel", (event) => stays && event.preventDefault());
  dialog.addEventListener("keydown", (event) => stays && event.key === "Escape" && event.preventDefault());
  dialog.addEventListener("close", () => {
    dialog.remove();  // with the secret that it may have shown
    giveBack(before, back);
  });
  document.body.append(dialog);
  dialog.showModal();
  return close;
}

function giveBack(before, back) {
  if (document.querySelector("dialog[open]")) return;  // another one has it now
  // What opened it may have been drawn anew since.
  const target = before?.isConnected && before !== document.body ? before : back() ?? document.querySelector("main h1");
  target?.focus();
}

/**
 * Ask before something that can't be undone. `action` does it and may fail: the dialog then says why and stays.
 * `back`: see openDialog.
 */
export function confirmDialog(title, words, label, action, back) {
  openDialog(title, (close) => {
    const said = h("p", { class: "problem", role: "alert", hidden: true });
    const act = button(label, async () => {
      act.disabled = true;
      try {
        await action();
        close();
      } catch (error) {
        said.textContent = error.message;
        said.hidden = false;
        act.disabled = false;
        act.focus();
      }
    }, { kind: "danger" });
    return h("div", {}, h("p", {}, words), said,
      h("div", { class: "actions end" }, button("Cancel", close, { autofocus: true }), act));
  }, { back });
}

/** Show a new key: the only time that anybody sees it. `back`: see openDialog. */
export function showSecret(key, back) {
  openDialog("The new key", (close) => {
    const field = h("input", { id: "secret", type: "text", readonly: true, value: key.key, spellcheck: "false", autocomplete: "off",
      onfocus: () => field.select() });
    const said = h("p", { class: "hint", role: "status" });
    const copy = button("Copy", async () => {
      said.textContent = (await copied(field)) ? "Copied." : "The browser does not let us copy: it is selected, press Ctrl+C.";
    }, { kind: "primary", autofocus: true });
    return h("div", {},
      h("p", {}, "Copy it now: it is shown once, and nobody can read it again."),
      h("label", { htmlFor: "secret" }, `Key ${key.id}`),
      h("div", { class: "pair" }, field, copy), said,
      h("div", { class: "actions end" }, button("I have it", close)));
  }, { back, stays: true });
}

async function copied(field) {
  try {
    await navigator.clipboard.writeText(field.value);
    return true;
  } catch {  // not over plain HTTP to another host, and not where it is refused
    field.focus();
    field.select();
    return document.execCommand("copy");
  }
}
