/**
 * Sessions with the gateway from a browser: calls over one WebRTC data channel, or over a WebSocket where there is no way for
 * UDP. No dependency. The frames are described in docs/realtime.md.
 *
 *     import { connect } from "/realtime/client.js";
 *     const session = await connect({ secret: () => fetchClientSecret() });
 *     const call = session.chat({ model: "gpt-5-mini", messages: [{ role: "user", content: "Hello" }] });
 *     for await (const chunk of call) show(chunk.choices[0]?.delta?.content ?? "");
 *     console.log(call.usage, call.costUsd);
 */

const LABEL = "llm-stream";
const PROTOCOL = "llm-stream.v1";
const SECRET_PROTOCOL = "llm-secret.";
const PIECE = 16 * 1024; // bytes of one message: what every peer takes
const HIGH = 256 * 1024; // bytes that may wait to be sent
const GATHERING = 1500; // milliseconds for our own addresses; those found later are learnt by the gateway itself

/** A call that was refused or failed, or a session that could not be opened or has ended. */
export class RealtimeError extends Error {
  /**
   * @param {{message?: string, code?: string|null, type?: string}} error OpenAI's error object
   * @param {number} status as over HTTP; 0 where the session has ended
   */
  constructor(error, status = 0) {
    super(error?.message ?? "The call failed.");
    this.name = "RealtimeError";
    this.code = error?.code ?? null;
    this.type = error?.type ?? null;
    this.status = status;
    this.error = error;
  }
}

/** One call: iterate over its chunks with `for await`. Leaving the loop early cancels it. */
export class Call {
  #session;
  #chunks = [];
  #wake = null;
  #end = null; // {error} once it has ended

