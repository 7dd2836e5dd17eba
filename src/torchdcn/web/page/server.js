// Talking to the server: the only place where the page fetches anything.

async function failed(response) {
  let text = `the server said ${response.status}`;
  try {
    text = (await response.json()).error;
  } catch {
    // not JSON: the number will have to do
  }
  return new Error(text);
}

export async function about() {
  const response = await fetch("/api/about");
  if (!response.ok) throw await failed(response);
  return response.json();
}

export async function upload(file, signal) {
  const headers = { "content-type": "application/octet-stream" };
  const response = await fetch("/api/pictures", { method: "POST", body: file, headers, signal });
  if (!response.ok) throw await failed(response);
  return response.json();
}

export async function example(signal) {
  const response = await fetch("/api/example", { method: "POST", signal });
  if (!response.ok) throw await failed(response);
  return response.json();
}

export async function bitmapOf(id) {
  const response = await fetch(`/api/pictures/${id}.png`);
  if (!response.ok) throw await failed(response);
  return createImageBitmap(await response.blob());
}

// Asks a question; the answer comes as events. To abort the request is to stop the work.
export async function ask(question, { signal, onProgress = () => {} }) {
  const response = await fetch("/api/questions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(question),
    signal,
  });
  if (!response.ok) throw await failed(response);
  for await (const [kind, facts] of eventsOf(response.body)) {
    if (kind === "failed") throw new Error(facts.error);
    if (kind === "stopped") throw new DOMException("stopped", "AbortError");
    if (kind === "done") return { ...facts.facts, bytes: await bytesOf(question.picture, facts.bytes, signal) };
    onProgress(kind, facts);
  }
  throw new Error("the server went away");
}

async function bytesOf(picture, key, signal) {
  if (key === null) return null;
  const response = await fetch(`/api/pictures/${picture}/bytes?${new URLSearchParams({ question: key })}`, { signal });
  if (!response.ok) throw await failed(response);
  return response.arrayBuffer();
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)));
      yield [lines.event, JSON.parse(lines.data)];
    }
  }
}
