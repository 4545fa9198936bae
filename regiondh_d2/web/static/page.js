// Starts the page: what is shown for an address, and photos that are chosen, dropped or pasted.

import { call, upload } from "./api.js";
import { addFolder, browse, groups } from "./browse.js";
import { go, read, start, write } from "./place.js";
import { $, alert, empty, h, progress, status } from "./parts.js";
import { Search } from "./search.js";
import { T } from "./texts.js";

const main = $("#main");
let health = null;
let search = null;
let started = false; // the first view takes no focus
let shownView = null; // what is told of the collection may have changed between views
let running = new AbortController();
let stop = () => {};

for (const node of document.querySelectorAll("[data-text]")) {
  const text = T[node.dataset.text];
  node.append(text);
}
for (const node of document.querySelectorAll("[data-label]")) {
  node.setAttribute("aria-label", T[node.dataset.label]);
}

async function show(before) {
  const { y = 0 } = before;
  const place = read();
  running.abort();
  running = new AbortController();
  const { signal } = running;
  stop();
  stop = () => {};
  alert("");
  for (const link of document.querySelectorAll("[data-view]")) {
    const here = !place.photo && !place.upload && link.dataset.view === place.view;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const key = place.photo || place.upload || `view ${place.view}`;
  const same = main.dataset.key === key && search && main.contains(search.root);
  main.dataset.key = key;
  if (!same) scrollTo(0, 0);
  try {
    const shown = await progress(render(place, signal, before));
    if (signal.aborted) shown();
    else stop = shown;
    if (signal.aborted) return;
    if (y || !same) scrollTo(0, y);
    if (started && !same) main.focus({ preventScroll: true });
    started = true;
  } catch (error) {
    if (error.name !== "AbortError" && !signal.aborted) tell(error);
  }
}

async function render(place, signal, before) {
  if (!health || place.view !== shownView) health = await call("/api/health", { signal });
  shownView = place.view;
  $("#add").hidden = !health.adds_folders;
  $("#choose").hidden = !health.network;
  if (place.photo || place.upload) {
    search ??= new Search(main, health);
    document.title = `${T.answers} · ${T.brand}`;
    return search.show(place, signal, before);
  }
  document.title = T.brand;
  if (place.view === "add") return addFolder(main, signal);
  return place.view ? groups(main, place, signal) : browse(main, place, health, signal, before.y);
}

function tell(error) {
  const back = h("a", { class: "button", href: "/", "data-link": true }, T.back);
  const again = h("button", {
    type: "button", class: "button", onclick: () => show(history.state || {}),
  }, T.again);
  if (error.status === 410) main.replaceChildren(empty(T.expired, T.expiredHelp, back));
  else if (error.status === 404) main.replaceChildren(empty(T.gone, T.goneHelp, back));
  else if (error.status === undefined) throw error;
  else main.replaceChildren(empty(T.failed, error.message, again, back));
  status(error.message);
}

// Photos to search with

async function searchWith(file) {
  if (!file) return;
  if (health && file.size > health.upload_bytes) {
    alert(T.tooLarge(health.upload_bytes / 1e6));
    return;
  }
  status(T.uploading);
  alert("");
  try {
    const photo = await progress(upload(file));
    go(write({ upload: photo.upload }));
  } catch (error) {
    alert(error.message);
  }
}

$("#choose").addEventListener("click", () => $("#file").click());
$("#file").addEventListener("change", (event) => {
  searchWith(event.target.files[0]);
  event.target.value = "";
});
const takes = (event) => health?.network && [...event.dataTransfer.types].includes("Files");
addEventListener("dragover", (event) => {
  if (!takes(event)) return;
  event.preventDefault();
  $("#drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("#drop").hidden = true;
});
addEventListener("drop", (event) => {
  $("#drop").hidden = true;
  if (!takes(event)) return;
  event.preventDefault();
  searchWith(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((one) => one.type.startsWith("image/"));
  if (file && health?.network) searchWith(file);
});
addEventListener("keydown", (event) => {
  const place = read();
  const free = !event.target.closest("input, select, dialog, .drawn");
  if (event.key === "Escape" && free && (place.objects.length || place.boxes.length)) {
    go(write({ ...place, objects: [], boxes: [], blend: 0 }));
  }
});

start(show);