  constructor(session, id) {
    this.id = id;
    this.#session = session;
    /** Tokens, once it has ended; null where nobody knows. */
    this.usage = null;
    /** What it cost in USD, once it has ended; null where nobody knows. */
    this.costUsd = null;
    this.status = null;
    this.headers = {};
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** The next chunk; throws a RealtimeError where the call fails. */
  async next() {
    while (this.#chunks.length === 0) {
      if (this.#end !== null) {
        if (this.#end.error !== null) throw this.#end.error;
        return { done: true, value: undefined };
      }
      await new Promise((resolve) => (this.#wake = resolve));
    }
    return { done: false, value: this.#chunks.shift() };
  }

  /** Called by a loop that is left early. */
  async return(value) {
    this.cancel();
    return { done: true, value };
  }

  /** End the call and its upstream; what was used is paid. The iterator then throws with the code "cancelled". */
  cancel() {
    if (this.#end === null) this.#session._send({ type: "cancel", id: this.id });
  }

  _hear(frame) {
    if (frame.type === "response.chunk") {
      this.#chunks.push(frame.data);
    } else {
      this.usage = frame.usage ?? null;
      this.costUsd = frame.cost_usd ?? null;
      this.status = frame.status ?? null;
      this.headers = frame.headers ?? {};
      this._finish(frame.type === "error" ? new RealtimeError(frame.error, frame.status) : null);
    }
    this.#wake?.();
  }

  _finish(error) {
    this.#end ??= { error };
    this.#wake?.();
  }
}

/** An open session; `connect` makes it. */
export class Session {
  #wire;
  #calls = new Map();
  #parts = new Map();
  #number = 0;
  #outgoing = Promise.resolve();
  #created;
  #ended = null;
  #tellClosed;

  constructor(wire) {
    this.#wire = wire;
    /** "webrtc" or "websocket". */
    this.transport = wire.kind;
    this.id = null;
    this.limits = null;
    /** Resolves to {reason, message} when the session has ended. */
    this.closed = new Promise((resolve) => (this.#tellClosed = resolve));
    this.ready = new Promise((resolve, reject) => (this.#created = { resolve, reject }));
    this.ready.catch(() => {});
    wire.onmessage = (text) => this.#hear(JSON.parse(text));
    wire.onclose = () => this.#finish("session_closed", "The session has ended.");
  }

  /** A chat completion, as a stream unless the body says `stream: false`. */
  chat(body, options) {
    return this.call("chat.completions.create", { stream: true, ...body }, options);
  }

  /**
   * A call of any kind: "chat.completions.create", "embeddings.create", "messages.create", "responses.create".
   *
   * @param {string} type which
   * @param {object} body the request, as over HTTP
   * @param {{headers?: object, signal?: AbortSignal}} options more headers; a signal that cancels
   */
  call(type, body, { headers, signal } = {}) {
    const call = new Call(this, String(++this.#number));
    if (this.#ended !== null) {
      call._finish(this.#ended);
      return call;
    }
    this.#calls.set(call.id, call);
    this._send({ type, id: call.id, body, ...(headers ? { headers } : {}) });
    if (signal?.aborted) call.cancel();
    else signal?.addEventListener("abort", () => call.cancel(), { once: true });
    return call;
  }

  /** Cancel a call of this session. */
  cancel(call) {
    call.cancel();
  }

  /** Hang up: calls that run are ended, and paid for. */
  close() {
    this.#finish("closed", "The session was closed.");
  }

  _send(frame) {
    const pieces = cut(JSON.stringify(frame), ++this.#number);
    this.#outgoing = this.#outgoing.then(async () => {
      for (const piece of pieces) {
        while (this.#wire.waiting() > HIGH) await new Promise((resolve) => setTimeout(resolve, 5));
        this.#wire.send(piece);
      }
    }).catch(() => {}); // the channel is gone, which the calls are told of
  }

  #hear(frame) {
    if (frame.type === "part") {
      const texts = this.#parts.get(frame.part) ?? [];
      texts.push(frame.text);
      this.#parts.set(frame.part, texts);
      if (!frame.last) return;
      this.#parts.delete(frame.part);
      frame = JSON.parse(texts.join(""));
    }
    if (frame.id !== undefined && frame.id !== null) {
      const call = this.#calls.get(frame.id);
      if (frame.type !== "response.chunk") this.#calls.delete(frame.id);
      call?._hear(frame);
    } else if (frame.type === "ping") {
      this._send({ type: "pong" });
    } else if (frame.type === "session.created") {
      this.id = frame.session.id;
      this.limits = frame.session.limits;
      this.#created.resolve();
    } else if (frame.type === "session.closed") {
      this.#finish(frame.reason, frame.message);
    }
  }

  #finish(reason, message) {
    if (this.#ended !== null) return;
    this.#ended = new RealtimeError({ message, code: reason, type: "session_closed" });
    for (const call of this.#calls.values()) call._finish(this.#ended);
    this.#calls.clear();
    this.#created.reject(this.#ended);
    this.#tellClosed({ reason, message });
    this.#wire.close();
  }
}

/**
 * Open a session.
 *
 * @param {object} options
 * @param {string} [options.url] the gateway, less "/v1"; this page's own origin where none is given
 * @param {string|function(): (string|Promise<string>)} options.secret a client secret ("ek_..."), or what fetches one
 * @param {"auto"|"webrtc"|"websocket"} [options.transport] "auto" tries WebRTC first
 * @param {boolean} [options.relayOnly] go through a TURN server in any case
 * @param {number} [options.timeout] milliseconds until WebRTC must be open; "auto" then takes a WebSocket
 * @returns {Promise<Session>}
 */
export async function connect({ url, secret, transport = "auto", relayOnly = false, timeout = 8000 } = {}) {
  if (!["auto", "webrtc", "websocket"].includes(transport)) throw new TypeError(`transport: ${transport}?`);
  const base = new URL(url ?? globalThis.location.origin, globalThis.location?.href);
  const root = base.href.replace(/\/+$/, "").replace(/\/v1$/, "");
  const shown = typeof secret === "function" ? await secret() : secret;
  if (typeof shown !== "string" || shown === "") throw new TypeError("secret: a client secret, or a function that gives one");
  if (transport !== "websocket") {
    try {
      return await open(await overWebRTC(root, shown, relayOnly, timeout), timeout);
    } catch (error) {
      // Who may not come in by the one door may not by the other.
      if (transport === "webrtc" || [401, 403].includes(error.status) || error.code === "too_many_sessions") throw error;
    }
  }
  return open(await overWebSocket(root, shown, timeout), timeout);
}

async function open(wire, timeout) {
  const session = new Session(wire);
  const timer = setTimeout(() => session.close(), timeout);
  try {
    await session.ready;
  } finally {
    clearTimeout(timer);
  }
  // A page that goes hangs up at once; else the gateway would wait some seconds for it.
  const leave = () => session.close();
  globalThis.addEventListener?.("pagehide", leave);
  session.closed.then(() => globalThis.removeEventListener?.("pagehide", leave));
  return session;
}

/** What both lanes have in common: messages that come before anybody listens are kept. */
class Wire {
  #early = [];
  #listener = null;
  #gone = false;
  #onclose = null;

  constructor(kind, channel, hangUp) {
    this.kind = kind;
    this.channel = channel;
    this.hangUp = hangUp;
    channel.addEventListener("message", (event) => {
      if (this.#listener) this.#listener(event.data);
      else this.#early.push(event.data);
    });
    channel.addEventListener("close", () => this.lose());
  }

  set onmessage(listener) {
    this.#listener = listener;
    for (const text of this.#early.splice(0)) listener(text);
  }

  set onclose(listener) {
    this.#onclose = listener;
    if (this.#gone) listener();
  }

  lose() {
    this.#gone = true;
    this.#onclose?.();
  }

  send(text) {
    this.channel.send(text);
  }

  waiting() {
    return ["open", 1].includes(this.channel.readyState) ? this.channel.bufferedAmount : 0;
  }

  close() {
    this.channel.close();
    this.hangUp();
  }
}

async function overWebRTC(root, secret, relayOnly, timeout) {
  if (typeof RTCPeerConnection === "undefined") throw new RealtimeError({ message: "This browser has no WebRTC." });
  const authorization = `Bearer ${secret}`;
  const signal = AbortSignal.timeout(timeout);
  const { iceServers } = await (await ask(`${root}/v1/realtime/ice`, { headers: { authorization }, signal })).json();
  const connection = new RTCPeerConnection({ iceServers, iceTransportPolicy: relayOnly ? "relay" : "all" });
  try {
    const channel = connection.createDataChannel(LABEL, { protocol: PROTOCOL });
    const wire = new Wire("webrtc", channel, () => connection.close());
    await connection.setLocalDescription();
    await gathered(connection, relayOnly ? timeout : GATHERING);
    const answer = await ask(`${root}/v1/realtime/calls`, {
      method: "POST",
      headers: { authorization, "content-type": "application/sdp" },
      body: connection.localDescription.sdp,
      signal,
    });
    await connection.setRemoteDescription({ type: "answer", sdp: await answer.text() });
    await new Promise((resolve, reject) => {
      const fail = (message) => reject(new RealtimeError({ message, code: "webrtc_failed" }));
      if (channel.readyState === "open") resolve();
      channel.addEventListener("open", resolve);
      channel.addEventListener("close", () => fail("The gateway closed the data channel."));
      signal.addEventListener("abort", () => fail("No way to the gateway was found in time."));
      connection.addEventListener("connectionstatechange", () => {
        if (["failed", "closed"].includes(connection.connectionState)) {
          fail("The WebRTC connection failed.");
          wire.lose();
        }
      });
    });
    return wire;
  } catch (error) {
    connection.close();
    throw error;
  }
}

function gathered(connection, most) {
  if (connection.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    setTimeout(resolve, most);
    connection.addEventListener("icegatheringstatechange", () => {
      if (connection.iceGatheringState === "complete") resolve();
    });
    // With a relay only, its first address is all that is needed.
    connection.addEventListener("icecandidate", ({ candidate }) => candidate?.type === "relay" && resolve());
  });
}

async function overWebSocket(root, secret, timeout) {
  const socket = new WebSocket(`${root.replace(/^http/, "ws")}/v1/realtime/ws`, [PROTOCOL, SECRET_PROTOCOL + secret]);
  const wire = new Wire("websocket", socket, () => {});
  await new Promise((resolve, reject) => {
    // A browser does not tell a page why a handshake was refused.
    const fail = () => {
      if (socket.readyState === WebSocket.OPEN) return;
      socket.close();
      reject(new RealtimeError({ message: "The WebSocket was refused, or not reached.", code: "websocket_failed" }));
    };
    socket.addEventListener("open", resolve);
    socket.addEventListener("error", fail);
    setTimeout(fail, timeout);
  });
  return wire;
}

async function ask(url, options) {
  const answer = await fetch(url, { cache: "no-store", credentials: "omit", ...options });
  if (answer.ok) return answer;
  let error = { message: `The gateway answered ${answer.status}.` };
  try {
    error = (await answer.json()).error ?? error;
  } catch {} // some proxy's own page
  throw new RealtimeError(error, answer.status);
}

/** A frame as messages that fit. A character takes three bytes at most in JSON within JSON: two escaped, or three in UTF-8. */
function* cut(text, number) {
  const step = Math.floor((PIECE - 128) / 3);
  if (text.length <= step) {
    yield text;
    return;
  }
  for (let index = 0, at = 0; at < text.length; index++) {
    let end = Math.min(at + step, text.length);
    const code = text.charCodeAt(end - 1);
    if (end < text.length && code >= 0xd800 && code < 0xdc00) end--; // not in the middle of a surrogate pair
    yield JSON.stringify({ type: "part", part: number, index, last: end === text.length, text: text.slice(at, end) });
    at = end;
  }
}
