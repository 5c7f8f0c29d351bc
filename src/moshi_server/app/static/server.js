// What the page knows of the server: its address, its modules, the key, and why a connection failed.

const KEY = "moshi-server-key";

export function key() {
  return localStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  localStorage.setItem(KEY, value.trim());
}

/** The path of this name beside the page, so that a server under a prefix works as well. */
function address(path, query = {}) {
  const url = new URL(path.replace(/^\//, ""), document.baseURI);
  for (const [name, value] of Object.entries(query)) if (value !== "") url.searchParams.set(name, value);
  return url;
}

/** `/api/NAME` as JSON; throws a sentence. */
export async function api(name) {
  let answer;
  try {
    answer = await fetch(address(`api/${name}`), { headers: key() ? { "kyutai-api-key": key() } : {} });
  } catch {
    throw new Error("The server does not answer. It may have been stopped, or the network is down.");
  }
  if (!answer.ok && answer.status !== 503) throw new Error(`The server answered ${answer.status} to /api/${name}.`);
  return answer.json();
}

/** A WebSocket of this module, or of another `path` of it. `onopen`, `onmessage(buffer)` and `onend(sentence or "")` are called. */
export function connect(module, query, { onopen, onmessage, onend }, path = module.path) {
  const url = address(path, { ...query, auth_id: module.auth ? key() : "" });
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  let opened = false;
  socket.onopen = () => {
    opened = true;
    onopen?.();
  };
  socket.onmessage = (event) => onmessage(event.data);
  socket.onclose = async (event) => {
    if (!opened) return onend(await whyNot(module));
    if (event.code === 1000) return onend("");
    if (event.code === 1006) return onend("The connection was lost. The server may have been stopped, or the network is down.");
    onend(sentence(event.code, event.reason));
  };
  return socket;
}

/** The server's words for a close, and what to do about the commonest. */
export function sentence(code, reason) {
  if (code === 4000) return "Every place on this server is taken. Try again in a moment.";
  if (code === 1001) return "The server is being stopped.";
  return reason ? `The server ended the stream: ${reason} (${code}).` : `The server ended the stream (${code}).`;
}

/** A browser does not say why an upgrade failed, so the server is asked whether it was the key. */
async function whyNot(module) {
  try {
    const answer = await fetch(address(`api/access/${encodeURIComponent(module.name)}`, { auth_id: key() }));
    if (answer.status === 401) {
      const { hint, message } = await answer.json();
      return new KeyNeeded(`The server refused the key: ${message}. ${hint ? hint[0].toUpperCase() + hint.slice(1) + "." : ""}`);
    }
    return `The server would not open a stream at ${module.path}.`;
  } catch {
    return "The server does not answer. It may have been stopped, or the network is down.";
  }
}

/** Ends that a key may cure. */
export class KeyNeeded {
  constructor(text) {
    this.text = text;
  }

  toString() {
    return this.text;
  }
}
