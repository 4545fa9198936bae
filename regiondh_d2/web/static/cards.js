// Pictures of photos in frames of one shape, cut so that the object is seen.

import { write } from "./place.js";
import { clamp, h, percent } from "./parts.js";
import { T } from "./texts.js";

const [W, H] = [4, 3]; // the shape of a frame

// How a photo of some size lies in a frame, with the box in view if there is one.
export function fit(width, height, box) {
  const whole = Math.min(W / width, H / height);
  let scale = Math.max(W / width, H / height);
  let center = [width / 2, height / 2];
  if (box) {
    center = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
    const seen = 0.94 * Math.min(W / (box[2] - box[0]), H / (box[3] - box[1]));
    scale = clamp(seen, whole, scale);
  }
  const start = (room, size, middle) =>
    size <= room ? (room - size) / 2 : clamp(room / 2 - middle * scale, room - size, 0);
  return {
    scale,
    x: start(W, width * scale, center[0]),
    y: start(H, height * scale, center[1]),
  };
}

export function frame(photo, boxes = []) {
  const { width, height } = photo;
  const known = Boolean(width && height);
  const image = h("img", {
    src: `/api/photos/${photo.photo}/thumbnail`,
    alt: "",
    loading: "lazy",
    decoding: "async",
    onload: () => image.classList.add("there"),
    onerror: () => image.replaceWith(h("span", { class: "missing" }, T.missing)),
  });
  const node = h("div", { class: "frame" }, image);
  if (!known) return node;
  const { scale, x, y } = fit(width, height, boxes[0]);
  Object.assign(image.style, {
    left: percent(x / W),
    top: percent(y / H),
    width: percent((width * scale) / W),
    height: percent((height * scale) / H),
  });
  for (const box of boxes) {
    const style = {
      left: percent((x + box[0] * scale) / W),
      top: percent((y + box[1] * scale) / H),
      width: percent(((box[2] - box[0]) * scale) / W),
      height: percent(((box[3] - box[1]) * scale) / H),
    };
    node.append(h("span", { class: "mark", style }));
  }
  return node;
}

export const photoCard = (photo) =>
  h("li", { class: "card" },
    h("a", {
      href: write({ photo: photo.photo }),
      "data-link": true,
      "aria-label": T.searchWith("", photo.file_name),
    }, frame(photo)));

export function answerCard(answer, bits) {
  const objects = answer.objects.filter(Boolean);
  const numbers = [...new Set(objects.map((one) => one.number))];
  const name = objects.map((one) => one.class_name).filter((one, i, all) => all.indexOf(one) === i)
    .join(", ");
  const total = bits * Math.max(1, answer.objects.length);
  const words = [
    T.searchWith(name, answer.file_name),
    T.distance(answer.distance, total),
    answer.band ? T[answer.band] : "",
  ];
  return h("li", { class: `card answer ${answer.band || "plain"}` },
    h("a", {
      href: write({ photo: answer.photo, objects: numbers }),
      "data-link": true,
      "aria-label": words.filter(Boolean).join(". "),
      title: answer.file_name,
    },
    frame(answer, objects.map((one) => one.box)),
    h("span", { class: "line" },
      h("span", { class: "dot", "aria-hidden": "true" }),
      h("span", { class: "name" }, name || answer.file_name),
      answer.copies.length ? h("span", { class: "copies" }, T.copiesOf(answer.copies.length)) : null,
      h("span", { class: "distance" },
        T.distanceShort(answer.distance, total, answer.image_distance)))),
    numbers.length
      ? h("a", {
          class: "whole",
          href: write({ photo: answer.photo }),
          "data-link": true,
          "aria-label": `${T.whole}: ${answer.file_name}`,
        }, T.whole)
      : null);
}

export const skeletons = (count) =>
  h("ol", { class: "grid", "aria-hidden": "true" },
    Array.from({ length: count }, () =>
      h("li", { class: "card skeleton" }, h("div", { class: "frame" }), h("span", { class: "line" }))));
