// Small helpers that build the page. Texts become text nodes, so names are never read as HTML.

export const $ = (selector, root = document) => root.querySelector(selector);

// h("a", { href, class: "x", onclick }, "text", node, ...)
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const percent = (value) => `${(100 * value).toFixed(3)}%`;

export const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

export function status(text) {
  $("#status").textContent = text;
}

let hiding = 0;
export function alert(text) {
  const node = $("#alert");
  node.textContent = text;
  node.hidden = !text;
  clearTimeout(hiding);
  if (text) hiding = setTimeout(() => (node.hidden = true), 8000);
}

let busy = 0;
export async function progress(work) {
  const bar = $("#progress");
  busy += 1;
  bar.hidden = false;
  try {
    return await work;
  } finally {
    busy -= 1;
    bar.hidden = busy === 0;
  }
}

export function empty(title, help, ...more) {
  return h("div", { class: "empty" }, h("h2", {}, title), help ? h("p", {}, help) : null, ...more);
}
