// The views without a query: all photos, groups, copies.

import { call } from "./api.js";
import { photoCard, skeletons } from "./cards.js";
import { write } from "./place.js";
import { alert, empty, h, status } from "./parts.js";
import { T } from "./texts.js";

const PAGE = 60;

// A list that grows when its end comes into view. load(offset) gives {items, more}.
export function growing(list, load) {
  const button = h("button", { type: "button", class: "button", onclick: () => safely() }, T.more);
  const end = h("div", { class: "end", hidden: true }, button);
  let offset = 0;
  let loading = null;
  const watch = new IntersectionObserver((seen) => {
    if (seen.some((one) => one.isIntersecting)) safely();
  }, { rootMargin: "600px" });
  // One load at a time; who asks meanwhile waits for the same one.
  const next = () => (loading ??= grow().finally(() => (loading = null)));
  async function grow() {
    const { items, more, count } = await load(offset);
    offset += count ?? items.length;
    list.append(...items);
    begin(more);
  }
  function begin(more) {
    end.hidden = !more;
    watch.unobserve(end); // so that it is told again if the end is still in view
    if (more) watch.observe(end);
  }
  const safely = () => next().catch((error) => {
    if (error.name !== "AbortError") alert(error.message);
  });
  // Load until the place at a height is there.
  async function reach(y) {
    while (y && document.documentElement.scrollHeight < y + innerHeight && !end.hidden) await next();
  }
  return { end, next, begin, reach, stop: () => watch.disconnect() };
}

export async function browse(main, place, health, signal, y) {
  const list = h("ol", { class: "grid photos" });
  const count = h("p", { class: "muted" });
  const intro = health.network ? T.intro : T.introStored;
  const chip = (name, text, number) =>
    h("a", {
      class: "chip",
      href: write({ class: name }),
      "data-link": true,
      "aria-current": place.class === name ? "true" : null,
    }, text, number ? h("small", {}, number.toLocaleString()) : null);
  const waiting = skeletons(24);
  main.replaceChildren(
    h("section", { class: "hero" },
      h("h1", {}, T.headline),
      h("p", {}, intro(health.photos, health.objects))),
    h("nav", { class: "chips", "aria-label": T.classes },
      chip("", T.all, health.photos),
      Object.entries(health.classes).map(([name, number]) => chip(name, name, number))),
    waiting);
  const load = async (offset) => {
    const values = new URLSearchParams({ offset, limit: PAGE });
    if (place.class) values.set("class", place.class);
    const page = await call(`/api/photos?${values}`, { signal });
    count.textContent = T.photosOf(page.total, place.class);
    return { items: page.photos.map(photoCard), more: page.more };
  };
  const grown = growing(list, load);
  await grown.next();
  waiting.replaceWith(...(list.childElementCount
    ? [list, grown.end]
    : [empty(T.emptyCollection, T.emptyCollectionHelp)]));
  await grown.reach(y);
  status(count.textContent);
  return grown.stop;
}

// Adds a folder below the roots that were named at start, and shows how far that is.
export async function addFolder(main, signal) {
  const state = h("p", { role: "status", class: "muted" });
  const { folders, ...first } = await call("/api/folders", { signal });
  const select = h("select", { id: "folder" },
    folders.map((one, i) => h("option", { value: i }, one.name)));
  const button = h("button", { type: "submit", class: "button primary" }, T.addStart);
  const form = h("form", {
    class: "field",
    onsubmit: async (event) => {
      event.preventDefault();
      const { root, path } = folders[select.value];
      show(await call("/api/folders", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ root, path }),
        signal,
      }));
    },
  }, h("label", { for: "folder" }, T.folder), select, button);
  main.replaceChildren(
    h("section", { class: "hero" }, h("h1", {}, T.addTitle), h("p", {}, T.addHelp)), form, state);
  let timer = 0;
  function show({ state: name, line }) {
    button.disabled = name === "running";
    state.textContent = [T.addState[name], line].filter(Boolean).join(" ");
    if (name === "running") timer = setTimeout(look, 1000);
  }
  const look = async () => show(await call("/api/folders", { signal }).catch(() => ({ state: "idle" })));
  show(first);
  return () => clearTimeout(timer);
}

export async function groups(main, place, signal) {
  const copies = place.view === "copies";
  const title = copies ? T.copiesTitle : T.groupsTitle;
  const help = h("p", {}, copies ? T.copiesHelp : "");
  const list = h("div", { class: "groups" });
  const waiting = skeletons(12);
  main.replaceChildren(h("section", { class: "hero" }, h("h1", {}, title), help), waiting);
  const load = async (offset) => {
    const page = await call(`/api/${place.view}?offset=${offset}&limit=20`, { signal });
    if (!copies && page.distance !== null) help.textContent = T.groupsHelp(page.distance);
    if (copies && page.note) help.textContent = `${T.copiesHelp} ${page.note}.`;
    const items = page.groups.map((group) =>
      h("section", { class: "group" },
        h("h2", {}, T.groupOf(group.count)),
        h("ol", { class: "row" }, group.photos.map(photoCard))));
    return { items, more: page.more };
  };
  const grown = growing(list, load);
  await grown.next();
  waiting.replaceWith(...(list.childElementCount
    ? [list, grown.end]
    : [empty(copies ? T.noCopies : T.noGroups)]));
  return grown.stop;
}
