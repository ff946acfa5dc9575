// What the server is asked, and how it answers: JSON, or server-sent events as they come.

const KEY = "shoal.key";

/** What went wrong, in words for the reader; `code`: the server's word for it, where there is one. */
export class Problem extends Error {
  constructor(message, code = null) {
    super(message);
    this.code = code;
  }
}

/** Ask for something as JSON; `body` is sent by POST. */
export async function ask(path, body, signal) {
  const response = await request(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server's answer could not be read: it broke off, or is not JSON.");
  }
}

/** The objects of a streamed answer, one by one. `Problem` where the server tells of an error, or breaks off. */
export async function* stream(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(reader);
    if (done) throw new Problem("The answer broke off: the connection to the server was lost.");
    const events = (rest + value).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      const data = dataOf(event);
      if (data === "[DONE]") return;
      if (!data) continue;
      const told = JSON.parse(data);
      if (told.error) throw new Problem(told.error.message ?? "The server could not go on.");
      yield told;
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { done: true };
  }
}

function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

async function request(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server can't be reached. Is it still running?");
  }
  if (response.status === 401) {
    await askForKey(Boolean(key));
    return request(path, body, signal);
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const told = await response.json().catch(() => null);
  const reason = told?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  const wait = response.headers.get("Retry-After");
  const sentence = /[.!?]$/.test(reason) ? reason : `${reason}.`;
  return new Problem(wait ? `${sentence} Try again in ${wait} s.` : sentence, told?.error?.code);
}

/** Let the reader type the key; `Problem` where it is left. */
function askForKey(wrong) {
  const dialog = document.getElementById("key");
  const input = document.getElementById("key-input");
  document.getElementById("key-wrong").hidden = !wrong;
  input.value = "";
  return new Promise((resolve, reject) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "use") {
        reject(new Problem("The server wants an API key, and none was given."));
        return;
      }
      sessionStorage.setItem(KEY, input.value.trim());
      resolve();
    }, { once: true });
    dialog.showModal();
    input.focus();
  });
}
