// Calls of the server.

import { $ } from "./parts.js";
import { T } from "./texts.js";

export class Problem extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const TRIES = 4;

export async function call(path, options = {}) {
  for (let tries = 1; ; tries += 1) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, T.unreachable);
    }
    if (response.status === 401) {
      await login();
      continue;
    }
    if (response.status === 503 && tries < TRIES) {
      await wait(Number(response.headers.get("Retry-After")) || 2);
      continue;
    }
    if (response.ok) return response.status === 204 ? null : response.json();
    const values = await response.json().catch(() => ({}));
    throw new Problem(response.status, values.error || T.failed);
  }
}

let asking = null;

function login() {
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

function ask() {
  const dialog = $("#login");
  const form = $("form", dialog);
  dialog.showModal();
  return new Promise((done) => {
    form.onsubmit = async (event) => {
      event.preventDefault();
      const response = await fetch("/api/login", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ token: $("#token").value }),
      });
      if (response.ok) {
        dialog.close();
        done();
      } else {
        $("#login-error").textContent = (await response.json()).error;
      }
    };
    dialog.oncancel = (event) => event.preventDefault();
  });
}

export const upload = (file, signal) =>
  call("/api/uploads", {
    method: "POST",
    body: file,
    headers: { "Content-Type": file.type || "image/unknown" },
    signal,
  });

export const pictureOf = (query) =>
  query.upload ? `/api/uploads/${query.upload}/picture` : `/api/photos/${query.photo}/picture`;
