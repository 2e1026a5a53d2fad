// Tells a page the time: the timers of a tab that nobody looks at are slowed down, those of a worker are not.
"use strict";

setInterval(() => postMessage(null), 200);
