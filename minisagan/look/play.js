// The page of minisagan play: says to the server what is chosen, and shows what comes back.
"use strict";
const $ = (id) => document.getElementById(id);
const START = { network: "generator", label: "", seed: 0, to: 1, t: 0, truncation: 3, gamma: 1, beside: "" };
const NONE = 3; // where the slider of truncation stands for none
let facts; // what the run has
let looked = null; // {image, y, x}: the point whose map is shown
let shown = []; // of each side: its elements, its step, its images

const ask = async (path, body) => {
  const reply = await fetch(path, body && { method: "POST", body: JSON.stringify(body) });
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error);
  return found;
};

const say = (text, wrong = false) => {
  $("line").textContent = text;
  $("line").classList.toggle("lost", wrong);
};

const short = (value) => String(Number(value.toPrecision(3)));
const chosen = (step) => ({
  network: $("network").value,
  step,
  label: $("label").value === "" ? null : Number($("label").value),
  seed: Number($("seed").value),
  to: Number($("to").value),
  t: Number($("t").value),
  truncation: Number($("truncation").value) === NONE ? null : Number($("truncation").value),
  gamma: Number($("gamma").value),
});
const steps = () => [$("step").value, $("beside").value].filter((step) => step !== "").map(Number);
const named = (found, n) => `image ${n + 1}${found.names ? `, ${found.names[n]}` : ""}`;

// Only the newest wish counts: while one is computed, those that come are forgotten but for the last.
const latest = (work) => {
  let running = false, again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    const begun = performance.now();
    const tick = setInterval(() => {
      $("busy").hidden = false;
      say(`Computing for ${Math.round((performance.now() - begun) / 1000)} s ...`);
    }, 700);
    try {
      while (again) {
        again = false;
        await work();
      }
    } catch (error) {
      say(error instanceof TypeError ? "minisagan play has ended: start it again." : error.message, true);
    } finally {
      running = false;
      clearInterval(tick);
      $("busy").hidden = true;
    }
  };
};

const option = (value, text) => {
  const found = document.createElement("option");
  [found.value, found.textContent] = [value, text];
  return found;
};

// As many sides as steps are chosen; a side stays when its step changes, and with it the focus in it.
const arrange = (count) => {
  while (shown.length > count) shown.pop().root.remove();
  while (shown.length < count) {
    const root = $("side").content.cloneNode(true).firstElementChild;
    $("sides").append(root);
    root.style.setProperty("--least", `${Math.max(72, facts.size / 2)}px`);
    const find = (selector) => root.querySelector(selector);
    const side = { root, sheet: find(".sheet"), look: find(".look"), picture: find(".picture"), map: find(".map") };
    for (const place of [side.picture, side.map]) {
      place.addEventListener("click", (event) => point(looked.image, ...pixel(event, place.querySelector("img"))));
    }
    side.picture.addEventListener("keydown", move);
    shown.push(side);
  }
};

const buttons = (side, found) => {
  while (side.sheet.children.length > found.images.length) side.sheet.lastChild.remove();
  while (side.sheet.children.length < found.images.length) {
    const n = side.sheet.children.length, button = document.createElement("button"), middle = facts.size >> 1;
    button.type = "button";
    button.append(document.createElement("img"), document.createElement("span"));
    button.firstChild.alt = ""; // the button has the name
    button.addEventListener("click", (event) => {
      const byKey = event.detail === 0; // Enter or space: there is no place, so the middle
      point(n, ...(byKey ? [middle, middle] : pixel(event, button.firstChild)));
    });
    side.sheet.append(button);
  }
  found.images.forEach((image, n) => {
    const button = side.sheet.children[n];
    button.firstChild.src = image;
    const score = found.scores && `D ${found.scores[n].toFixed(2)}`;
    button.setAttribute("aria-label", [named(found, n), score].filter(Boolean).join(", "));
    button.lastChild.textContent = [found.names?.[n], score].filter(Boolean).join(", ");
    button.setAttribute("aria-pressed", String(looked?.image === n));
  });
};

// The pixel [y, x] of the image under the mouse.
const pixel = (event, image) => {
  const box = image.getBoundingClientRect();
  const at = (place, begin, length) => Math.min(facts.size - 1, Math.max(0, Math.floor(((place - begin) / length) * facts.size)));
  return [at(event.clientY, box.top, box.height), at(event.clientX, box.left, box.width)];
};

const draw = latest(async () => {
  const wanted = steps();
  outputs();
  const begun = performance.now();
  const found = [];
  for (const step of wanted) found.push(await ask("/draw", chosen(step)));
  arrange(wanted.length);
  shown.forEach((side, k) => {
    Object.assign(side, { step: wanted[k], found: found[k] });
    const gamma = found[k].gamma === null ? "" : `, gamma ${short(found[k].gamma)}`;
    side.root.querySelector("h2").textContent = `Step ${wanted[k].toLocaleString("en")}${gamma}`;
    side.sheet.setAttribute("aria-label", `images of step ${wanted[k]}`);
    buttons(side, found[k]);
  });
  const milliseconds = Math.round(performance.now() - begun);
  document.body.dataset.milliseconds = milliseconds;
  if (looked && facts.attention) await showLook();
  say(`${found[0].images.length} images${wanted.length > 1 ? " of each step" : ""} in ${milliseconds} ms`);
});

