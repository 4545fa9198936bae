// The photo to search with: its objects are buttons, and dragging draws a box.

import { clamp, h, percent } from "./parts.js";
import { T } from "./texts.js";

const SURE = 0.3; // objects below are shown only where there are few others
const FEW = 3;
const MOST = 24;
const TWICE = 0.85; // the overlap from which two boxes are one object
const DRAG = 6; // pixels: less is a click
const STEP = 0.02; // of the photo, by an arrow key

const area = (box) => Math.max(0, box[2] - box[0]) * Math.max(0, box[3] - box[1]);

function overlap(a, b) {
  const both = area([
    Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3]),
  ]);
  return both / (area(a) + area(b) - both);
}

// The objects to show: each once, the sure ones, and those that are chosen.
export function shown(objects, chosen) {
  const kept = [];
  for (const one of objects) {
    const is = chosen.includes(one.number);
    const enough = one.score >= SURE || kept.length < FEW;
    const known = kept.some((other) => overlap(other.box, one.box) > TWICE);
    if (is || (enough && !known && kept.length < MOST)) kept.push(one);
  }
  return kept;
}

export class Stage {
  // photo: width, height, objects; actions: pick(number, add), draw(box), change(place, box)
  constructor(picture, photo, actions, canDraw) {
    this.photo = photo;
    this.actions = actions;
    this.layer = h("div", { class: "boxes" });
    this.image = h("img", { src: picture, alt: T.query, decoding: "async", draggable: "false" });
    this.node = h("div", {
      class: "stage",
      style: { aspectRatio: `${photo.width} / ${photo.height}` },
    }, this.image, this.layer);
    this.node.style.setProperty("--ratio", photo.width / photo.height);
    this.draft = null;
    if (canDraw) this.listen();
  }

  place(box) {
    const { width, height } = this.photo;
    return {
      left: percent(box[0] / width),
      top: percent(box[1] / height),
      width: percent((box[2] - box[0]) / width),
      height: percent((box[3] - box[1]) / height),
    };
  }

  show(objects, boxes) {
    const focused = this.layer.contains(document.activeElement) ? document.activeElement : null;
    const key = focused && focused.dataset.key;
    const items = shown(this.photo.objects, objects).map((one) => ({
      key: `object-${one.number}`,
      box: one.box,
      text: one.class_name,
      label: T.objectLabel(one.class_name, one.score, one.number),
      chosen: objects.includes(one.number),
      onclick: (event) => this.click(event, () => this.actions.pick(one.number, event.shiftKey)),
    }));
    boxes.forEach((box, i) => items.push({
      key: `box-${i}`,
      box,
      text: T.box,
      label: T.boxLabel(i + 1),
      chosen: true,
      drawn: true,
      onkeydown: (event) => this.move(event, box, (moved) => this.actions.change(i, moved)),
      onclick: () => {},
    }));
    // Small ones lie on large ones, so that each can be clicked.
    items.sort((a, b) => area(b.box) - area(a.box));
    this.layer.replaceChildren(...items.map((item) => this.button(item)));
    this.node.classList.toggle("chosen", items.some((item) => item.chosen));
    if (key) this.layer.querySelector(`[data-key="${key}"]`)?.focus();
    if (this.draft) this.layer.append(this.draft.node);
  }

  button({ key, box, text, label, chosen, drawn, onclick, onkeydown }) {
    return h("button", {
      type: "button",
      class: `box${drawn ? " drawn" : ""}${box[1] < 0.1 * this.photo.height ? " low" : ""}`,
      style: this.place(box),
      "data-key": key,
      "aria-label": label,
      "aria-pressed": String(chosen),
      onclick,
      onkeydown,
    }, h("span", { class: "tag", "aria-hidden": "true" }, text));
  }

  // A click that ends a drag is none.
  click(event, action) {
    if (this.dragged) {
      this.dragged = false;
      return;
    }
    action();
  }

  point(event) {
    const room = this.node.getBoundingClientRect();
    return [
      clamp((event.clientX - room.left) / room.width, 0, 1) * this.photo.width,
      clamp((event.clientY - room.top) / room.height, 0, 1) * this.photo.height,
    ];
  }

  listen() {
    let start = null;
    this.node.addEventListener("pointerdown", (event) => {
      this.dragged = false;
      const byTouch = event.pointerType === "touch" && !this.node.classList.contains("drawing");
      if (event.button !== 0 || byTouch) return;
      start = { at: this.point(event), x: event.clientX, y: event.clientY, node: null };
    });
    this.node.addEventListener("pointermove", (event) => {
      if (event.buttons === 0) start = null;
      if (!start) return;
      const far = Math.hypot(event.clientX - start.x, event.clientY - start.y) > DRAG;
      if (!start.node && !far) return;
      event.preventDefault();
      if (!start.node) {
        this.forget();
        this.dragged = true;
        this.node.setPointerCapture(event.pointerId); // also outside of the photo
        start.node = h("span", { class: "rubber" });
        this.layer.append(start.node);
      }
      start.box = this.between(start.at, this.point(event));
      Object.assign(start.node.style, this.place(start.box));
    });
    const end = (event) => {
      const { node, box } = start || {};
      start = null;
      if (!node) return;
      node.remove();
      // The click that may follow comes before this.
      setTimeout(() => (this.dragged = false), 0);
      const least = Math.min(this.photo.width, this.photo.height) / 50;
      if (event.type === "pointerup" && box[2] - box[0] > least && box[3] - box[1] > least) {
        this.actions.draw(box);
      }
    };
    this.node.addEventListener("pointerup", end);
    this.node.addEventListener("pointercancel", end);
  }

  between(a, b) {
    return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  }

  // A box in the middle, to be moved by keys, and drawing by touch.
  startDrawing() {
    const { width, height } = this.photo;
    this.forget();
    this.node.classList.add("drawing");
    const draft = { box: [0.3 * width, 0.3 * height, 0.7 * width, 0.7 * height] };
    draft.node = this.button({
      key: "draft",
      box: draft.box,
      text: T.draft,
      label: T.drawHelp,
      chosen: true,
      drawn: true,
      onclick: () => this.finish(),
      onkeydown: (event) => {
        if (event.key === "Escape") this.forget();
        this.move(event, draft.box, (box) => {
          draft.box = box;
          Object.assign(draft.node.style, this.place(box));
        });
      },
    });
    this.draft = draft;
    this.layer.append(draft.node);
    draft.node.focus();
  }

  finish() {
    if (this.dragged || !this.draft) return;
    const { box } = this.draft;
    this.forget();
    this.actions.draw(box);
  }

  forget() {
    this.draft?.node.remove();
    this.draft = null;
    this.node.classList.remove("drawing");
  }

  move(event, box, done) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    const { width, height } = this.photo;
    let [x, y] = [way[0] * STEP * width, way[1] * STEP * height];
    if (event.shiftKey) {
      done([
        box[0],
        box[1],
        clamp(box[2] + x, box[0] + STEP * width, width),
        clamp(box[3] + y, box[1] + STEP * height, height),
      ]);
      return;
    }
    x = clamp(x, -box[0], width - box[2]);
    y = clamp(y, -box[1], height - box[3]);
    done([box[0] + x, box[1] + y, box[2] + x, box[3] + y]);
  }
}
