// Asking the server, as any other program may.

import { text } from "./texts.js";

const PLACE = "pretune-key";

/** The key that requests are sent with: kept until the tab is closed, and nowhere else. */
export const key = {
  get: () => sessionStorage.getItem(PLACE) ?? "",
  set: value => value ? sessionStorage.setItem(PLACE, value) : sessionStorage.removeItem(PLACE),
};

/** What the server refused, in its own words. */
export class Refused extends Error {
  constructor(message, status = 0, wait = null) {
    super(message);
    this.status = status;
    this.wait = wait;  // seconds after which another try may succeed
  }
}

async function send(path, body, signal) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, signal,
      body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refused(text("unreachable"));
  }
  if (response.ok) return response;
  const wait = Number(response.headers.get("Retry-After")) || null;
  const told = await response.json().catch(() => ({}));
  if (response.status === 401) document.dispatchEvent(new Event("key-needed"));
  throw new Refused(words(told) ?? text("status", { status: response.status }), response.status, wait);
}

const words = told => told?.error?.message ?? (typeof told?.error === "string" ? told.error : null);

/** Return the JSON that a path answers; with a body it is posted. */
export const ask = async (path, body, signal) => (await send(path, body, signal)).json();

/** Yield the events of a stream until its end. */
export async function* events(path, body, signal) {
  const response = await send(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let received = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Refused(text("cut off"));
      received += value;
      const parts = received.split("\n\n");
      received = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: ?/, "");
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Refused(words(event));
        yield event;
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? new Refused(text("cut off")) : error;
  } finally {
    reader.cancel().catch(() => {});
  }
}
