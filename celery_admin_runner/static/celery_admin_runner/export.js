// Tick or untick all columns of the export page at once.
document.addEventListener("DOMContentLoaded", () => {
  const row = document.querySelector(".run-all-columns");
  const all = row.querySelector("input");
  const boxes = [...document.querySelectorAll(".run-columns input")];
  const show = () => {
    const ticked = boxes.filter((box) => box.checked).length;
    all.checked = ticked === boxes.length;
    all.indeterminate = ticked > 0 && ticked < boxes.length;
  };
  all.addEventListener("change", () => boxes.forEach((box) => { box.checked = all.checked; }));
  boxes.forEach((box) => box.addEventListener("change", show));
  row.hidden = false;
  show();
});
