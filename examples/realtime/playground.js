// The page's script: connect, send, and show what comes as it comes, with its cost and the time to its first token.
import { connect } from "./realtime/client.js";

const state = document.getElementById("state");
const send = document.querySelector("#ask button");
const hangUp = document.getElementById("close");
let session = null;

async function secret() {
  const answer = await fetch("token", { method: "POST" });
  const made = await answer.json();
  if (!answer.ok) throw new Error(made.error.message);
  return made.value;
}

document.getElementById("connect").addEventListener("submit", async (event) => {
  event.preventDefault();
  session?.close();
  state.textContent = "Connecting ...";
  const began = performance.now();
  try {
    const transport = event.target.elements.transport.value;
    const opened = await connect({ url: new URL(".", location.href).href, secret, transport });
    session = opened;
    state.textContent = `Connected over ${opened.transport} in ${Math.round(performance.now() - began)} ms.`;
    send.disabled = hangUp.disabled = false;
    opened.closed.then(({ message }) => {
      if (session !== opened) return;
      session = null;
      state.textContent = message;
      send.disabled = hangUp.disabled = true;
    });
  } catch (error) {
    state.textContent = `Not connected: ${error.message}`;
  }
});

hangUp.addEventListener("click", () => session?.close());

document.getElementById("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const { model, message } = event.target.elements;
  show(session.chat({ model: model.value, messages: [{ role: "user", content: message.value }] }));
});

/** Show one call. Several run side by side. */
async function show(call) {
  const began = performance.now();
  const article = document.createElement("article");
  const text = document.createElement("p");
  const facts = document.createElement("div");
  const stop = document.createElement("button");
  facts.className = "facts";
  stop.textContent = "Cancel";
  stop.addEventListener("click", () => call.cancel());
  article.append(facts, stop, text); // what grows comes last: the button stays where it is
  document.getElementById("calls").prepend(article);
  let first = null;
  let words = "";
  try {
    for await (const chunk of call) {
      const more = chunk.choices?.[0]?.delta?.content;
      if (!more) continue;
      first ??= performance.now() - began;
      text.append(more);
    }
    words = "Done.";
  } catch (error) {
    words = error.code === "cancelled" ? "Cancelled." : `${error.message} (${error.code})`;
  }
  stop.remove();
  const cost = call.costUsd === null ? "unknown" : `$${call.costUsd.toFixed(9).replace(/0+$/, "").replace(/\.$/, "")}`;
  const time = first === null ? "no token" : `first token after ${first.toFixed(1)} ms`;
  facts.textContent = `${words} ${time} · ${call.usage?.total_tokens ?? 0} tokens · cost ${cost}`;
}