const showLook = async () => {
  const { image, y, x } = looked;
  for (const side of shown) {
    const found = await ask("/look", { ...chosen(side.step), image, point: [y, x] });
    const [plain, map] = [side.picture, side.map].map((place) => place.querySelector("img"));
    const name = named(side.found, image);
    plain.src = side.found.images[image];
    map.src = found.picture;
    plain.alt = name;
    map.alt = `where ${name} looks from row ${y}, column ${x}`;
    side.picture.setAttribute("aria-label", `${name}, point at row ${y}, column ${x}; arrow keys move it`);
    for (const dot of side.look.querySelectorAll(".dot")) {
      dot.style.left = `${((x + 0.5) / facts.size) * 100}%`;
      dot.style.top = `${((y + 0.5) / facts.size) * 100}%`;
    }
    side.look.querySelector("h3").textContent = `Where ${name} looks from row ${y}, column ${x}`;
    side.look.querySelector(".numbers").textContent =
      `Largest weight ${short(found.greatest[0][2])}, drawn brightest (${short(found.uniform)} if all ${found.keys} were alike). ` +
      `Entropy ${found.entropy.toFixed(2)} of ${found.entropy_uniform.toFixed(2)} bits. ` +
      `It looks ${found.distance.toFixed(1)} pixels far on the mean.`;
    side.look.querySelector("tbody").replaceChildren(...found.greatest.map(([row, column, weight]) => {
      const line = document.createElement("tr");
      for (const text of [short(weight), `${row.toFixed(1)}, ${column.toFixed(1)}`]) {
        line.append(document.createElement("td"));
        line.lastChild.textContent = text;
      }
      return line;
    }));
    side.look.hidden = false;
    [...side.sheet.children].forEach((button, n) => button.setAttribute("aria-pressed", String(n === image)));
  }
};

const look = latest(async () => {
  const begun = performance.now();
  await showLook();
  document.body.dataset.looked = Math.round(performance.now() - begun);
  say(`Map in ${document.body.dataset.looked} ms`);
});

const point = (image, y, x) => {
  if (!facts.attention) return say("This run was trained without attention: there is no map.");
  looked = { image, y, x };
  look();
};

// Arrow keys go from one position of the attention to the next.
const move = (event) => {
  const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!way) return;
  event.preventDefault();
  const step = facts.cell, inside = (place) => Math.min(facts.size - 1, Math.max(0, place));
  point(looked.image, inside(looked.y + step * way[0]), inside(looked.x + step * way[1]));
};

const outputs = () => {
  const made = $("network").value === "generator", value = (id) => Number($(id).value);
  for (const part of document.querySelectorAll(".made")) part.hidden = !made;
  $("seed-name").textContent = made ? "Latents" : "Order";
  $("new").setAttribute("aria-label", made ? "New latents" : "New order");
  $("t-said").textContent = `${Math.round(100 * value("t"))} %`;
  $("truncation-said").textContent = value("truncation") === NONE ? "none" : `within ±${value("truncation")}`;
  $("gamma-said").textContent = `${value("gamma")} times its value`;
  for (const id of ["t", "truncation", "gamma"]) $(id).setAttribute("aria-valuetext", $(`${id}-said`).textContent);
};

const reset = () => {
  for (const [id, value] of Object.entries(START)) $(id).value = value;
  $("step").value = facts.step;
  looked = null;
  for (const side of shown) side.look.hidden = true;
  draw();
};

const begin = async () => {
  facts = await ask("/facts");
  document.title = $("title").textContent = `play ${facts.run}`;
  $("label").append(option("", "all in turn"), ...facts.classes.map((name, k) => option(k, name)));
  $("step").append(...facts.steps.map((step) => option(step, step)));
  $("beside").append(option("", "nothing"), ...facts.steps.map((step) => option(step, `step ${step}`)));
  $("for-label").hidden = !facts.classes.length;
  $("for-gamma").hidden = !facts.attention;
  $("network").lastElementChild.disabled = facts.no_data !== "";
  const hints = [
    facts.attention
      ? "Click a point of an image, or choose it with Enter, to see where it looks; arrow keys move the point."
      : "This run was trained without attention: it has no gamma, and no maps.",
    facts.classes.length ? "" : "It was trained without classes.",
    facts.no_data && `No real images for the discriminator: ${facts.no_data}.`,
  ];
  $("hint").textContent = hints.filter(Boolean).join(" ");
  for (const id of ["network", "label", "step", "beside", "seed", "to", "t", "truncation", "gamma"]) {
    $(id).addEventListener($(id).tagName === "SELECT" ? "change" : "input", draw);
  }
  for (const [button, id] of [["new", "seed"], ["new-to", "to"]]) {
    $(button).addEventListener("click", () => {
      $(id).value = Math.floor(Math.random() * 1e6);
      draw();
    });
  }
  $("reset").addEventListener("click", reset);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  reset();
};
begin().catch((error) => say(error.message, true));
