// Asks the agent once a second for what is new.
"use strict";

page.isLive = true;

async function look() {
  const known = page.runs[0], since = known ? known.revision : 0;
  try {
    const answer = await fetch(`${location.pathname}/data.json?since=${since}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const part = await answer.json();
    if (part) page.runs = [withPart(known, part)];
    page.lost = false;
  } catch {
    page.lost = true;
  }
  if (page.runs.length) drawPage();
}

async function follow() {
  if (!document.hidden || !page.runs.length) await look();
  setTimeout(follow, page.lost ? 5000 : page.runs.length ? 1000 : 200);
}

setUp();
byId("static").replaceChildren(make("p", { class: "wait muted" }, "Waiting for the first step …"));
follow();
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
