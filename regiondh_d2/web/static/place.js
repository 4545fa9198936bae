// The place in the page: all of it is in the address, so that links and the back button work.

export function read(address = location) {
  const values = new URLSearchParams(address.search);
  return {
    view: values.get("view") || "",
    photo: values.get("photo") || "",
    upload: values.get("upload") || "",
    objects: values.getAll("object").map(Number),
    boxes: values.getAll("box").map((box) => box.split(",").map(Number)),
    class: values.get("class") || "",
    blend: Number(values.get("blend")) || 0,
  };
}

export function write(place) {
  const values = new URLSearchParams();
  for (const name of ["view", "photo", "upload"]) if (place[name]) values.set(name, place[name]);
  for (const number of place.objects || []) values.append("object", number);
  for (const box of place.boxes || []) values.append("box", box.map(Math.round).join(","));
  if (place.class) values.set("class", place.class);
  if (place.blend) values.set("blend", place.blend);
  const text = values.toString().replaceAll("%2C", ",");
  return text ? `/?${text}` : "/";
}

let render = () => {};

export function start(show) {
  history.scrollRestoration = "manual";
  render = show;
  addEventListener("popstate", () => show(history.state || {}));
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-link]");
    const plain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    if (!link || event.button !== 0 || !plain) return;
    event.preventDefault();
    go(link.getAttribute("href"));
  });
  let timer = 0;
  addEventListener("scroll", () => {
    clearTimeout(timer);
    timer = setTimeout(remember, 100);
  }, { passive: true });
  show(history.state || {});
}

const remember = () => history.replaceState({ ...history.state, y: scrollY }, "");

export function go(address) {
  if (address === location.pathname + location.search) return;
  remember();
  history.pushState({}, "", address);
  render({});
}
