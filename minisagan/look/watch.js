// Asks how the run is, and replaces the sections of its report that changed.
"use strict";
const PAUSE = 3000; // milliseconds between two questions
const line = document.getElementById("line");
const sections = document.getElementById("sections");
const stamps = {}; // of what is shown, section -> stamp

const get = async (path) => {
  const reply = await fetch(path);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error);
  return found;
};

const say = (text, lost) => {
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle("lost", lost);
};

// The section's place: there from the start, in the report's order, empty where the run has nothing for it.
const place = (name) => {
  let found = document.getElementById(`place-${name}`);
  if (!found) {
    found = document.createElement("div");
    found.id = `place-${name}`;
    sections.append(found);
  }
  return found;
};

// Asks for the sections that changed, in their order, unless that is still being done.
let renewing = false;
const renew = async (wanted) => {
  if (renewing) return;
  renewing = true;
  for (const [name, stamp] of Object.entries(wanted)) {
    if (stamps[name] === stamp) continue;
    try {
      const found = await get(`/section/${name}`);
      place(name).innerHTML = found.html;
      stamps[name] = found.stamp;
    } catch (error) {
      if (error instanceof TypeError) break; // nobody listens any more, which `follow` will say
      place(name).textContent = `${name}: ${error.message}`;
    }
  }
  const heading = document.querySelector("h1");
  if (heading) document.title = heading.textContent;
  renewing = false;
};

const follow = async () => {
  try {
    const state = await get("/state");
    for (const name of Object.keys(state.sections)) place(name);
    say(state.status, false);
    renew(state.sections); // not awaited: maps may take long, and the line above is to go on
  } catch (error) {
    const gone = error instanceof TypeError; // what fetch throws when nobody listens
    say(gone ? "minisagan watch has ended: this is the last it showed. Started again, it goes on here." : error.message, true);
  }
  setTimeout(follow, PAUSE);
};
follow();
