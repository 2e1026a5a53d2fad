// Shows what stands in the file itself.
"use strict";

setUp();
page.runs = JSON.parse(document.getElementById("data").textContent).runs.map((each) => withPart(null, each));
drawPage();
