// Asks the agent once a second for what is new, and more seldom where nobody looks.
"use strict";

page.isLive = true;

const viewer = Math.random().toString(36).slice(2);
let ticks = 0, isLooking = false;

async function look() {
  const known = page.runs[0];
  isLooking = true;
  try {
    const asked = known ? `since=${known.revision}&page=${known.page}` : "since=0";
    const answer = await fetch(`${location.pathname}/data.json?${asked}&viewer=${viewer}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const part = await answer.json();
    if (part) page.runs = [withPart(known, part)];
    page.lost = false;
  } catch {
    page.lost = true;
  }
  if (page.runs.length) drawPage();
  ticks = 0;
  isLooking = false;
}

/** Return how many ticks of a fifth of a second lie between two looks. */
function pause() {
  return page.lost || document.hidden ? 25 : page.runs.length ? 5 : 1;
}

setUp();
byId("static").replaceChildren(make("p", { class: "wait muted" }, "Waiting for the first step …"));
new Worker("/static/clock.js").onmessage = () => { if (++ticks >= pause() && !isLooking) look(); };
document.addEventListener("visibilitychange", () => { if (!document.hidden && !isLooking) look(); });
look();
