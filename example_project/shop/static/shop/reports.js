/* When a run that is shown above has ended, read the list of reports again. */
"use strict";

(() => {
  const runs = document.querySelector("[data-task-runs]");
  const known = new Set();

  /* Return how many runs have ended since this was asked last. */
  const ended = () => {
    const before = known.size;
    for (const run of runs.querySelectorAll("[data-finished]")) {
      known.add(run.dataset.taskRun);
    }
    return known.size - before;
  };

  const refresh = async () => {
    const answer = await fetch(location.href);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const list = page.getElementById("reports");
    if (list) {
      document.getElementById("reports").replaceWith(list);
    }
  };

  if (runs) {
    ended();
    new MutationObserver(() => ended() && refresh()).observe(runs, {
      childList: true,
      subtree: true,
    });
  }
})();
