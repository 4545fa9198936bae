// A photo, the objects that are searched for, and the answers.

import { call, pictureOf } from "./api.js";
import { answerCard, skeletons } from "./cards.js";
import { growing } from "./browse.js";
import { go, write } from "./place.js";
import { empty, h, status } from "./parts.js";
import { Stage } from "./stage.js";
import { T } from "./texts.js";

const BANDS = ["same", "similar", "far"];
const PAGE = 48;
// How much the whole scene counts, by the place of the slider; the last one is the scene alone, but
// for ties.
const WEIGHTS = [0, 0.1, 0.25, 0.5, 1, 2, 1000];

export class Search {
  constructor(main, health) {
    this.main = main;
    this.health = health;
    this.key = "";
    this.adding = false;
  }

  // Show a place; what is there already stays, so that nothing jumps.
  async show(place, signal, before) {
    this.place = place;
    const key = place.photo || place.upload;
    if (key !== this.key || !this.main.contains(this.root)) await this.build(place, signal);
    this.key = key;
    this.update();
    return this.answer(signal, before);
  }

  async build(place, signal) {
    const path = place.upload ? `/api/uploads/${place.upload}` : `/api/photos/${place.photo}`;
    const photo = await call(path, { signal });
    this.photo = photo;
    this.adding = false;
    const known = photo.width && photo.height;
    const actions = {
      pick: (number, add) => this.pick(number, add || this.adding),
      draw: (box) => this.add({ boxes: [box] }),
      change: (i, box) => this.change(i, box),
    };
    this.stage = known ? new Stage(pictureOf(place), photo, actions, this.health.network) : null;
    this.chips = h("ul", { class: "chosen-list", "aria-label": T.searching });
    this.toggle = h("button", {
      type: "button", class: "button", title: T.addMoreHelp, "aria-pressed": "false",
      onclick: () => {
        this.adding = !this.adding;
        this.toggle.setAttribute("aria-pressed", String(this.adding));
      },
    }, T.addMore);
    const draw = h("button", {
      type: "button", class: "button", title: T.drawHelp,
      onclick: () => this.stage.startDrawing(),
    }, T.draw);
    this.filter = h("select", {
      id: "class-filter",
      onchange: () => this.go({ class: this.filter.value }),
    }, h("option", { value: "" }, T.anyClass),
    Object.keys(this.health.classes).map((name) => h("option", { value: name }, name)));
    this.slider = h("input", {
      id: "blend", type: "range", min: 0, max: WEIGHTS.length - 1, step: 1,
      onchange: () => this.go({ blend: WEIGHTS[this.slider.value] }),
    });
    this.blend = h("div", { class: "field blend" },
      h("label", { for: "blend" }, T.blend),
      h("span", { class: "ends" }, h("span", {}, T.blendObject), h("span", {}, T.blendScene)),
      this.slider);
    const hint = photo.objects.length
      ? (this.health.network ? T.hint : T.hintStored) : T.noObjects;
    this.results = h("section", { class: "results", "aria-label": T.answers });
    this.root = h("div", { class: "search" },
      h("aside", { class: "query", "aria-label": T.query },
        this.stage ? this.stage.node : h("p", { class: "missing" }, T.missing),
        h("p", { class: "hint" }, hint),
        this.chips,
        h("div", { class: "tools" },
          photo.objects.length ? this.toggle : null,
          this.health.network && this.stage ? draw : null),
        h("div", { class: "field" },
          h("label", { for: "class-filter" }, T.classFilter), this.filter),
        this.blend,
        photo.classes?.length ? h("p", { class: "muted" }, T.seen(photo.classes)) : null,
        h("p", { class: "muted file" }, photo.file_name || "")),
      this.results);
    this.main.replaceChildren(this.root);
  }

  update() {
    const { objects, boxes, blend } = this.place;
    this.stage?.show(objects, boxes);
    this.filter.value = this.place.class;
    this.slider.value = Math.max(0, WEIGHTS.findIndex((weight) => weight >= blend));
    this.blend.hidden = !(objects.length || boxes.length);
    const chip = (text, action) =>
      h("li", {}, h("span", {}, text),
        h("button", { type: "button", "aria-label": T.remove(text), onclick: action }, "×"));
    const chips = [
      ...objects.map((number) =>
        chip(this.nameOf(number), () => this.go({ objects: objects.filter((x) => x !== number) }))),
      ...boxes.map((box, i) => chip(T.box, () => this.go({ boxes: boxes.filter((_, j) => j !== i) }))),
    ];
    this.chips.replaceChildren(...(chips.length
      ? chips : [h("li", { class: "plain" }, h("span", {}, T.wholePhoto))]));
  }

