// The gateway's answers over the session's cookie. The key is sent once, at the sign-in, and is kept nowhere.

const BASE = new URL("../api/", import.meta.url);

let token = null;
let ended = () => {};

/** A refusal in the server's words; `param` names the field that it is about. Status 0: no answer at all. */
export class ApiError extends Error {
  constructor(status, message, param = null, code = null) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

/** Who is told that the session is over. */
export function onEnd(listener) {
  ended = listener;
}

/** The URL of an operation, for a link to a file. */
export function link(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

async function ask(method, path, { query, body, signal } = {}) {
  const headers = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (token !== null && method !== "GET") headers["x-csrf-token"] = token;
  let answer, text;
  try {
    answer = await fetch(link(path, query), {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin", cache: "no-store", redirect: "error",
    });
    text = await answer.text();
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new ApiError(0, "The gateway does not answer. Look whether it runs, and try again.");
  }
  if (answer.ok) return text === "" ? null : parsed(text, answer.status);
  const { message, param, code } = told(text);
  throw new ApiError(answer.status, message || `The gateway answered with status ${answer.status}.`, param, code);
}

function parsed(text, status) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(status, "What came back is not from the gateway. Is something else in between?");
  }
}

function told(text) {
  try {
    const error = JSON.parse(text).error ?? {};
    return { message: String(error.message ?? ""), param: error.param ?? null, code: error.code ?? null };
  } catch {
    return { message: "", param: null, code: null };
  }
}

/** An operation of the API under the session. A 401 ends the session. */
export async function call(method, path, options = {}) {
  try {
    return await ask(method, path, options);
  } catch (fault) {
    if (fault.status === 401) {
      token = null;
      ended();
    }
    throw fault;
  }
}

export const get = (path, query, signal) => call("GET", path, { query, signal });

/** Sign in. Returns the session: `role`, `tenant`. */
export async function signIn(key) {
  return keep(await ask("POST", "login", { body: { key } }));
}

/** The session that the cookie stands for, or null. */
export async function resume() {
  try {
    return keep(await ask("GET", "me"));
  } catch (fault) {
    if (fault.status === 401) return null;
    throw fault;
  }
}

/** Sign out; the session is over here whatever the server says. */
export async function signOut() {
  try {
    await ask("POST", "logout", { body: {} });
  } finally {
    token = null;
  }
}

function keep({ role, tenant, csrf }) {
  token = csrf;
  return { role, tenant };
}
