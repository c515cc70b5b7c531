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

const follow = async () => {
  try {
    const state = await get("/state");
    for (const name of Object.keys(state.sections)) place(name);
    say(state.status, false);
    for (const [name, stamp] of Object.entries(state.sections)) {
      if (stamps[name] === stamp) continue;
      const found = await get(`/section/${name}`);
      place(name).innerHTML = found.html;
      stamps[name] = found.stamp;
    }
    const heading = document.querySelector("h1");
    if (heading) document.title = heading.textContent;
  } catch (error) {
    const gone = error instanceof TypeError; // what fetch throws when nobody listens
    say(gone ? "minisagan watch has ended: this is the last it showed. Started again, it goes on here." : error.message, true);
  }
  setTimeout(follow, PAUSE);
};
follow();