  nameOf(number) {
    return this.photo.objects[number - 1]?.class_name || String(number);
  }

  pick(number, add) {
    const { objects, boxes } = this.place;
    const has = objects.includes(number);
    if (add) {
      this.go({ objects: has ? objects.filter((x) => x !== number) : [...objects, number] });
    } else if (has && objects.length + boxes.length === 1) {
      this.go({ objects: [] }); // the second click takes the choice back
    } else {
      this.go({ objects: [number], boxes: [] });
    }
  }

  add({ boxes }) {
    const kept = this.adding ? this.place : { objects: [], boxes: [] };
    this.go({ objects: kept.objects, boxes: [...kept.boxes, ...boxes] });
  }

  change(i, box) {
    this.place = { ...this.place, boxes: this.place.boxes.map((old, j) => (j === i ? box : old)) };
    this.update();
    clearTimeout(this.moving);
    const place = this.place;
    this.moving = setTimeout(() => go(write(place)), 400);
  }

  go(changes) {
    const place = { ...this.place, ...changes };
    if (!place.objects.length && !place.boxes.length) place.blend = 0;
    go(write(place));
  }

  // Answers

  async answer(signal, before) {
    const address = write(this.place).slice(2);
    const load = (offset) =>
      call(`/api/search?${address}&offset=${offset}&limit=${PAGE}`, { signal });
    this.results.setAttribute("aria-busy", "true");
    const slow = setTimeout(() => this.results.replaceChildren(skeletons(12)), 250);
    let first;
    try {
      first = await load(0);
    } finally {
      clearTimeout(slow);
      this.results.removeAttribute("aria-busy");
    }
    return this.list(first, load, before);
  }

  // before: where this list was left, if it was: its height, and whether far answers were shown.
  async list(first, load, { y = 0, far = false }) {
    const { cutoffs } = first;
    const bands = cutoffs && first.answers.every((one) => one.band) ? BANDS : [null];
    const bits = first.bits;
    const lists = {};
    const counts = { same: 0, similar: 0, far: 0 };
    const sections = bands.map((band) => {
      lists[band] = h("ol", { class: "grid" });
      return h("section", { class: `band ${band || ""}`, hidden: true },
        h("h2", {}, band ? [h("span", { class: "dot", "aria-hidden": "true" }), T[band]] : T.nearest),
        band ? h("p", { class: "muted" }, T.bandHelp(band, cutoffs, bits)) : null,
        lists[band]);
    });
    const place = (page) => {
      for (const answer of page.answers) {
        const band = bands.length > 1 ? answer.band : null;
        if (band) counts[band] += 1;
        lists[band].append(answerCard(answer, bits));
      }
      bands.forEach((band, i) => {
        if (lists[band].childElementCount && !(band === "far" && this.hidesFar)) {
          sections[i].hidden = false;
        }
      });
    };
    this.hidesFar = bands.length > 1 && !far;
    place(first);
    const grown = growing(h("span"), async (offset) => {
      const page = await load(offset + PAGE);
      place(page);
      return { items: [], more: page.more, count: PAGE };
    });
    const near = counts.same + counts.similar;
    const nothing = bands.length > 1 && !near;
    const nodes = [...sections];
    if (!first.answers.length) nodes.unshift(empty(T.noAnswers, T.noAnswersHelp));
    else if (nothing) nodes.unshift(empty(T.nothing, T.nothingHelp));
    if (this.hidesFar && counts.far) {
      const showFar = h("div", { class: "end" }, h("button", {
        type: "button", class: "button",
        onclick: () => {
          this.hidesFar = false;
          showFar.remove();
          sections.at(-1).hidden = false;
          sections.at(-1).querySelector("a")?.focus({ preventScroll: true });
          history.replaceState({ ...history.state, far: true }, "");
          grown.begin(first.more);
        },
      }, T.showFar));
      nodes.splice(-1, 0, showFar);
    } else if (first.answers.length) {
      grown.begin(first.more);
    }
    nodes.push(grown.end);
    for (const note of first.notes) nodes.push(h("p", { class: "muted note" }, note));
    this.results.replaceChildren(...nodes);
    status(bands.length > 1 ? T.foundStatus({ ...counts, nothing }) : T.found(first.answers.length, first.more));
    await grown.reach(y);
    this.results.dataset.shown = location.search; // tells what these answers are to
    return grown.stop;
  }
}
